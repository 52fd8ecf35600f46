"""What a run of the tables came to, as the files in its folder say."""

import dataclasses
import json
import math
import os
import statistics

from simsiam_tf.objectives import COLLAPSED_STD
from simsiam_tf.runs import run_folder
from simsiam_tf.runs.run_folder import SUMMARY

PROTOCOLS = ("knn", "probe")
STARTS = "starts.jsonl"  # a line for each start of a program: its name, seconds and error
_LAST = 10  # a collapse is told from the last tenth of the lines


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One seed of a run. Accuracies are top-1 in percent; what is not known is None."""

    state: str = "not started"  # or stopped, failed, diverged, trained, finished (and evaluated)
    error: str | None = None  # the last line of a run that failed or diverged
    loss: float | None = None  # of the last line of metrics, as are
    epoch: float | None = None
    std: float | None = None  # the mean over the last tenth of the lines
    knn: float | None = None
    knn_before_training: float | None = None
    probe: float | None = None
    seconds: float = 0.0  # all starts and evaluations together

    @property
    def is_over(self):
        return self.state in ("finished", "diverged")

    @property
    def collapsed(self):
        """A std that is not known, NaN for one, counts as a collapse."""
        return self.std is None or not self.std >= COLLAPSED_STD


def folder_of(workdir, run, seed):
    """The folder of one seed of a run."""
    return os.path.join(workdir, run, f"seed-{seed}")


def results_path(folder, protocol):
    """Where the result of an evaluation is."""
    return os.path.join(folder, f"results_{protocol}.json")


def read_outcome(folder):
    """The `Outcome` of the run in a folder, which need not exist."""
    starts = run_folder.read_lines(os.path.join(folder, STARTS))
    lines = run_folder.read_metrics(folder)
    results = {name: read_result(folder, name) for name in PROTOCOLS}
    steps = [line for line in lines if "loss" in line]
    knn = [line["knn_top1"] for line in lines if "knn_top1" in line]
    tail = steps[-math.ceil(len(steps) / _LAST) :]
    values = {
        "loss": steps[-1]["loss"] if steps else None,
        "epoch": lines[-1]["epoch"] if lines else None,
        "std": statistics.fmean(line["feature_std"] for line in tail) if tail else None,
        "knn": results["knn"],
        "knn_before_training": knn[0] if knn else None,
        "probe": results["probe"],
        "seconds": sum(start["seconds"] for start in starts),
    }
    error = starts[-1]["error"] if starts else None
    is_skipped = bool(lines) and "nonfinite" in lines[-1]
    if None not in results.values():
        state, error = "finished", None
    elif error and is_skipped:
        state = "diverged"
    elif error:
        state = "failed"
    elif os.path.exists(os.path.join(folder, SUMMARY)):
        state = "trained"
    else:
        state = "stopped" if starts else "not started"
    return Outcome(state, error, **values)


def read_result(folder, protocol):
    """The top-1 of an evaluation; None where it is not done, or was of another encoder."""
    path = results_path(folder, protocol)
    encoder = os.path.join(folder, "encoder", "encoder.json")
    try:
        if os.path.getmtime(path) < os.path.getmtime(encoder):
            return None
        with open(path, encoding="utf-8") as file:
            return json.load(file)["top1"]
    except (OSError, ValueError):
        return None
