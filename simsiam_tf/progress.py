"""Shows the progress of long work and the time left: a bar in a terminal, else log lines."""

import sys

from absl import logging
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30


class Progress(tqdm):
    """Context around some work; `update(n)` adds n finished units.

    Outside a terminal, work that takes less than half a minute writes no line.
    """

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        """Starts the display.

        Args:
          total: number of units of the work; None if it is not known.
          description: name of the work, a word or two.
          unit: name of one unit, in the singular.
        """
        self.is_shown = sys.stderr.isatty()
        bar = " |{bar:20}|" if self.is_shown else ""
        if total is None:
            bar_format = "{desc}: {n_fmt} {unit}s{postfix}, {elapsed}"
        else:
            bar_format = "{desc}: {n_fmt}/{total_fmt} {unit}s" + bar + "{postfix}, {remaining} left"
        super().__init__(
            total=total,
            desc=description,
            unit=unit,
            leave=False,
            mininterval=0.1 if self.is_shown else _SECONDS_BETWEEN_LINES,
            delay=0 if self.is_shown else _SECONDS_BETWEEN_LINES,
            bar_format=bar_format,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows the current state, as `tqdm` asks for it."""
        if self.is_shown:
            return super().display(msg, pos)
        if msg is None:  # tqdm passes a text only to erase the bar
            logging.info("%s", self)
        return True

    def note(self, **values: object) -> None:
        """Adds values, for example an epoch or a loss, to the next update of the display."""
        self.set_postfix(refresh=False, **values)
