"""Runs the rows of the tables in rounds, one seed after the other, until the findings are decided.

Several runs may go on at a time, on this machine (`--jobs`) and on others that run the same command
on the same workdir: a lock in the folder of each run says that a process works on it.
"""

import concurrent.futures
import os
import queue
import shlex
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

from simsiam_tf import files, flags, terminal
from simsiam_tf.config import PretrainConfig
from simsiam_tf.paper import findings, outcomes, programs, report, tables
from simsiam_tf.paper.programs import Job, Received, Share
from simsiam_tf.paper.scales import SCALES
from simsiam_tf.paper.settings import ReproduceConfig
from simsiam_tf.runs import lock, run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training import interruption

_LOCK = "reproduce.lock"
_POLL_SECONDS = 5.0  # between looks at the runs of other machines


def run(config: ReproduceConfig) -> None:
    """Trains and evaluates all runs that are not over yet, and writes the report after each.

    Raises:
      UserError: runs failed; the other runs are finished.
      StoppedError: a signal stopped a run, which was saved.
    """
    jobs = list_jobs(config)
    pool = _Pool(config, jobs)
    with interruption.noted() as received, files.writing_to(config.workdir):
        os.makedirs(config.workdir, exist_ok=True)
        report.write(config)
        for round_of_jobs in _rounds(config, jobs):
            pool.complete(round_of_jobs, received)
    jobs = needed(config, jobs)
    path = os.path.join(config.workdir, report.HTML)
    logging.info("Wrote the report to %s", path)
    failed = [job.name for job in jobs if outcomes.read_outcome(job.folder).state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed, the first of them {failed[0]}; {path} has "
            "the errors. Run the same command again to retry them"
        )


def _rounds(config: ReproduceConfig, jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yields the jobs of each seed, without those whose findings are decided by earlier seeds.

    The outcomes of the earlier seeds are read when a round is asked for.
    """
    chosen = tables.choose_tables(config.scale, config.table)
    for seed in range(config.seeds):
        runs = tables.runs_in(_undecided(config, chosen.values(), seed))
        yield [job for job in jobs if job.seed == seed and job.run in runs]


def needed(config: ReproduceConfig, jobs: Sequence[Job]) -> list[Job]:
    """Returns all jobs but those whose findings earlier seeds decide."""
    return [job for jobs_of_seed in _rounds(config, jobs) for job in jobs_of_seed]


def _undecided(
    config: ReproduceConfig, chosen: Iterable[tables.Table], seeds: int
) -> list[tables.Table]:
    """Returns the tables whose finding the first seeds do not decide."""
    found = outcomes.read_outcomes(config.workdir, tables.runs_in(chosen), seeds)
    epochs = tables.epochs_of(config.scale)
    return [
        table
        for table in chosen
        if findings.judge(table, found, config.seeds, epochs).word == "undecided"
    ]


class _Pool:
    """Completes jobs, several at a time."""

    def __init__(self, config: ReproduceConfig, jobs: Sequence[Job]) -> None:
        self.config = config
        self.numbers = {job.name: number for number, job in enumerate(jobs, start=1)}
        self.jobs = jobs
        self.since = time.time()
        self.shares: queue.SimpleQueue[Share] = queue.SimpleQueue()
        for share in programs.shares(config.jobs):
            self.shares.put(share)
        self.writing = threading.Lock()

    def complete(self, jobs: Sequence[Job], received: Received) -> None:
        """Completes jobs, and waits for those that other processes work on."""
        with concurrent.futures.ThreadPoolExecutor(self.config.jobs) as pool:
            while jobs:
                is_done = list(pool.map(lambda job: self._try(job, received), jobs))
                jobs = [job for job, done in zip(jobs, is_done, strict=True) if not done]
                if jobs:
                    time.sleep(_POLL_SECONDS)

    def _try(self, job: Job, received: Received) -> bool:
        """Completes a job; returns False if another process works on it."""
        if stopped_by := received():
            raise programs.stopped(stopped_by, job)
        if self._is_tried(job):
            return True
        os.makedirs(job.folder, exist_ok=True)
        with lock.tried(os.path.join(job.folder, _LOCK)) as owner:
            if owner:
                return False
            if self._is_tried(job):  # by the process that had the lock
                return True
            _, left = _estimate(self.jobs)
            number, count = self.numbers[job.name], len(self.jobs)
            logging.info("Run %d of %d: %s; time left: %s", number, count, job.name, left)
            share = self.shares.get()
            try:
                programs.complete(job, share, received)
            finally:
                self.shares.put(share)
                with self.writing:
                    report.write(self.config)
        _log_outcome(job)
        return True

    def _is_tried(self, job: Job) -> bool:
        """Whether a job needs no start: it is over, or has failed since this process began."""
        outcome = outcomes.read_outcome(job.folder)
        return outcome.is_over or (outcome.state == "failed" and outcome.ended >= self.since)


def print_costs(config: ReproduceConfig) -> None:
    """Prints the steps, the images, the time and the state of each run."""
    jobs = list_jobs(config)
    width = max(len(job.name) for job in jobs)
    kept = needed(config, jobs)
    seconds, left = _estimate(kept)
    for job in kept:
        outcome = outcomes.read_outcome(job.folder)
        duration = outcome.seconds if outcome.is_over else seconds[job.name]
        cost = f"{job.num_steps:>9,} steps {job.num_images:>13,} images {_interval(duration):>9}"
        print(f"{job.name:<{width}} {cost}  {outcome.state}")
    total = sum(job.num_images for job in kept)
    print(f"{len(kept)} runs, {total:,} images; time left: {left}")
    if len(kept) < len(jobs):
        print(f"{len(jobs) - len(kept)} more are not needed: their findings are decided")


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
    runs = tables.runs_in(chosen.values())
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
    num_steps = SCALES[config.scale].num_images // batch_size * epochs
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
