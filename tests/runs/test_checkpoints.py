import os
import resource

import keras
import numpy as np
import pytest

from simsiam_tf.optimization import optimizers
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError


def build(workdir, value=0.0, **settings):
    layer = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(value))
    layer.build((None, 3))
    optimizer = optimizers.SGD(optimizers.EpochRates([0.1], 1), 0.9, 0.0)
    optimizer.build(layer.trainable_variables)
    return layer, optimizer, Checkpoints(str(workdir), layer, optimizer, **settings)


def step_once(layer, optimizer):
    gradients = [np.ones(variable.shape, "float32") for variable in layer.trainable_variables]
    optimizer.apply(gradients, layer.trainable_variables)


def test_a_checkpoint_brings_back_weights_velocities_and_the_step_count(tmp_path):
    layer, optimizer, checkpoints = build(tmp_path, value=1.5)
    step_once(layer, optimizer)
    checkpoints.save(1)
    restored_layer, restored_optimizer, restored = build(tmp_path)
    assert restored.restore() == 1
    step_once(layer, optimizer)
    step_once(restored_layer, restored_optimizer)
    np.testing.assert_array_equal(restored_layer.get_weights()[0], layer.get_weights()[0])
    assert int(restored_optimizer.iterations) == 2


def test_the_newest_checkpoint_is_restored_and_three_are_kept(tmp_path):
    layer, _, checkpoints = build(tmp_path)
    for step in (5, 10, 100, 1000):
        layer.bias.assign([step, step])
        checkpoints.save(step)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "step-000000010",
        "step-000000100",
        "step-000001000",
    ]
    restored_layer, _, restored = build(tmp_path)
    assert restored.restore() == 1000
    np.testing.assert_array_equal(restored_layer.bias.numpy(), [1000, 1000])


def test_more_are_kept_where_that_is_asked_for_and_every_nth_for_good(tmp_path):
    _, _, checkpoints = build(tmp_path, keep=2, keep_every=10)
    for step in (5, 10, 15, 20, 25, 30, 35, 38):
        checkpoints.save(step)
    kept = [
        int(name.removeprefix("step-")) for name in sorted(os.listdir(tmp_path / "checkpoints"))
    ]
    assert kept == [10, 20, 30, 35, 38]


def test_what_an_interrupted_save_left_behind_goes_with_the_next(tmp_path):
    left = tmp_path / "checkpoints" / "step-000000003.partial"
    left.mkdir(parents=True)
    (left / "state.index").write_text("half")
    _, _, checkpoints = build(tmp_path)
    checkpoints.save(5)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000005"]


def test_a_save_that_fails_leaves_what_was_there_and_no_rest(tmp_path):
    _, _, checkpoints = build(tmp_path)
    checkpoints.save(5)
    # As on a full disk: no file of the process may grow over 10 bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written to"):
            checkpoints.save(10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000000005"]
    assert checkpoints.restore() == 5


def test_a_checkpoint_that_was_not_finished_is_not_one(tmp_path):
    _, _, checkpoints = build(tmp_path)
    checkpoints.save(5)
    os.rename(
        tmp_path / "checkpoints" / "step-000000005",
        tmp_path / "checkpoints" / "step-000000005.partial",
    )
    assert checkpoints.restore() is None


def flip_a_bit(folder):
    """In the file that holds the weights."""
    (path,) = folder.glob("state.data-*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save_steps(tmp_path, *steps):
    layer, _, checkpoints = build(tmp_path)
    for step in steps:
        layer.bias.assign([step, step])
        checkpoints.save(step)
    return [tmp_path / "checkpoints" / f"step-{step:09d}" for step in steps]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda folder: next(folder.glob("state.data-*")).write_bytes(b""),
        lambda folder: (folder / "state.index").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
    ids=["bit", "truncated", "missing", "manifest", "no manifest"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_restored(tmp_path, caplog, damage):
    *_, newer = save_steps(tmp_path, 1, 5, 10)
    damage(newer)
    layer, _, checkpoints = build(tmp_path)
    assert checkpoints.restore() == 5
    np.testing.assert_array_equal(layer.bias.numpy(), [5, 5])
    assert f"{newer} is damaged" in caplog.text
    # When the run comes there again, a whole one takes its place.
    layer.bias.assign([11, 11])
    checkpoints.save(10)
    restored, _, checkpoints = build(tmp_path)
    assert checkpoints.restore() == 10
    np.testing.assert_array_equal(restored.bias.numpy(), [11, 11])


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path):
    *_, second, third = save_steps(tmp_path, 10, 15, 20)
    flip_a_bit(second)
    flip_a_bit(third)
    _, _, checkpoints = build(tmp_path)
    assert checkpoints.restore() == 10
    checkpoints.save(12)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000000010", "step-000000012"]


def test_a_run_does_not_begin_anew_where_every_checkpoint_is_damaged(tmp_path):
    for folder in save_steps(tmp_path, 5, 10):
        flip_a_bit(folder)
    _, _, checkpoints = build(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path / 'checkpoints'}, all 2 damaged"):
        checkpoints.restore()
