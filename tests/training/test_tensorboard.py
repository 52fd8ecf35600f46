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

from simsiam_tf import config as config_lib
from simsiam_tf import schema
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


def test_std_has_its_lines_and_the_spectrum_comes_each_epoch(of_tiny_run):
    stds = scalars(of_tiny_run, "feature_std")
    assert scalars(of_tiny_run, "feature_std_healthy") == [1.0] * len(stds)
    np.testing.assert_allclose(scalars(of_tiny_run, "feature_std_collapsed"), [0.3] * len(stds))
    ranks = scalars(of_tiny_run, "effective_rank")
    assert len(ranks) == len(scalars(of_tiny_run, "knn_top1")) == 3
    assert all(1 < rank <= 128 for rank in ranks)
    histograms = json.loads(of_tiny_run("histograms/histograms", run=".", tag="singular_values"))
    assert [step for _, step, _ in histograms] == [0, 22, 44]


def test_weights_have_histograms_when_they_are_due(of_tiny_run):
    tags = json.loads(of_tiny_run("histograms/tags"))["."]
    weights = [tag for tag in tags if tag.startswith("weights/")]
    assert len(weights) == 36 + 7 + 5  # of ResNet-10, projector and predictor
    histograms = json.loads(of_tiny_run("histograms/histograms", run=".", tag=weights[0]))
    assert [step for _, step, _ in histograms] == [44]


def test_settings_that_define_the_run_are_its_hyper_parameters(of_tiny_run, tiny_run):
    experiment = json.loads(of_tiny_run("hparams/experiment", {"experimentName": ""}))
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert names == schema.run_defining_names(config_lib.PretrainConfig)
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert metrics == ["knn_top1", "feature_std", "loss"]
    columns = [{"metric": {"tag": tag, "group": ""}} for tag in metrics]
    request = {
        "experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING"],
        "colParams": columns, "startIndex": 0, "sliceSize": 10,
    }  # fmt: skip
    (group,) = json.loads(of_tiny_run("hparams/session_groups", request))["sessionGroups"]
    assert group["hparams"]["width"] == 16
    assert group["hparams"]["stem"] == "cifar"
    summary = json.loads((tiny_run / "summary.json").read_text())
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert values == pytest.approx({name: summary[name] for name in metrics}, rel=1e-6)


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
