"""The same run on other devices: replicas, a change of them, loops of several steps."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import MONITORS, TINY_RUN
from run_results import assert_same_run, assert_same_training, lines_of, losses_of

# The rate is a quarter of the demonstration's or less: the higher it is, the faster training
# amplifies float32's rounding.
DIGITS_RUN = [
    "--flagfile=configs/digits.cfg",
    "--backbone=resnet10",
    "--width=4",
    "--projection_dim=32",
    "--projection_hidden_dim=32",
    "--prediction_hidden_dim=16",
    "--batch_size=64",
    "--base_learning_rate=0.2",
    "--warmup_epochs=0",
    "--epochs=1",
    "--log_every_steps=1",
    "--knn_every_epochs=0",
]


@pytest.mark.long
def test_four_replicas_have_the_losses_and_weights_of_one_over_22_steps(
    program, train_here, tmp_path
):
    flags = [*DIGITS_RUN, "--precision=float64"]
    four = tmp_path / "four"
    finished = program("train.py", *flags, f"--workdir={four}", "--cpu_replicas=4")
    assert finished.returncode == 0, finished.stderr
    assert "on 4 replica(s)" in finished.stderr
    train_here(tmp_path / "one", *flags)
    assert_same_training(four, tmp_path / "one", rtol=1e-7)


@pytest.mark.long
def test_a_run_resumes_amid_frozen_targets_on_two_replicas_and_ends_with_the_same_weights(
    train_here, tmp_path, caplog
):
    # Targets are frozen at steps 0, 5, 10, ...; step 8 needs those of step 5.
    flags = ["--precision=float64", "--method=alternation", "--inner_steps=5"]
    flags.append("--checkpoint_every_steps=8")
    train_here(tmp_path / "one", *DIGITS_RUN, *flags)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "summary.json").unlink()
    for newer in ("step-000000016", "step-000000022"):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / newer)
    caplog.set_level("INFO", logger="absl")
    train_here(tmp_path / "two", *DIGITS_RUN, *flags, replicas=2)
    assert "Targets of 320 images: " in caplog.text
    assert "on each of 2 replica(s), in the memory of the CPU" in caplog.text
    assert "checkpoints/step-000000008" in caplog.text
    assert_same_training(tmp_path / "two", tmp_path / "one", rtol=1e-7)


def test_two_replicas_have_the_losses_and_the_knn_of_one_over_five_steps_in_float32(
    train_here, tmp_path
):
    for replicas in (1, 2):
        flags = [*DIGITS_RUN, "--knn_every_epochs=1"]
        train_here(tmp_path / str(replicas), *flags, replicas=replicas)
    one, two = losses_of(tmp_path / "1"), losses_of(tmp_path / "2")
    assert len(one) == len(two) == 22
    assert np.abs(one - two)[:5].max() < 1e-4
    # Of the random network, which is the same; a digit may be as near to one as to another.
    one, two = (
        next(line["knn_top1"] for line in lines_of(tmp_path / name) if "knn_top1" in line)
        for name in ("1", "2")
    )
    assert two == pytest.approx(one, abs=0.3)


def test_loops_of_several_steps_leave_what_loops_of_one_leave(tiny_run, train_here, tmp_path):
    # 4 divides neither the epoch's 22 steps nor the 13 from one checkpoint to the next.
    flags = [*TINY_RUN, *MONITORS, "--steps_per_loop=4", "--checkpoint_every_steps=13"]
    train_here(tmp_path, *flags)
    assert_same_run(tmp_path, tiny_run)


def test_on_a_single_core_the_time_of_the_steps_is_not_waiting(new_program, tmp_path):
    # Nearly all of it counted as waiting when the arrival of a batch was noted after its step.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # the program inherits it
    try:
        run = new_program("train.py", *TINY_RUN, "--epochs=1", f"--workdir={tmp_path}")
    finally:
        os.sched_setaffinity(0, cores)
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 < summary["input_wait_fraction"] < 0.8
