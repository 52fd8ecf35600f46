"""`train.py`, run as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY_RUN

from runs import assert_same_run, assert_same_training, lines_of, losses_of, weights_of
from simsiam_tf.schema import UserError
from simsiam_tf.training import pretrain


def assert_ends_with_one_line(finished, *words):
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    for word in words:
        assert str(word) in last, last


def test_a_run_leaves_flags_checkpoint_metrics_tensorboard_encoder_and_summary(tiny_run):
    assert {path.name for path in tiny_run.iterdir()} == {
        "flags.cfg", "checkpoints", "metrics.jsonl", "tensorboard", "encoder", "summary.json",
        "logs",
    }  # fmt: skip
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["steps"] == 44
    assert summary["knn_top1_before_training"] == lines_of(tiny_run)[0]["knn_top1"]


def test_metrics_have_a_line_each_log_step_and_knn_before_training_and_each_epoch(tiny_run):
    lines = lines_of(tiny_run)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40, 44]
    assert [line["epoch"] for line in lines if "knn_top1" in line] == [0, 1, 2]
    fields = {"step", "epoch", "loss", "feature_std", "learning_rate"}
    assert {frozenset(line) for line in lines} == {
        frozenset(fields), frozenset({"step", "epoch", "knn_top1"}),
    }  # fmt: skip


def test_the_same_command_again_says_finished_and_changes_nothing(program, tiny_run):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    finished = program("train.py", *TINY_RUN, f"--workdir={tiny_run}")
    assert finished.returncode == 0
    assert "is finished" in finished.stderr
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_a_workdir_of_another_configuration_is_refused(program, tiny_run):
    finished = program("train.py", *TINY_RUN, f"--workdir={tiny_run}", "--momentum=0.8")
    assert_ends_with_one_line(finished, "--momentum=0.9 there, 0.8 here")


def test_the_flags_of_a_run_repeat_it(program, tiny_run, tmp_path):
    finished = program(
        "train.py", f"--flagfile={tiny_run / 'flags.cfg'}", f"--workdir={tmp_path / 'again'}"
    )
    assert finished.returncode == 0, finished.stderr
    assert_same_run(tmp_path / "again", tiny_run)


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    tiny_run, tmp_path, program, tfds_dir
):
    workdir = tmp_path / "killed"
    command = ["train.py", *TINY_RUN, f"--workdir={workdir}", "--checkpoint_every_steps=13"]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL,
        env=os.environ | {"TFDS_DATA_DIR": str(tfds_dir)},
    )  # fmt: skip
    while not (workdir / "checkpoints" / "step-000000013").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "summary.json").exists()
    finished = program(*command)
    assert finished.returncode == 0, finished.stderr
    assert "Restored" in finished.stderr
    assert_same_run(workdir, tiny_run)


def wait_for_checkpoint(process, workdir):
    while not any((workdir / "checkpoints").glob("step-?????????")):
        assert process.poll() is None
        time.sleep(0.01)


def stop(number, flags, workdir, tfds_dir):
    """Starts a run, signals it after its first checkpoint, gives its status and last words."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags, f"--workdir={workdir}"], cwd=ROOT, text=True,
        env=os.environ | {"TFDS_DATA_DIR": str(tfds_dir)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_checkpoint(process, workdir)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_sigterm_saves_the_step_at_hand_and_the_run_ends_as_if_it_had_not_come(
    tiny_run, tmp_path, program, tfds_dir
):
    workdir, flags = tmp_path / "run", [*TINY_RUN, "--checkpoint_every_steps=13"]
    status, stderr = stop(signal.SIGTERM, flags, workdir, tfds_dir)
    assert status == 128 + signal.SIGTERM
    assert "Traceback" not in stderr
    (step,) = re.findall(r"train.py: SIGTERM: saved step (\d+) of 44 in .*goes on", stderr)
    assert (workdir / "checkpoints" / f"step-{int(step):09d}").exists()
    finished = program("train.py", *flags, f"--workdir={workdir}")
    assert finished.returncode == 0, finished.stderr
    assert f"Restored {workdir}/checkpoints/step-{int(step):09d}" in finished.stderr
    assert_same_run(workdir, tiny_run)


def test_control_c_stops_a_run_of_two_replicas(tmp_path, tfds_dir):
    flags = [*TINY_RUN, "--checkpoint_every_steps=1", "--cpu_replicas=2", "--knn_every_epochs=0"]
    status, stderr = stop(signal.SIGINT, flags, tmp_path / "run", tfds_dir)
    assert status == 128 + signal.SIGINT
    assert "SIGINT: saved step" in stderr.splitlines()[-1]


def test_export_alone_writes_the_encoder_of_the_newest_checkpoint(program, tiny_run, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / "encoder")
    finished = program("train.py", *TINY_RUN, f"--workdir={workdir}", "--export")
    assert finished.returncode == 0, finished.stderr
    images = tf.random.stateless_uniform([4, 16, 16, 3], [0, 0], 0, 255)
    features = [
        tf.saved_model.load(str(run / "encoder")).signatures["serving_default"](images=images)
        for run in (workdir, tiny_run)
    ]
    np.testing.assert_array_equal(features[0]["features"], features[1]["features"])


def test_export_without_a_checkpoint_is_refused(pretrain_config, tmp_path):
    config = pretrain_config(workdir=str(tmp_path), export=True, backbone="resnet18", width=4)
    with pytest.raises(UserError, match="--export needs a checkpoint"):
        pretrain.run(config)


# The rate is a quarter of the demonstration's or less: the higher it is, the faster training
# amplifies float32's rounding.
DIGITS_RUN = [
    "--flagfile=configs/digits.cfg",
    "--width=8",
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


def train_digits(program, workdir, *flags):
    finished = program("train.py", *DIGITS_RUN, f"--workdir={workdir}", *flags)
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


@pytest.fixture(scope="module")
def one_replica(program, tmp_path_factory):
    """The workdir of a run of 66 steps in float64."""
    workdir = tmp_path_factory.mktemp("replicas") / "one"
    train_digits(program, workdir, *LONG_RUN)
    return workdir


LONG_RUN = ["--precision=float64", "--epochs=3", "--checkpoint_every_steps=22"]


def test_four_replicas_have_the_losses_and_weights_of_one_over_66_steps(
    program, one_replica, tmp_path
):
    log = train_digits(program, tmp_path, *LONG_RUN, "--cpu_replicas=4")
    assert "on 4 replica(s)" in log
    assert_same_training(tmp_path, one_replica, rtol=1e-7)


def test_a_run_of_one_replica_goes_on_with_two_and_ends_with_the_same_weights(
    program, one_replica, tmp_path
):
    workdir = tmp_path / "elastic"
    shutil.copytree(one_replica, workdir)
    (workdir / "summary.json").unlink()
    for newer in ("step-000000044", "step-000000066"):
        shutil.rmtree(workdir / "checkpoints" / newer)
    log = train_digits(program, workdir, *LONG_RUN, "--strategy=mirrored", "--cpu_replicas=2")
    assert "on 2 replica(s)" in log
    assert "checkpoints/step-000000022" in log
    assert_same_training(workdir, one_replica, rtol=1e-7)


def test_two_replicas_have_the_losses_of_one_over_five_steps_in_float32(program, tmp_path):
    for replicas in (1, 2):
        train_digits(program, tmp_path / str(replicas), f"--cpu_replicas={replicas}")
    one, two = losses_of(tmp_path / "1"), losses_of(tmp_path / "2")
    assert len(one) == len(two) == 22
    assert np.abs(one - two)[:5].max() < 1e-4


def test_loops_of_several_steps_leave_what_loops_of_one_leave(program, tiny_run, tmp_path):
    # 4 divides neither the epoch's 22 steps nor the 13 from one checkpoint to the next.
    finished = program(
        "train.py", *TINY_RUN, f"--workdir={tmp_path}", "--steps_per_loop=4",
        "--checkpoint_every_steps=13",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert_same_run(tmp_path, tiny_run)


def test_a_run_whose_loss_is_not_finite_stops_with_good_checkpoints(program, tmp_path):
    finished = program(
        "train.py", *TINY_RUN, "--base_learning_rate=1e30", "--checkpoint_every_steps=2",
        "--knn_every_epochs=0", "--max_nonfinite_steps=4", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert_ends_with_one_line(finished, "of 4 steps in a row was not finite", "--max_nonfinite")
    void = [line for line in lines_of(tmp_path) if line.get("nonfinite")]
    assert [line["step"] - void[0]["step"] for line in void] == [0, 1, 2, 3]
    assert all(len(line["indices"]) == 64 for line in void)
    assert all(np.isfinite(value).all() for value in weights_of(tmp_path).values())


def test_a_disk_without_room_ends_with_one_line_and_the_checkpoints_intact(
    program, tiny_run, tmp_path
):
    # TensorBoard's file and the checkpoint of 1.6 MB may not grow over 1 MB, as on a full disk.
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    )
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    (workdir / "summary.json").unlink()
    (whole,) = (workdir / "checkpoints").iterdir()
    earlier = whole.rename(whole.with_name("step-000000030"))
    finished = program("-c", code, *TINY_RUN, f"--workdir={workdir}")
    assert_ends_with_one_line(finished, "--workdir cannot be written to (", "goes on", workdir)
    assert list((workdir / "checkpoints").iterdir()) == [earlier]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A flat heap of 20 images of several sizes and formats, without labels."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(20):
        image = rng.integers(0, 256, (20 + number, 40 - number, 3), dtype=np.uint8)
        if number % 2:
            (folder / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
        else:
            (folder / f"{number}.JPG").write_bytes(tf.io.encode_jpeg(image).numpy())
    return folder


FOLDER_RUN = [*TINY_RUN, "--dataset=folder", "--batch_size=8", "--epochs=1", "--log_every_steps=1"]


def test_images_without_labels_are_enough(program, photographs, tmp_path):
    finished = program(
        "train.py", *FOLDER_RUN, f"--data_dir={photographs}", f"--workdir={tmp_path / 'run'}"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("No kNN monitor") == 1
    assert len(losses_of(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "encoder" / "saved_model.pb").exists()


def test_the_knn_monitor_may_use_another_data_set(pretrain_config, photographs, tmp_path, tfds_dir):
    config = pretrain_config(
        dataset="folder", data_dir=str(photographs), workdir=str(tmp_path), backbone="resnet18",
        width=4, stem="cifar", image_size=8, projection_dim=16, prediction_hidden_dim=8,
        batch_size=8, epochs=1, knn_dataset="digits", knn_data_dir=str(tfds_dir), knn_k=20,
        knn_bank_size=500,
    )  # fmt: skip
    pretrain.run(config)
    knn = [line["knn_top1"] for line in lines_of(tmp_path) if "knn_top1" in line]
    assert len(knn) == 2
    assert all(10 < top1 < 100 for top1 in knn)


def test_an_image_that_cannot_be_read_is_named(program, photographs, tmp_path):
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    victim = folder / "10.JPG"
    victim.write_bytes(victim.read_bytes()[:400])
    finished = program(
        "train.py", *FOLDER_RUN, f"--data_dir={folder}", f"--workdir={tmp_path / 'run'}",
        "--epochs=4",
    )  # fmt: skip
    assert_ends_with_one_line(finished, victim)


def small_run_of(folder, workdir):
    return {
        "dataset": "folder", "data_dir": str(folder), "workdir": str(workdir), "image_size": 8,
        "backbone": "resnet18", "width": 8, "stem": "cifar", "projection_dim": 16,
        "prediction_hidden_dim": 8, "batch_size": 8, "epochs": 2,
    }  # fmt: skip


def test_an_image_that_cannot_be_read_is_left_out_and_listed_where_that_is_asked_for(
    pretrain_config, photographs, tmp_path
):
    folder, workdir = tmp_path / "photographs", tmp_path / "run"
    shutil.copytree(photographs, folder)
    victim = folder / "10.JPG"
    victim.write_bytes(victim.read_bytes()[:400])
    settings = small_run_of(folder, workdir) | {"on_bad_image": "skip"}
    with pytest.raises(UserError, match=r"--max_bad_fraction .* Received: 1 of 20"):
        pretrain.run(pretrain_config(**settings, max_bad_fraction=0.01))
    shutil.rmtree(workdir)
    pretrain.run(pretrain_config(**settings, max_bad_fraction=0.05))
    (line,) = (workdir / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(victim)
    assert "JPEG" in json.loads(line)["reason"]
    assert json.loads((workdir / "summary.json").read_text())["bad_images"] == 1


def test_a_data_folder_that_vanishes_ends_the_run_with_one_line(photographs, tmp_path, tfds_dir):
    folder, workdir = tmp_path / "photographs", tmp_path / "run"
    shutil.copytree(photographs, folder)
    flags = [*FOLDER_RUN, f"--data_dir={folder}", "--epochs=3000", "--checkpoint_every_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags, f"--workdir={workdir}"], cwd=ROOT, text=True,
        env=os.environ | {"TFDS_DATA_DIR": str(tfds_dir)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_checkpoint(process, workdir)
    shutil.rmtree(folder)
    _, stderr = process.communicate(timeout=60)
    finished = subprocess.CompletedProcess([], process.returncode, "", stderr)
    assert_ends_with_one_line(finished, "An image cannot be read", folder)
    assert any((workdir / "checkpoints").glob("step-?????????"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 2000}, ["--batch_size", "1437", "2000"]),
        ({"batch_size": 65, "cpu_replicas": 2}, ["--batch_size", "divisible", "2", "65"]),
        ({"batch_size": 2, "cpu_replicas": 2}, ["--batch_size", "two images or more", "2"]),
        ({"dataset": "no_such_data"}, ["--dataset", "no_such_data"]),
        ({"train_split": "trian"}, ["splits", "train", "test", "trian"]),
        ({"eval_split": "validation"}, ["splits", "train", "test", "validation"]),
        ({"dataset": "folder"}, ["--data_dir"]),
        ({"dataset": "folder", "data_dir": "/nowhere"}, ["--data_dir", "/nowhere"]),
    ],
)
def test_a_mistake_is_found_before_training_and_leaves_no_flags(
    pretrain_config, tmp_path, tfds_dir, settings, words
):
    defaults = {"batch_size": 64, "data_dir": str(tfds_dir), "workdir": str(tmp_path / "run")}
    if settings.get("dataset") == "folder":
        defaults["data_dir"] = ""
    with pytest.raises(UserError) as error:
        pretrain.run(pretrain_config(**(defaults | settings)))
    message = str(error.value)
    for word in words:
        assert word in message, message
    assert not (tmp_path / "run" / "flags.cfg").exists()


def test_an_empty_folder_is_named(pretrain_config, tmp_path):
    (tmp_path / "empty").mkdir()
    config = pretrain_config(
        dataset="folder", data_dir=str(tmp_path / "empty"), workdir=str(tmp_path / "run")
    )
    with pytest.raises(UserError, match=f"No image .* Received: {tmp_path / 'empty'}"):
        pretrain.run(config)
