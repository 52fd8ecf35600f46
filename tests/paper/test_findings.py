"""The rules that decide whether a finding of the paper is reproduced."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from simsiam_tf.paper import findings, intervals, outcomes, tables
from simsiam_tf.paper.outcomes import Outcome
from simsiam_tf.paper.scales import SCALES

GOOD = Outcome(
    state="finished", loss=-0.9, epoch=20, std=0.99, knn=90.0, knn_before_training=66.0, probe=95.0,
    epochs=20, num_test=400, misclassified=tuple(range(20)),
)  # fmt: skip
COLLAPSED = dataclasses.replace(GOOD, loss=-0.98, std=0.1, knn=60.0, probe=61.0)
HIGH_LOSS = dataclasses.replace(GOOD, loss=-0.3)
DIVERGED = dataclasses.replace(GOOD, state="diverged", error="…", std=0.5, knn=None, probe=None)
FAILED = Outcome(state="failed", error="…")
DIGITS = tables.build_tables("digits")
EPOCHS = tables.epochs_of("digits")


def judge(table, seeds=None, **found):
    """Judges a table; a single outcome stands for three seeds that agree."""
    found = {run: one if isinstance(one, list) else [one] * 3 for run, one in found.items()}
    seeds = seeds or max(map(len, found.values()))
    every = dict.fromkeys(row.run for row in DIGITS[table].rows) | found
    every = {run: seeds or [] for run, seeds in every.items()}
    return findings.judge(DIGITS[table], every, seeds, EPOCHS)


def with_probe(wrong):
    """An outcome whose probe classifies these of 400 images wrongly."""
    top1 = 100 - len(wrong) / 4
    return dataclasses.replace(GOOD, probe=top1, misclassified=tuple(wrong))


def test_collapse_is_reproduced_if_only_the_row_without_stop_gradient_collapses():
    verdict = judge("stop_gradient", simsiam_decayed=GOOD, no_stop_gradient=COLLAPSED)
    assert (verdict.word, verdict.seeds) == ("reproduced", 3)


@pytest.mark.parametrize(
    ("with_it", "without", "claim"),
    [
        (GOOD, GOOD, "without: collapses"),
        (COLLAPSED, COLLAPSED, "with stop-gradient: does not collapse"),
    ],
)
def test_collapse_is_contradicted_otherwise_and_the_claim_is_named(with_it, without, claim):
    verdict = judge("stop_gradient", simsiam_decayed=with_it, no_stop_gradient=without)
    assert verdict.word == "contradicted"
    assert verdict.reason == f"{claim}: fails"


@pytest.mark.parametrize("other", [Outcome(), FAILED, dataclasses.replace(GOOD, state="trained")])
def test_a_finding_is_undecided_until_every_row_that_it_needs_is_over(other):
    verdict = judge("stop_gradient", simsiam_decayed=GOOD, no_stop_gradient=other)
    assert verdict.word == "undecided"
    assert verdict.reason == "these rows are not finished: without"


def test_one_seed_decides_nothing():
    verdict = judge("stop_gradient", simsiam_decayed=[GOOD], no_stop_gradient=[COLLAPSED])
    assert verdict.word == "undecided"
    assert "--seeds=3" in verdict.reason
    assert {one.would_decide for one in verdict.judgements} == {"3 seeds or more"}


def test_runs_of_other_epochs_than_the_scales_decide_nothing():
    short = dataclasses.replace(COLLAPSED, epochs=19)
    verdict = judge("stop_gradient", simsiam_decayed=GOOD, no_stop_gradient=short)
    assert verdict.word == "undecided"
    assert verdict.reason == ("these rows were trained for other epochs than the scale's: without")


def test_seeds_that_disagree_leave_a_finding_undecided():
    seeds = [COLLAPSED, COLLAPSED, GOOD]
    verdict = judge("stop_gradient", simsiam_decayed=GOOD, no_stop_gradient=seeds)
    assert verdict.word == "undecided"
    assert [one.word for one in verdict.judgements] == ["holds", "open"]


@pytest.mark.parametrize("std", [math.nan, None, 0.29])
def test_a_small_or_unknown_std_is_a_collapse(std):
    assert dataclasses.replace(GOOD, std=std).collapsed
    assert not dataclasses.replace(GOOD, std=0.3).collapsed


@pytest.mark.parametrize(
    ("fixed", "word"),
    [(HIGH_LOSS, "reproduced"), (GOOD, "contradicted"), (COLLAPSED, "contradicted")],
)
def test_a_fixed_predictor_must_not_collapse_and_its_loss_must_stay_high(fixed, word):
    verdict = judge(
        "predictor", simsiam_decayed=GOOD, predictor_none=COLLAPSED, predictor_fixed=fixed,
        simsiam=GOOD,
    )  # fmt: skip
    assert verdict.word == word


@pytest.mark.parametrize(
    ("without", "word"),
    [
        (DIVERGED, "reproduced"),
        (COLLAPSED, "reproduced"),
        (dataclasses.replace(GOOD, knn=66.0), "undecided"),
        (dataclasses.replace(GOOD, knn=70.0), "contradicted"),
    ],
)
def test_swav_without_stop_gradient_falls_below_the_random_network(without, word):
    verdict = judge(
        "swav_ablation", swav_100=GOOD, swav_predictor=GOOD, swav_no_stop_gradient=without
    )
    assert verdict.word == word


def test_a_row_that_diverged_does_not_hold_what_claims_a_spread():
    verdict = judge("stop_gradient", simsiam_decayed=DIVERGED, no_stop_gradient=COLLAPSED)
    assert verdict.word == "contradicted"


def judge_similarity(cosine, cross_entropy, seeds=None):
    verdict = judge(
        "similarity", seeds=seeds, simsiam=cosine, similarity_cross_entropy=cross_entropy
    )
    return verdict, verdict.judgements[0]


def test_the_margin_is_the_mean_difference_of_paired_seeds():
    better = [with_probe(range(count)) for count in (4, 8, 12)]
    worse = [with_probe(range(count)) for count in (44, 52, 48)]
    verdict, judgement = judge_similarity(better, worse)
    assert judgement.estimate.mean == pytest.approx((10 + 11 + 9) / 3)
    assert judgement.estimate.deviation == pytest.approx(1)
    assert verdict.word == "reproduced"
    verdict, judgement = judge_similarity(worse, better)
    assert verdict.word == "contradicted"
    assert judgement.estimate.mean == pytest.approx(-10)


def test_the_interval_joins_students_t_over_seeds_and_the_error_of_the_images():
    # Ten images, wrong in some seeds of either run, and 390 that are always right.
    wrong = {"a": [(0, 1, 2), (0, 1), (5,)], "b": [(0, 3, 4), (1, 3), (3, 4, 5, 6)]}
    a, b = ([with_probe(one) for one in wrong[name]] for name in "ab")
    _, judgement = judge_similarity(a, b)
    values = [
        100 * np.mean([(image in one["b"]) - (image in one["a"]) for one in seeds_of(wrong)])
        for image in range(400)
    ]
    of_images = np.std([*values, 100, -100]) / 20
    differences = [
        (len(second) - len(first)) / 4 for first, second in zip(wrong["a"], wrong["b"], strict=True)
    ]
    of_seeds = stats.t.ppf(0.975, 2) * np.std(differences, ddof=1) / math.sqrt(3)
    expected = math.hypot(of_seeds, stats.norm.ppf(0.975) * of_images)
    assert judgement.estimate.half_width() == pytest.approx(expected)


def seeds_of(wrong):
    return [{"a": a, "b": b} for a, b in zip(wrong["a"], wrong["b"], strict=True)]


def test_results_that_do_not_name_the_images_have_the_error_of_independent_ones():
    a, b = (
        [dataclasses.replace(GOOD, probe=top1, misclassified=None)] * 3 for top1 in (96.0, 90.0)
    )
    _, judgement = judge_similarity(a, b)
    expected = 100 * math.sqrt((0.96 * 0.04 + 0.9 * 0.1) / 400)
    assert judgement.estimate.image_error == pytest.approx(expected)


def test_too_few_test_images_cannot_decide_whatever_the_seeds_say():
    # One point on 400 images, in each of three seeds alike.
    a, b = [with_probe(range(4))] * 3, [with_probe(range(8, 16))] * 3
    verdict, judgement = judge_similarity(a, b)
    assert judgement.estimate.deviation == 0
    assert verdict.word == "undecided"
    assert judgement.would_decide.startswith("more than ")
    assert judgement.would_decide.endswith(" test images")


def test_an_open_claim_says_how_many_seeds_would_decide_it():
    a = [with_probe(range(count)) for count in (4, 30, 60)]
    b = [with_probe(range(count)) for count in (70, 60, 64)]
    verdict, judgement = judge_similarity(a, b)
    assert verdict.word == "undecided"
    (seeds,) = [int(word) for word in judgement.would_decide.split() if word.isdigit()]
    found = judgement.estimate
    for count, is_enough in ((seeds - 1, False), (seeds, True)):
        width = math.hypot(
            stats.t.ppf(0.975, count - 1) * found.deviation / math.sqrt(count),
            stats.norm.ppf(0.975) * found.image_error,
        )
        assert (width < found.mean) is is_enough


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (1, [(1, 0.05)]),
        (3, [(3, 0.05)]),
        (5, [(3, 0.025), (5, 0.025)]),
        (12, [(3, 0.025), (6, 0.0125), (12, 0.0125)]),
    ],
)
def test_all_looks_together_have_five_percent_for_errors(seeds, expected):
    assert list(findings.looks(seeds)) == expected


def test_a_finding_that_the_first_look_decides_stays_decided_without_the_other_seeds():
    later = [GOOD, GOOD, GOOD, FAILED, FAILED, FAILED]
    verdict = judge("stop_gradient", simsiam_decayed=later, no_stop_gradient=[COLLAPSED] * 6)
    assert (verdict.word, verdict.seeds) == ("reproduced", 3)


def test_later_seeds_do_not_undo_what_the_first_look_decides():
    without = [COLLAPSED] * 3 + [GOOD] * 3
    verdict = judge("stop_gradient", simsiam_decayed=[GOOD] * 6, no_stop_gradient=without)
    assert (verdict.word, verdict.seeds) == ("reproduced", 3)


def test_between_two_looks_nothing_is_decided():
    # At three seeds the spread is too wide, at five it would do; the second look is at six.
    without = [dataclasses.replace(COLLAPSED, std=std) for std in (0.05, 0.25, 0.1, 0.1, 0.1)]
    verdict = judge("stop_gradient", seeds=6, simsiam_decayed=[GOOD] * 5, no_stop_gradient=without)
    assert (verdict.word, verdict.seeds) == ("undecided", 3)
    verdict = judge("stop_gradient", simsiam_decayed=[GOOD] * 5, no_stop_gradient=without)
    assert (verdict.word, verdict.seeds) == ("reproduced", 5)


def test_chance_decides_a_finding_wrongly_in_at_most_five_percent():
    # Two rows that do not differ, of many images, looked at up to three times.
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(400):
        a, b = (
            [
                dataclasses.replace(GOOD, probe=95 + value, num_test=10**9, misclassified=None)
                for value in rng.normal(size=12)
            ]
            for _ in range(2)
        )
        decided += judge_similarity(a, b)[0].word != "undecided"
    # Where the true rate is 5 %, so many of 400 occur with a probability of a thousandth.
    assert decided <= stats.binom.ppf(0.999, 400, 0.05)
    assert decided > 0


def test_a_claim_is_contradicted_at_a_level_divided_by_the_number_of_claims():
    # Three claims; the first alone would fail at 5 %, and does not at a third of it.
    none = [with_probe(range(count)) for count in (20, 20, 20)]
    wide = [with_probe(range(count)) for count in (60, 90, 75)]
    narrow = [with_probe(range(0))] * 3
    verdict = judge("batch_norm", bn_none=none, bn_hidden=wide, bn_affine=narrow, simsiam=narrow)
    first = verdict.judgements[0]
    assert first.estimate.half_width(0.05) < -first.estimate.mean
    assert first.estimate.half_width(0.05 / 3) > -first.estimate.mean
    assert first.word == "open"


@pytest.mark.parametrize("scale", SCALES)
def test_every_claim_about_accuracies_holds_for_the_papers_numbers(scale):
    for table in tables.build_tables(scale).values():
        numbers = {row.run: row.number for row in table.rows}
        for claim in table.claims:
            if claim.measure == "probe":
                found = sum(weight * numbers[run] for run, weight in claim.weights.items())
                assert found > claim.above, claim
                assert sum(claim.weights.values()) == pytest.approx(0)


def test_the_comparison_is_no_table_of_the_paper():
    assert len(tables.choose_tables("digits", "all")) == 12
    (comparison,) = tables.choose_tables("digits", tables.COMPARISON).values()
    assert [row.run for row in comparison.rows] == [
        "simsiam", "simclr_100", "mocov2_100", "byol_100", "swav_100", "supervised_100",
        "no_stop_gradient", "predictor_none",
    ]  # fmt: skip


@pytest.mark.parametrize("name", DIGITS)
def test_every_table_states_a_finding_and_claims_about_its_rows(name):
    table = DIGITS[name]
    assert table.finding.endswith(".")
    assert table.claims
    assert {claim.measure for claim in table.claims} <= set(outcomes.MEASURES)
    assert findings.runs_of(table) <= {row.run for row in table.rows}
    assert len({claim.text for claim in table.claims}) == len(table.claims)


def test_an_estimate_of_one_seed_has_no_interval():
    assert math.isinf(intervals.estimate([1.0]).half_width())
    assert intervals.estimate([1.0]).seeds_needed() is None


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
