"""Builds report.html: the report as a page for people, which needs no network."""

import os
from collections.abc import Sequence

from simsiam_tf import terminal
from simsiam_tf.paper import outcomes
from simsiam_tf.reporting import charts, html_page, panels
from simsiam_tf.reporting.html_page import escape
from simsiam_tf.runs import run_folder

_KINDS = {"reproduced": "good", "contradicted": "bad", "undecided": "open"}
_CLAIM_COLORS = {"holds": "var(--good)", "fails": "var(--bad)", "open": "var(--soft)"}
_COLUMNS = [
    "",
    "paper, linear",
    "probe",
    "kNN",
    "untrained",
    "std",
    "loss",
    "images/s",
    "time",
    "state",
]


def build_html(report: dict, workdir: str) -> str:
    """Returns the page as text.

    Args:
      report: the content of report.json.
      workdir: folder of the runs, whose metrics the charts show.
    """
    tables = report["tables"]
    return html_page.build_page(
        f"SimSiam: the paper's tables on {report['scale']}",
        _header(report) + panels.CONTROLS,
        [
            html_page.section("The paper's findings", _findings(report)),
            *(_section(name, table, workdir) for name, table in tables.items()),
        ],
        _footer(report),
        charts.scripts(),
    )


def _header(report: dict) -> str:
    run_flags = f" All runs have the flags {report['run_flags']}." if report["run_flags"] else ""
    return (
        "<h1>Reproduction of the paper's tables</h1>"
        "<p>Chen &amp; He, <i>Exploring Simple Siamese Representation Learning</i>, CVPR 2021. "
        f"Scale: <b>{escape(report['scale'])}</b>, {escape(report['what'])}. "
        f"{report['epochs_for_100']} epochs stand for the paper's 100. "
        f"Seeds per row: at most {report['seeds']}.{escape(run_flags)}</p>"
    )


def _verdict(word: str) -> str:
    return html_page.state(word, _KINDS[word.lower()])


def _findings(report: dict) -> str:
    tally = ", ".join(
        f"{count} {html_page.state(word, _KINDS[word])}" for word, count in report["tally"].items()
    )
    listed = "".join(
        f'<p><a href="#{name}">{escape(table["title"])}</a>: {_verdict(table["verdict"])}<br>'
        f"{escape(table['finding'])}</p>"
        for name, table in report["tables"].items()
    )
    count = len(report["tables"])
    return f"<p>Of {count} findings: {tally}.</p>{listed}{html_page.note(report['rule'])}"


def _section(name: str, table: dict, workdir: str) -> str:
    rows = table["rows"]
    colors = charts.colors(len(rows))
    errors = [
        f"{row['label']}, seed {seed}, {outcome['state']}: {outcome['error']}"
        for row in rows
        for seed, outcome in enumerate(row["seeds"])
        if outcome["error"]
    ]
    lines = {
        row["label"]: run_folder.read_metrics(outcomes.folder_of(workdir, row["run"], 0))
        for row in rows
    }
    content = [
        f"<p>{escape(table['finding'])} {_verdict(table['verdict'].capitalize())}: "
        f"{escape(table['reason'])}.</p>",
        _claims(table),
        html_page.table(_COLUMNS, [_cells(row) for row in rows], colors=colors, numeric=True),
        html_page.bullets(errors) if errors else "",
        panels.figures(panels.line_charts(panels.FIGURE_2, lines, colors)),
        f'<p class="note">The runs: {_links(rows, workdir)}</p>',
    ]
    return html_page.section(
        table["title"], "".join(content), subtitle=table["section"], anchor=name
    )


def _claims(table: dict) -> str:
    """Returns the claims of a finding as a table, and their intervals as charts."""
    columns = ["claim", "margin", "", "would decide it"]
    cells = [
        [claim["text"], margin(claim), claim["word"], claim["would_decide"]]
        for claim in table["claims"]
    ]
    shown = html_page.table(columns, cells)
    if not table["judged_seeds"]:
        return shown
    units = dict.fromkeys(claim["unit"] for claim in table["claims"])
    drawn = [
        charts.element(interval_chart(table["claims"], unit), f"{table['title']}, {unit}")
        for unit in units
    ]
    seeds = "one seed" if table["judged_seeds"] == 1 else f"{table['judged_seeds']} seeds"
    note = html_page.note(
        f"margin: by how much the mean of {seeds} is on the claim's side of its bound, with its "
        "interval"
    )
    return shown + "".join(drawn) + note


def margin(claim: dict) -> str:
    """Returns how far a claim is on its side of its bound, with its interval and unit."""
    if claim["margin"] is None:
        return "–"
    digits, unit = (1, " points") if claim["unit"] == "points" else (2, f" {claim['unit']}")
    text = f"{claim['margin']:+.{digits}f}".replace("-", "−")
    if claim["half_width"] is not None:
        text += f" ± {claim['half_width']:.{digits}f}"
    return text + unit


def interval_chart(claims: Sequence[dict], unit: str) -> charts.Spec:
    """Returns a chart of the margins of the claims that have a unit."""
    return charts.interval_chart(
        [
            charts.Interval(
                claim["text"],
                claim["margin"],
                claim["half_width"],
                f"{claim['text']}: {margin(claim)}, {claim['word']}",
                _CLAIM_COLORS[claim["word"]],
            )
            for claim in claims
            if claim["unit"] == unit
        ],
        f"margin, {unit}",
    )


def all_intervals(report: dict) -> charts.Spec:
    """Returns a chart of the margins of all claims of a report, those of each unit together."""
    claims = [
        {**claim, "text": f"{table['title']}. {claim['text']}"}
        for table in report["tables"].values()
        for claim in table["claims"]
        if claim["margin"] is not None
    ]
    units = dict.fromkeys(claim["unit"] for claim in claims)
    return charts.column([interval_chart(claims, unit) for unit in units])


def _links(rows: list[dict], workdir: str) -> str:
    """Returns links to the report of each seed that is started, or without one to its metrics."""
    entries = []
    for row in rows:
        links = []
        for seed in range(len(row["seeds"])):
            folder = outcomes.folder_of("", row["run"], seed)
            found = [
                f"{folder}/{name}"
                for name in ("report.html", run_folder.METRICS)
                if os.path.exists(os.path.join(workdir, folder, name))
            ]
            if found:
                links.append(f'<a href="{escape(found[0])}">seed {seed}</a>')
        if links:
            entries.append(f"{escape(row['label'])}: {', '.join(links)}")
    return "; ".join(entries) or "none is started"


def paper_number(row: dict) -> str:
    """Returns the paper's number of a row, or its words."""
    return str(row["paper"] if row["paper"] is not None else row["paper_remark"] or "–")


def _cells(row: dict) -> list[str]:
    return [
        row["label"],
        paper_number(row),
        *(mean_and_interval(row[name], 1) for name in ("probe", "knn", "knn_before_training")),
        *(mean_and_interval(row[name], 2) for name in ("std", "loss")),
        speed(row),
        time(row),
        _states(row["seeds"]),
    ]


def speed(row: dict) -> str:
    """Returns the images that a row's training takes in a second."""
    rate = row["images_per_second"]
    return f"{rate['mean']:,.0f}" if rate else "–"


def time(row: dict) -> str:
    """Returns the time that a finished seed of a row took, training and evaluations together."""
    seconds = row["seconds"]
    return terminal.format_seconds(seconds["mean"]) if seconds else "–"


def _states(seeds: list[dict]) -> str:
    """Returns the final state of a row's seeds, with counts if there are several seeds."""
    states = [
        "collapsed" if seed["state"] == "finished" and seed["collapsed"] else seed["state"]
        for seed in seeds
    ]
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def mean_and_interval(value: dict | None, digits: int) -> str:
    """Returns a mean over seeds with half of its interval."""
    if value is None:
        return "–"
    text = f"{value['mean']:.{digits}f}".replace("-", "−")
    if value["half_width"] is not None:
        text += f" ± {value['half_width']:.{digits}f}"
    return text


def _footer(report: dict) -> str:
    versions = "; ".join(
        ", ".join(f"{name} {version}" for name, version in versions.items())
        for versions in report["versions"]
    )
    return (
        "<p><b>probe</b>: a linear classifier on the frozen features. A held-out part of the "
        "training images chooses its learning rate and weight decay; the paper's numbers come from "
        "its own linear protocol on ImageNet. <b>untrained</b>: kNN of the random network. "
        "<b>std</b> and <b>loss</b>: values at the end of the training, std as the mean over the "
        "last tenth; about 1 is healthy. <b>time</b>: training and evaluations of one seed. "
        "<b>±</b>: half of the 95 % interval of the mean over seeds, for accuracies also over test "
        "images. The curves show the first seed.</p>"
        f"<p>Computing time of all runs: {terminal.format_seconds(report['seconds'])}. "
        f"{escape(versions)}. Report written on: {escape(report['machine'])}.</p>"
    )
