"""SIGTERM and SIGINT: taken note of, so that the step at hand is finished and saved first."""

import contextlib
import signal

from absl import logging


@contextlib.contextmanager
def noted():
    """A context in which the first SIGTERM or SIGINT does not end the process; a second one does.

    Yields a function that gives the `signal.Signals` that came, or None.
    """
    received = []

    def note(number, _):
        received.append(signal.Signals(number))
        signal.signal(number, signal.SIG_DFL)
        logging.info("%s: finishing the step and saving; once more ends at once", received[0].name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
