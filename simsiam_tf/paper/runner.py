"""Trains each row of the tables by `train.py` and evaluates it by `evaluate.py`.

Each program runs in its own process, so that a crash does not end the other programs and the memory
of a GPU is free again after each program.
"""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import logging

from simsiam_tf import files, flags, schema, terminal
from simsiam_tf.config import DataConfig, KnnConfig, PretrainConfig
from simsiam_tf.paper import outcomes, report, tables
from simsiam_tf.paper.settings import ReproduceConfig
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import StoppedError, UserError
from simsiam_tf.training import interruption

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


def run(config: ReproduceConfig) -> None:
    """Trains and evaluates all runs that are not over yet, and writes the report after each.

    Raises:
      UserError: runs failed; the other runs are finished.
      StoppedError: a signal stopped a run, which was saved.
    """
    jobs = list_jobs(config)
    with interruption.noted() as received, files.writing_to(config.workdir):
        os.makedirs(config.workdir, exist_ok=True)
        report.write(config)
        for number, job in enumerate(jobs, start=1):
            if outcomes.read_outcome(job.folder).is_over:
                continue
            _, left = _estimate(jobs)
            logging.info("Run %d of %d: %s; time left: %s", number, len(jobs), job.name, left)
            try:
                _complete(job, received)
            finally:
                report.write(config)
            _log_outcome(job)
    path = os.path.join(config.workdir, report.HTML)
    logging.info("Wrote the report to %s", path)
    failed = [job.name for job in jobs if outcomes.read_outcome(job.folder).state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed, the first of them {failed[0]}; {path} has "
            "the errors. Run the same command again to retry them"
        )


def print_costs(config: ReproduceConfig) -> None:
    """Prints the steps, the images, the time and the state of each run."""
    jobs = list_jobs(config)
    width = max(len(job.name) for job in jobs)
    seconds, left = _estimate(jobs)
    for job in jobs:
        outcome = outcomes.read_outcome(job.folder)
        duration = outcome.seconds if outcome.is_over else seconds[job.name]
        cost = f"{job.num_steps:>9,} steps {job.num_images:>13,} images {_interval(duration):>9}"
        print(f"{job.name:<{width}} {cost}  {outcome.state}")
    total = sum(job.num_images for job in jobs)
    print(f"{len(jobs)} runs, {total:,} images; time left: {left}")


def list_jobs(config: ReproduceConfig) -> list[Job]:
    """Returns each run of the chosen tables once for each seed, all runs of a seed together.

    Raises:
      UserError: a flag is wrong, or a run's folder holds a run of another configuration.
    """
    try:
        run_flags = shlex.split(config.run_flags)
    except ValueError as error:
        raise UserError(
            f"--run_flags must be flags in the syntax of a shell ({error}). "
            f"Received: {config.run_flags}"
        ) from error
    chosen = tables.choose_tables(config.scale, config.table)
    rows = [row for table in chosen.values() for row in table.rows]
    runs = dict.fromkeys(row.run for row in rows)
    return [_job(config, name, seed, run_flags) for seed in range(config.seeds) for name in runs]


def _job(config: ReproduceConfig, name: str, seed: int, run_flags: Sequence[str]) -> Job:
    folder = outcomes.folder_of(os.path.abspath(config.workdir), name, seed)
    arguments = [
        f"--recipe={tables.recipe_of(config.scale, name)}",
        *run_flags,
        f"--seed={seed}",
        f"--workdir={folder}",
    ]
    settings = flags.read(arguments, PretrainConfig)
    if os.path.exists(os.path.join(folder, run_folder.FLAGFILE)):
        run_folder.check_workdir(settings)  # it may hold a run of another scale
    batch_size, epochs = settings.optimization.batch_size, settings.optimization.epochs
    num_steps = tables.SCALES[config.scale].num_images // batch_size * epochs
    return Job(name, seed, folder, arguments, num_steps, num_steps * batch_size)


def _estimate(jobs: Sequence[Job]) -> tuple[dict[str, float | None], str]:
    """Estimates durations from the time that the finished runs took for each image.

    Returns:
      The seconds of each job by name, None where unknown, and the time left in words.
    """
    found = {job.name: outcomes.read_outcome(job.folder) for job in jobs}
    over = [job for job in jobs if found[job.name].state == "finished"]
    if not over:
        return dict.fromkeys(found), "unknown"
    seconds_per_image = sum(found[job.name].seconds for job in over) / sum(
        job.num_images for job in over
    )
    num_left = sum(job.num_images for job in jobs if not found[job.name].is_over)
    left = f"about {_interval(seconds_per_image * num_left)}"
    return {job.name: seconds_per_image * job.num_images for job in jobs}, left


def _interval(seconds: float | None) -> str:
    return "unknown" if seconds is None else terminal.format_seconds(seconds)


def _complete(job: Job, received: Received) -> None:
    """Trains and evaluates; an error is noted in the job's folder, so that the next job can run."""
    os.makedirs(job.folder, exist_ok=True)
    if not _call(job, "train.py", job.arguments, received):
        return
    for protocol in outcomes.PROTOCOLS:
        is_there = outcomes.read_result(job.folder, protocol) is not None
        if not is_there and not _call(job, "evaluate.py", _evaluation(job, protocol), received):
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


def _call(job: Job, program: str, arguments: Sequence[str], received: Received) -> bool:
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
        ) as process:
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
    line = {"program": program, "seconds": seconds, "error": error}
    with open(os.path.join(job.folder, outcomes.STARTS), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if stopped_by:
        raise StoppedError(
            f"{stopped_by.name}: stopped at {job.name}; run the same command again to resume",
            stopped_by,
        )
    return status == 0


def _log_outcome(job: Job) -> None:
    outcome = outcomes.read_outcome(job.folder)
    if outcome.error:
        logging.warning("%s %s: %s", job.name, outcome.state, outcome.error)
    else:
        logging.info(
            "%s: kNN %.2f %%, probe %.2f %%, std %.2f, %s",
            job.name,
            outcome.knn,
            outcome.probe,
            outcome.std,
            _interval(outcome.seconds),
        )
