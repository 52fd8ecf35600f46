"""Builds the report on several runs: their curves in one chart, and the flags that differ."""

import datetime
from collections.abc import Sequence

from simsiam_tf.reporting import charts, html_page, page, panels, record
from simsiam_tf.reporting.html_page import escape, note, table

_FACTS = {
    "loss": "{:.3f}",
    "feature_std": "{:.2f}",
    "knn_top1": "{:.1f} %",
    "effective_rank": "{:.1f}",
    "images_per_second": "{:.0f}",
}
_TITLES = ["Run", "", "Epochs", "Loss", "Std", "kNN top-1", "Effective rank", "Images/s"]


def render(runs: Sequence[record.Record], names: Sequence[str]) -> str:
    """Returns the page as text.

    Args:
      runs: two or more.
      names: of the runs; they differ.
    """
    colors = charts.colors(len(runs))
    lines = {name: run.lines for name, run in zip(names, runs, strict=True)}
    found = panels.line_charts(panels.PANELS, lines, colors)
    sections = [
        ("Results", _results(runs, names, colors)),
        ("Curves", panels.CONTROLS + panels.figures(found) if found else note("No step yet.")),
        ("Flags that differ", _differing(runs, names)),
        ("Evaluation", _evaluations(runs, names)),
    ]
    return html_page.build_page(
        f"{len(runs)} runs",
        f"<h1>{len(runs)} runs</h1>",
        [html_page.section(title, content) for title, content in sections],
        f"Report written on {datetime.datetime.now():%Y-%m-%d %H:%M}. simsiam-report with one run "
        "shows its images too.",
        charts.scripts(),
    )


def _results(runs: Sequence[record.Record], names: Sequence[str], colors: Sequence[str]) -> str:
    rows = []
    for name, run in zip(names, runs, strict=True):
        values = {metric: run.latest(metric) for metric in _FACTS}
        cells = [
            "–" if values[metric] is None else form.format(values[metric])
            for metric, form in _FACTS.items()
        ]
        rows.append([name, run.verdict[0], f"{run.epoch:g}", *cells])
    verdicts = "".join(
        f"<li>{escape(name)}: {escape(run.verdict[1])}</li>"
        for name, run in zip(names, runs, strict=True)
    )
    return f"{table(_TITLES, rows, colors=colors, numeric=True)}<ul>{verdicts}</ul>"


def _differing(runs: Sequence[record.Record], names: Sequence[str]) -> str:
    """Returns a table of the flags that have several values, a column for each run."""
    flags = dict.fromkeys(name for run in runs for name in run.settings)
    flags.pop("workdir", None)
    values = {flag: [run.settings.get(flag, "(unknown)") for run in runs] for flag in flags}
    rows = [[flag, *found] for flag, found in values.items() if len(set(found)) > 1]
    return table(["Flag", *names], rows) if rows else note("All flags are the same.")


def _evaluations(runs: Sequence[record.Record], names: Sequence[str]) -> str:
    rows = [
        [name, *page.evaluation_cells(result), file]
        for name, run in zip(names, runs, strict=True)
        for file, result in run.results.items()
    ]
    return table(["Run", *page.EVALUATION_TITLES], rows) if rows else note("There is no result.")
