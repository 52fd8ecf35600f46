"""Progress of long work, as the log shows it."""

import pytest

from simsiam_tf import progress


@pytest.fixture
def lines(monkeypatch):
    """The lines of the log, written as if each unit of work took half a minute."""
    found = []
    monkeypatch.setattr(progress.logging, "info", lambda text, *values: found.append(text % values))
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    return found


def test_the_log_shows_finished_units_and_the_time_left(lines):
    with progress.Progress(4, "crops", "image") as crops:
        crops.note(loss=0.5)
        crops.update(2)
        crops.update(2)
    (half, whole) = [line for line in lines if "0/4" not in line]
    assert half.startswith("crops: 2/4 images, loss=0.5, ")
    assert half.endswith(" left")
    assert whole.startswith("crops: 4/4 images")


def test_short_work_writes_no_line(lines, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 30)
    with progress.Progress(4, "crops", "image") as crops:
        crops.update(4)
    assert not lines


def test_without_a_total_the_log_shows_the_finished_units(lines):
    with progress.Progress(None, "listing", "image") as images:
        images.update(7)
    assert lines[-1].startswith("listing: 7 images, ")
    assert "left" not in lines[-1]
    assert "?" not in lines[-1]
