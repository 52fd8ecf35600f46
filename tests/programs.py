"""Starts programs of the project in processes in which TensorFlow is already loaded.

Loading takes 8 seconds, which is most of a short program's time. Such a process is forked from one
that has imported the libraries and done nothing else. It is a process like any other: it has its
own environment, output and exit status, and it takes signals.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(
    ["simsiam_tf.training.pretrain", "simsiam_tf.evaluation.run", "function_names"]
)


class Program:
    """A started program: what the tests use of `subprocess.Popen`, with text output."""

    def __init__(self, *arguments, **environment):
        """Args:
        *arguments: script and flags, or "-m", module and flags.
        **environment: variables besides those of this process.
        """
        self.args = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._process = _forkserver.Process(
            target=_run, args=(self.args, os.environ | environment, self._outputs), daemon=True
        )
        self._process.start()

    @property
    def returncode(self):
        """The exit status, the negative number of a signal, or None while the program runs."""
        return self._process.exitcode

    def poll(self):
        """Returns `returncode`."""
        return self.returncode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        """Waits for the end, and returns (stdout, stderr)."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.args, timeout, stderr=self._outputs[1].read_text())
        return tuple(output.read_text() for output in self._outputs)


def run(*arguments, timeout, **environment):
    """Runs a program to its end, and returns a `subprocess.CompletedProcess`."""
    started = Program(*arguments, **environment)
    output = started.communicate(timeout)
    return subprocess.CompletedProcess(started.args, started.returncode, *output)


def _run(arguments, environment, outputs):
    """Becomes the program, in the new process."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = str(ROOT)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(ROOT / arguments[0]).rpartition("/")[0]
        runpy.run_path(arguments[0], run_name="__main__")
