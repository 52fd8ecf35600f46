"""Progress of long work and the time left: a bar in a terminal, elsewhere lines of the log."""

import sys

from absl import logging
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30


class Progress(tqdm):
    """A context of some work; `update(n)` takes note of n units that are done.

    Outside of a terminal, work of less than half a minute says nothing.
    """

    def __init__(self, total, what, unit):
        """Args:
        total: units of the work, an int.
        what: is done, a word or two.
        unit: a word, in the singular.
        """
        self.is_shown = sys.stderr.isatty()
        bar = " |{bar:20}|" if self.is_shown else ""
        super().__init__(
            total=total,
            desc=what,
            unit=unit,
            leave=False,
            mininterval=0.1 if self.is_shown else _SECONDS_BETWEEN_LINES,
            delay=0 if self.is_shown else _SECONDS_BETWEEN_LINES,
            bar_format="{desc}: {n_fmt}/{total_fmt} {unit}s" + bar + "{postfix}, {remaining} left",
        )

    def display(self, msg=None, pos=None):
        if self.is_shown:
            return super().display(msg, pos)
        if msg is None:  # else it is to be wiped off
            logging.info("%s", self)
        return True

    def note(self, **values):
        """Shows values with the next look: an epoch, a loss."""
        self.set_postfix(refresh=False, **values)
