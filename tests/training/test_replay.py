"""`--replay_step`: a step again, with every layer checked."""

import re
import shutil

import keras
import pytest
import tensorflow as tf
from conftest import TINY_RUN
from run_results import lines_of, losses_of

from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError
from simsiam_tf.training import replay

SMALL = [*TINY_RUN, "--width=4"]


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    return tmp_path_factory.mktemp("diverged") / "run"


def train_until_it_diverges(train_here, workdir):
    """Trains with a rate at which the weights overflow after the first step."""
    flags = [*SMALL, "--base_learning_rate=1e30", "--max_nonfinite_steps=3"]
    if not workdir.exists():
        with pytest.raises(UserError, match="3 steps in a row was not finite"):
            train_here(workdir, *flags)
    return flags


def test_the_first_layer_that_is_not_finite_is_named(train_here, diverged, capsys, caplog):
    flags = train_until_it_diverges(train_here, diverged)
    skipped = next(line["step"] for line in lines_of(diverged) if line.get("nonfinite"))
    before = {path: path.stat().st_mtime_ns for path in diverged.rglob("*")}
    caplog.set_level("INFO", logger="absl")
    train_here(diverged, *flags, f"--replay_step={skipped}")
    assert re.search(
        rf"^Step {skipped}: resnet10/conv1/batch_normalization\w* is the first that is not finite "
        r"\(NaN\)$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert "resnet10/conv1/conv2d" in caplog.text
    assert "projector" not in caplog.text  # it comes after
    assert {path: path.stat().st_mtime_ns for path in diverged.rglob("*")} == before


def test_a_finite_step_is_repeated_with_the_loss_that_it_had(train_here, tmp_path, capsys):
    flags = [*SMALL, "--epochs=1", "--log_every_steps=1", "--checkpoint_every_steps=10"]
    train_here(tmp_path, *flags)
    loss = losses_of(tmp_path)[12]
    train_here(tmp_path, *flags, "--replay_step=13")
    assert f"Step 13 is finite when it is repeated here: its loss is {loss:.4f}"[:-1] in (
        capsys.readouterr().out
    )
    shutil.rmtree(tmp_path / "checkpoints")  # it begins with the initial weights
    train_here(tmp_path, *flags, "--replay_step=3")
    assert f"its loss is {losses_of(tmp_path)[2]:.4f}"[:-1] in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--replay_step must be at most 22, .* Received: 23"):
        train_here(tmp_path, *flags, "--replay_step=23")


def test_frozen_targets_and_two_replicas_are_repeated_too(train_here, tmp_path, capsys):
    flags = [
        *SMALL, "--epochs=1", "--log_every_steps=1", "--method=alternation", "--inner_steps=4",
        "--checkpoint_every_steps=6",
    ]  # fmt: skip
    train_here(tmp_path, *flags, replicas=2)
    for step in (9, 10):  # the first and the second with the same targets
        train_here(tmp_path, *flags, f"--replay_step={step}", replicas=2)
        loss = losses_of(tmp_path)[step - 1]
        assert f"its loss is {loss:.4f}"[:-1] in capsys.readouterr().out


def test_a_folder_without_a_run_is_refused(train_here, tmp_path):
    with pytest.raises(UserError, match="--replay_step needs the run's --workdir"):
        train_here(tmp_path / "none", *SMALL, "--replay_step=3")


def test_a_gradient_that_is_not_finite_is_named_by_its_layer():
    checks = replay._Checks()

    class Root(keras.layers.Layer):
        def call(self, x):
            return tf.sqrt(x)

    outer = keras.Sequential([keras.layers.Identity(name="before"), Root(name="root")], name="net")

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = outer(x)
        return tape.gradient(y, x)

    with checks.of_layers(), pytest.raises(tf.errors.InvalidArgumentError) as error:
        run(tf.constant([0.0, 4.0]))
    assert replay._FOUND.search(error.value.message).groups()[1:] == ("net/before", "Inf")
    assert checks.largest["net/root"] == 2
    assert keras.layers.Identity(name="after")(tf.constant([float("inf")])) == float("inf")


def test_the_checkpoint_before_a_skipped_step_stays(tmp_path):
    layer = keras.layers.Dense(1)
    layer.build([None, 1])
    checkpoints = Checkpoints(str(tmp_path), layer, keep=2)
    for step in (2, 4, 6, 8, 10):
        checkpoints.save(step, repeatable=5)
    assert checkpoints._steps() == [4, 8, 10]
    assert checkpoints.restore(before=8) == 4
    checkpoints.save(12, repeatable=11)
    assert checkpoints._steps() == [10, 12]
    assert checkpoints.restore(before=10) is None
