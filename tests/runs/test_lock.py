"""The lock of a run's folder: one run at a time, whatever ended the one before."""

import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, TINY_RUN

from simsiam_tf.runs import lock
from simsiam_tf.schema import UserError

HOLD = """
import sys, time
from simsiam_tf.runs import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(workdir):
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_in_a_folder_ends_with_one_line_that_names_the_first(tmp_path, train_here):
    with holder(tmp_path) as first:
        named = rf"process {first.pid} on \S+, since \d{{4}}-.*Received: {re.escape(str(tmp_path))}"
        with pytest.raises(UserError, match=named) as error:
            train_here(tmp_path, *TINY_RUN)
        assert "\n" not in str(error.value)
        assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "logs"}
        first.kill()


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    with holder(tmp_path) as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert json.loads((tmp_path / "run.lock").read_text())["process"] == killed.pid
    with lock.held(str(tmp_path)):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
        assert f"has ended: process {killed.pid} on" in caplog.text


def test_a_run_that_ended_leaves_no_lock_also_by_an_error(tmp_path):
    with pytest.raises(KeyError), lock.held(str(tmp_path)):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with lock.held(str(tmp_path)):
        pass


def test_a_lock_that_its_owner_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Between the opening of the file and its lock, the owner ends and another run begins."""
    others = []
    flock = lock.fcntl.flock

    def late(descriptor, how):
        if not others:
            os.remove(tmp_path / "run.lock")
            others.append(os.open(tmp_path / "run.lock", os.O_CREAT | os.O_RDWR))
        flock(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with lock.held(str(tmp_path)):
        assert os.path.samestat(os.fstat(others[0]), os.stat(tmp_path / "run.lock"))
        with pytest.raises(BlockingIOError):
            flock(others[0], lock.fcntl.LOCK_EX | lock.fcntl.LOCK_NB)
    os.close(others[0])


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.held(str(tmp_path)):
        assert "No lock protects" in caplog.text
        assert "No locks available" in caplog.text
