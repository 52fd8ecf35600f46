"""Trains a row of the tables by `train.py` and evaluates it by `evaluate.py`.

Each program runs in its own process, so that a crash does not end the other programs and the memory
of a GPU is free again after each program.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

from simsiam_tf import schema
from simsiam_tf.config import DataConfig, KnnConfig
from simsiam_tf.paper import outcomes
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import StoppedError, UserError

# The module of each program. A line of starts.jsonl has the program's name.
_MODULES = {"train.py": "simsiam_tf.training", "evaluate.py": "simsiam_tf.evaluation"}
_LOG = "programs.log"
_POLL_SECONDS = 0.2

Received = Callable[[], signal.Signals | None]  # of `interruption.noted`


@dataclasses.dataclass(frozen=True)
class Job:
    """One seed of a run."""

    run: str
    seed: int
    folder: str
    arguments: list[str]  # of train.py
    num_steps: int
    num_images: int  # over all steps

    @property
    def name(self) -> str:
        """The run and the seed as messages write them."""
        return f"{self.run}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Share:
    """The devices of one of the programs that run at a time."""

    gpus: tuple[str, ...] = ()  # names as in CUDA_VISIBLE_DEVICES; empty: as this process
    cores: frozenset[int] = frozenset()  # empty: as this process


def shares(count: int) -> list[Share]:
    """Divides the GPUs of this machine, or without any its cores, between programs.

    Raises:
      UserError: there are fewer GPUs than programs.
    """
    if count == 1:
        return [Share()]
    gpus = [str(number) for number, _ in enumerate(tf.config.list_physical_devices("GPU"))]
    if gpus:
        if len(gpus) < count:
            raise UserError(
                f"--jobs must be at most {len(gpus)}, the number of GPUs. Received: {count}"
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else gpus
        return [Share(gpus=tuple(gpus[index::count])) for index in range(count)]
    if not hasattr(os, "sched_getaffinity"):  # not on macOS
        return [Share()] * count
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        return [Share()] * count
    return [Share(cores=frozenset(cores[index::count])) for index in range(count)]


def complete(job: Job, share: Share, received: Received) -> None:
    """Trains and evaluates; an error is noted in the job's folder, so that the next job can run.

    Raises:
      StoppedError: this process received a signal.
    """
    if not _call(job, "train.py", job.arguments, share, received):
        return
    for protocol in outcomes.PROTOCOLS:
        is_there = outcomes.read_result(job.folder, protocol) is not None
        evaluation = _evaluation(job, protocol)
        if not is_there and not _call(job, "evaluate.py", evaluation, share, received):
            return
    # The feature cache may be as large as the data set, and no later program reads it.
    shutil.rmtree(os.path.join(job.folder, "features"), ignore_errors=True)


def _evaluation(job: Job, protocol: str) -> list[str]:
    """Returns the flags of an evaluation: the run's own for the data and for kNN, and more."""
    there, _ = run_folder.read_settings(job.folder, "workdir")
    settings = schema.defaults(DataConfig)
    if protocol == "knn":
        settings |= schema.defaults(KnnConfig)
    return [
        *(f"--{name}={there[name]}" for name in settings),
        f"--encoder={os.path.join(job.folder, run_folder.ENCODER)}",
        f"--protocol={protocol}",
        f"--seed={job.seed}",
        f"--output={outcomes.results_path(job.folder, protocol)}",
    ]


def _call(
    job: Job, program: str, arguments: Sequence[str], share: Share, received: Received
) -> bool:
    """Runs a program, adds a line to starts.jsonl, and returns whether the program succeeded.

    A signal to this process is passed on to the program, which then saves its state.

    Raises:
      StoppedError: this process received a signal.
    """
    started = time.perf_counter()
    with open(os.path.join(job.folder, _LOG), "a+", encoding="utf-8") as log:
        start = log.tell()
        with subprocess.Popen(
            [sys.executable, "-m", _MODULES[program], *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches it only once, from here
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {}),
        ) as process:
            if share.cores:
                os.sched_setaffinity(process.pid, share.cores)
            while process.poll() is None and not received():
                time.sleep(_POLL_SECONDS)
            stopped_by = received()
            if stopped_by:
                process.send_signal(stopped_by)
        log.seek(start)
        last = ([line for line in log.read().splitlines() if line.strip()] or [""])[-1]
    status = process.returncode
    if stopped_by or status == 0:
        error = None
    elif status < 0:
        error = f"{program} was ended by {signal.Signals(-status).name}"
    else:
        error = last or f"{program} ended with status {status}"
    seconds = time.perf_counter() - started
    line = {"program": program, "seconds": seconds, "ended": time.time(), "error": error}
    with open(os.path.join(job.folder, outcomes.STARTS), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if stopped_by:
        raise stopped(stopped_by, job)
    return status == 0


def stopped(stopped_by: signal.Signals, job: Job) -> StoppedError:
    """Returns the error of a program that a signal stopped at or before a job."""
    return StoppedError(
        f"{stopped_by.name}: stopped at {job.name}; run the same command again to resume",
        stopped_by,
    )
