"""Features that evaluations keep for each other, and those that --protocol=features writes."""

import json

import numpy as np
import pytest
import tensorflow as tf
from image_folder import folder_of
from sklearn.datasets import load_digits

from simsiam_tf.evaluation import feature_file, run
from simsiam_tf.schema import UserError


def test_two_replicas_extract_the_features_of_one(program, tiny_run, tmp_path):
    found = []
    for replicas in (1, 2):
        output = tmp_path / f"{replicas}.npz"
        finished = program(
            "evaluate.py", f"--encoder={tiny_run / 'encoder'}", "--protocol=features",
            f"--cpu_replicas={replicas}", f"--output={output}", "--feature_batch_size=101",
            f"--feature_cache={tmp_path / str(replicas)}",
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        assert f"on {replicas} replica(s)" in finished.stderr
        with np.load(output) as file:
            found.append(file["features"])
    one, two = found
    assert one.shape == two.shape == (360, 128)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


def test_an_image_is_encoded_once_for_all_protocols(evaluate):
    _, encoded = evaluate(protocol="probe", probe_epochs=1)
    assert encoded == 1437 + 360
    for settings in ({"protocol": "knn"}, {"protocol": "probe"}, {"protocol": "knn", "knn_k": 3}):
        assert evaluate(**settings)[1] == 0


def test_features_are_kept_beside_the_encoder_or_in_the_folder_of_the_flag(evaluate, tmp_path):
    evaluate(train_split="train[:20]")
    assert len(list((tmp_path / "features").iterdir())) == 2
    evaluate(train_split="train[:20]", feature_cache=str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_other_images_views_or_encoders_are_encoded_again(evaluate, pixels_encoder):
    evaluate()
    assert evaluate(train_split="train[:700]")[1] == 700
    assert evaluate(eval_crop_ratio=0.875)[1] == 1437 + 360
    with open(pixels_encoder / "saved_model.pb", "ab") as file:
        file.write(b"\x0a\x00")  # an empty field: the file changes, the model does not
    assert evaluate()[1] == 1437 + 360


def test_a_split_whose_images_changed_is_encoded_again(evaluate, tmp_path):
    paths = [
        f"{split}/{name}/{number}.png"
        for split in ("train", "test")
        for name in ("cat", "dog")
        for number in range(3)
    ]
    settings = folder_of(tmp_path / "data", *paths)
    assert [evaluate(**settings)[1] for _ in range(2)] == [12, 0]
    (tmp_path / "data" / "train" / "dog" / "2.png").write_bytes(
        tf.io.encode_png(np.full((8, 8, 3), 255, np.uint8)).numpy()
    )
    assert evaluate(**settings)[1] == 6


@pytest.fixture
def some_images(tmp_path):
    """Settings of a folder of four files: three images of one grey level each, and no image."""
    settings = folder_of(tmp_path / "data", *(f"train/{name}" for name in ("a.png", "c.png")))
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        image = np.full((8, 8, 3), 10 * number, np.uint8)
        (tmp_path / "data" / "train" / name).write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "data" / "train" / "b.png").write_bytes(b"no image")
    return settings | {
        "eval_split": "train", "on_bad_image": "skip", "max_bad_fraction": 0.5,
        "eval_crop_ratio": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["npz", "tfrecord"])
def test_the_file_of_unlabelled_features_names_their_images_and_facts(
    evaluation_config, pixels_encoder, some_images, tmp_path, capsys, ending
):
    output = tmp_path / f"features.{ending}"
    settings = some_images | {"encoder": str(pixels_encoder), "protocol": "features"}
    run.run(evaluation_config(**settings, output=str(output)))
    result = json.loads(capsys.readouterr().out)
    assert (result["num_images"], result["num_features"]) == (3, 8 * 8 * 3)
    paths = [str(tmp_path / "data" / "train" / name) for name in ("a.png", "c.png", "d.png")]
    expected = np.repeat([[-100], [-80], [-70]], 8 * 8 * 3, axis=1)
    if ending == "npz":
        with np.load(output) as file:
            arrays = dict(file)
        assert json.loads(str(arrays["facts"])) == result
        assert arrays["class_names"].tolist() == []
        assert arrays["paths"].tolist() == paths
        found, labels, indices = (arrays[name] for name in ("features", "labels", "indices"))
    else:
        beside = json.loads((tmp_path / "features.tfrecord.json").read_text())
        assert beside == {"class_names": [], "facts": result}
        spec = {
            "features": tf.io.FixedLenFeature([8 * 8 * 3], tf.float32),
            "label": tf.io.FixedLenFeature([], tf.int64),
            "index": tf.io.FixedLenFeature([], tf.int64),
            "path": tf.io.FixedLenFeature([], tf.string),
        }
        records = list(tf.data.TFRecordDataset(str(output)))
        examples = tf.io.parse_example(tf.stack(records), spec)
        assert [path.decode() for path in examples["path"].numpy()] == paths
        found, labels, indices = (examples[name].numpy() for name in ("features", "label", "index"))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert labels.tolist() == [-1, -1, -1]
    assert indices.tolist() == [0, 2, 3]
    assert not list(tmp_path.glob("*.partial"))


def test_features_of_a_labelled_split_have_its_labels_and_classes(evaluate, tmp_path):
    output = tmp_path / "features.npz"
    _, encoded = evaluate(protocol="features", eval_split="test", output=str(output))
    assert encoded == 360
    with np.load(output) as file:
        assert file["indices"].tolist() == list(range(360))
        assert file["class_names"].tolist() == list("0123456789")
        assert len(file["paths"]) == 0
        features, labels = file["features"], file["labels"]
    assert np.bincount(labels).tolist() == np.bincount(load_digits().target[::5]).tolist()
    # The other protocols use the same features, so only the training split is encoded.
    assert evaluate(protocol="knn")[1] == 1437
    assert features.shape == (360, 8 * 8 * 3)


@pytest.mark.parametrize("output", ["", "features.h5", "npz"])
def test_features_need_an_npz_or_tfrecord_file(evaluation_config, output):
    with pytest.raises(UserError, match=rf"ends in \.npz or \.tfrecord\. Received: {output}$"):
        evaluation_config(encoder="x", protocol="features", output=output)


def test_features_that_cannot_be_written_are_a_user_error_and_leave_no_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"--output cannot be written \(No space left on device\)"):
        feature_file.save(str(tmp_path / "f.npz"), np.zeros((1, 2)), [0], [0], [], [], {})
    assert not list(tmp_path.iterdir())
