"""One page on a run, as HTML that needs no other file."""

import datetime
import html
import os
import pathlib
import string

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.objectives import COLLAPSED_STD
from simsiam_tf.reporting import charts, pictures, record
from simsiam_tf.schema import UserError

_QUERIES = 8
_NEIGHBOURS = 5
_LONG_CELL = 12  # characters above which a table's cell may be broken anywhere
# A data set that is gone, in part or altogether, leaves the rest of the page as it is.
_READ_ERRORS = (UserError, OSError, tf.errors.OpError)


def write(workdir, output):
    """Writes the page of a run.

    Args:
      workdir: the run's folder.
      output: the page's file; empty: report.html in that folder.
    """
    output = output or os.path.join(workdir, "report.html")
    text = render(record.read(workdir))
    try:
        files.write_text(output, text)
    except OSError as error:
        raise UserError(
            f"--output must be a file that can be written ({error.strerror}). Received: {output}"
        ) from error
    logging.info("Wrote %s, %d kB", output, len(text.encode()) // 1000)


def render(run):
    """The page of a `record.Record`, a text."""
    config = run.config
    name = os.path.basename(os.path.abspath(run.workdir))
    word, sentence = record.verdict(run)
    sections = [
        ("Curves", _curves(run)),
        ("Warnings", _warnings(run)),
        ("Speed", _speed(run)),
        ("Evaluation", _evaluation(run)),
        ("View pairs", _part(_view_pairs, config)),
        *_encoder_sections(run),
        ("Configuration", _configuration(run)),
    ]
    template = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        name=html.escape(name),
        kind=html.escape(
            f"{config.method.method} · {config.encoder.backbone} · {config.data.dataset}"
        ),
        state=word,
        word=word.capitalize(),
        sentence=html.escape(sentence),
        progress=html.escape(_progress(run)),
        facts=_facts(run),
        sections="".join(
            f"<section><h2>{title}</h2>{content}</section>" for title, content in sections
        ),
        versions=html.escape(_versions(run)),
        date=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def _part(make, *arguments):
    """A part of the page; where what it shows cannot be had, a sentence that says why."""
    try:
        return make(*arguments)
    except _READ_ERRORS as error:
        return _note(f"Not shown. {' '.join(str(error).split())}")


def _note(text):
    return f'<p class="note">{html.escape(text)}</p>'


def _progress(run):
    epochs = run.config.optimization.epochs
    if not run.summary:
        return f"Not finished: epoch {run.epoch:g} of {epochs}."
    summary = run.summary
    bad = f", {summary['bad_images']} of them unreadable" if summary.get("bad_images") else ""
    return f"Finished: {epochs} epochs, {summary['steps']} steps, {summary['images']} images{bad}."


def _facts(run):
    facts = [
        ("loss", "Loss", "{:.3f}"),
        ("feature_std", "Std of features", "{:.2f}"),
        ("knn_top1", "kNN top-1", "{:.1f} %"),
        ("images_per_second", "Images a second", "{:.0f}"),
    ]
    return "".join(
        f"<div><dt>{title}</dt><dd>{form.format(value)}</dd></div>"
        for name, title, form in facts
        if (value := run.latest(name)) is not None
    )


def _curves(run):
    std_lines = {"collapsed under 0.3": COLLAPSED_STD}
    panels = [
        ("loss", "Loss", {}),
        ("feature_std", "Std of z/‖z‖, times √d", {"low": 0, "high": 1.1, "lines": std_lines}),
        ("knn_top1", "kNN top-1, percent", {}),
        ("learning_rate", "Learning rate", {"low": 0}),
        ("images_per_second", "Images a second", {"low": 0}),
    ]
    figures = []
    for name, title, options in panels:
        points = run.points(name)
        if points:
            chart = charts.curve(points, title, **options)
            figures.append(f"<figure><figcaption>{title}</figcaption>{chart}</figure>")
    if not figures:
        return _note("No step is logged yet.")
    return f'<div class="curves">{"".join(figures)}</div>{_note("Over the epochs.")}'


def _warnings(run):
    entries = [
        html.escape(text) + (f" <b>× {count}</b>" if count > 1 else "")
        for text, count in run.warnings.items()
    ]
    if run.num_bad_images:
        entries.append(f"{run.num_bad_images} images could not be read: quarantine.jsonl")
    if not entries:
        return _note("None.")
    return f'<ul class="warnings">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def _speed(run):
    if "limit" in run.summary:
        return f"<p>{html.escape(run.summary['limit'])}.</p>"
    waits = [value for _, value in run.points("input_wait_fraction")]
    if not waits:
        return _note("Nothing is measured yet.")
    return (
        f"<p>So far the devices waited for images {np.mean(waits):.0%} of the time. What limits "
        "the speed is told at the end of the run.</p>"
    )


def _evaluation(run):
    if not run.results:
        command = f"python evaluate.py --encoder={run.workdir}/encoder --output={run.workdir}/"
        return _note("No result is in the run’s folder. To have one:") + (
            f"<pre>{html.escape(command)}results.json</pre>"
        )
    rows = [
        [
            str(result.get("protocol", "?")),
            str(result.get("dataset", "?")),
            *(
                f"{result[name]:.2f}\N{NO-BREAK SPACE}%"
                if isinstance(result.get(name), float)
                else "?"
                for name in ("top1", "top5")
            ),
            file,
        ]
        for file, result in run.results.items()
    ]
    return _table(["Protocol", "Data set", "Top-1", "Top-5", "File"], rows)


def _table(titles, rows):
    def td(cell):
        # Elsewhere only after a word of a flag: a phone would have numbers in pieces.
        kind = ' class="long"' if len(cell) > _LONG_CELL else ""
        return f"<td{kind}>{html.escape(cell).replace('_', '_<wbr>')}</td>"

    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(td, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _view_pairs(config):
    pairs = "".join(
        f'<div class="pair">{_image(first, "a view")}{_image(second, "another view of it")}</div>'
        for first, second in zip(*pictures.view_pairs(config), strict=True)
    )
    note = _note("Two views of each image, as the first step saw them.")
    return f'<div class="pairs">{pairs}</div>{note}'


def _image(image, text, kind=""):
    small = image.shape[0] <= 64
    return (
        f'<img src="{pictures.data_url(image)}" width="{image.shape[1]}" '
        f'height="{image.shape[0]}" alt="{html.escape(text)}"'
        f' class="{" ".join(filter(None, [kind, "small" if small else ""]))}">'
    )


def _encoder_sections(run):
    """Nearest neighbours and map: (title, content) each."""
    titles = "Nearest neighbours", "Map of the features"
    try:
        gallery = pictures.gallery(run.config, os.path.join(run.workdir, "encoder"))
    except _READ_ERRORS as error:
        note = _note(f"Not shown. {' '.join(str(error).split())}")
        return [(title, note) for title in titles]
    return [(titles[0], _neighbours(gallery)), (titles[1], _part(_map, gallery))]


def _neighbours(gallery):
    count = len(gallery.features)
    if count < 2:
        return _note("There is but one image.")
    # All over the set: in a folder, images of a class stand together.
    queries = np.unique(np.linspace(0, count - 1, _QUERIES).astype(int))
    found, cosines = pictures.nearest(gallery.features, queries, _NEIGHBOURS)
    rows = []
    for query, neighbours, similar in zip(queries, found, cosines, strict=True):
        cells = [_cell(gallery, query, "", "query")]
        for index, cosine in zip(neighbours, similar, strict=True):
            kind = ""
            if gallery.class_names:
                kind = "same" if gallery.labels[index] == gallery.labels[query] else "other"
            cells.append(_cell(gallery, index, f"{cosine:.2f}", kind))
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    text = (
        f"At the left an image of {gallery.name}, beside it the {_NEIGHBOURS} nearest of {count} "
        f"by cosine of the features{_of_step(gallery)}."
    )
    if gallery.class_names:
        share = np.mean(gallery.labels[found] == gallery.labels[queries][:, np.newaxis])
        text += f" {share:.0%} of them are of its class; the others have a red frame."
    return f'<div class="neighbours">{"".join(rows)}</div>{_note(text)}'


def _cell(gallery, index, cosine, kind):
    label = gallery.class_names[gallery.labels[index]] if gallery.class_names else ""
    caption = " · ".join(filter(None, [label, cosine]))
    image = _image(gallery.thumbnails[index], caption or "an image", kind)
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _map(gallery):
    title = f"Map of {len(gallery.features)} images"
    places = pictures.layout(gallery.features)
    chart = charts.scatter(places, gallery.labels, gallery.class_names, title)
    text = (
        f"{len(gallery.features)} images of {gallery.name} as t-SNE lays out their features"
        f"{_of_step(gallery)}: near in the map is near in the features."
    )
    legend = charts.legend(gallery.class_names)
    return f'<div class="map">{chart}{legend}</div>{_note(text)}'


def _of_step(gallery):
    return "" if gallery.step is None else f" at step {gallery.step}"


def _configuration(run):
    defaults = {
        name: schema.format_value(value) for name, value in schema.defaults(PretrainConfig).items()
    }
    differing = [
        [name, value, defaults.get(name, "(unknown)")]
        for name, value in run.settings.items()
        if value != defaults.get(name)
    ]
    same = [[name, value] for name, value in run.settings.items() if value == defaults.get(name)]
    changed = (
        _table(["Flag", "Value", "Default"], differing) if differing else _note("All defaults.")
    )
    return (
        f"{changed}<details><summary>{len(same)} more, at their defaults</summary>"
        f"{_table(['Flag', 'Value'], same)}</details>"
    )


def _versions(run):
    versions = run.summary.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items())
