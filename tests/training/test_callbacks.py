import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.summary.summary_iterator import summary_iterator

from simsiam_tf.config import EncoderConfig, OptimizationConfig, PretrainConfig
from simsiam_tf.data.pixels import RGB
from simsiam_tf.methods.base import Plan
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError
from simsiam_tf.training import loop, tags, tensorboard
from simsiam_tf.training.callbacks import Diagnoses, Metrics, SkippedSteps
from simsiam_tf.training.knn import Knn
from simsiam_tf.training.loop import Step
from simsiam_tf.training.run_log import RunLog

PLAN = Plan(num_examples=32, num_classes=0, batch_size=8, epochs=3)  # 4 steps an epoch
SETTINGS = OptimizationConfig(batch_size=8, epochs=3, base_learning_rate=9.6)


def step_of(number, std=0.9, skipped=(), seconds=0.5):
    return Step(
        {"loss": -number / 10, "feature_std": std, "skipped": float(number in skipped)},
        number=number, indices=[3, 4], seconds=seconds, waited=0.1, processor_seconds=0.2,
        flops=2e6, stopping=False,
    )  # fmt: skip


class Watched:
    """A run's log with the callbacks that look at the metrics."""

    def __init__(
        self, workdir, restored_step=None, log_every_steps=2, max_nonfinite_steps=10, config=None
    ):
        self.log = RunLog(str(workdir), PLAN, restored_step)
        self.metrics = Metrics(self.log, SETTINGS, log_every_steps, peak_flops=1e9)
        self.skipped = SkippedSteps(self.log, max_nonfinite_steps)
        self.diagnoses = Diagnoses(self.log, config or PretrainConfig(optimization=SETTINGS))
        self.callbacks = [self.metrics, self.skipped, self.diagnoses]

    def take(self, *numbers, **how):
        steps = [step_of(number, **how) for number in numbers]
        loop.call_back(steps, self.callbacks, keras.Model(), PLAN.steps_per_epoch)
        return self

    def close(self):
        self.log.__exit__(None, None, None)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events_of(workdir):
    """{tag: [(step, value proto)]} of all TensorBoard files of a run."""
    events = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in summary_iterator(str(path)):
            for value in event.summary.value:
                events.setdefault(value.tag, []).append((event.step, value))
    return events


class Hooks(keras.callbacks.Callback):
    """Lists the hooks that are called, as a user's callback would see them."""

    def __init__(self, name, called):
        super().__init__()
        self.name, self.called = name, called

    def on_train_begin(self, logs=None):
        self.called.append((self.name, "train_begin"))

    def on_epoch_begin(self, epoch, logs=None):
        self.called.append((self.name, "epoch_begin", epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.called.append((self.name, "batch_end", batch, logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self.called.append((self.name, "epoch_end", epoch, logs["loss"]))

    def on_train_end(self, logs=None):
        self.called.append((self.name, "train_end", logs["loss"]))


def test_keras_hooks_are_called_in_the_order_of_the_callbacks_and_with_keras_numbers():
    called = []
    callbacks = [Hooks("a", called), Hooks("b", called)]
    model = keras.Model()
    # A run that resumes in the middle of its first epoch.
    loop.call_back(map(step_of, (3, 4, 5)), callbacks, model, steps_per_epoch=4)
    assert [entry[1:] for entry in called if entry[0] == "a"] == [
        ("train_begin",),
        ("epoch_begin", 0),
        ("batch_end", 2, -0.3),
        ("batch_end", 3, -0.4),
        ("epoch_end", 0, -0.4),
        ("epoch_begin", 1),
        ("batch_end", 0, -0.5),
        ("train_end", -0.5),
    ]
    assert [name for name, *_ in called] == ["a", "b"] * 8
    assert callbacks[0].model is model


def test_callbacks_of_keras_itself_take_the_logs(tmp_path):
    path = tmp_path / "log.csv"
    losses = []
    callbacks = [
        keras.callbacks.CSVLogger(str(path)),
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs)),
    ]
    loop.call_back(map(step_of, range(1, 9)), callbacks, keras.Model(), steps_per_epoch=4)
    rows = [row.split(",")[:3] for row in path.read_text().splitlines()]
    assert rows == [["epoch", "feature_std", "loss"], ["0", "0.9", "-0.4"], ["1", "0.9", "-0.8"]]
    assert [logs["loss"] for logs in losses] == [-n / 10 for n in range(1, 9)]


def test_a_line_has_the_metrics_and_rates_of_its_step(tmp_path):
    Watched(tmp_path).take(*range(1, 7)).close()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5]
    # 9.6 · 8 / 256 = 0.3, and half a cosine over three epochs: 0.3, 0.225.
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.3, 0.3, 0.225])
    assert lines[1]["loss"] == pytest.approx(-0.4)
    assert "skipped" not in lines[1]
    assert [line["images_per_second"] for line in lines] == [16, 16, 16]
    assert [line["input_wait_fraction"] for line in lines] == pytest.approx([0.2] * 3)


def test_the_rate_of_a_line_is_that_of_its_own_steps(tmp_path):
    # Steps of a loop arrive together, after it; a line may end within a slow one or a fast one.
    watched = Watched(tmp_path).take(1, 2, 3, seconds=4.0).take(4, 5, 6, seconds=0.25)
    watched.close()
    rates = [line["images_per_second"] for line in lines_of(tmp_path)]
    assert rates == pytest.approx([2, 16 / 4.25, 32])


def test_the_last_step_has_a_line_whatever_the_interval(tmp_path):
    Watched(tmp_path, log_every_steps=5).take(*range(1, 13)).close()
    assert [line["step"] for line in lines_of(tmp_path)] == [5, 10, 12]


def test_lines_after_the_checkpoint_leave_the_file_when_a_run_resumes(tmp_path):
    Watched(tmp_path).take(*range(1, 7)).close()
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "ep')  # cut off by a kill
    Watched(tmp_path, restored_step=4).take(5, 6).close()
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert after[:2] == before[:2]
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4, 6]


def test_a_start_without_a_checkpoint_begins_a_new_file(tmp_path):
    for _ in range(2):
        watched = Watched(tmp_path)
        watched.log.write(0, {"knn_top1": 50.0})
        watched.take(1, 2).close()
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 2]


def test_an_epoch_of_collapsed_features_is_a_warning_in_the_log_and_in_tensorboard(
    tmp_path, caplog
):
    Watched(tmp_path).take(1, 2, 3, 4, std=0.29).close()
    assert "Collapse" in caplog.text
    ((step, value),) = events_of(tmp_path)["Run/warnings"]
    assert step == 4
    assert b"Collapse" in value.tensor.string_val[0]


def test_one_healthy_line_in_an_epoch_is_no_collapse(tmp_path, caplog):
    Watched(tmp_path).take(1, 2, std=0.31).take(3, 4, std=0.1).close()
    assert "Collapse" not in caplog.text


def test_tensorboard_has_the_scalars_and_the_view_pairs(tmp_path):
    watched = Watched(tmp_path)
    black_and_white = tuple(tf.zeros([8, 4, 4, 3]) + value for value in (-9.0, 9.0))
    with watched.log.summaries(0):
        tensorboard.write_view_pairs(black_and_white, RGB)
    watched.take(*range(1, 7))
    watched.log.write(6, {"knn_top1": 81.5})
    watched.close()
    events = events_of(tmp_path)
    for name in ("loss", "feature_std", "images_per_second", "input_wait_fraction"):
        assert [step for step, _ in events[tags.tag_of(name)]] == [2, 4, 6], name

    def scalars(name):
        return [float(tf.make_ndarray(value.tensor)) for _, value in events[tags.tag_of(name)]]

    np.testing.assert_allclose(scalars("learning_rate"), [0.3, 0.3, 0.225], rtol=1e-6)
    np.testing.assert_allclose(scalars("knn_top1"), [81.5])
    ((step, value),) = events["views/pairs"]
    width, height, png = value.tensor.string_val
    assert (step, int(width), int(height)) == (0, 8, 32)
    grid = tf.io.decode_png(png).numpy()
    # The first view is black as denormalised, the second white: side by side, a row an image.
    assert (grid[:, :4] == 0).all()
    assert (grid[:, 4:] == 255).all()


def test_a_skipped_step_is_a_line_with_its_samples_and_a_warning(tmp_path, caplog):
    Watched(tmp_path).take(*range(1, 5), skipped=(2, 3)).close()
    lines = lines_of(tmp_path)
    assert [(line["step"], line.get("nonfinite"), line.get("indices")) for line in lines] == [
        (2, True, [3, 4]),
        (3, True, [3, 4]),
        (4, None, None),
    ]
    assert "Step 3 changed no weight: its loss or gradient is not finite. Its samples: 3, 4" in (
        caplog.text
    )


def test_skipped_steps_in_a_row_are_counted_over_a_restart(tmp_path):
    skipped = (1, 3, 4, 5)
    watched = Watched(tmp_path).take(1, 2, skipped=skipped)
    assert watched.skipped.in_a_row == 0
    watched.take(3, 4, 5, skipped=skipped)
    assert watched.skipped.in_a_row == 3
    watched.close()
    watched = Watched(tmp_path, restored_step=4, max_nonfinite_steps=3)
    assert watched.skipped.in_a_row == 2
    with pytest.raises(UserError, match="of 3 steps in a row was not finite"):
        watched.take(5, skipped=skipped)
    watched.close()


class UnseenLines(list):
    """Lines of metrics of which only the newest may be looked at."""

    def __iter__(self):
        raise AssertionError("all lines are looked at")

    def __reversed__(self):
        newest = super().__reversed__()
        return (next(newest) for _ in range(10))


def test_a_step_does_not_look_at_all_lines(tmp_path):
    watched = Watched(tmp_path).take(*range(1, 5))
    watched.log.lines = UnseenLines(watched.log.lines * 100)
    watched.take(5, 6, 7, std=0.1, skipped=(6,))
    assert watched.skipped.in_a_row == 0
    watched.close()


def knn_of(workdir, strategy, source, config):
    with strategy.scope():
        encoder = resnet.ResNet(EncoderConfig("resnet10", 4, "cifar"), seed=0)
    log = RunLog(str(workdir), PLAN, restored_step=None)
    return Knn(log, strategy, encoder, source, source, config)


def test_the_knn_monitor_encodes_on_all_replicas_and_finds_what_one_finds(
    red_and_blue, two_replicas, pretrain_config, tmp_path
):
    source = red_and_blue(noise=100, tint=40)
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = pretrain_config(image_size=8, knn_k=5, knn_bank_size=31, workdir=str(workdir))
    found, traced = [], set()
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        monitor = knn_of(tmp_path, strategy, source, config)
        features_of = monitor.served.features

        def encode(images, features_of=features_of):
            context = tf.distribute.get_replica_context()
            traced.add(int(tf.get_static_value(context.replica_id_in_sync_group)))
            return features_of(images)

        monitor.served.features = encode
        bank, _ = monitor._extract(source, config.monitor.knn_bank_size)
        found.append((monitor.top1(), bank))
    assert traced == {0, 1}
    (top1, bank), (top1_of_two, bank_of_two) = found
    assert bank.shape == bank_of_two.shape == (31, 4 * 8)
    np.testing.assert_allclose(bank_of_two, bank, rtol=1e-4, atol=1e-4 * np.abs(bank).max())
    assert top1_of_two == top1
    assert not list(workdir.iterdir())  # the features are in files without a name


def test_the_knn_monitor_looks_at_a_new_run_before_training_then_every_few_epochs_and_at_the_end(
    red_and_blue, pretrain_config, tmp_path
):
    config = pretrain_config(
        image_size=8, knn_k=5, knn_every_epochs=2, workdir=str(tmp_path), batch_size=8, epochs=3
    )
    monitor = knn_of(tmp_path, tf.distribute.get_strategy(), red_and_blue(100, 40), config)
    loop.call_back(map(step_of, range(1, 13)), [monitor], keras.Model(), PLAN.steps_per_epoch)
    monitor.log.__exit__(None, None, None)
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 8, 12]
    assert [step for step, _ in events_of(tmp_path)["health/knn_top1"]] == [0, 8, 12]


def test_a_disk_without_room_for_the_monitors_features_is_reported(
    red_and_blue, pretrain_config, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simsiam_tf.evaluation.features.extract", full)
    config = pretrain_config(image_size=8, workdir=str(tmp_path))
    monitor = knn_of(tmp_path, tf.distribute.get_strategy(), red_and_blue(100, 40), config)
    with pytest.raises(UserError, match=r"--workdir cannot be written to \(No space left"):
        monitor.top1()
