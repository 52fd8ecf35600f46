"""What a run's folder says of the run, as far as it goes: the run may not be finished."""

import dataclasses
import glob
import json
import math
import os
import re

from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import quarantine
from simsiam_tf.objectives import COLLAPSED_STD
from simsiam_tf.runs import run_folder

_SPREAD_STD = 2 * COLLAPSED_STD  # from here on nobody need look
# A line of absl's log that tells of something: level, date, time, thread, place, text.
_WARNING = re.compile(r"[WEF]\d{4} [\d:.]+ +\d+ [^]]+\] (.*)")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run wrote of itself."""

    workdir: str
    settings: dict  # {flag name: value as text}
    config: PretrainConfig
    lines: list  # of the metrics
    summary: dict  # empty where the run is not finished
    results: dict  # {file name: what evaluate.py wrote}
    num_bad_images: int
    warnings: dict  # {text: how often}

    def points(self, name):
        """(epoch, value) of a metric wherever it is a finite number."""
        points = [(line["epoch"], line[name]) for line in self.lines if name in line]
        return [point for point in points if math.isfinite(point[1])]

    def latest(self, name):
        """The newest value of a metric; None where there is none."""
        return next((value for _, value in reversed(self.points(name))), None)

    @property
    def epoch(self):
        """How far the run is."""
        return self.lines[-1]["epoch"] if self.lines else 0


def read(workdir):
    """The `Record` of a run's folder. What cannot be read of it is among the warnings.

    Raises:
      UserError: there are no flags, so it is no run's folder.
    """
    settings, config = run_folder.read_settings(workdir, "run")
    damaged = []
    results = {
        os.path.basename(path): _read_json(path, damaged)
        for path in sorted(glob.glob(os.path.join(glob.escape(workdir), "results*.json")))
    }
    summary = os.path.join(workdir, run_folder.SUMMARY)
    bad_images = os.path.join(workdir, quarantine.FILE_NAME)
    return Record(
        workdir,
        settings,
        config,
        run_folder.read_metrics(workdir, damaged.append),
        _read_json(summary, damaged) if os.path.exists(summary) else {},
        {name: result for name, result in results.items() if result},
        len(run_folder.read_lines(bad_images, on_damage=damaged.append)),
        _logged_warnings(workdir) | dict.fromkeys(damaged, 1),
    )


def _read_json(path, damaged):
    """The JSON object of a file; an empty dict, and a text in `damaged`, where it holds none."""
    try:
        with open(path, encoding="utf-8") as file:
            return _object(file.read())
    except (OSError, ValueError) as error:
        damaged.append(f"{os.path.basename(path)} cannot be read: {error}")
        return {}


def _object(text):
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _logged_warnings(workdir):
    """{text: how often} of the warnings and errors of all workers and starts."""
    counts = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(workdir), "logs", "*.log"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            for match in filter(None, map(_WARNING.match, file)):
                counts[match[1]] = counts.get(match[1], 0) + 1
    return counts


def verdict(record):
    """Whether the features are healthy: a word, and the sentence that says why.

    The word is healthy, doubtful, collapsed or unknown.
    """
    stds = record.points("feature_std")
    if not stds:
        return "unknown", "No step is logged yet."
    std = max(std for epoch, std in stds if epoch > stds[-1][0] - 1)
    knn = record.points("knn_top1")
    if std < COLLAPSED_STD:
        return "collapsed", (
            f"The features’ std was {std:.2f} or less throughout the last epoch; 1 is healthy."
        )
    if record.lines[-1].get("nonfinite"):
        return "doubtful", "The last step changed no weight: its loss or gradient was not finite."
    if std < _SPREAD_STD:
        return "doubtful", (
            f"The features’ std was {std:.2f} or less throughout the last epoch; 1 is healthy, "
            f"less than {COLLAPSED_STD} collapsed."
        )
    spread = f"The features are spread, with a std of {stds[-1][1]:.2f}"
    if len(knn) < 2 or knn[0][0] > 0:
        return "healthy", f"{spread} where 1 is healthy and 0 collapsed."
    (_, before), *_, (_, now) = knn
    if now < before:
        return "doubtful", (
            f"{spread}, but the kNN top-1 of {now:.1f} % is below the random network’s, "
            f"{before:.1f} %."
        )
    return "healthy", f"{spread}, and their kNN top-1 went from {before:.1f} % to {now:.1f} %."
