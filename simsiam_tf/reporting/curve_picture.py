"""Draws the curves of several runs into one picture."""

import os
from collections.abc import Sequence

import matplotlib

from simsiam_tf.reporting import charts, panels
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError


def write(workdirs: Sequence[str], output: str) -> None:
    """Writes a picture with one panel for each metric and one curve for each run.

    Args:
      workdirs: folders of the runs.
      output: path of the picture.

    Raises:
      UserError: a folder has no metrics, they cannot be read, or the picture cannot be written.
    """
    matplotlib.use("agg")
    from matplotlib import pyplot

    runs = {workdir: _read_metrics(workdir) for workdir in workdirs}
    shown = panels.FIGURE_2
    figure, axes = pyplot.subplots(1, len(shown), figsize=(12, 3.5), layout="constrained")
    for axis, panel in zip(axes, shown, strict=True):
        for workdir, lines in runs.items():
            points = panels.points_of(lines, panel.metric)
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            marker = "o" if len(points) <= charts.MAX_MARKERS else None
            axis.plot(epochs, values, label=os.path.basename(workdir.rstrip("/")), marker=marker)
        axis.set(title=panel.title, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].legend()
    try:
        figure.savefig(output, dpi=100)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--output must be a picture that can be written ({error}). Received: {output}"
        ) from error


def _read_metrics(workdir: str) -> list[dict]:
    if not os.path.exists(os.path.join(workdir, run_folder.METRICS)):
        raise UserError(
            f"--runs must name workdirs that hold a {run_folder.METRICS}. Received: {workdir}"
        )
    return run_folder.read_metrics(workdir)
