"""simsiam_tf as a library: its functions do what the programs do, and leave the process alone."""

import filecmp
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import keras
import numpy as np
import own_networks
import pytest
import tensorflow as tf
from conftest import MONITORS, ROOT, TINY_RUN
from run_results import assert_same_files, assert_same_run

import simsiam_tf as st
from simsiam_tf import flags, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.distribution import process_state
from simsiam_tf.export import saved_model
from simsiam_tf.training import pretrain

# The settings of the tiny run as a Python program writes them.
TINY = {
    name: value
    for name, value in schema.flatten(flags.read(TINY_RUN + MONITORS, PretrainConfig)).items()
    if value != schema.defaults(PretrainConfig)[name]
}


@pytest.fixture(scope="module")
def run(tfds_dir, tmp_path_factory):
    """A run by the API with the tiny run's settings, and the process' state around it."""
    before = state()
    made = st.pretrain(**TINY, data_dir=tfds_dir, workdir=tmp_path_factory.mktemp("api") / "run")
    return made, before, state()


def state():
    return {
        "policy": keras.config.dtype_policy().name,
        "floatx": keras.config.floatx(),
        "determinism": process_state.is_op_determinism_enabled(),
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "umask": umask(),
        "log handlers": list(logging.getLogger("absl").handlers),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_run_by_the_api_leaves_the_bytes_of_a_run_by_the_program(
    new_program, tiny_run, tfds_dir, tmp_path
):
    # In a process of its own: a checkpoint has the layers' names, which Keras numbers.
    workdir = tmp_path / "run"
    settings = TINY | {"data_dir": str(tfds_dir), "workdir": str(workdir)}
    finished = new_program("-c", f"import simsiam_tf as st; st.pretrain(**{settings})")
    assert finished.returncode == 0, finished.stderr
    assert_same_run(workdir, tiny_run)
    assert_same_files(workdir, tiny_run)
    (step,) = (path.name for path in (workdir / "checkpoints").iterdir())
    name = f"checkpoints/{step}/state.data-00000-of-00001"
    assert filecmp.cmp(workdir / name, tiny_run / name, shallow=False)
    ours, theirs = ((path / "flags.cfg").read_text().splitlines() for path in (workdir, tiny_run))
    differing = {
        line.partition("=")[0]
        for pair in zip(ours, theirs, strict=True)
        for line in pair
        if pair[0] != pair[1]
    }
    assert differing == {"--data_dir", "--workdir"}


def test_a_second_run_in_a_process_has_the_numbers_of_the_program(run, tiny_run):
    assert_same_run(Path(run[0].workdir), tiny_run)


def test_a_run_changes_nothing_in_its_process(run):
    _, before, after = run
    assert before == after


def test_a_run_knows_its_metrics_and_its_summary(run):
    made = run[0]
    text = Path(made.workdir, "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    metrics = made.metrics
    assert metrics["step"].tolist() == [line["step"] for line in lines]
    for name, column in metrics.items():
        expected = [line.get(name, np.nan) for line in lines]
        np.testing.assert_array_equal(column, expected, err_msg=name)
    assert made.summary["knn_top1"] == metrics["knn_top1"][-1]


def some_images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_the_encoder_of_a_run_gives_the_features_of_its_saved_model(run):
    made = run[0]
    images = some_images()
    encode, _ = saved_model.load(os.path.join(made.workdir, "encoder"))
    expected = encode(images.astype(np.float32))
    for encoder in (made.encoder, st.load_encoder(os.path.join(made.workdir, "encoder"))):
        for batch in (images, images.astype(np.float32)):
            np.testing.assert_allclose(encoder(batch), expected, rtol=1e-5, atol=1e-6)


def test_an_encoder_in_memory_is_evaluated_like_its_folder(run, tfds_dir):
    made = run[0]
    settings = {"protocol": "knn", "knn_k": 20, "data_dir": tfds_dir}
    results = [
        st.evaluate(encoder, **settings)
        for encoder in (made, made.encoder, os.path.join(made.workdir, "encoder"))
    ]
    assert len({result["top1"] for result in results}) == 1
    assert results[0]["num_test"] == 360


def test_the_same_call_again_returns_the_finished_run(run):
    made = run[0]
    again = st.pretrain(**TINY, workdir=made.workdir, data_dir="/nowhere")
    assert again.summary == made.summary


def labelled(count, size=12):
    """Red and blue images with noise, and their labels."""
    images = np.random.default_rng(count).integers(0, 100, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    images[..., 0] += (100 * labels[:, None, None]).astype(np.uint8)
    images[..., 2] += (100 * (1 - labels)[:, None, None]).astype(np.uint8)
    return images, labels


SMALL = {
    "backbone": "resnet10", "width": 4, "stem": "cifar", "image_size": 16, "batch_size": 8,
    "projection_dim": 16, "projection_hidden_dim": 16, "prediction_hidden_dim": 8, "epochs": 1,
    "knn_k": 3,
}  # fmt: skip


def test_images_in_memory_are_a_data_set_of_two_runs_in_one_process(tmp_path):
    splits = {"train": labelled(40), "test": labelled(20)}
    as_dataset = {split: tf.data.Dataset.from_tensor_slices(pair) for split, pair in splits.items()}
    losses = []
    for number, dataset in enumerate((splits, as_dataset)):
        made = st.pretrain(dataset=dataset, workdir=tmp_path / str(number), **SMALL)
        losses.append(made.metrics["loss"])
        assert made.metrics["knn_top1"][-1] > 90
    np.testing.assert_array_equal(*losses)
    found = st.evaluate(made, dataset=splits, protocol="probe", probe_epochs=5)
    assert found["top1"] > 90
    with pytest.raises(ValueError, match="data set of a Python program"):
        st.evaluate(made, dataset="memory")


def test_images_without_labels_are_enough(tmp_path):
    made = st.pretrain(dataset=labelled(24)[0], workdir=tmp_path, **SMALL)
    assert made.summary["images"] == 24
    assert "knn_top1" not in made.metrics


def test_a_model_of_keras_is_the_backbone_and_the_encoder_is_complete_without_the_run(tmp_path):
    model, start = own_networks.maps(), []

    class Seen(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            start.extend(variable.numpy() for variable in self.model.encoder.weights)

    settings = {name: value for name, value in SMALL.items() if name not in ("width", "stem")}
    settings |= {"dataset": labelled(24)[0], "backbone": model, "workdir": str(tmp_path / "run")}
    made = st.pretrain(callbacks=[Seen()], **settings)
    for ours, theirs in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    expected = made.encoder.get_weights()
    os.rename(tmp_path / "run" / "encoder", tmp_path / "moved")
    shutil.rmtree(tmp_path / "run")
    for ours, theirs in zip(
        st.load_encoder(tmp_path / "moved").get_weights(), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_workdir_keeps_to_the_network_that_it_began_with(tmp_path):
    own_networks.maps(width=2).save(tmp_path / "backbone.keras")
    with pytest.raises(ValueError, match="began with another network"):
        st.pretrain(backbone=own_networks.maps(width=3), workdir=tmp_path)
    with pytest.raises(ValueError, match="needs a --workdir on this machine"):
        st.pretrain(backbone=own_networks.maps(), workdir="memory://run")
    with pytest.raises(ValueError, match=r"Only pretrain takes a keras\.Model"):
        st.build_model(backbone=own_networks.maps())


def test_a_run_lets_go_of_its_model(tmp_path):
    class Seen(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.seen = weakref.ref(self.model)

        def on_train_end(self, logs=None):
            self.set_model(None)

    callback = Seen()
    st.pretrain(dataset=labelled(24)[0], workdir=tmp_path, callbacks=[callback], **SMALL)
    assert callback.seen() is None


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"momentum": 2}, ["--momentum=2"]),
        ({"epoch": 3}, ["--epoch=3"]),
        ({"epochs": "many"}, ["--epochs=many"]),
        ({"recipe": "r51"}, ["--recipe=r51"]),
        ({"method": "byol", "temperature": 0.5}, ["--method=byol", "--temperature=0.5"]),
        ({"steps_per_loop": 0}, ["--steps_per_loop=0"]),
    ],
)
def test_a_wrong_keyword_has_the_message_of_the_flag(settings, arguments):
    with pytest.raises(ValueError, match=r".") as of_the_flag:
        flags.read(arguments, PretrainConfig)
    with pytest.raises(ValueError, match=r".") as of_the_keyword:
        st.pretrain(**settings)
    assert str(of_the_keyword.value) == str(of_the_flag.value)


def test_only_pretrain_takes_the_recipe_that_trains_to_choose(monkeypatch):
    for function in (st.build_model, st.load_views):
        with pytest.raises(ValueError, match="Only pretrain takes recipe='auto'"):
            function(recipe="auto")
    found = []
    monkeypatch.setattr(pretrain, "run", lambda config, callbacks: found.append(config.given))
    st.pretrain(recipe="auto", epochs=3)
    assert found == [{"epochs"}]


def test_keywords_override_their_recipe_and_take_pythons_own_values(tmp_path):
    settings = {
        "epochs": np.int64(3), "recipe": "byol_r50", "xla": True, "workdir": tmp_path,
        "steps_per_loop": 4, "export": False, "base_learning_rate": 1,
    }  # fmt: skip
    found = flags.from_keywords(settings, PretrainConfig)
    arguments = [
        "--recipe=byol_r50", "--epochs=3", "--xla", f"--workdir={tmp_path}", "--steps_per_loop=4",
        "--base_learning_rate=1.0",
    ]  # fmt: skip
    assert found == flags.read(arguments, PretrainConfig)


@pytest.mark.parametrize(
    ("settings", "dataset"),
    [
        ({"recipe": "r50"}, "imagenet2012"),
        ({"recipe": "r50", "dataset": "folder"}, "folder"),
        ({}, "digits"),
    ],
)
def test_the_data_set_is_the_recipes_unless_another_is_named(monkeypatch, settings, dataset):
    found = []
    monkeypatch.setattr(pretrain, "run", lambda config, callbacks: found.append(config))
    st.pretrain(**settings)
    assert found[0].data.dataset == dataset


def test_a_config_needs_no_arguments():
    assert schema.flatten(PretrainConfig()) == schema.defaults(PretrainConfig)


def test_the_package_imports_no_tensorflow_until_a_function_is_used():
    code = (
        "import sys, simsiam_tf as st; assert 'pretrain' in dir(st); "
        "assert 'tensorflow' not in sys.modules; assert not hasattr(st, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
