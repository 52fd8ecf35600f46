"""The curves that are drawn from a run's metrics, by both reports and by `simsiam_tf.curves`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from simsiam_tf.objectives import COLLAPSED_STD
from simsiam_tf.reporting import charts
from simsiam_tf.reporting.html_page import escape, note


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart: a metric over the epochs. The limits are those of `charts.line_chart`."""

    metric: str  # its name in metrics.jsonl
    title: str
    low: float | None = None
    high: float | None = None
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)


FIGURE_2 = (  # the panels of Figure 2 of the SimSiam paper
    Panel("loss", "Loss"),
    Panel(
        "feature_std",
        "Std of z/‖z‖, times √d",
        low=0,
        high=1.1,
        levels={f"collapsed below {COLLAPSED_STD}": COLLAPSED_STD},
    ),
    Panel("knn_top1", "kNN top-1 (%)"),
)
PANELS = (
    *FIGURE_2,
    Panel("effective_rank", "Effective rank of the features", low=0),
    Panel("learning_rate", "Learning rate", low=0),
    Panel("images_per_second", "Images per second", low=0),
)


def points_of(lines: Sequence[dict], metric: str) -> list[charts.Point]:
    """Returns the epoch and value of each line that has a finite value of a metric."""
    points = [(line["epoch"], line[metric]) for line in lines if metric in line]
    return [point for point in points if math.isfinite(point[1])]


def figures(
    panels: Sequence[Panel],
    runs: Mapping[str, Sequence[dict]],
    colors: Sequence[str] = (),
    seams: Sequence[float] = (),
) -> str:
    """Draws the metrics of runs, one chart for each panel, as HTML.

    Args:
      panels: those without a point are left out.
      runs: the lines of metrics of each run, by the name of its curve.
      colors: of the runs; empty: the page's colour for a single curve.
      seams: epochs at which a run was extended, marked by a dashed line.

    Returns:
      The charts; an empty string if no run has a point.
    """
    run_colors = colors or [""] * len(runs)
    parts = []
    for panel in panels:
        curves = [
            charts.Curve(points, name, color)
            for (name, lines), color in zip(runs.items(), run_colors, strict=True)
            if (points := points_of(lines, panel.metric))
        ]
        if curves:
            chart = charts.line_chart(
                curves,
                panel.title,
                low=panel.low,
                high=panel.high,
                levels=panel.levels,
                seams=seams,
            )
            caption = f"<figcaption>{escape(panel.title)}</figcaption>"
            parts.append(f"<figure>{caption}{chart}</figure>")
    if not parts:
        return ""
    text = "The horizontal axis is the epoch."
    if seams:
        text += " A dashed vertical line is where the run was extended by a larger --epochs."
    return f'<div class="curves">{"".join(parts)}</div>{note(text)}'
