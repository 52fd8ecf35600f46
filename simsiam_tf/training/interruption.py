"""SIGTERM and SIGINT are noted, so that the current step is finished and saved first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from simsiam_tf import terminal


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], signal.Signals | None]]:
    """A context in which the first SIGTERM or SIGINT does not end the process; a second one does.

    Yields a function that returns the signal that was received, or None.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, signal.SIG_DFL)
        terminal.say(f"{received[0].name}: saving the current step; a second signal ends at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python lets only the main thread handle signals
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
