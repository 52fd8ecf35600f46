"""Draws the curves of one or more runs from their metrics.jsonl, as the paper's figure 2 does.

python -m simsiam_tf.curves --runs=runs/digits,runs/collapsed --output=curves.png
"""

import dataclasses
import os

import matplotlib

from simsiam_tf import flags, schema
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError, setting

_PANELS = {
    "loss": "loss",
    "feature_std": "std of z/‖z‖, times √d",
    "knn_top1": "kNN top-1 (%)",
}


@dataclasses.dataclass(frozen=True)
class CurvesConfig(schema.Config):
    """Curves"""

    runs: str = setting("", "Workdirs of the runs to draw, separated by commas.", filled=True)
    output: str = setting("curves.png", "The picture's file.", filled=True)


def main(config):
    matplotlib.use("agg")
    from matplotlib import pyplot

    runs = [(run, _read_metrics(run)) for run in config.runs.split(",")]
    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(12, 3.5), layout="constrained")
    for axis, (name, title) in zip(axes, _PANELS.items(), strict=True):
        for run, lines in runs:
            points = [(line["epoch"], line[name]) for line in lines if name in line]
            epochs, values = [point[0] for point in points], [point[1] for point in points]
            marker = "o" if name == "knn_top1" else None
            axis.plot(epochs, values, label=os.path.basename(run.rstrip("/")), marker=marker)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].legend()
    try:
        figure.savefig(config.output, dpi=100)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--output cannot be written ({error}). Received: {config.output}"
        ) from error


def _read_metrics(run):
    if not os.path.exists(os.path.join(run, run_folder.METRICS)):
        raise UserError(f"--runs must name workdirs with a {run_folder.METRICS}. Received: {run}")
    return run_folder.read_metrics(run)


if __name__ == "__main__":
    flags.run(main, CurvesConfig)
