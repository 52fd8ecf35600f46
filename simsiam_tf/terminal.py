"""Shows lines, progress bars and tables to a person in a terminal.

Elsewhere, as in a file or a pipe, everything is a line of the log.
"""

import contextlib
import datetime
import logging as standard_logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import logging
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SECONDS_BETWEEN_LINES = 30  # of the log
_SECONDS_TO_BAR = 0.5
_STYLES = {standard_logging.WARNING: "yellow", standard_logging.ERROR: "bold red"}

# It knows the width and whether colours are wanted (NO_COLOR).
_console = Console(stderr=True, highlight=False, force_jupyter=False)
_levels = [standard_logging.INFO]  # the last is the lowest level that a terminal shows


def is_shown() -> bool:
    """Returns whether a person may watch: whether standard error is a terminal."""
    return sys.stderr.isatty()


def say(text: str) -> None:
    """Tells a person something, above any bar; elsewhere and in the log file it is a log line."""
    if is_shown() and _levels[-1] > standard_logging.INFO:
        _print(Text(text))
    logging.info("%s", text)


def _print(content: Text | Table) -> None:
    _console.print(content, soft_wrap=isinstance(content, Text))


def show_table(title: str, rows: Mapping[str, str], commands: Sequence[str] = ()) -> None:
    """Shows names and values in a terminal; elsewhere nothing.

    Args:
      title: line above.
      rows: {name: value}.
      commands: lines to copy, below.
    """
    if not is_shown():
        return
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    _console.print(table)
    for command in commands:
        _print(Text(command, style="bold"))


def format_seconds(seconds: float) -> str:
    """Returns a time as "mm:ss" or "h:mm:ss"."""
    return str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")


# The log.


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """A context in which a terminal shows of the log only warnings and errors."""
    _levels.append(standard_logging.WARNING)
    try:
        yield
    finally:
        _levels.pop()


def take_log(is_wanted: Callable[[standard_logging.LogRecord], bool]) -> None:
    """Shows the log in a terminal without the prefix of its lines, instead of absl's own handler.

    Args:
      is_wanted: whether a record is for people.
    """
    root = standard_logging.getLogger()
    root.removeHandler(logging.get_absl_handler())
    handler = _LogLines()
    handler.addFilter(is_wanted)
    root.addHandler(handler)


class _LogLines(standard_logging.Handler):
    def emit(self, record: standard_logging.LogRecord) -> None:
        if record.levelno < _levels[-1]:
            return
        style = _STYLES.get(min(record.levelno, standard_logging.ERROR), "")
        word = f"{record.levelname.capitalize()}: " if style else ""
        _print(Text.assemble((word, style), record.getMessage()))


# Progress.


class Progress:
    """Context around some work; `update(n)` adds n finished units.

    In a terminal it is a bar with the time left, which vanishes at the end; work of half a second
    has none. Elsewhere it is a line of the log every half a minute.
    """

    def __init__(
        self, total: int | None, description: str, unit: str, *, done: int = 0, logs: bool = True
    ) -> None:
        """Args:
        total: number of units of the work; None if it is not known.
        description: name of the work, a word or two.
        unit: name of one unit, in the singular.
        done: number of units that an earlier start has done.
        logs: whether to write lines of the log.
        """
        self.total = total
        self.description = description
        self.unit = unit
        self.done = self._done_before = done
        self._logs = logs
        self._values: dict[str, object] = {}
        self._shown: str | None = None
        self._started = self._last_line = time.monotonic()
        self._bars: bars.Progress | None = None

    def __enter__(self) -> "Progress":
        self._started = self._last_line = time.monotonic()
        if is_shown():
            columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}")]
            if self.total is None:
                columns += [bars.TextColumn("{task.completed}"), bars.TimeElapsedColumn()]
            else:
                columns += [bars.BarColumn(20), bars.TextColumn("{task.fields[text]}")]
                columns += [bars.TimeRemainingColumn(compact=True, elapsed_when_finished=True)]
            self._bars = bars.Progress(*columns, console=_console, transient=True)
            self._bars.add_task(
                self.description, total=self.total, completed=self.done, text=self._text()
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, count: int = 1) -> None:
        """Adds finished units."""
        self.done += count
        if self._bars:
            if time.monotonic() - self._started >= _SECONDS_TO_BAR:
                self._bars.start()
            self._bars.update(bars.TaskID(0), completed=self.done, text=self._text())
        elif self._logs and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logging.info("%s", self._line())

    def note(self, **values: object) -> None:
        """Adds values, for example an epoch or a loss, to the next update."""
        self._values |= values

    def show(self, description: str, text: str) -> None:
        """Shows another description and text in a terminal, in place of the count and values."""
        self.description, self._shown = description, text
        if self._bars:
            self._bars.update(bars.TaskID(0), description=description, text=text)
            self._bars.start()

    def _text(self) -> str:
        if self._shown is not None:
            return self._shown
        values = ", ".join(f"{name}={_short(value)}" for name, value in self._values.items())
        return values or f"{self.done:,}/{self.total or 0:,} {self.unit}s"

    def _line(self) -> str:
        elapsed = time.monotonic() - self._started
        of_total = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.description}: {self.done}{of_total} {self.unit}s"]
        parts += [f"{name}={_short(value)}" for name, value in self._values.items()]
        if self.total is None:
            return ", ".join([*parts, format_seconds(elapsed)])
        left = elapsed / max(self.done - self._done_before, 1) * (self.total - self.done)
        return ", ".join([*parts, f"{format_seconds(left)} left"])


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
