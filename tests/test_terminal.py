"""Bars, lines and tables in a terminal; lines of the log elsewhere."""

import fcntl
import io
import logging
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT, TINY_RUN
from rich.console import Console

from simsiam_tf import terminal


@pytest.fixture
def lines(monkeypatch):
    """The lines of the log, written as if each unit of work took half a minute."""
    found = []
    monkeypatch.setattr(terminal.logging, "info", lambda text, *values: found.append(text % values))
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0)
    return found


def test_the_log_shows_finished_units_and_the_time_left(lines):
    with terminal.Progress(4, "crops", "image") as crops:
        crops.note(loss=0.5)
        crops.update(2)
        crops.update(2)
    (half, whole) = [line for line in lines if "0/4" not in line]
    assert half.startswith("crops: 2/4 images, loss=0.5, ")
    assert half.endswith(" left")
    assert whole.startswith("crops: 4/4 images")


def test_short_work_writes_no_line(lines, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 30)
    with terminal.Progress(4, "crops", "image") as crops:
        crops.update(4)
    assert not lines


def test_without_a_total_the_log_shows_the_finished_units(lines):
    with terminal.Progress(None, "listing", "image") as images:
        images.update(7)
    assert lines[-1].startswith("listing: 7 images, ")
    assert "left" not in lines[-1]
    assert "?" not in lines[-1]


@pytest.fixture
def screen(monkeypatch):
    """The text that a terminal of 80 columns receives."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, highlight=False)
    monkeypatch.setattr(terminal, "_console", console)
    monkeypatch.setattr(terminal, "is_shown", lambda: True)
    monkeypatch.setattr(terminal, "_SECONDS_TO_BAR", 0)
    return text


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_bar_keeps_its_time_left_at_80_columns(screen):
    with terminal.Progress(17600, "epoch 312/800", "step") as bar:
        bar.update(100)
        bar.show("epoch 312/800", "loss -0.953, std 0.99, kNN 94.4 %, 12043/s")
        bar.update(100)  # keeps the text
    frames = [line for line in re.split(r"[\r\n]", plain(screen.getvalue())) if "kNN" in line]
    assert frames
    assert all(len(frame) <= 80 for frame in frames)
    assert re.search(r"12043/s +[-\d]+:[-\d]+ *$", frames[-1]), frames[-1]


def test_a_bar_may_run_within_another(screen):
    with terminal.Progress(3, "outer", "step") as outer:
        outer.update()
        with terminal.Progress(4, "inner", "image") as inner:
            inner.update(4)
            inner._bars.refresh()
        outer.update()
    assert "4/4 images" in plain(screen.getvalue())


def test_short_work_has_no_bar(screen, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS_TO_BAR", 60)
    with terminal.Progress(3, "listing", "image") as bar:
        bar.update(3)
    assert plain(screen.getvalue()) == ""


def record(level, text):
    return logging.LogRecord("absl", level, __file__, 1, text, (), None)


def test_the_log_has_no_prefix_in_a_terminal_and_warnings_have_a_word(screen):
    handler = terminal._LogLines()
    handler.emit(record(logging.INFO, "hello"))
    handler.emit(record(logging.WARNING, "beware"))
    handler.emit(record(logging.ERROR, "oh"))
    assert plain(screen.getvalue()) == "hello\nWarning: beware\nError: oh\n"


def test_only_warnings_leave_out_the_rest_but_what_is_said(screen):
    handler = terminal._LogLines()
    with terminal.only_warnings():
        handler.emit(record(logging.INFO, "detail"))
        handler.emit(record(logging.WARNING, "beware"))
        terminal.say("hello")
    assert plain(screen.getvalue()) == "Warning: beware\nhello\n"


def test_a_command_in_a_table_is_not_broken(screen):
    command = "python evaluate.py --encoder=" + "x" * 90
    terminal.show_table("Title", {"name": "a long value " * 9}, [command])
    lines = plain(screen.getvalue()).splitlines()
    assert lines[0].strip() == "Title"
    assert command in lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.4, "00:05"), (65, "01:05"), (3600, "1:00:00"), (90061, "1 day, 1:01:01")],
)
def test_times_are_minutes_and_seconds(seconds, text):
    assert terminal.format_seconds(seconds) == text


def run_in_terminal(*arguments, width=80, **environment):
    """Runs a program in a terminal; returns what it is sent, and the exit status."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdin=child,
        stdout=child,
        stderr=child,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    )
    os.close(child)
    sent = b""
    while True:
        try:
            sent += os.read(parent, 65536)
        except OSError:  # the program has ended
            break
    os.close(parent)
    return sent.decode(), process.wait()


def test_a_run_in_a_terminal_is_a_line_a_bar_and_a_table(red_and_blue, tmp_path):
    red_and_blue(noise=100, tint=40)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    workdir = tmp_path / "run"
    flags = [
        *TINY_RUN, "--width=4", "--batch_size=8", "--dataset=folder", f"--data_dir={tmp_path}",
        "--knn_every_epochs=1",
        f"--workdir={workdir}",
    ]  # fmt: skip
    text, status = run_in_terminal("train.py", *flags, NO_COLOR="1", TF_CPP_MIN_LOG_LEVEL="3")
    assert status == 0, text
    assert not re.search(r"\x1b\[[\d;]*3\dm", text)  # no colour
    text = plain(text)
    assert not re.search(r"[IWE]\d{4} \d\d:", text)  # no prefix
    before_work = text.split("compiling the step, about 5 s")[0].strip().splitlines()
    assert len(before_work) == 1
    assert before_work[0].startswith("simsiam, resnet10 on ")
    assert re.search(r"epoch 2/2 .*loss -0\.\d+, std \d\.\d+, kNN [\d.]+ %, \d+/s", text)
    ending = text.split("Finished: 2 epochs")[1]
    assert re.search(r"kNN top-1 +[\d.]+ % → [\d.]+ %", ending)
    assert f"python -m simsiam_tf.report {workdir}" in ending
    command = f"--encoder={workdir}/encoder --protocol=knn --dataset=folder --data_dir={tmp_path}"
    assert command in ending
    log = (workdir / "logs" / "worker-0.log").read_text()
    assert re.search(r"I\d{4} \d\d:.*epoch 2/2, step 10/10", log)
