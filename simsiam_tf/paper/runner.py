"""What `reproduce` does: each row of the tables by `train.py`, then by `evaluate.py`.

Every program is a process of its own: one that crashes takes no other along, and none holds the
memory of a GPU for another.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from absl import logging
from tqdm import tqdm

from simsiam_tf import files, flags, schema
from simsiam_tf.config import DataConfig, KnnConfig, PretrainConfig
from simsiam_tf.paper import outcomes, report, tables
from simsiam_tf.paper.flagfiles import path_of
from simsiam_tf.runs.run_folder import FLAGFILE, check_workdir
from simsiam_tf.schema import StoppedError, UserError
from simsiam_tf.training import interruption

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_LOG = "programs.log"
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """One seed of a run."""

    run: str
    seed: int
    folder: str
    arguments: list  # of train.py
    steps: int
    num_images: int  # that they take

    @property
    def name(self):
        return f"{self.run}, seed {self.seed}"


def run(config):
    """Runs and evaluates what a `ReproduceConfig` asks for and is not there yet."""
    jobs = list_jobs(config)
    with interruption.noted() as received, files.writing_to(config.workdir):
        os.makedirs(config.workdir, exist_ok=True)
        report.write(config)
        for number, job in enumerate(jobs, start=1):
            if outcomes.read_outcome(job.folder).is_over:
                continue
            _, left = _estimate(jobs)
            logging.info("%d of %d: %s, %s left", number, len(jobs), job.name, left)
            try:
                _complete(job, received)
            finally:
                report.write(config)
            _log_outcome(job)
    path = os.path.join(config.workdir, report.HTML)
    logging.info("The report is %s", path)
    failed = [job.name for job in jobs if outcomes.read_outcome(job.folder).state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed, {failed[0]} for one; {path} says why. The "
            "same command tries them again"
        )


def print_costs(config):
    """Prints the runs of a `ReproduceConfig` and what they cost."""
    jobs = list_jobs(config)
    width = max(len(job.name) for job in jobs)
    seconds, left = _estimate(jobs)
    for job in jobs:
        outcome = outcomes.read_outcome(job.folder)
        took = outcome.seconds if outcome.is_over else seconds[job.name]
        cost = f"{job.steps:>9,} steps {job.num_images:>13,} images {_interval(took):>9}"
        print(f"{job.name:<{width}} {cost}  {outcome.state}")
    total = sum(job.num_images for job in jobs)
    print(f"{len(jobs)} runs, {total:,} images; {left} left")


def list_jobs(config):
    """The `Job`s of a `ReproduceConfig`: each run once, all runs of a seed before the next."""
    try:
        run_flags = shlex.split(config.run_flags)
    except ValueError as error:
        raise UserError(
            f"--run_flags must be flags as a shell takes them ({error}). "
            f"Received: {config.run_flags}"
        ) from error
    chosen = tables.choose_tables(config.scale, config.table)
    rows = [row for table in chosen.values() for row in table.rows]
    runs = dict.fromkeys(row.run for row in rows)
    return [_job(config, name, seed, run_flags) for seed in range(config.seeds) for name in runs]


def _job(config, name, seed, run_flags):
    folder = outcomes.folder_of(os.path.abspath(config.workdir), name, seed)
    arguments = [
        f"--flagfile={path_of(config.scale, name)}",
        *run_flags,
        f"--seed={seed}",
        f"--workdir={folder}",
    ]
    with contextlib.chdir(_ROOT):  # where the paths in flagfiles start
        settings = flags.read(arguments, PretrainConfig)
    if os.path.exists(os.path.join(folder, FLAGFILE)):
        check_workdir(settings)  # of another scale, for one
    batch_size, epochs = settings.optimization.batch_size, settings.optimization.epochs
    steps = tables.SCALES[config.scale].num_images // batch_size * epochs
    return Job(name, seed, folder, arguments, steps, steps * batch_size)


def _estimate(jobs):
    """{name of a job: seconds}, by what an image took in those that are over; and what is left."""
    found = {job.name: outcomes.read_outcome(job.folder) for job in jobs}
    over = [job for job in jobs if found[job.name].state == "finished"]
    if not over:
        return dict.fromkeys(found), "unknown time"
    seconds = sum(found[job.name].seconds for job in over) / sum(job.num_images for job in over)
    estimates = {job.name: seconds * job.num_images for job in jobs}
    left = sum(estimates[job.name] for job in jobs if not found[job.name].is_over)
    return estimates, f"about {_interval(left)}"


def _interval(seconds):
    return "unknown" if seconds is None else tqdm.format_interval(seconds)


def _complete(job, received):
    """Trains and evaluates; what fails is in the job's folder, and the next one may go on."""
    os.makedirs(job.folder, exist_ok=True)
    if not _call(job, ["train.py", *job.arguments], received):
        return
    for protocol in outcomes.PROTOCOLS:
        is_there = outcomes.read_result(job.folder, protocol) is not None
        if not is_there and not _call(job, _evaluation(job, protocol), received):
            return
    # As large as the data set, and of no more use.
    shutil.rmtree(os.path.join(job.folder, "features"), ignore_errors=True)


def _evaluation(job, protocol):
    """The command that evaluates: data and neighbours are those of the run's own flags."""
    with open(os.path.join(job.folder, FLAGFILE), encoding="utf-8") as file:
        there = schema.read_flagfile(file.read())
    settings = schema.defaults(DataConfig)
    if protocol == "knn":
        settings |= schema.defaults(KnnConfig)
    return [
        "evaluate.py",
        *(f"--{name}={there[name]}" for name in settings),
        f"--encoder={os.path.join(job.folder, 'encoder')}",
        f"--protocol={protocol}",
        f"--seed={job.seed}",
        f"--output={outcomes.results_path(job.folder, protocol)}",
    ]


def _call(job, command, received):
    """Whether a program came to its end; a line of starts.jsonl says how it went.

    A signal to this program goes on to that one, which saves what it has.
    """
    started = time.perf_counter()
    with open(os.path.join(job.folder, _LOG), "a+", encoding="utf-8") as log:
        start = log.tell()
        with subprocess.Popen(
            [sys.executable, *command],
            cwd=_ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it once, from here
        ) as process:
            while process.poll() is None and not received():
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            if received():
                process.send_signal(received())
        log.seek(start)
        last = ([line for line in log.read().splitlines() if line.strip()] or [""])[-1]
    status = process.returncode
    if received() or status == 0:
        error = None
    elif status < 0:
        error = f"{command[0]} was ended by {signal.Signals(-status).name}"
    else:
        error = last or f"{command[0]} ended with status {status}"
    seconds = time.perf_counter() - started
    line = {"program": command[0], "seconds": seconds, "error": error}
    with open(os.path.join(job.folder, outcomes.STARTS), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if received():
        raise StoppedError(
            f"{received().name}: stopped at {job.name}; the same command goes on from there",
            received(),
        )
    return status == 0


def _log_outcome(job):
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
