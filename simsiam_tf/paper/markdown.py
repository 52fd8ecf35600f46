"""The results of a report as Markdown, between two comments of a document; the rest stays."""

import json
import os
from collections.abc import Sequence
from typing import Any

from simsiam_tf import files, terminal
from simsiam_tf.paper import page
from simsiam_tf.reporting import charts
from simsiam_tf.schema import UserError

BEGIN = "<!-- begin: written by simsiam_tf.paper.document -->"
END = "<!-- end: written by simsiam_tf.paper.document -->"
_CLAIM_TITLES = ("claim", "margin", "", "would decide it")
_ROW_TITLES = ("", "paper, linear", "probe", "kNN", "std", "loss", "images/s", "time", "seeds")


def write(report: str, output: str) -> None:
    """Writes the results of a report.json into a document, and their picture beside it.

    Raises:
      UserError: a file cannot be read, or the document has no place for the results.
    """
    try:
        with open(report, encoding="utf-8") as file:
            content = json.load(file)
        with open(output, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--report must be a report.json, and --output a Markdown file ({error}). "
            f"Received: {report}, {output}"
        ) from error
    picture = f"{os.path.splitext(output)[0]}.png"
    files.write_text(output, with_results(text, content, os.path.basename(picture)))
    charts.write(page.all_intervals(content), picture)


def with_results(text: str, report: dict[str, Any], picture: str) -> str:
    """Returns a document with the results of a report in their place.

    Raises:
      UserError: the document has no place for them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(
            f"--output must have the lines {BEGIN} and {END}. Received: a document without"
        )
    return f"{before}{BEGIN}\n\n{results(report, picture)}\n\n{END}{after}"


def results(report: dict[str, Any], picture: str) -> str:
    """Returns the results of a report as Markdown, of the tables that have a run in each row."""
    tally = report["tally"]
    words = ", ".join(f"{number} {word}" for word, number in tally.items())
    seconds = terminal.format_seconds(report["seconds"])
    count = sum(tally.values())
    parts = [
        f"Of {count} finding{'s' if count > 1 else ''}: {words}. The runs took {seconds} of "
        f"computing time ({report['machine']}).",
        f"![The margins of all claims, with their intervals]({picture})",
    ]
    unfinished = [
        table["title"]
        for table in report["tables"].values()
        if not all(map(_num_over, table["rows"]))
    ]
    if unfinished:
        parts.append(f"Tables that have a row without a finished run: {', '.join(unfinished)}.")
    for table in report["tables"].values():
        if table["title"] in unfinished:
            continue
        parts += [
            f"### {table['title']}: {table['verdict']}",
            f"{table['finding']} ({table['section']}) {_seeds(table)}{table['reason']}.",
            _table(_CLAIM_TITLES, [_claim(claim) for claim in table["claims"]]),
            _table(_ROW_TITLES, [_row(row) for row in table["rows"]]),
        ]
    return "\n\n".join(parts)


def _seeds(table: dict) -> str:
    count = table["judged_seeds"]
    return f"By {count} seed{'s' if count > 1 else ''}: " if count else ""


def _claim(claim: dict) -> list[str]:
    return [claim["text"], page.margin(claim), claim["word"], claim["would_decide"]]


def _row(row: dict) -> list[str]:
    return [
        row["label"],
        page.paper_number(row),
        *(page.mean_and_interval(row[name], 1) for name in ("probe", "knn")),
        *(page.mean_and_interval(row[name], 2) for name in ("std", "loss")),
        page.speed(row),
        page.time(row),
        str(_num_over(row)),
    ]


def _num_over(row: dict) -> int:
    return sum(seed["state"] in ("finished", "diverged") for seed in row["seeds"])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
