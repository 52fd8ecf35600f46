"""The rules that decide whether a finding of the paper is reproduced."""

import dataclasses
import json
import math

import pytest

from simsiam_tf.paper import findings, outcomes, tables
from simsiam_tf.paper.outcomes import Outcome

GOOD = Outcome(
    state="finished", loss=-0.9, epoch=20, std=0.99, knn=90.0, knn_before_training=66.0, probe=95.0
)
COLLAPSED = dataclasses.replace(GOOD, loss=-0.98, std=0.1, knn=60.0, probe=61.0)
HIGH_LOSS = dataclasses.replace(GOOD, loss=-0.3)
DIVERGED = dataclasses.replace(GOOD, state="diverged", error="…", std=0.5, knn=None, probe=None)
FAILED = Outcome(state="failed", error="…")


def judge(table, **found):
    return findings.judge(
        tables.build_tables("imagenet")[table], {run: [found[run]] for run in found}
    )


def test_collapse_is_reproduced_if_only_the_row_without_stop_gradient_collapses():
    assert judge("stop_gradient", simsiam_decayed=GOOD, no_stop_gradient=COLLAPSED).reproduced


@pytest.mark.parametrize(
    ("with_it", "without", "label"),
    [(GOOD, GOOD, "without"), (COLLAPSED, COLLAPSED, "with stop-gradient")],
)
def test_otherwise_collapse_is_not_reproduced_and_the_row_is_named(with_it, without, label):
    verdict = judge("stop_gradient", simsiam_decayed=with_it, no_stop_gradient=without)
    assert verdict.reproduced is False
    assert verdict.reason.endswith(label)


@pytest.mark.parametrize("other", [Outcome(), FAILED, dataclasses.replace(GOOD, state="trained")])
def test_the_verdict_is_undecided_until_every_row_is_over(other):
    verdict = judge("stop_gradient", simsiam_decayed=GOOD, no_stop_gradient=other)
    assert verdict.reproduced is None
    assert verdict.word == "not decided"
    assert "without" in verdict.reason


def test_every_seed_must_meet_the_expectation():
    table = tables.build_tables("digits")["stop_gradient"]
    seeds = {"simsiam_decayed": [GOOD, GOOD], "no_stop_gradient": [COLLAPSED, GOOD]}
    assert findings.judge(table, seeds).reproduced is False


@pytest.mark.parametrize("std", [math.nan, None, 0.29])
def test_a_small_or_unknown_std_is_a_collapse(std):
    assert dataclasses.replace(GOOD, std=std).collapsed
    assert not dataclasses.replace(GOOD, std=0.3).collapsed


@pytest.mark.parametrize(
    ("fixed", "reproduced"), [(HIGH_LOSS, True), (GOOD, False), (COLLAPSED, False)]
)
def test_a_fixed_predictor_must_not_collapse_and_its_loss_must_stay_high(fixed, reproduced):
    verdict = judge(
        "predictor", simsiam_decayed=GOOD, predictor_none=COLLAPSED, predictor_fixed=fixed,
        simsiam=GOOD,
    )  # fmt: skip
    assert verdict.reproduced is reproduced


@pytest.mark.parametrize(
    ("without", "reproduced"),
    [
        (DIVERGED, True),
        (COLLAPSED, True),
        (dataclasses.replace(GOOD, knn=66.0), True),
        (dataclasses.replace(GOOD, knn=70.0), False),
    ],
)
def test_swav_without_stop_gradient_does_not_converge(without, reproduced):
    verdict = judge(
        "swav_ablation", swav_100=GOOD, swav_predictor=GOOD, swav_no_stop_gradient=without
    )
    assert verdict.reproduced is reproduced


def test_a_table_whose_first_row_diverged_is_not_reproduced():
    verdict = judge(
        "predictor", simsiam_decayed=DIVERGED, predictor_none=COLLAPSED,
        predictor_fixed=HIGH_LOSS, simsiam=GOOD,
    )  # fmt: skip
    assert verdict.reproduced is False


def with_probe(top1):
    return dataclasses.replace(GOOD, probe=top1)


def judge_batch_norm(none, hidden, affine, default):
    return judge(
        "batch_norm", bn_none=none, bn_hidden=with_probe(hidden), bn_affine=with_probe(affine),
        simsiam=with_probe(default), bn_predictor_output=FAILED,
    )  # fmt: skip


def test_the_order_counts_pairs_whose_numbers_differ_by_a_point():
    # The order of 67.4, 68.1 and 68.2 does not count: they differ by less than a point.
    verdict = judge_batch_norm(with_probe(80.0), hidden=95.0, affine=94.0, default=93.0)
    assert verdict.reproduced
    assert verdict.reason == "3 of 3 pairs are in the paper's order"


def test_a_wrong_order_names_a_pair():
    verdict = judge_batch_norm(with_probe(94.0), hidden=95.0, affine=96.0, default=94.0)
    assert verdict.reproduced is False
    assert verdict.reason.startswith("2 of 3 pairs")
    assert "scale and offset is not more accurate than (a) none" in verdict.reason


def test_a_run_that_diverged_ranks_last():
    assert judge_batch_norm(DIVERGED, hidden=95.0, affine=94.0, default=93.0).reproduced


def test_a_difference_of_one_point_counts_despite_rounding():
    verdict = judge(
        "projection_dim", projection_dim_256=with_probe(1), projection_dim_512=with_probe(2),
        projection_dim_1024=with_probe(3), simsiam=with_probe(4),
    )  # fmt: skip
    assert verdict.reason.startswith("3 of 3")  # 256 before the three others


@pytest.mark.parametrize("name", tables.build_tables("digits"))
def test_every_table_states_a_finding_and_a_rule(name):
    table = tables.build_tables("digits")[name]
    assert table.finding.endswith(".")
    assert findings.rule_of(table).endswith(".")
    assert {row.expected for row in table.rows} <= {"", *findings.EXPECTATIONS}
    numbers = [row.number for row in table.rows if row.number is not None]
    assert any(row.expected for row in table.rows) or max(numbers) - min(numbers) >= 1


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def start(error=None):
    return {"program": "train.py", "seconds": 5.0, "error": error}


def test_a_missing_folder_is_a_run_that_has_not_started(tmp_path):
    assert outcomes.read_outcome(tmp_path / "none") == Outcome()


def test_an_outcome_averages_the_last_tenth_of_std_and_adds_up_all_starts(tmp_path):
    lines = [{"step": 0, "epoch": 0, "knn_top1": 60.0}]
    stds = [0.5] * 18 + [0.1, 0.3]
    lines += [
        {"step": step, "epoch": step / 10, "loss": -step / 100, "feature_std": std}
        for step, std in enumerate(stds, start=1)
    ]
    write_lines(tmp_path / "metrics.jsonl", [*lines, {"step": 20, "epoch": 2, "knn_top1": 70.0}])
    write_lines(tmp_path / "starts.jsonl", [start(), start()])
    found = outcomes.read_outcome(tmp_path)
    assert (found.state, found.loss, found.epoch) == ("stopped", -0.2, 2)
    assert found.std == pytest.approx(0.2)
    assert (found.knn_before_training, found.seconds) == (60.0, 10.0)


@pytest.mark.parametrize(
    ("last", "state"),
    [({"nonfinite": True, "indices": [1]}, "diverged"), ({"knn_top1": 50.0}, "failed")],
)
def test_a_run_that_ended_with_skipped_steps_diverged(tmp_path, last, state):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 4, "epoch": 1, **last}])
    write_lines(tmp_path / "starts.jsonl", [start("train.py: it went wrong")])
    found = outcomes.read_outcome(tmp_path)
    assert (found.state, found.error) == (state, "train.py: it went wrong")
