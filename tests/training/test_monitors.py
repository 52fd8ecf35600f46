import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from tensorflow.python.summary.summary_iterator import summary_iterator

from simsiam_tf.config import EncoderConfig
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError
from simsiam_tf.training.loop import Step
from simsiam_tf.training.monitors import KnnMonitor, Monitor, log_file


def build(workdir, restored_step=None, **settings):
    settings = {"steps_per_epoch": 4, "log_every_steps": 2} | settings
    return Monitor(
        str(workdir),
        restored_step=restored_step,
        last_step=12,
        batch_size=8,
        learning_rates=[0.3, 0.2, 0.1],
        predictor_learning_rates=[0.4, 0.4, 0.5],
        peak_flops=1e9,
        **settings,
    )


def take_steps(monitor, first, last, std=0.9, void=(), seconds=0.5):
    for number in range(first, last + 1):
        metrics = {"loss": -number / 10, "feature_std": std, "void": float(number in void)}
        monitor.step(
            Step(number, metrics, [3, 4], seconds=seconds, waited=0.1, flops=2e6, stopping=False)
        )


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


def test_a_line_has_what_the_run_did_at_its_step(tmp_path):
    monitor = build(tmp_path)
    take_steps(monitor, 1, 6)
    monitor.close()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5]
    assert [line["learning_rate"] for line in lines] == [0.3, 0.3, 0.2]
    assert lines[1]["loss"] == pytest.approx(-0.4)
    assert [line["images_per_second"] for line in lines] == [16, 16, 16]
    assert [line["input_wait_fraction"] for line in lines] == pytest.approx([0.2] * 3)


def test_the_rate_of_a_line_is_that_of_its_own_steps(tmp_path):
    # Steps of a loop arrive together, after it; a line may end within a slow one or a fast one.
    monitor = build(tmp_path)
    take_steps(monitor, 1, 3, seconds=4.0)
    take_steps(monitor, 4, 6, seconds=0.25)
    monitor.close()
    rates = [line["images_per_second"] for line in lines_of(tmp_path)]
    assert rates == pytest.approx([2, 16 / 4.25, 32])


def test_the_last_step_has_a_line_whatever_the_interval(tmp_path):
    monitor = build(tmp_path, log_every_steps=5)
    take_steps(monitor, 1, 12)
    monitor.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [5, 10, 12]


def test_lines_after_the_checkpoint_leave_the_file_when_a_run_goes_on(tmp_path):
    monitor = build(tmp_path)
    take_steps(monitor, 1, 6)
    monitor.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "ep')  # cut off by a kill
    monitor = build(tmp_path, restored_step=4)
    take_steps(monitor, 5, 6)
    monitor.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4, 6]


def test_a_start_without_a_checkpoint_begins_a_new_file(tmp_path):
    for _ in range(2):
        monitor = build(tmp_path)
        monitor.knn(0, 50.0)
        take_steps(monitor, 1, 2)
        monitor.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 2]


def test_an_epoch_of_collapsed_features_is_a_warning_in_the_log_and_in_tensorboard(
    tmp_path, caplog
):
    monitor = build(tmp_path)
    take_steps(monitor, 1, 4, std=0.29)
    monitor.close()
    assert "Collapse" in caplog.text
    ((step, value),) = events_of(tmp_path)["warnings"]
    assert step == 4
    assert b"Collapse" in value.tensor.string_val[0]


def test_one_healthy_line_in_an_epoch_is_no_collapse(tmp_path, caplog):
    monitor = build(tmp_path)
    take_steps(monitor, 1, 2, std=0.31)
    take_steps(monitor, 3, 4, std=0.1)
    monitor.close()
    assert "Collapse" not in caplog.text


def test_tensorboard_has_the_scalars_both_rates_and_the_view_pairs(tmp_path):
    monitor = build(tmp_path)
    black_and_white = tuple(tf.zeros([8, 4, 4, 3]) + value for value in (-9.0, 9.0))
    monitor.view_pairs(black_and_white)
    take_steps(monitor, 1, 6)
    monitor.knn(6, 81.5)
    monitor.close()
    events = events_of(tmp_path)
    for name in ("loss", "feature_std", "images_per_second", "input_wait_fraction"):
        assert [step for step, _ in events[name]] == [2, 4, 6], name

    def scalars(name):
        return [float(tf.make_ndarray(value.tensor)) for _, value in events[name]]

    np.testing.assert_allclose(scalars("learning_rate"), [0.3, 0.3, 0.2], rtol=1e-6)
    np.testing.assert_allclose(scalars("predictor_learning_rate"), [0.4, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(scalars("knn_top1"), [81.5])
    ((step, value),) = events["view_pairs"]
    width, height, png = value.tensor.string_val
    assert (step, int(width), int(height)) == (0, 8, 32)
    grid = tf.io.decode_png(png).numpy()
    # The first view is black as denormalised, the second white: side by side, a row an image.
    assert (grid[:, :4] == 0).all()
    assert (grid[:, 4:] == 255).all()


def test_a_step_that_changed_nothing_is_a_line_with_its_samples_and_a_warning(tmp_path, caplog):
    monitor = build(tmp_path)
    take_steps(monitor, 1, 4, void=(2, 3))
    monitor.close()
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
    monitor = build(tmp_path)
    take_steps(monitor, 1, 2, void=(1, 3, 4, 5))
    assert monitor.skipped_in_a_row == 0
    take_steps(monitor, 3, 5, void=(1, 3, 4, 5))
    assert monitor.skipped_in_a_row == 3
    monitor.close()
    monitor = build(tmp_path, restored_step=4)
    assert monitor.skipped_in_a_row == 2
    take_steps(monitor, 5, 5, void=(5,))
    assert monitor.skipped_in_a_row == 3


class UnseenLines(list):
    """Lines of metrics of which only the newest may be looked at."""

    def __iter__(self):
        raise AssertionError("all lines are looked at")

    def __reversed__(self):
        newest = super().__reversed__()
        return (next(newest) for _ in range(10))


def test_a_step_does_not_look_at_all_lines(tmp_path):
    monitor = build(tmp_path)
    take_steps(monitor, 1, 4)
    monitor.lines = UnseenLines(monitor.lines * 100)
    take_steps(monitor, 5, 12, std=0.1, void=(6,))
    assert monitor.skipped_in_a_row == 0
    monitor.close()


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"st\x00p": 4}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl must hold .* mend or remove"):
        build(tmp_path, restored_step=4)


def test_the_log_file_has_the_log_and_the_line_that_a_run_ended_with(tmp_path):
    path = tmp_path / "logs" / "worker-0.log"
    for number in (1, 2):
        with contextlib.suppress(UserError), log_file(str(path)):
            logging.warning("start %d", number)
            raise UserError(f"end {number}")
    logging.warning("afterwards")
    lines = [line.split("] ")[1] for line in path.read_text().splitlines()]
    assert lines == ["start 1", "end 1", "start 2", "end 2"]


def test_the_knn_monitor_encodes_on_all_replicas_and_finds_what_one_finds(
    red_and_blue, two_replicas, pretrain_config, tmp_path
):
    source = red_and_blue(noise=100, tint=40)
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = pretrain_config(image_size=8, knn_k=5, knn_bank_size=31, workdir=str(workdir))
    found, traced = [], set()
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            encoder = resnet.ResNet(EncoderConfig("resnet10", 4, "cifar"), seed=0)
        monitor = KnnMonitor(strategy, encoder, source, source, config)
        features_of = monitor.served.features

        def encode(images, features_of=features_of):
            context = tf.distribute.get_replica_context()
            traced.add(int(tf.get_static_value(context.replica_id_in_sync_group)))
            return features_of(images)

        monitor.served.features = encode
        found.append((monitor.top1(), monitor.bank_features))
    assert traced == {0, 1}
    (top1, bank), (top1_of_two, bank_of_two) = found
    assert bank.shape == bank_of_two.shape == (31, encoder.feature_dim)
    np.testing.assert_allclose(bank_of_two, bank, rtol=1e-4, atol=1e-4 * np.abs(bank).max())
    assert top1_of_two == top1
    assert not list(workdir.iterdir())  # the features are in files without a name


def test_a_disk_without_room_for_the_monitors_features_is_told_of(
    red_and_blue, pretrain_config, tmp_path, monkeypatch
):
    source = red_and_blue(noise=100, tint=40)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simsiam_tf.evaluation.features.extract", full)
    config = pretrain_config(image_size=8, workdir=str(tmp_path))
    encoder = resnet.ResNet(EncoderConfig("resnet10", 4, "cifar"), seed=0)
    monitor = KnnMonitor(tf.distribute.get_strategy(), encoder, source, source, config)
    with pytest.raises(UserError, match=r"--workdir cannot be written to \(No space left"):
        monitor.top1()
