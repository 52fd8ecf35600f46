"""Decides whether a finding of the paper is reproduced, by the same rules at every scale.

`outcomes` maps the name of each run to its `Outcome`s, one for each seed. Seeds are paired: a
difference is taken between runs of the same seed, which share the order of the images.

Seeds run in rounds, so that a finding needs no more of them than decide it. Looking at the data
several times would make errors likelier. Each look therefore has a share of the probability of an
error: half of what is left, and the last look all of it. So the probability that any look decides
wrongly stays at most `intervals.LEVEL`.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from simsiam_tf.config import COLLAPSED_STD
from simsiam_tf.paper import intervals
from simsiam_tf.paper.intervals import Estimate
from simsiam_tf.paper.outcomes import MEASURES, Outcome
from simsiam_tf.paper.tables import Claim, Table

FIRST_LOOK = 3  # seeds; each further look has twice as many
WORDS = ("reproduced", "contradicted", "undecided")

Outcomes = Mapping[str, Sequence[Outcome]]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The result of testing a claim on some seeds."""

    claim: Claim
    estimate: Estimate  # of what the weighted sum has above the claim's bound
    level: float  # probability of an error that the look has
    word: str  # "holds", "fails" or "open"
    num_test: int | None  # test images, for a claim about accuracies

    @property
    def unit(self) -> str:
        """The unit of the estimate."""
        return MEASURES[self.claim.measure][0]

    @property
    def would_decide(self) -> str:
        """The seeds or test images that an open claim needs if the errors stay as they are.

        It is empty for a claim that holds or fails.
        """
        if self.word != "open":
            return ""
        factor = self.estimate.image_factor()
        if self.num_test and factor > 1:
            if math.isinf(factor):
                return "nothing: the margin is 0"
            images = self.num_test * factor
            step = 10 ** max(int(math.log10(images)) - 1, 0)
            return f"more than {math.ceil(images / step) * step:,} test images"
        seeds = self.estimate.seeds_needed()
        if self.estimate.deviation is None:
            return f"{FIRST_LOOK} seeds or more"
        if seeds is None:
            return f"more than {intervals.MAX_SEEDS:,} seeds"
        return f"about {max(seeds, self.estimate.seeds + 1):,} seeds"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a finding is reproduced, as one of `WORDS`."""

    word: str
    reason: str  # without a full stop
    seeds: int = 0  # that the judgements are of
    judgements: tuple[Judgement, ...] = ()


def looks(num_seeds: int) -> Iterator[tuple[int, float]]:
    """Yields the numbers of seeds at which findings are judged, each with its level."""
    seeds, left = FIRST_LOOK, intervals.LEVEL
    while seeds < num_seeds:
        left /= 2
        yield seeds, left
        seeds *= 2
    yield num_seeds, left


RULE = (
    "A finding is reproduced if all of its claims hold, and contradicted if one of them fails. "
    "A claim holds if the whole interval of its mean over seeds is on its side. It fails if the "
    "whole interval is on the other side, at a level that is divided by the number of claims. "
    "Seeds are paired. The interval is Student's t over the seeds; for the probe it also has "
    "the error that the choice of the test images gives. Findings are looked at when there are "
    "three seeds, when there are twice as many, and so on, and at the last seed. Each look has "
    "half of the 5 % that are left for errors, and the last one all of it. A finding that is "
    "decided needs no further seeds. A run collapses if the mean of its std over the last tenth "
    f"is below {COLLAPSED_STD}. A run that diverged counts as an accuracy, a std and a loss of "
    "0."
)


def judge(table: Table, outcomes: Outcomes, num_seeds: int, epochs: Mapping[str, int]) -> Verdict:
    """Decides whether the finding of a table is reproduced, by the first look that can tell.

    Args:
      table: the table.
      outcomes: of its runs; seeds that have not started may be missing.
      num_seeds: number of seeds that are planned.
      epochs: those of each run at this scale.
    """
    needed = runs_of(table)
    others = [
        row.label
        for row in table.rows
        if row.run in needed
        and any(seed.epochs not in (None, epochs[row.run]) for seed in outcomes[row.run])
    ]
    if others:
        words = "these rows were trained for other epochs than the scale's"
        return Verdict("undecided", f"{words}: {', '.join(others)}")
    complete = min(_num_over(outcomes[run]) for run in needed)
    found = None
    for seeds, level in looks(num_seeds):
        if seeds > complete:
            break
        found = _judge(table, outcomes, seeds, level)
        if found.word != "undecided":
            return found
    if found:
        return found
    first, level = next(looks(num_seeds))
    missing = [
        row.label
        for row in table.rows
        if row.run in needed and _num_over(outcomes[row.run]) < first
    ]
    reason = f"these rows are not finished: {', '.join(missing)}"
    if not complete:
        return Verdict("undecided", reason)
    so_far = _judge(table, outcomes, complete, level)
    return dataclasses.replace(so_far, word="undecided", reason=reason)


def runs_of(table: Table) -> set[str]:
    """Returns the runs that the finding of a table needs."""
    return {run for claim in table.claims for run in claim.weights}


def _num_over(seeds: Sequence[Outcome]) -> int:
    """Returns how many seeds are over before the first one that is not."""
    return next((n for n, seed in enumerate(seeds) if not seed.is_over), len(seeds))


def _judge(table: Table, outcomes: Outcomes, seeds: int, level: float) -> Verdict:
    count = len(table.claims)
    judgements = tuple(_judge_claim(claim, outcomes, seeds, level, count) for claim in table.claims)
    failing = [one for one in judgements if one.word == "fails"]
    holding = [one for one in judgements if one.word == "holds"]
    reason = f"{len(holding)} of {count} claims hold"
    if failing:
        return Verdict("contradicted", f"{failing[0].claim.text}: fails", seeds, judgements)
    if len(holding) == count:
        return Verdict("reproduced", reason, seeds, judgements)
    if seeds == 1:
        reason = f"one seed tells no spread; --seeds={FIRST_LOOK} or more can decide"
    return Verdict("undecided", reason, seeds, judgements)


def _judge_claim(
    claim: Claim, outcomes: Outcomes, seeds: int, level: float, num_claims: int
) -> Judgement:
    runs = {run: outcomes[run][:seeds] for run in claim.weights}
    _, value = MEASURES[claim.measure]
    values = [
        sum(weight * value(runs[run][seed]) for run, weight in claim.weights.items()) - claim.above
        for seed in range(seeds)
    ]
    is_accuracy = claim.measure == "probe"
    error = _image_error(claim, runs) if is_accuracy else 0.0
    estimate = intervals.estimate(values, error)
    if estimate.mean > estimate.half_width(level):
        word = "holds"
    elif -estimate.mean > estimate.half_width(level / num_claims):
        word = "fails"
    else:
        word = "open"
    counts = [seed.num_test for found in runs.values() for seed in found if seed.num_test]
    return Judgement(claim, estimate, level, word, min(counts) if is_accuracy and counts else None)


def _image_error(claim: Claim, runs: Outcomes) -> float:
    """Returns the standard error of a weighted sum of accuracies by the choice of the test images.

    If a result does not name its misclassified images, this is an upper bound: the error if each
    run had test images of its own.
    """
    finished = [seed for seeds in runs.values() for seed in seeds if seed.state == "finished"]
    counts = {seed.num_test for seed in finished}
    if not finished or None in counts:
        return math.inf
    if len(counts) > 1 or any(seed.misclassified is None for seed in finished):
        squares = [
            weight**2 * share * (100 - share) / min(filter(None, counts))
            for run, weight in claim.weights.items()
            for share in [statistics.fmean(seed.probe or 0.0 for seed in runs[run])]
        ]
        return math.sqrt(sum(squares))
    wrong = sorted({index for seed in finished for index in seed.misclassified or ()})
    # The last entry is for all images that no run classifies wrongly.
    sums = np.zeros(len(wrong) + 1)
    for run, weight in claim.weights.items():
        for seed in runs[run]:
            if seed.state == "finished":
                is_right = np.append(~np.isin(wrong, seed.misclassified or ()), True)
                sums += 100 * weight / len(runs[run]) * is_right
    (count,) = filter(None, counts)
    values = np.append(sums[:-1], np.repeat(sums[-1], count - len(wrong)))
    low, high = (
        100 * sum(sign * max(sign * weight, 0) for weight in claim.weights.values())
        for sign in (-1, 1)
    )
    return intervals.image_error(values, low, high)
