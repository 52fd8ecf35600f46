"""Decides whether a finding of the paper is reproduced, by the same rules at every scale.

`outcomes` maps the name of each run to its `Outcome`s, one for each seed. A run that diverged has
no accuracy and ranks below all other runs.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

from simsiam_tf.objectives import COLLAPSED_STD
from simsiam_tf.paper.outcomes import Outcome
from simsiam_tf.paper.tables import Row, Table

_MIN_DIFFERENCE = 1.0  # points between two numbers of the paper, for their order to count

Outcomes = Mapping[str, Sequence[Outcome]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a finding is reproduced; None: not decided."""

    reproduced: bool | None
    reason: str  # without a full stop

    @property
    def word(self) -> str:
        """The verdict as the reports write it."""
        return {True: "reproduced", False: "not reproduced", None: "not decided"}[self.reproduced]


def _is_spread(outcome: Outcome, _: Sequence[Outcome]) -> bool:
    return outcome.state == "finished" and not outcome.collapsed


def _is_collapsed(outcome: Outcome, _: Sequence[Outcome]) -> bool:
    return outcome.collapsed


def _is_spread_but_high(outcome: Outcome, first: Sequence[Outcome]) -> bool:
    if not all(_is_spread(seed, first) for seed in [outcome, *first]):
        return False
    return _loss(outcome) > statistics.fmean(_loss(seed) for seed in first) / 2


def _loss(outcome: Outcome) -> float:
    if outcome.loss is None:
        raise ValueError(f"A finished run must have a loss. Received: {outcome}")
    return outcome.loss


def _is_not_converged(outcome: Outcome, first: Sequence[Outcome]) -> bool:
    if not _is_spread(outcome, first) or outcome.knn is None:
        return True
    return outcome.knn <= (outcome.knn_before_training or 0)


# The expectations that a row may have: the rule in words, and a function of an outcome and of the
# outcomes of the table's first row that says whether the outcome meets the rule.
EXPECTATIONS: dict[str, tuple[str, Callable[[Outcome, Sequence[Outcome]], bool]]] = {
    "spread": ("converges without collapse", _is_spread),
    "collapsed": ("collapses", _is_collapsed),
    "spread_but_high_loss": (
        "does not collapse, and its loss falls less than half as far below 0 as the first row's",
        _is_spread_but_high,
    ),
    "not_converged": (
        "does not converge: non-finite steps end it, or it collapses, or its kNN is no better than "
        "the random network's",
        _is_not_converged,
    ),
}


def rule_of(table: Table) -> str:
    """Returns the rule that decides whether a table's finding is reproduced, in sentences."""
    words = [f"{row.label}: {EXPECTATIONS[row.expected][0]}" for row in table.rows if row.expected]
    if words:
        return (
            f"In every seed: {'; '.join(words)}. A run collapses if the mean of its std over the "
            f"last tenth of the training is below {COLLAPSED_STD}."
        )
    return (
        "If the paper's numbers of two rows differ by a point or more, the rows must have the same "
        "order here, by the mean of the probe's top-1. A run that diverged ranks last."
    )


def judge(table: Table, outcomes: Outcomes) -> Verdict:
    """Decides whether the finding of a table is reproduced.

    The verdict stays undecided until all rows that the rule needs are finished or have diverged.
    """
    judged = [row for row in table.rows if row.expected]
    judged = judged or [row for row in table.rows if row.number is not None]
    missing = [row.label for row in judged if not all(seed.is_over for seed in outcomes[row.run])]
    if missing:
        return Verdict(None, f"these rows are not finished: {', '.join(missing)}")
    if judged[0].expected:
        return _judge_expectations(judged, outcomes)
    return _judge_order(judged, outcomes)


def _judge_expectations(rows: Sequence[Row], outcomes: Outcomes) -> Verdict:
    first = outcomes[rows[0].run]
    failing = [
        row.label
        for row in rows
        if not all(EXPECTATIONS[row.expected][1](seed, first) for seed in outcomes[row.run])
    ]
    if failing:
        return Verdict(False, f"these rows do not meet the rule: {', '.join(failing)}")
    return Verdict(True, f"{len(rows)} of {len(rows)} rows meet the rule")


def _judge_order(rows: Sequence[Row], outcomes: Outcomes) -> Verdict:
    numbers = [(row, row.number) for row in rows if row.number is not None]
    pairs = [
        (better, worse)
        for (better, higher), (worse, lower) in itertools.permutations(numbers, 2)
        if higher - lower >= _MIN_DIFFERENCE - 1e-9
    ]
    wrong = [
        (better, worse)
        for better, worse in pairs
        if not accuracy(outcomes[better.run]) > accuracy(outcomes[worse.run])
    ]
    reason = f"{len(pairs) - len(wrong)} of {len(pairs)} pairs are in the paper's order"
    if wrong:
        better, worse = wrong[0]
        reason += (
            f". For example, by the probe, {better.label} is not more accurate than {worse.label}"
        )
    return Verdict(not wrong, reason)


def accuracy(outcomes: Sequence[Outcome]) -> float:
    """Returns the mean of the probe's top-1 over seeds; a run that diverged counts as 0."""
    return statistics.fmean(outcome.probe or 0.0 for outcome in outcomes)
