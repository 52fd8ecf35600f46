"""report.html: the report as a page for people, which needs no network."""

import html
import io

import matplotlib
from matplotlib.figure import Figure
from tqdm import tqdm

from simsiam_tf.paper import outcomes
from simsiam_tf.runs import run_folder

_PANELS = {"loss": "loss", "feature_std": "std of z/‖z‖, times √d", "knn_top1": "kNN top-1 (%)"}
_MOST_POINTS = 200  # of a curve
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .4rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th { font-weight: 600; border-color: #999; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.curves { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; }
.curves svg { flex: 1 1 16rem; width: 100%; max-width: 24rem; height: auto; }
.note, footer { color: #555; font-size: .9rem; }
.yes { color: #17692f; } .no { color: #a11d1d; } .open { color: #666; }
"""
_CLASSES = {"reproduced": "yes", "not reproduced": "no", "not decided": "open"}


def build_html(report, workdir):
    """The page of what report.json holds, without references to anything outside of it."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>SimSiam: the paper's tables on {_text(report['scale'])}</title>",
        f"<style>{_STYLE}</style></head><body>",
        "<h1>The paper's tables, run again</h1>",
        f"<p>Chen &amp; He, <i>Exploring Simple Siamese Representation Learning</i>, CVPR 2021. "
        f"Scale: <b>{_text(report['scale'])}</b>, {_text(report['what'])}. "
        f"{report['epochs_for_100']} epochs stand for the paper's 100. "
        f"Seeds of each row: {report['seeds']}.{_run_flags_note(report)}</p>",
        "<h2>The paper's findings</h2>",
        _findings(report),
    ]
    for name, table in report["tables"].items():
        parts.append(_section(name, table, report, workdir))
    parts.append(_footer(report))
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _run_flags_note(report):
    return f" Every run with {_text(report['run_flags'])}." if report["run_flags"] else ""


def _text(value):
    return html.escape(str(value))


def _findings(report):
    return "\n".join(
        f'<p><a href="#{name}">{_text(table["title"])}</a>: '
        f'<b class="{_CLASSES[table["verdict"]]}">{table["verdict"]}</b><br>'
        f"{_text(table['finding'])}</p>"
        for name, table in report["tables"].items()
    )


def _section(name, table, report, workdir):
    colors = _colors(len(table["rows"]))
    heads = "".join(
        f"<th>{head}</th>"
        for head in (
            "", "paper, linear", "probe", "kNN", "untrained", "std", "loss", "time", "state"
        )
    )  # fmt: skip
    rows = "".join(_html_row(row, color) for row, color in zip(table["rows"], colors, strict=True))
    errors = [
        f"<li>{_text(row['label'])}, seed {seed}, {one['state']}: {_text(one['error'])}</li>"
        for row in table["rows"]
        for seed, one in enumerate(row["seeds"])
        if one["error"]
    ]
    return "\n".join(
        [
            f'<h2 id="{name}">{_text(table["title"])} '
            f'<span class="note">{_text(table["section"])}</span></h2>',
            f"<p>{_text(table['finding'])} "
            f'<b class="{_CLASSES[table["verdict"]]}">{table["verdict"].capitalize()}</b>: '
            f"{_text(table['reason'])}.</p>",
            f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>',
            f"<ul>{''.join(errors)}</ul>" if errors else "",
            f'<div class="curves">{"".join(_curves(name, table, colors, workdir))}</div>',
            f'<p class="note">Rule: {_text(table["rule"])}</p>',
        ]
    )


def _html_row(row, color):
    paper = _text(row["paper"] if row["paper"] is not None else row["paper_remark"] or "–")
    cells = [
        paper,
        *(_spread(row[name], 1) for name in ("probe", "knn", "knn_before_training")),
        *(_spread(row[name], 2) for name in ("std", "loss")),
        tqdm.format_interval(row["seconds"]["mean"]) if row["seconds"]["mean"] else "–",
        _states(row["seeds"]),
    ]
    dot = f'<span style="color:{color}">●</span>'
    cells = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><td>{dot} {_text(row['label'])}</td>{cells}</tr>"


def _states(seeds):
    """How the seeds of a row ended, counted where there are several."""
    states = [
        "collapsed" if one["state"] == "finished" and one["collapsed"] else one["state"]
        for one in seeds
    ]
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _spread(value, digits):
    if value is None:
        return "–"
    text = f"{value['mean']:.{digits}f}"
    if value["spread"] is not None:
        text += f" ± {value['spread']:.{digits}f}"
    return text


def _footer(report):
    versions = [", ".join(f"{name} {of}" for name, of in one.items()) for one in report["versions"]]
    return (
        "<footer><p>probe: a linear classifier on the frozen features, whose rate and weight decay "
        "a held-out part of the training images chooses; the paper's numbers are of its own linear "
        "protocol on ImageNet. untrained: kNN of the random network. std, loss: at the end of the "
        "training, std as the mean over its last tenth; healthy is about 1. time: of one seed, "
        "training and evaluations. ±: standard deviation over seeds; curves: of the first.</p>"
        f"<p>Computing time of all runs: {tqdm.format_interval(report['seconds'])}. "
        f"{_text('; '.join(versions))}. Report written on: {_text(report['machine'])}.</p></footer>"
    )


def _colors(count):
    names = matplotlib.colormaps["tab10"].colors
    if count > len(names):
        names = matplotlib.colormaps["turbo"]([place / (count - 1) for place in range(count)])
    return [matplotlib.colors.to_hex(color) for color in names[:count]]


def _curves(name, table, colors, workdir):
    """A picture for each of the paper's Figure 2: loss, std and kNN of every row's first seed."""
    lines = {
        row["run"]: run_folder.read_metrics(outcomes.folder_of(workdir, row["run"], 0))
        for row in table["rows"]
    }
    if not any(lines.values()):
        return
    for key, title in _PANELS.items():
        figure = Figure(figsize=(3.6, 2.7), layout="constrained")
        axis = figure.add_subplot()
        for row, color in zip(table["rows"], colors, strict=True):
            points = [(line["epoch"], line[key]) for line in lines[row["run"]] if key in line]
            points = points[:: len(points) // _MOST_POINTS + 1]
            marker = "." if key == "knn_top1" else None
            if points:
                axis.plot(*zip(*points, strict=True), color=color, marker=marker)
        axis.set(title=title, xlabel="epoch")
        if key == "feature_std":
            axis.set_ylim(0, 1.05)
        axis.grid(alpha=0.3)
        yield _svg(figure, f"{name}.{key}")


def _svg(figure, salt):
    """A figure as an SVG element; the salt keeps its names apart from those of others."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
