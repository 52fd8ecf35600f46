"""What TensorBoard itself says of a run, asked over its own server."""

import io
import json
import re
import urllib.parse
import urllib.request
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard import program as tensorboard_program

from simsiam_tf import schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.reporting import record
from simsiam_tf.training import tensorboard


def serve(folder):
    """(path, **parameters) → what the plugins of a TensorBoard for a folder answer, bytes.

    What it has read by then is all that there is.
    """
    board = tensorboard_program.TensorBoard()
    board.configure(
        logdir=str(folder), host="127.0.0.1", port=0, load_fast="false", reload_interval=0.0,
        reload_task="blocking",
    )  # fmt: skip
    address = board.launch()

    def ask(path, body=None, **parameters):
        url = f"{address}data/plugin/{path}?{urllib.parse.urlencode(parameters)}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    return ask


@pytest.fixture(scope="module")
def of_tiny_run(tiny_run):
    """(path, …) → what a TensorBoard for the tiny run answers."""
    return serve(tiny_run / "tensorboard")


def test_every_chart_of_the_layout_has_a_curve(of_tiny_run):
    layout = json.loads(of_tiny_run("custom_scalars/layout"))
    tags = json.loads(of_tiny_run("scalars/tags"))["."]
    first, _ = layout["category"]
    assert first["title"] == "Is it healthy?"
    for category in layout["category"]:
        for chart in category["chart"]:
            for pattern in chart["multiline"]["tag"]:
                assert any(re.search(pattern, tag) for tag in tags), pattern


def scalars(ask, tag):
    return [value for _, _, value in json.loads(ask("scalars/scalars", run=".", tag=tag))]


def test_the_rank_and_the_spectrum_come_each_epoch(of_tiny_run):
    ranks = scalars(of_tiny_run, "health/effective_rank")
    assert len(ranks) == len(scalars(of_tiny_run, "health/knn_top1")) == 3
    assert all(1 < rank <= 128 for rank in ranks)
    name = "health/singular_values"
    histograms = json.loads(of_tiny_run("histograms/histograms", run=".", tag=name))
    assert [step for _, step, _ in histograms] == [0, 22, 44]


def test_weights_have_histograms_when_they_are_due(of_tiny_run):
    tags = json.loads(of_tiny_run("histograms/tags"))["."]
    weights = [tag for tag in tags if tag.startswith("weights/")]
    assert len(weights) == 36 + 7 + 5  # of ResNet-10, projector and predictor
    histograms = json.loads(of_tiny_run("histograms/histograms", run=".", tag=weights[0]))
    assert [step for _, step, _ in histograms] == [44]


def test_every_curve_is_in_a_group_varies_and_says_what_it_is(of_tiny_run):
    found = json.loads(of_tiny_run("scalars/tags"))["."]
    assert {tag.partition("/")[0] for tag in found} == {"health", "optimization", "speed"}
    assert all(facts["description"] for facts in found.values())
    assert not [tag for tag in found if len(set(scalars(of_tiny_run, tag))) == 1]


def test_the_first_card_says_how_the_run_is(of_tiny_run, tiny_run):
    pictures = json.loads(of_tiny_run("images/tags"))["."]
    assert min([*pictures, *json.loads(of_tiny_run("scalars/tags"))["."]]) == "Run/verdict"
    cards = json.loads(of_tiny_run("images/images", run=".", tag="Run/verdict", sample="0"))
    assert [card["step"] for card in cards] == [22, 44]
    picture = Image.open(io.BytesIO(of_tiny_run(f"images/individualImage?{cards[-1]['query']}")))
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    word, sentences = record.read(str(tiny_run)).verdict
    greenest = {"healthy": 1, "doubtful": 0}[word]  # green, or ochre
    assert pixels[0, 0].argmax() == greenest
    assert (pixels[80:].sum(axis=2) < 200).sum() > 1000  # there are letters
    (*_, text) = json.loads(of_tiny_run("text/text", run=".", tag="Run/verdict_text"))
    assert f"{word.capitalize()}." in text["text"]
    assert sentences[:40] in text["text"]


def test_flags_that_are_not_the_defaults_are_the_hyper_parameters(of_tiny_run, tiny_run):
    experiment = json.loads(of_tiny_run("hparams/experiment", {"experimentName": ""}))
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert (
        {"width", "stem", "base_learning_rate"} < names < schema.run_defining_names(PretrainConfig)
    )
    assert "momentum" not in names  # as in the default
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    wanted = ["knn_top1", "effective_rank", "feature_std", "loss"]
    assert metrics == [f"health/{name}" for name in wanted]
    columns = [{"metric": {"tag": tag, "group": ""}} for tag in metrics]
    request = {
        "experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING"],
        "colParams": columns, "startIndex": 0, "sliceSize": 10,
    }  # fmt: skip
    (group,) = json.loads(of_tiny_run("hparams/session_groups", request))["sessionGroups"]
    assert group["name"] == tiny_run.name
    assert group["hparams"]["width"] == 16
    assert group["hparams"]["stem"] == "cifar"
    summary = json.loads((tiny_run / "summary.json").read_text())
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    del values["health/effective_rank"]  # which the summary has not
    expected = {f"health/{name}": summary[name] for name in wanted if name != "effective_rank"}
    assert values == pytest.approx(expected, rel=1e-6)


def test_the_projector_has_the_images_with_features_and_labels(of_tiny_run):
    info = json.loads(of_tiny_run("projector/info", run="."))
    (embedding,) = info["embeddings"]
    assert embedding["tensorShape"] == [360, 128]
    features = np.frombuffer(
        of_tiny_run("projector/tensor", run=".", name="features"), np.float32
    ).reshape(360, 128)
    labels = of_tiny_run("projector/metadata", run=".", name="features").decode().splitlines()
    assert sorted(set(labels)) == list("0123456789")
    sprites = of_tiny_run("projector/sprite_image", run=".", name="features")
    assert Image.open(io.BytesIO(sprites)).size == (19 * 16, 19 * 16)  # 19² is the next to 360
    # The features are of these labels: most have a nearest neighbour of the same.
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(360)
    labels = np.array(labels)
    assert np.mean(labels[cosines.argmax(axis=1)] == labels) > 0.5


def test_sprites_are_in_the_order_of_the_features(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
    images = np.broadcast_to(images * 40, [5, 2, 3, 3])
    names = ("a\tb", "c\nd")
    tensorboard.write_projector(str(tmp_path), np.eye(5), np.array([0, 1, 0, 1, 0]), images, names)
    sprites = np.asarray(Image.open(tmp_path / "sprites.png"))
    assert sprites.shape == (3 * 2, 3 * 3, 3)
    np.testing.assert_array_equal(sprites[::2, ::3, 0], [[0, 40, 80], [120, 160, 0], [0, 0, 0]])
    assert (tmp_path / "labels.tsv").read_text() == "a b\nc d\na b\nc d\na b\n"


def test_images_without_labels_are_in_the_projector_too(tmp_path):
    images = np.zeros([3, 2, 2, 3], np.uint8)
    tensorboard.write_projector(str(tmp_path), np.eye(3, 2), np.array([-1] * 3), images, ())
    (embedding,) = json.loads(serve(tmp_path)("projector/info", run="."))["embeddings"]
    assert embedding["tensorShape"] == [3, 2]
    assert "metadataPath" not in embedding


def test_a_weight_is_named_by_its_layer(tmp_path):
    layer = keras.layers.Dense(2, name="head")
    layer.build([None, 3])
    summaries = tf.summary.create_file_writer(str(tmp_path))
    with summaries.as_default(7):
        tensorboard.write_weights(SimpleNamespace(learned_variables=layer.trainable_variables))
    summaries.close()
    tags = json.loads(serve(tmp_path)("histograms/tags"))["."]
    assert sorted(tags) == ["weights/head/bias", "weights/head/kernel"]
