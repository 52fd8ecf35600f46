"""Tests of `evaluate.py`, as a program of its own where that makes a difference."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from simsiam_tf import flags
from simsiam_tf.evaluation import feature_cache, feature_file, run
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError


@pytest.fixture
def evaluate_here(tfds_dir, capsys):
    """(*flags) → the last line of stdout, of `evaluate.py` in the test's process."""

    def evaluate(*arguments):
        run.run(flags.read([*arguments, f"--data_dir={tfds_dir}"], EvaluationConfig))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return evaluate


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("knn", {"knn_k": 20}),
        ("probe", {"probe_epochs": 5}),
        (
            "linear",
            {"batch_size": 64, "epochs": 2, "base_learning_rate": 20.0},
        ),
        ("finetune", {"finetune_epochs": 1, "finetune_batch_size": 64}),
    ],
)
def test_the_result_is_the_last_line_of_stdout_and_the_output_file(
    evaluate_here, tiny_run, tmp_path, protocol, settings
):
    output = tmp_path / "results.json"
    result = evaluate_here(
        f"--encoder={tiny_run / 'encoder'}", f"--protocol={protocol}", f"--output={output}",
        *(f"--{name}={value}" for name, value in settings.items()),
    )  # fmt: skip
    assert result == json.loads(output.read_text())
    assert result["protocol"] == protocol
    assert (result["num_train"], result["num_test"], result["num_classes"]) == (1437, 360, 10)
    assert settings.items() | {"seed": 0}.items() <= result["settings"].items()
    assert result["encoder"] == str(tiny_run / "encoder")
    assert result["encoder_sha256"] == feature_cache.hash_of_folder(tiny_run / "encoder")
    assert result["fingerprints"].keys() == {"train_split", "eval_split"}
    assert "digits/1.0.0 test" in result["fingerprints"]["eval_split"]
    assert result["versions"]["tensorflow"] == tf.__version__
    assert 0 < result["top1"] < result["top5"] <= 100


def test_an_encoder_is_fine_tuned_on_a_share_of_the_labels_by_two_replicas(program, tiny_run):
    finished = program(
        "evaluate.py", f"--encoder={tiny_run / 'encoder'}", "--protocol=finetune",
        "--label_fraction=0.1", "--finetune_batch_size=16", "--finetune_head_learning_rate=1",
        "--strategy=mirrored", "--cpu_replicas=2", "--crop_min_area=0.8", "--flip_probability=0",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "on 2 replica(s)" in finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert 130 < result["num_train"] < 157
    assert result["settings"]["finetune_epochs"] == 30
    assert result["top1"] > 60


def test_a_saved_model_of_another_program_cannot_be_fine_tuned(program, pixels_encoder):
    finished = program(
        "evaluate.py", f"--encoder={pixels_encoder}", "--image_size=8", "--protocol=finetune"
    )
    assert finished.returncode == 1
    assert "--encoder must be an encoder that this version" in finished.stderr.splitlines()[-1]


def test_knn_top1_equals_the_last_value_of_the_runs_monitor(evaluate_here, tiny_run, tmp_path):
    result = evaluate_here(
        f"--encoder={tiny_run / 'encoder'}", "--knn_k=20", f"--feature_cache={tmp_path}"
    )
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert result["top1"] == pytest.approx(summary["knn_top1"], abs=0.3)


@pytest.fixture
def pixels_encoder(tmp_path):
    """A SavedModel of another program with the same signature; its features are the pixels."""
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {"features": tf.reshape(images, [-1, 8 * 8 * 3]) - 100},
        [tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")],
    )
    tf.saved_model.save(module, str(tmp_path / "pixels"), {"serving_default": module.serve})
    return tmp_path / "pixels"


def test_any_saved_model_of_the_signature_is_evaluated(program, pixels_encoder):
    finished = program(
        "evaluate.py", f"--encoder={pixels_encoder}", "--image_size=8", "--eval_crop_ratio=1",
        "--knn_k=1",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    # One nearest neighbour on the pixels of the digits is known to be accurate.
    assert json.loads(finished.stdout.splitlines()[-1])["top1"] > 95


@pytest.fixture
def evaluate(evaluation_config, pixels_encoder, tfds_dir, capsys):
    """(**settings) → the result on the pixels of the digits, and the number of encoded images."""
    settings = {
        "encoder": str(pixels_encoder),
        "data_dir": str(tfds_dir),
        "image_size": 8,
        "eval_crop_ratio": 1.0,
    }

    def run_it(**more):
        encoded = []
        with pytest.MonkeyPatch.context() as patch:

            def load(directory):
                encode, description = saved_model.load(directory)

                def encode_and_count(images):
                    encoded.append(images.shape[0] or 0)
                    return encode(images)

                return encode_and_count, description

            patch.setattr(
                run, "saved_model", SimpleNamespace(load=load, versions=saved_model.versions)
            )
            run.run(evaluation_config(**settings | more))
        return json.loads(capsys.readouterr().out.splitlines()[-1]), sum(encoded)

    return run_it


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "knn"},
        {"protocol": "probe", "probe_epochs": 1},
        {"protocol": "linear", "epochs": 1, "batch_size": 500},
        {"protocol": "spectrum", "eval_split": "train[:300]"},
    ],
    ids=lambda settings: settings["protocol"],
)
def test_two_replicas_give_the_result_of_one_for_every_protocol(
    evaluate, two_replicas, monkeypatch, tmp_path, settings
):
    settings = {"feature_batch_size": 32} | settings
    one, encoded = evaluate(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(run.devices, "build_strategy", lambda config: two_replicas)
        two, encoded_outside_of_replicas = evaluate(**settings, feature_cache=str(tmp_path / "two"))
    assert (
        encoded_outside_of_replicas < encoded / 2
    )  # replicas are counted only when they are traced
    names = [name for name in one if isinstance(one[name], float)]
    assert len(names) >= 2
    assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4)


def test_a_large_batch_of_the_linear_protocol_is_encoded_in_pieces(evaluate, monkeypatch):
    sizes = []
    original = run.encoding.on_all_replicas

    def spy(strategy, encode, piece_size):
        return original(strategy, lambda images: sizes.append(len(images)) or encode(images), 64)

    monkeypatch.setattr(run.encoding, "on_all_replicas", spy)
    evaluate(protocol="linear", epochs=1, batch_size=1000)
    assert sum(sizes) == 360 + 1000
    assert max(sizes) == 64


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


@pytest.mark.parametrize("strategy", ["multi_worker", "auto"])
def test_an_evaluation_joins_no_cluster(evaluation_config, monkeypatch, strategy):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    if strategy == "multi_worker":
        match = "An evaluation is one process.*Received: --strategy=multi_worker"
    else:
        match = "--encoder must be a folder that exists"  # so the strategy was built
    assert_refused(evaluation_config, match, encoder="/nowhere", strategy=strategy)


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


def test_the_test_split_does_not_influence_the_choice_of_the_probe(evaluate):
    settings = {"protocol": "probe", "train_split": "train[:600]", "probe_epochs": 5}
    first, _ = evaluate(**settings, eval_split="test")
    second, _ = evaluate(**settings, eval_split="train[600:]")
    assert first["num_test"] != second["num_test"]
    assert first["chosen"] == second["chosen"]
    assert 0 < first["chosen"]["held_out_top1"] <= 100


def test_the_spectrum_needs_no_labels_and_takes_a_folder_without_splits_whole(
    evaluation_config, pixels_encoder, tmp_path, capsys
):
    folder_of(tmp_path / "data", *(f"{number}.png" for number in range(5)))
    for number in range(4):  # the fifth image stays black
        image = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        (tmp_path / "data" / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    output = tmp_path / "results.json"
    run.run(
        evaluation_config(
            encoder=str(pixels_encoder), protocol="spectrum", dataset="folder", image_size=8,
            data_dir=str(tmp_path / "data"), output=str(output), feature_batch_size=2,
        )
    )  # fmt: skip
    short, whole = json.loads(capsys.readouterr().out), json.loads(output.read_text())
    assert whole.keys() - short.keys() == {"channel_std", "singular_values"}
    assert whole.items() >= {"protocol": "spectrum", "num_images": 5, "eval_split": "train"}.items()
    assert len(whole["channel_std"]) == 8 * 8 * 3
    assert len(whole["singular_values"]) == 5
    assert 1 < whole["effective_rank"] < 5
    assert 0 < whole["alignment"] < 4
    assert whole["settings"]["crop_min_area"] == 0.08


def assert_refused(evaluation_config, match, **settings):
    with pytest.raises(UserError, match=match):
        run.run(evaluation_config(**settings))


def test_the_image_size_must_be_known(evaluation_config, pixels_encoder):
    assert_refused(evaluation_config, "--image_size must be given", encoder=str(pixels_encoder))


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


def test_one_image_has_no_spectrum(evaluation_config, pixels_encoder, tmp_path):
    settings = folder_of(tmp_path / "data", "1.png") | {"encoder": str(pixels_encoder)}
    match = r"two images or more\. Received: 1"
    assert_refused(evaluation_config, match, protocol="spectrum", **settings)


def folder_of(tmp_path, *paths):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image = np.zeros((8, 8, 3), np.uint8)
        (tmp_path / path).write_bytes(tf.io.encode_png(image).numpy())
    return {"dataset": "folder", "data_dir": str(tmp_path), "image_size": 8}


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        (["train/1.png", "test/1.png"], "needs labels"),
        (["train/cat/1.png", "test/cat/1.png"], "two classes or more.*'cat'"),
        (["train/cat/1.png", "train/dog/1.png"], "has the splits train. Received: test"),
        (["cat/1.png", "dog/1.png"], "has no split 'test'"),
    ],
)
def test_data_that_cannot_be_evaluated_on_is_refused(
    evaluation_config, pixels_encoder, tmp_path, paths, match
):
    settings = folder_of(tmp_path / "data", *paths)
    assert_refused(evaluation_config, match, encoder=str(pixels_encoder), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "knn"},
        {"protocol": "probe"},
        {"protocol": "linear", "batch_size": 5, "epochs": 1},
    ],
    ids=lambda settings: settings["protocol"],
)
def test_bad_images_are_left_out_of_the_counts_or_refused_by_name(
    evaluation_config, pixels_encoder, tmp_path, capsys, settings
):
    paths = [
        f"{split}/{name}/{number}.png"
        for split in ("train", "test")
        for name in ("cat", "dog")
        for number in range(10)
    ]
    folder = tmp_path / "data"
    settings = folder_of(folder, *paths) | {"encoder": str(pixels_encoder)} | settings
    for path in ("train/cat/3.png", "test/dog/1.png", "test/dog/2.png"):
        (folder / path).write_bytes(b"no image")
    run.run(evaluation_config(**settings, on_bad_image="skip", max_bad_fraction=0.1))
    result = json.loads(capsys.readouterr().out)
    assert (result["num_train"], result["num_test"]) == (19, 18)
    assert_refused(evaluation_config, "test/dog/1.png", **settings)


def test_a_missing_encoder_ends_with_one_line(program):
    finished = program("evaluate.py", "--encoder=/nowhere")
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("evaluate.py: --encoder must be a folder that exists.")
    assert "Traceback" not in finished.stderr


def test_an_output_that_cannot_be_written_is_refused_before_the_work_starts(evaluation_config):
    assert_refused(
        evaluation_config,
        "--output must be in a folder",
        encoder="x",
        output="/nowhere/results.json",
    )


def test_a_cache_that_cannot_be_written_is_refused_before_the_work_starts(
    evaluation_config, pixels_encoder, tmp_path
):
    (tmp_path / "file").write_text("")
    assert_refused(
        evaluation_config,
        "--feature_cache must be a folder",
        encoder=str(pixels_encoder),
        image_size=8,
        dataset="never loaded",
        feature_cache=str(tmp_path / "file"),
    )
