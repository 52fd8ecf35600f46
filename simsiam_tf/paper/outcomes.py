"""Reads the outcome of a run of the tables from the files in its folder."""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from simsiam_tf.config import COLLAPSED_STD
from simsiam_tf.export import saved_model
from simsiam_tf.runs import run_folder

PROTOCOLS = ("knn", "probe")
STARTS = "starts.jsonl"  # one line for each start of a program: its name, seconds, end and error
_TAIL = 10  # the std is the mean over one part in so many of the lines, at the end


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one seed of a run. Accuracies are top-1 in percent; None: unknown."""

    # "not started", "stopped", "failed", "diverged", "trained", or "finished": evaluated as well.
    state: str = "not started"
    error: str | None = None  # the last line that a failed or diverged run logged
    loss: float | None = None  # of the last step that the metrics have
    epoch: float | None = None  # of the last line of the metrics
    std: float | None = None  # the mean over the last tenth of the logged steps
    knn: float | None = None
    knn_before_training: float | None = None
    probe: float | None = None
    epochs: int | None = None  # that the run was to train, by its flags
    num_test: int | None = None  # test images of the probe
    misclassified: tuple[int, ...] | None = None  # indices of test images, by the probe
    images_per_second: float | None = None  # of the training, over all devices
    seconds: float = 0.0  # the sum over all starts and evaluations
    ended: float = 0.0  # time of the last start's end, in seconds since 1970

    @property
    def is_over(self) -> bool:
        """Whether the run needs no further start: it is finished or has diverged."""
        return self.state in ("finished", "diverged")

    @property
    def collapsed(self) -> bool:
        """Whether the features have collapsed; an unknown or NaN std counts as a collapse."""
        return self.std is None or not self.std >= COLLAPSED_STD


def _probe(outcome: Outcome) -> float:
    return outcome.probe or 0.0


def _std(outcome: Outcome) -> float:
    return _known(outcome, outcome.std)


def _loss(outcome: Outcome) -> float:
    return _known(outcome, outcome.loss)


def _knn_gain(outcome: Outcome) -> float:
    return (outcome.knn or 0.0) - (outcome.knn_before_training or 0.0)


def _known(outcome: Outcome, value: float | None) -> float:
    is_known = outcome.state != "diverged" and value is not None and math.isfinite(value)
    return value if is_known and value is not None else 0.0


# The measures that a claim can be about: a unit, and a function of the outcome of a run that is
# over. A run that diverged counts as an accuracy, a std and a loss of 0.
MEASURES: dict[str, tuple[str, Callable[[Outcome], float]]] = {
    "probe": ("points", _probe),
    "std": ("std", _std),
    "loss": ("loss", _loss),
    "knn_gain": ("points", _knn_gain),
}


def folder_of(workdir: str, run: str, seed: int) -> str:
    """Returns the folder of one seed of a run."""
    return os.path.join(workdir, run, f"seed-{seed}")


def results_path(folder: str, protocol: str) -> str:
    """Returns the path of an evaluation's result."""
    return os.path.join(folder, f"results_{protocol}.json")


def read_outcomes(workdir: str, runs: Iterable[str], seeds: int) -> dict[str, list[Outcome]]:
    """Reads the outcomes of all seeds of some runs, by run."""
    return {
        run: [read_outcome(folder_of(workdir, run, seed)) for seed in range(seeds)] for run in runs
    }


def read_outcome(folder: str) -> Outcome:
    """Reads the outcome of the run in a folder; a missing folder is a run that has not started."""
    starts = run_folder.read_lines(os.path.join(folder, STARTS))
    lines = run_folder.read_metrics(folder)
    results = {name: read_result(folder, name) for name in PROTOCOLS}
    top1 = {name: result and result["top1"] for name, result in results.items()}
    probe = results["probe"] or {}
    steps = [line for line in lines if "loss" in line]
    knn = [line["knn_top1"] for line in lines if "knn_top1" in line]
    tail = steps[-math.ceil(len(steps) / _TAIL) :]
    values = {
        "loss": steps[-1]["loss"] if steps else None,
        "epoch": lines[-1]["epoch"] if lines else None,
        "std": statistics.fmean(line["feature_std"] for line in tail) if tail else None,
        "knn": top1["knn"],
        "knn_before_training": knn[0] if knn else None,
        "probe": top1["probe"],
        "epochs": _epochs(folder),
        "images_per_second": _summary(folder).get("images_per_second"),
        "num_test": probe.get("num_test"),
        "misclassified": tuple(probe["misclassified"]) if "misclassified" in probe else None,
        "seconds": sum(start["seconds"] for start in starts),
        "ended": starts[-1].get("ended", 0.0) if starts else 0.0,
    }
    error = starts[-1]["error"] if starts else None
    is_skipped = bool(lines) and "nonfinite" in lines[-1]
    if None not in results.values():
        state, error = "finished", None
    elif error and is_skipped:
        state = "diverged"
    elif error:
        state = "failed"
    elif os.path.exists(os.path.join(folder, run_folder.SUMMARY)):
        state = "trained"
    else:
        state = "stopped" if starts else "not started"
    return Outcome(state, error, **values)


def read_result(folder: str, protocol: str) -> dict[str, Any] | None:
    """Reads the result of an evaluation; None: not evaluated, or the encoder is newer.

    The encoder may be deleted after the evaluation.
    """
    path = results_path(folder, protocol)
    encoder = os.path.join(folder, run_folder.ENCODER, saved_model.DESCRIPTION)
    try:
        if os.path.exists(encoder) and os.path.getmtime(path) < os.path.getmtime(encoder):
            return None
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    except (OSError, ValueError):
        return None
    return result if "top1" in result else None


def _summary(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, run_folder.SUMMARY), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def _epochs(folder: str) -> int | None:
    if not os.path.exists(os.path.join(folder, run_folder.FLAGFILE)):
        return None
    return run_folder.read_config(folder, "workdir").optimization.epochs
