"""Locks of folders: two runs in one folder would overwrite each other's files."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator

from absl import logging

from simsiam_tf import files
from simsiam_tf.schema import UserError

LOCK = "run.lock"


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
    """A context in which no other process can train in a run's folder.

    Args:
      workdir: folder of the run.

    Raises:
      UserError: another process trains there; the text names it.
    """
    with tried(os.path.join(workdir, LOCK)) as owner:
        if owner:
            raise UserError(
                f"Another run trains in --workdir: {owner}. Wait for its end, stop it, or take "
                f"another --workdir. Received: {workdir}"
            )
        yield


@contextlib.contextmanager
def tried(path: str) -> Iterator[str]:
    """A context that holds a lock unless another process does.

    The system releases the lock when its process ends in any way. A file that is left over, as by
    SIGKILL, is therefore taken over. Where the file system has no locks, the log says so, and the
    context goes on as if it had the lock.

    Args:
      path: file of the lock, in a folder that exists.

    Yields:
      A description of the process that holds the lock; empty: this context does.
    """
    folder = os.path.dirname(path)
    with files.writing_to(folder):
        descriptor, owner = _take(path)
    if owner:
        yield owner
        return
    try:
        own = {"host": socket.gethostname(), "process": os.getpid(), "since": _now()}
        with files.writing_to(folder):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(own).encode(), 0)
        yield ""
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
        os.close(descriptor)


def _take(path: str) -> tuple[int, str]:
    """Returns the descriptor of the lock's file, locked, or the process that has locked it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            return -1, owner
        except OSError as error:
            logging.warning("No lock protects %s from a second run: %s", path, error.strerror)
            return descriptor, ""
        if _is_at(descriptor, path):
            left_over = os.pread(descriptor, 1, 0)
            if left_over:
                logging.info("Took over the lock of a run that has ended: %s", _owner(descriptor))
            return descriptor, ""
        os.close(descriptor)  # its owner removed it meanwhile


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
