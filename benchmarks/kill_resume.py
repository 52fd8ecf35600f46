"""Tests whether a run that is killed repeatedly gives the result of an uninterrupted run.

python benchmarks/kill_resume.py --kills=200

The program sends SIGKILL to `train.py` on the embedded digits at a random moment and starts it
again, until the run is finished. It continues with new runs until the number of kills is reached.
It compares each finished run with an uninterrupted one. The comparison takes every tensor of the
last checkpoint and of the exported encoder by its bytes. It also takes every line of metrics,
except for the fields that depend on the clock. The exit status is 1 if anything differs, if a start
failed, or if a start did not resume from the newest checkpoint. The program needs
requirements-dev.txt. Starting TensorFlow takes most of the time.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import TINY_RUN
from run_results import lines_of

import tensorflow as tf  # isort: skip

CHECKPOINT_EVERY = 2
STEPS_PER_EPOCH = 22
FILES_OF_A_CHECKPOINT = 3
POLL_SECONDS = 0.001
START_SECONDS = 900  # a longer start counts as hanging
# Probability of each moment. The export is killed once in a run, when few steps are left.
MOMENTS = {"start-up": 0.1, "between saves": 0.35, "saving": 0.4, "just saved": 0.15}
EXPORT = "export"
FEW_STEPS = 6


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--folder", help="new folder in which the runs are kept")
    parser.add_argument("--output", help="JSON file for the result")
    options = parser.parse_args(arguments)

    if options.folder:
        folder = Path(options.folder)
        folder.mkdir(parents=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="kill_resume_"))
    trial = Trial(folder, options.kills, options.epochs, options.seed)
    trial.make_reference()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(trial.kill_runs) for _ in range(options.jobs)]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        except BaseException:
            trial.stopped.set()
            raise

    result = trial.result()
    print(report(result))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2), encoding="utf-8")
    if result["differences"] or result["failures"]:
        print(f"\nThe runs that differ or failed are in {folder}")
        return 1
    if not options.folder:
        shutil.rmtree(folder)
    return 0


class Trial:
    """Killed runs and their results. Several threads may call `kill_runs` at the same time."""

    def __init__(self, folder, num_kills, epochs, seed):
        self.folder = folder
        self.num_kills = num_kills
        self.seed = seed
        self.last_step = epochs * STEPS_PER_EPOCH
        self.flags = [
            *TINY_RUN,
            f"--epochs={epochs}",
            f"--checkpoint_every_steps={CHECKPOINT_EVERY}",
            "--knn_every_epochs=1",
        ]
        self.reference = folder / "reference"
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.run_numbers = itertools.count()
        self.kills_left = num_kills
        self.kills = []
        self.starts = collections.Counter()
        self.compared = collections.Counter()
        self.differences = []
        self.failures = []

    def make_reference(self):
        """Trains the uninterrupted run and measures how long it takes to start and to save."""
        began = time.perf_counter()
        saves = {}
        with self._start(self.reference) as process:
            while process.poll() is None and not newest_step(self.reference):
                self._sleep(process)
            self.startup_seconds = time.perf_counter() - began
            while process.poll() is None:
                self._sleep(process)
                now = time.perf_counter()
                for path in self.reference.glob(LEFT_BEHIND["half-saved checkpoint"]):
                    first, _ = saves.get(path, (now, now))
                    saves[path] = first, now
        if process.returncode != 0:
            raise RuntimeError(self._last_words(self.reference))
        durations = [last - first for first, last in saves.values()]
        self.saving_seconds = sum(durations) / len(durations)
        say(
            f"Uninterrupted run: {time.perf_counter() - began:.0f} s, "
            f"{self.startup_seconds:.1f} s to start, {self.saving_seconds:.3f} s to save"
        )
        self.began = time.perf_counter()

    def kill_runs(self):
        """Kills and compares one run after another until the number of kills is reached."""
        while self.kills_left and not self.stopped.is_set():
            number = next(self.run_numbers)
            workdir = self.folder / f"run{number}"
            if not self._kill_until_finished(workdir, random.Random(f"{self.seed} {number}")):
                continue
            found, compared = differences(workdir, self.reference)
            with self.lock:
                self.compared += compared
                self.differences += [f"{workdir.name}: {difference}" for difference in found]
            if not found:
                shutil.rmtree(workdir)

    def _kill_until_finished(self, workdir, rng):
        """Returns whether the run finished."""
        export_was_killed = False
        while not self.stopped.is_set():
            before = newest_step(workdir)
            was_finished = (workdir / "summary.json").exists()
            moment = self._take_moment(rng, before, export_was_killed)
            began_ns = time.time_ns()
            with self._start(workdir) as process:
                if moment:
                    self._wait(process, workdir, moment, began_ns)
                    process.kill()
                while process.poll() is None:
                    self._sleep(process)
            killed = moment is not None and process.returncode == -signal.SIGKILL
            finished = process.returncode == 0
            with self.lock:
                if not was_finished:
                    self._note_start(workdir, before, finished)
                if killed:
                    self._note_kill(workdir, moment, began_ns)
                    export_was_killed |= moment["kind"] == EXPORT
                elif moment:  # the run finished before the moment
                    self.kills_left += 1
                if not (killed or finished):
                    self.failures.append(self._last_words(workdir))
            if not killed:
                return finished
        return False

    def _take_moment(self, rng, before, export_was_killed):
        """Returns when to kill the next start, or None if the start may run to the end."""
        with self.lock:
            if not self.kills_left or (before == self.last_step and export_was_killed):
                return None
            self.kills_left -= 1
        kind = rng.choices(list(MOMENTS), MOMENTS.values())[0]
        if before >= self.last_step - FEW_STEPS and not export_was_killed:
            kind = EXPORT
        saves = 1 if kind == "between saves" else rng.randint(1, 3)
        longest = {
            "start-up": self.startup_seconds,
            "between saves": 1.0,  # several steps and saves
            "saving": rng.choice([0.0, 0.02, 1.2 * self.saving_seconds]),
            "just saved": rng.choice([0.0, 0.005]),  # while old checkpoints are deleted
            EXPORT: 1.5,
        }[kind]
        return {
            "kind": kind,
            "step": min(before + saves * CHECKPOINT_EVERY, self.last_step),
            "seconds": rng.uniform(0, longest),
        }

    def _wait(self, process, workdir, moment, began_ns):
        """Waits for the moment of the kill, or for the end of the process."""
        staging = workdir / "checkpoints" / f"step-{moment['step']:09d}.partial"

        def is_saved():
            return newest_step(workdir) >= moment["step"]

        has_come = {
            "start-up": lambda: True,
            "between saves": is_saved,
            "saving": lambda: is_new(staging, began_ns) or is_saved(),
            "just saved": is_saved,
            EXPORT: lambda: is_new(workdir / "encoder.partial", began_ns),
        }[moment["kind"]]
        while process.poll() is None and not has_come():
            self._sleep(process)
        time.sleep(moment["seconds"])

    def _sleep(self, process):
        """Sleeps between two polls; raises if the process hangs or if another thread failed."""
        time.sleep(POLL_SECONDS)
        if self.stopped.is_set():
            raise RuntimeError("Another thread failed, so this one stops")
        if time.perf_counter() - process.began > START_SECONDS:
            raise RuntimeError(f"{process.args} did not end within {START_SECONDS} s")

    def _start(self, workdir):
        with open(self._log(workdir), "w", encoding="utf-8") as log:
            return Start(
                [sys.executable, "train.py", *self.flags, f"--workdir={workdir}"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def _log(self, workdir):
        return workdir.with_suffix(".log")

    def _last_words(self, workdir):
        lines = self._log(workdir).read_text(encoding="utf-8", errors="replace").splitlines()
        return f"{workdir.name} failed: {' / '.join(lines[-3:])}"

    def _note_start(self, workdir, before, finished):
        """Records a start; it must have resumed from the newest checkpoint."""
        log = self._log(workdir).read_text(encoding="utf-8", errors="replace")
        restored = re.search(r"Restored .*step-(\d+)$", log, re.MULTILINE)
        step = int(restored[1]) if restored else 0
        if finished or newest_step(workdir) > before or restored:
            self.starts["restored the newest checkpoint" if before else "began anew"] += 1
            if step != before:
                self.failures.append(
                    f"{workdir.name} had a checkpoint of step {before} but restored step {step}"
                )
        else:
            self.starts["killed before restoring"] += 1

    def _note_kill(self, workdir, moment, began_ns):
        left = left_behind(workdir, began_ns)
        self.kills.append(moment | {"left": left})
        done = len(self.kills)
        seconds = (time.perf_counter() - self.began) / done * (self.num_kills - done)
        say(
            f"{done}/{self.num_kills} kills ({moment['kind']}, at step {newest_step(workdir)}"
            f"{', left ' + ', '.join(left) if left else ''}), {self.compared['runs']} runs "
            f"compared, about {seconds / 60:.1f} min left"
        )

    def result(self):
        seconds = time.perf_counter() - self.began
        by_moment = {}
        for kind in [*MOMENTS, EXPORT]:
            kills = [kill for kill in self.kills if kill["kind"] == kind]
            by_moment[kind] = {"kills": len(kills)} | {
                what: sum(what in kill["left"] for kill in kills) for what in LEFT_BEHIND
            }
        return {
            "kills": len(self.kills),
            "moments": by_moment,
            "compared": {name: self.compared[name] for name in ("runs", "tensors", "lines")},
            "starts": dict(self.starts),
            "differences": self.differences,
            "failures": self.failures,
            "startup_seconds": round(self.startup_seconds, 1),
            "saving_seconds": round(self.saving_seconds, 3),
            "seconds_per_kill": round(seconds / max(len(self.kills), 1), 1),
        }


class Start(subprocess.Popen):
    """A process that is killed at the end of its context."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.began = time.perf_counter()

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)


LEFT_BEHIND = {
    "half-saved checkpoint": "checkpoints/step-*.partial",
    "half-deleted checkpoint": "checkpoints/step-?????????",
    "half-written encoder": "encoder.partial",
}


def left_behind(workdir, began_ns):
    """Returns which unfinished files or folders a run's last start left in its folder."""
    found = []
    for what, pattern in LEFT_BEHIND.items():
        paths = [path for path in workdir.glob(pattern) if is_new(path, began_ns)]
        if what == "half-deleted checkpoint":
            paths = [path for path in paths if len(os.listdir(path)) < FILES_OF_A_CHECKPOINT]
        if paths:
            found.append(what)
    return found


def is_new(path, began_ns):
    """Returns whether a file or folder exists and has changed since a time."""
    try:
        return os.stat(path).st_mtime_ns > began_ns
    except FileNotFoundError:
        return False


def newest_step(workdir):
    """Returns the step of the newest complete checkpoint; 0 if there is none."""
    directory = workdir / "checkpoints"
    names = os.listdir(directory) if directory.exists() else []
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), default=0)


def differences(workdir, reference):
    """Returns the differences of two finished runs in words, and a `Counter` of comparisons."""
    found = []
    compared = collections.Counter(runs=1)
    for part in ("checkpoint", "encoder"):
        ours, theirs = tensors_of(workdir, part), tensors_of(reference, part)
        compared["tensors"] += len(theirs)
        if ours.keys() != theirs.keys():
            found.append(f"{part}: in only one of the runs, {sorted(ours.keys() ^ theirs.keys())}")
        found += [f"{part}: {name}" for name in ours if ours[name] != theirs.get(name)]
    ours, theirs = lines_of(workdir), lines_of(reference)
    compared["lines"] += len(theirs)
    pairs = itertools.zip_longest(ours, theirs)
    found += [f"metrics: {our} instead of {their}" for our, their in pairs if our != their]
    return found, compared


def tensors_of(workdir, part):
    """Returns {name: (type, shape, bytes)} of the last checkpoint or of the encoder."""
    prefix = workdir / "encoder" / "variables" / "variables"
    if part == "checkpoint":
        prefix = workdir / "checkpoints" / f"step-{newest_step(workdir):09d}" / "state"
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    tensors = {name: reader.get_tensor(name) for name in names}
    return {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}


def report(result):
    names = list(LEFT_BEHIND)
    lines = [
        f"| moment of the kill | kills | {' | '.join(f'left a {name}' for name in names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    rows = result["moments"]
    everything = {name: sum(row[name] for row in rows.values()) for name in ["kills", *names]}
    for kind, row in (rows | {"all": everything}).items():
        lines.append(f"| {kind} | {' | '.join(str(row[name]) for name in ['kills', *names])} |")
    compared = result["compared"]
    lines += [
        "",
        "| | |",
        "|---|---|",
        *(f"| starts that {what} | {count} |" for what, count in sorted(result["starts"].items())),
        f"| runs compared with the uninterrupted one | {compared['runs']} |",
        f"| tensors compared by their bytes | {compared['tensors']} |",
        f"| lines of metrics compared | {compared['lines']} |",
        f"| differences | {len(result['differences'])} |",
        f"| failures | {len(result['failures'])} |",
        f"| seconds to start | {result['startup_seconds']} |",
        f"| seconds to save | {result['saving_seconds']} |",
        f"| seconds per kill | {result['seconds_per_kill']} |",
        "",
        *result["differences"],
        *result["failures"],
    ]
    return "\n".join(lines).rstrip()


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
