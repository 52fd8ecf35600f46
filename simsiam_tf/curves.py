"""Draws the curves of one or more runs from their metrics.jsonl, as in the paper's Figure 2.

python -m simsiam_tf.curves --runs=runs/digits,runs/collapsed --output=curves.png
"""

import dataclasses
import os

import matplotlib

from simsiam_tf import flags, schema
from simsiam_tf.reporting import charts, panels
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError, setting


@dataclasses.dataclass(frozen=True)
class CurvesConfig(schema.Config):
    """Curves"""

    runs: str = setting("", "Workdirs of the runs to draw, separated by commas.", filled=True)
    output: str = setting("curves.png", "Path of the picture.", filled=True)


def main(config: CurvesConfig) -> None:
    """Writes a picture with one panel for each metric and one curve for each run."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    runs = [(run, _read_metrics(run)) for run in config.runs.split(",")]
    shown = panels.FIGURE_2
    figure, axes = pyplot.subplots(1, len(shown), figsize=(12, 3.5), layout="constrained")
    for axis, panel in zip(axes, shown, strict=True):
        for run, lines in runs:
            points = panels.points_of(lines, panel.metric)
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            marker = "o" if len(points) <= charts.MAX_MARKERS else None
            axis.plot(epochs, values, label=os.path.basename(run.rstrip("/")), marker=marker)
        axis.set(title=panel.title, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].legend()
    try:
        figure.savefig(config.output, dpi=100)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--output must be a picture that can be written ({error}). Received: {config.output}"
        ) from error


def _read_metrics(run: str) -> list[dict]:
    if not os.path.exists(os.path.join(run, run_folder.METRICS)):
        raise UserError(
            f"--runs must name workdirs that hold a {run_folder.METRICS}. Received: {run}"
        )
    return run_folder.read_metrics(run)


if __name__ == "__main__":
    flags.run(main, CurvesConfig)
