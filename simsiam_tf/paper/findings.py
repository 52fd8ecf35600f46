"""Whether a finding of the paper was reproduced, by rules that are the same for every run.

`outcomes` is {run: its `Outcome`s, one a seed}. A run that diverged has no accuracy: it comes after
all others.
"""

import dataclasses
import itertools
import statistics

from simsiam_tf.objectives import COLLAPSED_STD

_LEAST_DIFFERENCE = 1.0  # of the paper's numbers, in points, for their order to count


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a finding was reproduced: yes, no, or None, not decided."""

    reproduced: bool | None
    reason: str

    @property
    def word(self):
        return {True: "reproduced", False: "not reproduced", None: "not decided"}[self.reproduced]


def _is_spread(outcome, _):
    return outcome.state == "finished" and not outcome.collapsed


def _is_collapsed(outcome, _):
    return outcome.collapsed


def _is_spread_but_high(outcome, first):
    if not all(_is_spread(one, first) for one in [outcome, *first]):
        return False
    return outcome.loss > statistics.fmean(one.loss for one in first) / 2


def _is_not_converged(outcome, first):
    return not _is_spread(outcome, first) or outcome.knn <= (outcome.knn_before_training or 0)


# What a row may be expected to do: in words, and whether an outcome does, given those of the
# table's first row.
EXPECTATIONS = {
    "spread": ("converges without collapse", _is_spread),
    "collapsed": ("collapses", _is_collapsed),
    "spread_but_high_loss": (
        "does not collapse, and its loss falls less than half as far below 0 as the first row's",
        _is_spread_but_high,
    ),
    "not_converged": (
        "does not converge: steps that are not finite end it, or it collapses, or its kNN is no "
        "better than the random network's",
        _is_not_converged,
    ),
}


def rule_of(table):
    """The rule that decides on a table's finding, in a sentence."""
    words = [f"{row.label}: {EXPECTATIONS[row.expected][0]}" for row in table.rows if row.expected]
    if words:
        return (
            f"In every seed: {'; '.join(words)}. Collapse is a std under {COLLAPSED_STD} in the "
            "mean over the last tenth of the training."
        )
    return (
        "Every two rows whose numbers in the paper differ by a point or more have the same order "
        "here, by the mean of the probe's top-1; a run that diverged comes last."
    )


def judge(table, outcomes):
    """The `Verdict` on the finding of a `Table`."""
    judged = [row for row in table.rows if row.expected]
    judged = judged or [row for row in table.rows if row.number is not None]
    missing = [row.label for row in judged if not all(one.is_over for one in outcomes[row.run])]
    if missing:
        return Verdict(None, f"not finished: {', '.join(missing)}")
    if judged[0].expected:
        return _judge_expectations(judged, outcomes)
    return _judge_order(judged, outcomes)


def _judge_expectations(rows, outcomes):
    first = outcomes[rows[0].run]
    failing = [
        row.label
        for row in rows
        if not all(EXPECTATIONS[row.expected][1](one, first) for one in outcomes[row.run])
    ]
    if failing:
        return Verdict(False, f"otherwise than the rule says: {', '.join(failing)}")
    return Verdict(True, f"{len(rows)} of {len(rows)} rows as the rule says")


def _judge_order(rows, outcomes):
    pairs = [
        (one, other)
        for one, other in itertools.permutations(rows, 2)
        if one.number - other.number >= _LEAST_DIFFERENCE - 1e-9
    ]
    wrong = [
        (one, other)
        for one, other in pairs
        if not accuracy(outcomes[one.run]) > accuracy(outcomes[other.run])
    ]
    reason = f"{len(pairs) - len(wrong)} of {len(pairs)} pairs in the paper's order"
    if wrong:
        one, other = wrong[0]
        reason += f"; not, for one: {one.label} before {other.label}"
    return Verdict(not wrong, reason)


def accuracy(outcomes):
    """The mean of the probe's top-1; of a run that diverged, 0."""
    return statistics.fmean(one.probe or 0.0 for one in outcomes)
