"""What a run left behind, for looking at it and comparing it with another."""

import json
import time

import numpy as np
import tensorflow as tf

from simsiam_tf.training import meter

TIMINGS = set(meter.RATES)


def lines_of(workdir):
    """The metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in TIMINGS} for line in lines]


def losses_of(workdir):
    return np.array([line["loss"] for line in lines_of(workdir) if "loss" in line])


def weights_of(workdir):
    """{name: array} of the newest checkpoint: weights, velocities, step count."""
    folder = max((workdir / "checkpoints").iterdir())
    reader = tf.train.load_checkpoint(str(folder / "state"))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_files(workdir, other):
    """The same names, but for what evaluations of a shared run keep beside it."""
    ours, theirs = ({path.name for path in run.iterdir()} for run in (workdir, other))
    kept = {"features", "results"}
    assert ours - kept == theirs - kept


def assert_same_run(workdir, other):
    assert lines_of(workdir) == lines_of(other)
    ours, theirs = weights_of(workdir), weights_of(other)
    assert len(ours) > 100
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def assert_same_training(workdir, other, rtol):
    """The same losses and weights but for rounding."""
    np.testing.assert_allclose(losses_of(workdir), losses_of(other), rtol=rtol)
    ours, theirs = weights_of(workdir), weights_of(other)
    assert len(ours) > 100
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # A running mean of what sums to zero is rounding alone.
        tolerance = max(rtol * np.abs(theirs[name]).max(), 1e-12)
        np.testing.assert_allclose(value, theirs[name], rtol, tolerance, err_msg=name)


def assert_ends_with_one_line(finished, *words):
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    for word in words:
        assert str(word) in last, last


def wait_for_checkpoint(process, workdir):
    while not any((workdir / "checkpoints").glob("step-?????????")):
        assert process.poll() is None
        time.sleep(0.01)
