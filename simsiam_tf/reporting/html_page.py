"""Builds HTML pages that need no other file and no network: one stylesheet, page.html, and parts.

Arguments called `content`, `header`, `sections` and `footer` are HTML; all other texts are plain
and are escaped here.
"""

import base64
import hashlib
import html
import pathlib
import string
from collections.abc import Iterable, Sequence

from absl import logging

from simsiam_tf import files
from simsiam_tf.schema import UserError

_LONG_CELL = 12  # number of characters above which a table cell may break anywhere


def build_page(
    title: str, header: str, sections: Iterable[str], footer: str, scripts: Iterable[str]
) -> str:
    """Returns a whole page as text. A browser runs the given scripts and no others."""
    template = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    scripts = list(scripts)
    return string.Template(template).substitute(
        title=escape(title),
        header=header,
        sections="\n".join(sections),
        footer=footer,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
        script_sources=" ".join(map(_source, scripts)),
    )


def _source(script: str) -> str:
    """Returns a script as the content security policy names it: by its hash."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def write(output: str, page: str) -> None:
    """Writes a page to a file.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        files.write_text(output, page)
    except OSError as error:
        raise UserError(
            f"--output must be a file that can be written ({error.strerror}). Received: {output}"
        ) from error
    logging.info("Wrote %s, %d kB", output, len(page.encode()) // 1000)


def escape(value: object) -> str:
    """Returns a value as HTML text, in which `<`, `&` and quotes have no meaning."""
    return html.escape(str(value))


def section(title: str, content: str, *, subtitle: str = "", anchor: str = "") -> str:
    """Returns a section with a heading; `#anchor` links to it."""
    identifier = f' id="{escape(anchor)}"' if anchor else ""
    small = f" <small>{escape(subtitle)}</small>" if subtitle else ""
    return f"<section{identifier}><h2>{escape(title)}{small}</h2>{content}</section>"


def note(text: str) -> str:
    """Returns a paragraph in small grey type."""
    return f'<p class="note">{escape(text)}</p>'


def bullets(entries: Iterable[str]) -> str:
    """Returns a list of plain texts."""
    return f"<ul>{''.join(f'<li>{escape(entry)}</li>' for entry in entries)}</ul>"


def state(word: str, kind: str) -> str:
    """Returns a word in bold, in the colour of its kind: `good`, `doubtful`, `bad` or `open`."""
    return f'<strong class="state {kind}">{escape(word)}</strong>'


def dot(color: str) -> str:
    """Returns a dot that shows which colour a curve or a class has in a chart."""
    return f'<span style="color:{color}" aria-hidden="true">●</span>'


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    colors: Sequence[str] = (),
    numeric: bool = False,
) -> str:
    """Returns a table of plain texts.

    Args:
      titles: the column titles.
      rows: one text for each column.
      colors: the colour of the dot before the first cell of each row; empty: no dots.
      numeric: whether columns after the first hold numbers. They are aligned to the right, and a
        narrow screen scrolls the table instead of breaking its lines.
    """
    dots = [f"{dot(color)} " for color in colors] or [""] * len(rows)
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join([_cell(row[0], mark), *map(_cell, row[1:])])}</tr>"
        for row, mark in zip(rows, dots, strict=True)
    )
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="numeric">{content}</div>' if numeric else content


def _cell(text: str, mark: str = "") -> str:
    # A short cell may break only after an underscore, so that a phone keeps numbers whole.
    kind = ' class="long"' if len(text) > _LONG_CELL else ""
    return f"<td{kind}>{mark}{escape(text).replace('_', '_<wbr>')}</td>"
