"""What tests share: two logical CPUs, one strategy over them, a float64 switch, real runs."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest

import simsiam_tf  # noqa: F401 (chooses the backend before Keras loads)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow's own allocator never gives memory back: with it the suite needs 21 GB, with malloc 17.
# Programs that tests start inherit it.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
# What XLA compiles, it compiles once for all processes of the session. pytest's first process makes
# the folder; test processes and programs inherit its name.
if "TF_XLA_FLAGS" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={compiled.name}"

import filelock
import function_names  # noqa: F401 (before anything is traced)
import keras
import numpy as np
import programs
import tensorflow as tf

from simsiam_tf import config as config_lib
from simsiam_tf import flags, schema
from simsiam_tf.data import datasets
from simsiam_tf.distribution import devices, process_state
from simsiam_tf.evaluation import run as evaluation_run
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.export import saved_model
from simsiam_tf.training import meter, pretrain

ROOT = programs.ROOT

# A small run of 22 steps an epoch. It has no monitors, because they take a third of its time.
TINY_RUN = [
    "--image_size=16",
    "--backbone=resnet10",
    "--width=16",
    "--stem=cifar",
    "--projection_dim=128",
    "--projection_hidden_dim=128",
    "--prediction_hidden_dim=64",
    "--batch_size=64",
    "--epochs=2",
    "--base_learning_rate=0.2",
    "--blur_probability=0",
    "--flip_probability=0",
    "--eval_crop_ratio=1",
    "--knn_k=20",
    "--log_every_steps=5",
    "--knn_every_epochs=0",
    "--health_every_epochs=0",
]
MONITORS = ["--knn_every_epochs=1", "--health_every_epochs=1", "--histogram_every_epochs=2"]


# Test files that take longest, about the longest first. Two processes share the files in this
# order, so that neither is left with a long one at the end. `-m quick` leaves them out.
LONGEST = [
    # Its errors in a graph took a process that had run the other files beyond the machine's memory.
    "training/test_replay.py",
    "training/test_devices.py",
    "training/test_compilation.py",
    "training/test_initial_weights.py",
    "methods/test_keras_conventions.py",
    "paper/test_tables.py",
    "training/test_workers.py",
    "evaluation/test_finetune.py",
    "data/test_pipeline.py",
    "training/test_loop.py",
    "test_api.py",
    "paper/test_reproduce.py",
    "evaluation/test_run.py",
    "training/test_pretrain.py",
    "training/test_interruption.py",
    "test_any_images.py",
    "benchmarks",
    "methods",
    "models/test_keras_backbone.py",
    "interop/test_convert.py",
    "test_wheel.py",
    "test_notebook.py",
    "test_extending.py",
    "runs/test_run_folder.py",
    "runs/test_mirror.py",
    "detection",
    "data/test_quarantine.py",
    "data/test_pixels.py",
    "data/test_views.py",
    "data/test_inspect.py",
    "data/test_containers.py",
    "data/test_bad_records.py",
    "export",
]


def pytest_collection_modifyitems(items):
    def rank(item):
        path = item.path.relative_to(ROOT / "tests").as_posix()
        found = (number for number, name in enumerate(LONGEST) if path.startswith(name))
        return next(found, len(LONGEST))

    items.sort(key=rank)
    for item in items:
        starts_programs = {"program", "new_program", "tiny_run"} & set(item.fixturenames)
        if rank(item) == len(LONGEST) and not starts_programs:
            item.add_marker("quick")


def pytest_collection_finish():
    # The objects that imports made stay until the end, so garbage collection leaves them out.
    gc.freeze()


def pytest_configure():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="module", autouse=True)
def _forget_gradients():
    """Lets go of the models of a module, which would fill the memory by the end of the session."""
    yield
    process_state.forget_gradients(process_state.custom_gradients())


@pytest.fixture(scope="session")
def two_replicas():
    """The session's only MirroredStrategy: a second one with collectives fails in one process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def float64():
    """Everything that is built meanwhile is in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """Where the runs of the session keep the prepared digits."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def program(tfds_dir):
    """Runs a program of the project, loaded already: (script, *flags) → the finished process."""

    def run(*arguments, timeout=280):
        return programs.run(*arguments, timeout=timeout, TFDS_DATA_DIR=str(tfds_dir))

    return run


@pytest.fixture(scope="session")
def new_program(tfds_dir):
    """As `program`, in a new interpreter, for what depends on how a program starts."""

    def run(*arguments, timeout=280):
        environment = os.environ | {"TFDS_DATA_DIR": str(tfds_dir)}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_run(program, tmp_path_factory):
    """The workdir of a finished tiny run with all monitors, which all test processes share."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    workdir = base / "tiny"
    with filelock.FileLock(f"{workdir}.lock"):
        if not (workdir / "summary.json").exists():
            finished = program("train.py", *TINY_RUN, *MONITORS, f"--workdir={workdir}")
            assert finished.returncode == 0, finished.stderr
    return workdir


@pytest.fixture
def train_here(two_replicas, tfds_dir, monkeypatch):
    """Trains in the test's process, without monitors: (workdir, *flags, replicas=1).

    It is for tests that need no process of their own, which spends most of its time on starting.
    """
    build_strategy = devices.build_strategy

    def train(workdir, *arguments, replicas=1):
        quick = ["--knn_every_epochs=0", "--health_every_epochs=0", f"--data_dir={tfds_dir}"]
        arguments = [*quick, *arguments, f"--workdir={workdir}"]
        config = flags.read(arguments, config_lib.PretrainConfig)
        with monkeypatch.context() as patch:
            patch.setattr(meter, "measure_peak", lambda strategy: 1e11)  # takes half a second
            if replicas == 2:
                patch.setattr(
                    devices,
                    "build_strategy",
                    lambda system: build_strategy(system) and two_replicas,
                )
            with process_state.unchanged():
                pretrain.run(config)

    return train


@pytest.fixture
def red_and_blue(tmp_path):
    """(noise, tint) → 40 images in two classes that their mean colour tells apart."""

    def load(noise, tint):
        rng = np.random.default_rng(0)
        for number in range(40):
            name = ("blue", "red")[number % 2]
            image = rng.integers(0, noise, (12, 12, 3), dtype=np.uint8)
            image[..., 0 if name == "red" else 2] += tint
            path = tmp_path / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tf.io.write_file(str(path), tf.io.encode_png(image))
        return datasets.load("folder", str(tmp_path), "train")

    return load


def _builder(config_class):
    defaults = schema.defaults(config_class)
    return lambda **settings: schema.build(config_class, defaults | settings)


@pytest.fixture(scope="session")
def pretrain_config():
    """(**settings) → a `PretrainConfig` with these settings and defaults for the rest."""
    return _builder(config_lib.PretrainConfig)


@pytest.fixture
def evaluation_config():
    """(**settings) → an `EvaluationConfig` with these settings and defaults for the rest."""
    return _builder(EvaluationConfig)


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
                evaluation_run,
                "saved_model",
                SimpleNamespace(
                    load=load,
                    versions=saved_model.versions,
                    pixels_of=saved_model.pixels_of,
                ),
            )
            evaluation_run.run(evaluation_config(**settings | more))
        return json.loads(capsys.readouterr().out.splitlines()[-1]), sum(encoded)

    return run_it


@pytest.fixture
def evaluate_here(tfds_dir, capsys):
    """(*flags) → the last line of stdout, of `evaluate.py` in the test's process."""

    def evaluate(*arguments):
        evaluation_run.run(flags.read([*arguments, f"--data_dir={tfds_dir}"], EvaluationConfig))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return evaluate
