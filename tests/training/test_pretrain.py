"""A whole run: the files that it leaves, and the mistakes that it reports."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY_RUN
from programs import Program
from run_results import (
    assert_ends_with_one_line,
    assert_same_run,
    lines_of,
    losses_of,
    wait_for_checkpoint,
)

from simsiam_tf.schema import UserError
from simsiam_tf.training import pretrain


def test_the_summary_says_what_the_run_reached(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["steps"] == 44
    assert summary["images_per_second"] > 0
    assert summary["model_flop_utilization"] > 0
    assert 0 < summary["processor_use"] <= 1
    assert "this run" in summary["limit"]
    accuracies = [line["knn_top1"] for line in lines_of(tiny_run) if "knn_top1" in line]
    assert [summary["knn_top1_before_training"], summary["knn_top1"]] == accuracies[
        :: len(accuracies) - 1
    ]


def test_metrics_have_a_line_each_log_step_and_monitors_before_training_and_each_epoch(tiny_run):
    lines = lines_of(tiny_run)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40, 44]
    for monitor in ("knn_top1", "effective_rank"):
        assert [line["epoch"] for line in lines if monitor in line] == [0, 1, 2]
    when = {"step", "epoch"}
    health = {"effective_rank", "alignment", "z_effective_rank", "z_alignment"}
    assert {frozenset(line) for line in lines} == {
        frozenset(when | {"loss", "feature_std", "learning_rate"}),
        frozenset(when | health | {"heldout_z_alignment"}),
        frozenset(when | {"knn_top1"}),
    }


def test_the_same_command_again_says_finished_and_changes_nothing(
    tiny_run, train_here, tmp_path, caplog
):
    workdir = tmp_path / "copy"  # tests of other processes start runs in `tiny_run` itself
    shutil.copytree(tiny_run, workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    caplog.set_level("INFO", logger="absl")
    train_here(workdir, *TINY_RUN)
    assert "is finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_workdir_of_another_configuration_is_refused(tiny_run, train_here):
    with pytest.raises(UserError, match=r"--momentum=0\.9 there, 0\.8 here"):
        train_here(tiny_run, *TINY_RUN, "--momentum=0.8")


def test_the_flags_of_a_run_repeat_it_and_leave_the_same_files(tiny_run, train_here, tmp_path):
    train_here(tmp_path / "again", f"--flagfile={tiny_run / 'flags.cfg'}")
    assert_same_run(tmp_path / "again", tiny_run)
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "flags.cfg", "checkpoints", "metrics.jsonl", "tensorboard", "encoder", "summary.json",
        "logs", "images.json", "history.jsonl",
    }  # fmt: skip


def test_export_alone_writes_the_encoder_of_the_newest_checkpoint(tiny_run, train_here, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(tiny_run, workdir)
    shutil.rmtree(workdir / "encoder")
    train_here(workdir, *TINY_RUN, "--export")
    images = tf.random.stateless_uniform([4, 16, 16, 3], [0, 0], 0, 255)
    features = [
        tf.saved_model.load(str(run / "encoder")).signatures["serving_default"](images=images)
        for run in (workdir, tiny_run)
    ]
    np.testing.assert_array_equal(features[0]["features"], features[1]["features"])


def test_export_without_a_checkpoint_is_refused(pretrain_config, tmp_path):
    config = pretrain_config(workdir=str(tmp_path), export=True, backbone="resnet10", width=4)
    with pytest.raises(UserError, match="--export needs a checkpoint"):
        pretrain.run(config)


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


def test_images_without_labels_are_enough(photographs, train_here, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    flags = [*FOLDER_RUN, "--knn_every_epochs=1", f"--data_dir={photographs}"]
    train_here(tmp_path / "run", *flags)
    assert caplog.text.count("No kNN monitor") == 1
    assert len(losses_of(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "encoder" / "saved_model.pb").exists()


def test_the_knn_monitor_may_use_another_data_set(pretrain_config, photographs, tmp_path, tfds_dir):
    config = pretrain_config(
        dataset="folder", data_dir=str(photographs), workdir=str(tmp_path), backbone="resnet10",
        width=4, stem="cifar", image_size=16, projection_dim=16, projection_hidden_dim=16,
        prediction_hidden_dim=8,
        batch_size=8, epochs=1, knn_dataset="digits", knn_data_dir=str(tfds_dir), knn_k=20,
        knn_bank_size=500,
    )  # fmt: skip
    pretrain.run(config)
    knn = [line["knn_top1"] for line in lines_of(tmp_path) if "knn_top1" in line]
    assert len(knn) == 2
    assert all(10 < top1 < 100 for top1 in knn)


def test_an_image_that_cannot_be_read_is_named(photographs, train_here, tmp_path):
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    victim = folder / "10.JPG"
    victim.write_bytes(victim.read_bytes()[:400])
    with pytest.raises(UserError, match=re.escape(str(victim))):
        train_here(tmp_path / "run", *FOLDER_RUN, f"--data_dir={folder}", "--epochs=4")


def small_run_of(folder, workdir):
    return {
        "dataset": "folder", "data_dir": str(folder), "workdir": str(workdir), "image_size": 16,
        "backbone": "resnet10", "width": 4, "stem": "cifar", "projection_dim": 16,
        "projection_hidden_dim": 16, "prediction_hidden_dim": 8, "batch_size": 8, "epochs": 2,
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
    process = Program("train.py", *flags, f"--workdir={workdir}", TFDS_DATA_DIR=str(tfds_dir))
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
