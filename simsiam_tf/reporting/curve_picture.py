"""Draws the curves of several runs into one picture."""

import os
from collections.abc import Sequence

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
    names = run_folder.short_names(workdirs)
    runs = {name: _read_metrics(path) for name, path in zip(names, workdirs, strict=True)}
    found = panels.line_charts(panels.FIGURE_2, runs, charts.colors(len(runs)))
    if not found:
        raise UserError(f"No step is logged yet. Received: --runs={','.join(workdirs)}")
    try:
        charts.write(charts.row(found), output)
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
