import json
import shutil

import keras
import numpy as np
import pytest

from simsiam_tf import flags
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.data.source import Source
from simsiam_tf.optimization.schedules import learning_rates
from simsiam_tf.reporting import page, record
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training import pretrain


def test_a_workdir_of_another_configuration_is_refused_by_flag_name(tmp_path, pretrain_config):
    run_folder.write_flags(pretrain_config(workdir=str(tmp_path), epochs=100, seed=1), 0)
    with pytest.raises(UserError) as error:
        run_folder.check_workdir(pretrain_config(workdir=str(tmp_path), epochs=200, seed=2))
    message = str(error.value)
    assert "--epochs=100 there, 200 here" in message
    assert "--seed=1 there, 2 here" in message
    assert "--momentum" not in message


def test_a_run_of_a_version_without_a_schedule_by_step_keeps_its_schedule(
    tmp_path, pretrain_config
):
    run_folder.write_flags(pretrain_config(workdir=str(tmp_path)), 0)
    path = tmp_path / "flags.cfg"
    path.write_text(path.read_text().replace("--schedule=epoch\n", ""))
    run_folder.check_workdir(pretrain_config(workdir=str(tmp_path)))
    with pytest.raises(UserError, match="--schedule=epoch there, step here"):
        run_folder.check_workdir(pretrain_config(workdir=str(tmp_path), schedule="step"))


def test_settings_that_only_execute_or_watch_a_run_may_change(tmp_path, pretrain_config):
    run_folder.write_flags(pretrain_config(workdir=str(tmp_path)), 0)
    changed = pretrain_config(
        workdir=str(tmp_path), log_every_steps=1, cpu_replicas=2, knn_every_epochs=0, knn_k=5,
        knn_dataset="digits", knn_bank_size=9, eval_split="validation", data_dir="elsewhere",
    )  # fmt: skip
    assert run_folder.check_workdir(changed) is None


def test_a_workdir_below_a_file_is_refused(tmp_path, pretrain_config):
    (tmp_path / "file").write_text("")
    workdir = str(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=f"--workdir .* Received: {workdir}"):
        run_folder.check_workdir(pretrain_config(workdir=workdir))


@pytest.mark.parametrize(
    ("num_examples", "class_names", "words"),
    [(41, ("a", "b"), r"other images \(40\).* Received: 41"), (40, ("a", "c"), "other classes")],
)
def test_a_run_resumes_only_on_as_many_images_of_the_same_classes(
    tmp_path, num_examples, class_names, words
):
    before = Source("train", 40, ("a", "b"), str, read=None)
    run_folder.check_images(str(tmp_path), before)  # an earlier version wrote nothing
    run_folder.write_images(str(tmp_path), before)
    run_folder.check_images(str(tmp_path), before)
    with pytest.raises(UserError, match=words):
        run_folder.check_images(
            str(tmp_path), Source("train", num_examples, class_names, str, None)
        )


def test_a_run_keeps_its_pixels_and_an_old_run_has_rgb_as_it_is_stored(tmp_path):
    assert run_folder.read_pixels(str(tmp_path)) == RGB
    (tmp_path / "images.json").write_text('{"images": 40, "classes": []}')
    assert run_folder.read_pixels(str(tmp_path)) == RGB
    assert RGB.exif_orientation == "ignore"
    pixels = Pixels(2, "float32", 0.0, 4095.0, (0.1, 0.2), (0.3, 0.4), "apply")
    run_folder.write_images(str(tmp_path), Source("train", 40, (), str, None, pixels=pixels))
    assert run_folder.read_pixels(str(tmp_path)) == pixels


def small_run(tmp_path, **changed):
    """Settings of a run of five steps an epoch on the images of `red_and_blue`."""
    return {
        "dataset": "folder", "data_dir": str(tmp_path), "workdir": str(tmp_path / "run"),
        "eval_split": "train", "image_size": 16, "backbone": "resnet10", "width": 4,
        "stem": "cifar", "projection_dim": 16, "projection_hidden_dim": 16,
        "prediction_hidden_dim": 8, "batch_size": 8, "epochs": 2, "knn_k": 5,
    } | changed  # fmt: skip


def test_a_run_resumes_from_a_moved_folder_without_its_knn_monitor(
    red_and_blue, pretrain_config, tmp_path
):
    red_and_blue(noise=100, tint=40)
    settings = small_run(tmp_path)
    with pytest.raises(UserError, match="A callback stopped the training: saved step 3 of 10"):
        pretrain.run(pretrain_config(**settings), [StopAtStep(2)])
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "train").rename(moved / "train")
    pretrain.run(pretrain_config(**settings | {"data_dir": str(moved), "knn_every_epochs": 0}))
    lines = run_folder.read_metrics(settings["workdir"])
    assert [line["step"] for line in lines if "knn_top1" in line] == [0]
    assert lines[-1]["step"] == 10
    assert f"--data_dir={moved}" in (tmp_path / "run" / "flags.cfg").read_text()


class StopAtStep(keras.callbacks.Callback):
    """Stops the training after a step, as `keras.callbacks.EarlyStopping` does after an epoch."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if logs.number == self.step:
            self.model.stop_training = True


def test_a_finished_run_goes_on_with_more_epochs_by_the_rates_of_the_longer_run(
    red_and_blue, pretrain_config, tmp_path, caplog
):
    red_and_blue(noise=100, tint=40)
    settings = small_run(tmp_path, knn_every_epochs=0, log_every_steps=1)
    folder = tmp_path / "run"
    rates = []
    for epochs in (2, 4):
        config = pretrain_config(**settings | {"epochs": epochs})
        pretrain.run(config)
        rates.append(learning_rates(config.optimization))
        assert json.loads((folder / "summary.json").read_text())["epochs"] == epochs
    lines = run_folder.read_metrics(str(folder))
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 21))
    expected = np.repeat([*rates[0], *rates[1][2:]], 5)
    np.testing.assert_allclose([line["learning_rate"] for line in lines], expected, rtol=1e-6)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["shorter_plans"]) == (20, [[2, 10]])
    assert json.loads((folder / "encoder" / "encoder.json").read_text())["step"] == 20
    assert (folder / "flags.cfg").read_text().startswith("# --epochs=2 up to step 10\n--")
    run = record.read(str(folder))
    assert run.seams == [2]
    text = page.render(run)
    assert "Finished: 4 epochs, 20 steps, 40 images, in " in text
    assert "since the last start. Planned for 2 epochs up to step 10." in text
    again = flags.read([f"--flagfile={folder / 'flags.cfg'}"], PretrainConfig)
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    caplog.set_level("INFO", logger="absl")
    pretrain.run(again)
    assert "is finished" in caplog.text
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"--epochs must be at least 4, .* Received: 3"):
        pretrain.run(pretrain_config(**settings | {"epochs": 3}))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"--epochs=6 needs a checkpoint .* without checkpoints"):
        pretrain.run(pretrain_config(**settings | {"epochs": 6}))
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_history_of_a_run_that_is_extended_twice_stays_in_its_flags(tmp_path, pretrain_config):
    for epochs, step in ((2, 0), (4, 10), (4, 15), (9, 15)):
        run_folder.write_flags(pretrain_config(workdir=str(tmp_path), epochs=epochs), step)
    assert run_folder.read_shorter_plans(str(tmp_path)) == [(2, 10), (4, 15)]
    longer = pretrain_config(workdir=str(tmp_path), epochs=10)
    run_folder.check_workdir(longer, may_extend=True)
    with pytest.raises(UserError, match="--epochs=9 there, 10 here"):
        run_folder.check_workdir(longer)


def test_a_damaged_line_is_named_and_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "epoch": 0.5, "loss": -0.25})
    path.write_text(f'{line}\n{{"step": 2}}\n[]\n{line}\n{{"step": 3, "ep')
    damage = []
    assert run_folder.read_metrics(str(tmp_path), damage.append) == [json.loads(line)] * 2
    assert [text.split(",")[1] for text in damage] == [" line 2", " line 3"]
    with pytest.raises(UserError, match="mend or remove line 2"):
        run_folder.read_metrics(str(tmp_path))


@pytest.mark.parametrize(
    ("workdirs", "names"),
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["one/seed-0", "two/seed-0"], ["one/seed-0", "two/seed-0"]),
        (["x/a/run", "x/b/run", "x/b/other"], ["a/run", "b/run", "b/other"]),
    ],
)
def test_names_of_runs_are_as_short_as_they_differ(workdirs, names):
    assert run_folder.short_names(workdirs) == names
