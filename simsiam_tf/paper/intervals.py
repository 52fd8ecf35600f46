"""Confidence intervals over seeds, with the error that comes from the number of test images."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05  # an interval misses the true value with this probability
MAX_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a quantity over seeds, and the two errors of it."""

    mean: float
    deviation: float | None  # the sample's standard deviation over seeds; None: one seed
    seeds: int
    image_error: float = 0.0  # standard error by the choice of the test images

    def half_width(self, level: float = LEVEL) -> float:
        """Returns half of the width of an interval that misses the true mean with a probability.

        Student's t gives the part of the seeds, the normal distribution that of the test images,
        and the parts add up as squares. One seed has no interval, so its width is infinite.
        """
        return self._half_width(level, self.seeds)

    def _half_width(self, level: float, seeds: int) -> float:
        if self.deviation is None:
            return math.inf
        of_seeds = stats.t.ppf(1 - level / 2, seeds - 1) * self.deviation / math.sqrt(seeds)
        return math.hypot(of_seeds, self._image_half_width(level))

    def _image_half_width(self, level: float) -> float:
        return stats.norm.ppf(1 - level / 2) * self.image_error

    def seeds_needed(self, level: float = LEVEL) -> int | None:
        """Returns how many seeds are needed to tell the mean from 0 if the errors stay as they are.

        It returns None if there is only one seed so far, or if `MAX_SEEDS` seeds are too few. The
        latter is always so where the test images are too few.
        """
        if self.deviation is None:
            return None
        counts = range(2, MAX_SEEDS + 1)
        return next((n for n in counts if self._half_width(level, n) < abs(self.mean)), None)

    def image_factor(self, level: float = LEVEL) -> float:
        """Returns the factor by which the number of test images must grow to tell the mean from 0.

        A factor of at most 1 means that they are enough. It is infinite if the mean is 0.
        """
        if not self.mean:
            return math.inf
        return (self._image_half_width(level) / self.mean) ** 2


def estimate(values: Sequence[float], image_error: float = 0.0) -> Estimate:
    """Returns the estimate of a mean from one value for each seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), deviation, len(values), image_error)


def image_error(values: np.ndarray, low: float, high: float) -> float:
    """Returns the standard error of a mean over test images.

    Two images are added, with the lowest and the highest value. So the error is not 0 where the
    images at hand happen to agree (Agresti & Coull 1998).

    Args:
      values: the mean over seeds for each image, `[N]` float.
      low: lowest value that an image can have.
      high: highest value that an image can have.
    """
    return float(np.std([*values, low, high]) / math.sqrt(len(values)))
