"""Progress of long work, as a log shows it."""

import pytest

from simsiam_tf import progress


@pytest.fixture
def lines(monkeypatch):
    """The lines of the log, where half a minute passes with each unit of work."""
    found = []
    monkeypatch.setattr(progress.logging, "info", lambda text, *values: found.append(text % values))
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    return found


def test_a_log_has_lines_of_what_is_done_and_what_is_left(lines):
    with progress.Progress(4, "crops", "image") as crops:
        crops.note(loss=0.5)
        crops.update(2)
        crops.update(2)
    (half, whole) = [line for line in lines if "0/4" not in line]
    assert half.startswith("crops: 2/4 images, loss=0.5, ")
    assert half.endswith(" left")
    assert whole.startswith("crops: 4/4 images")


def test_short_work_says_nothing(lines, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 30)
    with progress.Progress(4, "crops", "image") as crops:
        crops.update(4)
    assert not lines
