"""Reads what the folder of a run says about the run, which may still be training."""

import dataclasses
import glob
import json
import os
import re

from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import quarantine
from simsiam_tf.reporting import charts, panels
from simsiam_tf.runs import diagnosis, history, run_folder

# A warning or an error in absl's log: level and date, time, thread, module and line, text.
_WARNING = re.compile(r"[WEF]\d{4} [\d:.]+ +\d+ [^]]+\] (.*)")


@dataclasses.dataclass(frozen=True)
class Record:
    """The contents of a run's folder."""

    workdir: str
    settings: dict[str, str]  # flag names and their values as text
    config: PretrainConfig
    lines: list[dict]  # of the metrics
    summary: dict  # empty until the run is finished
    results: dict[str, dict]  # what evaluate.py wrote, by file name
    num_bad_images: int
    warnings: dict[str, int]  # texts and how often each was logged
    shorter_plans: list[tuple[int, int]]  # of `run_folder.read_shorter_plans`
    choices: dict  # of --recipe=auto, as `run_folder.read_choices` returns them
    starts: list[dict]  # of `history.read`

    def points(self, metric: str) -> list[charts.Point]:
        """Returns the epoch and value of each line that has a finite value of a metric."""
        return panels.points_of(self.lines, metric)

    def latest(self, metric: str) -> float | None:
        """Returns the latest finite value of a metric; None if there is none."""
        return next((value for _, value in reversed(self.points(metric))), None)

    @property
    def verdict(self) -> tuple[str, str]:
        """What `diagnosis.verdict` says of the run."""
        return diagnosis.verdict(self.lines, self.config)

    @property
    def epoch(self) -> float:
        """The epoch of the last line of the metrics, as a fraction; 0 before the first line."""
        return self.lines[-1]["epoch"] if self.lines else 0

    @property
    def seams(self) -> list[float]:
        """The epochs at which the run was extended."""
        done = next((line for line in reversed(self.lines) if line["step"]), None)
        if not done:
            return []
        return [step * done["epoch"] / done["step"] for _, step in self.shorter_plans]


def read(workdir: str) -> Record:
    """Reads the folder of a run; each file or line that cannot be read becomes a warning.

    Raises:
      UserError: the folder has no flagfile, so it is not the folder of a run.
    """
    settings, config = run_folder.read_settings(workdir, "run")
    damaged: list[str] = []
    results = {
        os.path.relpath(path, workdir): _read_json(path, damaged)
        for pattern in ("results*.json", f"{run_folder.RESULTS}/*.json")
        for path in sorted(glob.glob(os.path.join(glob.escape(workdir), pattern)))
    }
    summary = os.path.join(workdir, run_folder.SUMMARY)
    bad_images = os.path.join(workdir, quarantine.FILE_NAME)
    choices = os.path.join(workdir, run_folder.CHOICES)
    chosen = _read_json(choices, damaged) if os.path.exists(choices) else {}
    starts = history.read(workdir, damaged)
    return Record(
        workdir,
        settings,
        config,
        run_folder.read_metrics(workdir, damaged.append),
        _read_json(summary, damaged) if os.path.exists(summary) else {},
        {name: result for name, result in results.items() if result},
        len(run_folder.read_lines(bad_images, on_damage=damaged.append)),
        _logged_warnings(workdir) | dict.fromkeys(damaged, 1),
        run_folder.read_shorter_plans(workdir),
        chosen,
        starts,
    )


def _read_json(path: str, damaged: list[str]) -> dict:
    """Reads a JSON object; a file without one gives an empty dict and an entry in `damaged`."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        damaged.append(f"{os.path.basename(path)} cannot be read: {error}")
        return {}
    return value


def _logged_warnings(workdir: str) -> dict[str, int]:
    """Counts the warnings and errors in the logs of all workers, over all starts of the run."""
    counts: dict[str, int] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(workdir), "logs", "*.log"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            for match in filter(None, map(_WARNING.match, file)):
                counts[match[1]] = counts.get(match[1], 0) + 1
    return counts
