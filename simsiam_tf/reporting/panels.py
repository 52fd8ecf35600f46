"""The curves that are drawn from a run's metrics, by both reports and by `simsiam_tf.curves`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from simsiam_tf.config import COLLAPSED_STD
from simsiam_tf.reporting import charts
from simsiam_tf.reporting.html_page import escape


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart: a metric over the epochs. The limits are those of `charts.line_chart`."""

    metric: str  # its name in metrics.jsonl
    title: str
    axis: str  # title of the vertical axis, with the unit
    low: float | None = None
    high: float | None = None
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    start: str = ""  # text of a level at the value before training; empty: there is no such level


FIGURE_2 = (  # the panels of Figure 2 of the SimSiam paper
    Panel("loss", "Loss", "loss"),
    Panel(
        "feature_std",
        "Std of z/‖z‖, times √d",
        "std",
        low=0,
        high=1.1,
        levels={f"collapsed below {COLLAPSED_STD}": COLLAPSED_STD, "healthy: 1": 1},
    ),
    Panel("knn_top1", "kNN top-1", "top-1 (%)", start="random network"),
)
PANELS = (
    *FIGURE_2,
    Panel("effective_rank", "Effective rank of the features", "directions", low=0),
    Panel("learning_rate", "Learning rate", "rate", low=0),
    Panel("images_per_second", "Speed", "images/s", low=0),
)
CONTROLS = (  # shown by the page's script, which reads them
    '<form class="controls" hidden>'
    '<label>Smoothing <input type="range" name="smoothing" min="0" max="0.98" step="0.02" '
    'value="0"></label>'
    '<label><input type="checkbox" name="log"> Logarithmic axis</label>'
    '<span class="note">Point at a curve for its values. Drag to move it, Shift and the wheel to '
    "zoom, double-click to undo both.</span></form>"
)


def points_of(lines: Sequence[dict], metric: str) -> list[charts.Point]:
    """Returns the epoch and value of each line that has a finite value of a metric."""
    points = [(line["epoch"], line[metric]) for line in lines if metric in line]
    return [point for point in points if math.isfinite(point[1])]


def line_charts(
    panels: Sequence[Panel],
    runs: Mapping[str, Sequence[dict]],
    colors: Sequence[str] = (),
    seams: Sequence[float] = (),
) -> list[tuple[str, charts.Spec]]:
    """Returns the title and the chart of each panel, with a curve for each run.

    Args:
      panels: those without a point are left out.
      runs: the lines of metrics of each run, by the name of its curve.
      colors: of the runs; empty: there is one run, in the page's own colour.
      seams: epochs at which a run was extended, marked by a dashed line.
    """
    run_colors = colors or [charts.SINGLE] * len(runs)
    found = []
    for panel in panels:
        curves = [
            charts.Curve(points, name, color)
            for (name, lines), color in zip(runs.items(), run_colors, strict=True)
            if (points := points_of(lines, panel.metric))
        ]
        if curves:
            chart = charts.line_chart(
                curves,
                panel.axis,
                low=panel.low,
                high=panel.high,
                levels={**panel.levels, **_start(panel, curves)},
                seams=seams,
            )
            found.append((panel.title, chart))
    return found


def _start(panel: Panel, curves: Sequence[charts.Curve]) -> dict[str, float]:
    """Returns the level at which a single run began, for a panel that marks it."""
    if not panel.start or len(curves) > 1:
        return {}
    epoch, value = curves[0].points[0]
    return {} if epoch else {f"{panel.start}: {value:.1f}": value}


def figures(found: Sequence[tuple[str, charts.Spec]]) -> str:
    """Returns charts and their titles as HTML; without a chart, an empty string."""
    parts = [
        f"<figure><figcaption>{escape(title)}</figcaption>{charts.element(chart, title)}</figure>"
        for title, chart in found
    ]
    return f'<div class="curves">{"".join(parts)}</div>' if parts else ""
