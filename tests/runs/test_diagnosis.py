"""The rules that say what is wrong with a run: each on lines of metrics, and one in a real run."""

import json

import numpy as np
import pytest
from conftest import TINY_RUN
from run_results import lines_of

from simsiam_tf import schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.runs import diagnosis
from simsiam_tf.schema import UserError

EPOCHS = 20


def run(loss=(-0.1, -0.95), std=0.98, rank=(22.0, 45.0), z_rank=16.0, crops=(0.1, 0.12), until=1.0):
    """The lines of a run; by default of a healthy one.

    Args:
      loss: first and last; it falls fast at first and hardly at the end.
      std: throughout; or of each epoch.
      rank: of the random network and later.
      z_rank: after the start.
      crops: alignment of z on training and on held-out images.
      until: share of the epochs that is done.
    """
    lines = [health(0, rank[0], 24.0, (0.01, 0.01))]
    stds = std if isinstance(std, list) else [std] * EPOCHS
    for step in range(1, int(until * EPOCHS * 10) + 1):
        epoch = step / 10
        done = 1 - np.exp(-30 * (step - 1) / (EPOCHS * 10))
        value = loss[0] + (loss[1] - loss[0]) * done
        spread = stds[(step - 1) // 10]
        lines.append({"step": step, "epoch": epoch, "loss": value, "feature_std": spread})
        if step % 10 == 0:
            lines.append(health(epoch, rank[1], z_rank, crops))
    return lines


def health(epoch, rank, z_rank, crops):
    return {
        "step": 10 * epoch, "epoch": epoch, "effective_rank": rank, "z_effective_rank": z_rank,
        "alignment": 0.2, "z_alignment": crops[0], "heldout_z_alignment": crops[1],
    }  # fmt: skip


def slow(lines):
    """The same run with a loss that falls evenly."""
    for line in lines:
        if "loss" in line:
            line["loss"] = -0.1 - 0.4 * line["epoch"] / EPOCHS
    return lines


def config(**settings):
    values = schema.defaults(PretrainConfig) | {"epochs": EPOCHS} | settings
    return schema.build(PretrainConfig, values)


def names(lines, **settings):
    return [finding.name for finding in diagnosis.diagnose(lines, config(**settings))]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (run(), []),
        (run(std=0.28), ["collapse"]),
        (run(std=0.31), ["partial collapse"]),
        (run(std=0.59), ["partial collapse"]),
        (run(std=0.61), []),
        (run(std=[0.98] * 19 + [0.2]), ["collapse"]),
        (run(std=[0.2] * 19 + [0.98]), []),
        (run(z_rank=1.4, rank=(22.0, 5.2)), ["partial collapse"]),
        (run(z_rank=3.7, rank=(22.4, 14.8)), []),  # four well separated classes
        (run(z_rank=5.0, rank=(22.0, 5.2)), []),
        (run(loss=(-0.01, -0.1)), ["not learning"]),
        (run(loss=(-0.01, -0.12)), []),
        (run(loss=(5.8, 5.3)), ["not learning"]),  # of SimCLR: a tenth of the loss
        (run(loss=(5.8, 5.1)), []),
        (run(loss=(-0.1, 0.4)), ["not learning"]),
        (run(crops=(0.09, 0.19)), ["overfit crops"]),
        (run(crops=(0.01, 0.04)), []),  # too small a gap
        (run(crops=(0.4, 0.5)), []),  # too small a ratio
        (slow(run()), ["still improving"]),
        (slow(run(crops=(0.09, 0.19))), ["overfit crops", "still improving"]),
    ],
)
def test_a_rule_finds_its_failure_and_no_other(lines, expected):
    assert names(lines) == expected


def test_a_run_that_has_just_begun_is_told_only_of_a_collapse():
    assert names(run(loss=(-0.01, -0.02), z_rank=1.4, rank=(22, 5), until=0.15)) == []
    assert names(run(std=0.2, until=0.15)) == ["collapse"]
    assert names(run(loss=(-0.01, -0.02), until=0.25)) == ["not learning"]


def test_only_a_finished_run_is_still_improving():
    assert names(slow(run(until=0.9))) == []


def test_runs_without_these_metrics_are_judged_by_what_they_have():
    lines = [line for line in run(z_rank=1.0, rank=(22, 2), crops=(0.1, 0.9)) if "loss" in line]
    assert names(lines) == []
    assert names([]) == []
    assert names([{"step": 0, "epoch": 0.0, "knn_top1": 50.0}]) == []
    assert names([*run(), {"step": 200, "epoch": 20.0, "loss": float("nan")}]) == []


@pytest.mark.parametrize(
    ("lines", "settings", "remedy"),
    [
        (run(std=0.1), {"stop_gradient": False}, "Leave out --stop_gradient=false"),
        (run(std=0.1), {"predictor": "none"}, "Leave out --predictor=none"),
        (run(std=0.1), {"projection_bn": "none"}, "Choose --projection_bn=all"),
        (run(std=0.1), {"base_learning_rate": 3.0}, "smaller --base_learning_rate than 3,"),
        (run(std=0.5), {"weight_decay": 0.01}, "smaller --weight_decay than 0.01"),
        (run(std=0.5), {}, "larger --width or --backbone"),
        (run(loss=(0.0, 0.0)), {"predictor": "fixed"}, "Leave out --predictor=fixed"),
        (run(loss=(0.0, 0.0)), {}, "larger --base_learning_rate than 0.05"),
        (run(crops=(0.1, 0.5)), {}, "a smaller --crop_min_area than 0.2"),
        (slow(run()), {}, "more --epochs, such as 40"),
    ],
)
def test_the_remedy_names_the_flag_of_the_run_that_is_the_cause(lines, settings, remedy):
    finding = diagnosis.diagnose(lines, config(**settings))[0]
    assert remedy in finding.remedy
    assert str(finding).startswith(finding.name.capitalize())


def test_the_evidence_has_the_numbers():
    (finding,) = diagnosis.diagnose(run(z_rank=1.4, rank=(22.0, 5.2)), config(projection_dim=128))
    assert "1.4 of 128 directions" in finding.evidence
    assert "5.2, after 22.0 in the random network" in finding.evidence


def test_a_run_that_is_collapsed_for_two_epochs_stops_and_is_saved(train_here, tmp_path):
    flags = [*TINY_RUN, "--width=4", "--projection_bn=none", "--prediction_bn=none", "--epochs=4"]
    with pytest.raises(UserError, match=r"^Collapse: .* Choose --projection_bn=all.*saved step 45"):
        train_here(tmp_path / "stopped", *flags, "--on_collapse=stop")
    assert lines_of(tmp_path / "stopped")[-1]["step"] == 45
    assert {path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()} == {
        "step-000000045"
    }
    log = (tmp_path / "stopped" / "logs" / "worker-0.log").read_text()
    assert log.count("] Collapse: ") == 2  # the warning, once, and the end


def test_the_summary_lists_the_findings_of_a_run_that_was_only_warned(train_here, tmp_path):
    flags = [*TINY_RUN, "--width=4", "--projection_bn=none", "--prediction_bn=none"]
    train_here(tmp_path, *flags)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [finding["name"] for finding in summary["findings"]] == ["collapse"]
    assert PretrainConfig().monitor.on_collapse == "warn"
