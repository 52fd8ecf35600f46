"""Builds the report on one run: an HTML page that needs no other file."""

import datetime
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import quarantine
from simsiam_tf.reporting import charts, html_page, panels, pictures, record
from simsiam_tf.reporting.html_page import escape, note, table
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError

_NUM_QUERIES = 8
_NUM_NEIGHBOURS = 5
_KINDS = {"healthy": "good", "doubtful": "doubtful", "collapsed": "bad", "unknown": "open"}
# A data set that is missing, wholly or in part, changes only the sections that show its images.
_READ_ERRORS = (UserError, OSError, tf.errors.OpError)


def write(workdir: str, output: str) -> None:
    """Writes the report on a run.

    Args:
      workdir: folder of the run.
      output: path of the page; empty: report.html in the folder of the run.

    Raises:
      UserError: the folder holds no run, or the page cannot be written.
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


def render(run: record.Record) -> str:
    """Returns the page as text."""
    word, sentence = record.verdict(run)
    sections = [
        ("Curves", _curves(run)),
        ("Warnings", _warnings(run)),
        ("Speed", _speed(run)),
        ("Evaluation", _evaluation(run)),
        ("View pairs", _or_reason(lambda: _view_pairs(run))),
        *_encoder_sections(run),
        *([("Choices of --recipe=auto", _choices(run))] if run.choices else []),
        ("Configuration", _configuration(run)),
    ]
    name = os.path.basename(os.path.abspath(run.workdir))
    return html_page.build_page(
        f"{name}: {word}",
        _header(run, name, word, sentence),
        [html_page.section(title, content) for title, content in sections],
        f"{escape(_versions(run))}<br>Report written on {datetime.datetime.now():%Y-%m-%d %H:%M}. "
        "A std of 1 is healthy; a std of 0 is a collapse.",
    )


def _header(run: record.Record, name: str, word: str, sentence: str) -> str:
    config = run.config
    kind = f"{config.method.method} · {config.encoder.backbone} · {config.data.dataset}"
    state = html_page.state(f"{word.capitalize()}.", _KINDS[word])
    return (
        f'<p class="kind">{escape(kind)}</p><h1>{escape(name)}</h1>'
        f'<div class="verdict {_KINDS[word]}"><p>{state} {escape(sentence)}</p>'
        f'<p class="progress">{escape(_progress(run))}</p></div>'
        f'<dl class="facts">{_facts(run)}</dl>'
    )


def _or_reason(build: Callable[[], str]) -> str:
    """Returns the HTML that `build` returns, or why it cannot be built."""
    try:
        return build()
    except _READ_ERRORS as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    return note(f"Not shown. {' '.join(str(error).split())}")


def _progress(run: record.Record) -> str:
    epochs = run.config.optimization.epochs
    extended = "".join(
        f" Planned for {planned} epochs up to step {step}." for planned, step in run.shorter_plans
    )
    if not run.summary:
        return f"Not finished: epoch {run.epoch:g} of {epochs}.{extended}"
    summary = run.summary
    bad = f", {summary['bad_images']} of them unreadable" if summary.get("bad_images") else ""
    size = f"{summary['steps']} steps, {summary['images']} images{bad}"
    return f"Finished: {epochs} epochs, {size}.{extended}"


def _facts(run: record.Record) -> str:
    facts = [
        ("loss", "Loss", "{:.3f}"),
        ("feature_std", "Std of features", "{:.2f}"),
        ("knn_top1", "kNN top-1", "{:.1f} %"),
        ("images_per_second", "Images per second", "{:.0f}"),
    ]
    return "".join(
        f"<div><dt>{title}</dt><dd>{form.format(value)}</dd></div>"
        for name, title, form in facts
        if (value := run.latest(name)) is not None
    )


def _curves(run: record.Record) -> str:
    figures = panels.figures(panels.PANELS, {"": run.lines}, seams=run.seams)
    return figures or note("No step is logged yet.")


def _warnings(run: record.Record) -> str:
    entries = [f"{text} × {count}" if count > 1 else text for text, count in run.warnings.items()]
    if run.num_bad_images:
        entries.append(
            f"{run.num_bad_images} images could not be read; {quarantine.FILE_NAME} lists them"
        )
    return html_page.bullets(entries) if entries else note("None.")


def _speed(run: record.Record) -> str:
    if "limit" in run.summary:
        return f"<p>{escape(run.summary['limit'])}.</p>"
    waits = [value for _, value in run.points("input_wait_fraction")]
    if not waits:
        return note("Nothing is measured yet.")
    return (
        f"<p>So far the devices waited for images {np.mean(waits):.0%} of the time. The report on "
        "the finished run says what limits the speed.</p>"
    )


def _evaluation(run: record.Record) -> str:
    if not run.results:
        output = os.path.join(run.workdir, "results.json")
        command = f"{run_folder.evaluation_command(run.config, run.workdir)} --output={output}"
        reason = note("The folder of the run holds no evaluation result. This command writes one:")
        return f"{reason}<pre>{escape(command)}</pre>"
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
    return table(["Protocol", "Data set", "Top-1", "Top-5", "File"], rows)


def _view_pairs(run: record.Record) -> str:
    views = pictures.view_pairs(run.config, run_folder.read_pixels(run.workdir))
    text = "Each pair is two views of one image, as the first training step received them."
    return f"{pictures.pairs_element(views)}{note(text)}"


def _encoder_sections(run: record.Record) -> list[tuple[str, str]]:
    """Returns the titles and contents of the sections that need the exported encoder."""
    titles = "Nearest neighbours", "Map of the features"
    try:
        gallery = pictures.gallery(run.config, os.path.join(run.workdir, run_folder.ENCODER))
    except _READ_ERRORS as error:
        return [(title, _reason(error)) for title in titles]
    return [(titles[0], _neighbours(gallery)), (titles[1], _or_reason(lambda: _map(gallery)))]


def _neighbours(gallery: pictures.Gallery) -> str:
    count = len(gallery.features)
    if count < 2:
        return note("The data set has only one image.")
    # Evenly spaced queries show several classes, because a folder lists images by class.
    queries = np.unique(np.linspace(0, count - 1, _NUM_QUERIES).astype(int))
    found, cosines = pictures.nearest(gallery.features, queries, _NUM_NEIGHBOURS)
    rows = []
    for query, neighbours, similarities in zip(queries, found, cosines, strict=True):
        cells = [_cell(gallery, query, "", "query")]
        for index, cosine in zip(neighbours, similarities, strict=True):
            kind = ""
            if gallery.class_names:
                kind = "same" if gallery.labels[index] == gallery.labels[query] else "other"
            cells.append(_cell(gallery, index, f"{cosine:.2f}", kind))
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    text = (
        f"Each row starts with an image of {gallery.name}. Its {_NUM_NEIGHBOURS} nearest of "
        f"{count} images follow, by cosine similarity of the features{_at_step(gallery)}."
    )
    if gallery.class_names:
        share = np.mean(gallery.labels[found] == gallery.labels[queries][:, np.newaxis])
        text += (
            f" {share:.0%} of the neighbours have the class of the first image; the others have a "
            "red frame."
        )
    return f'<div class="neighbours">{"".join(rows)}</div>{note(text)}'


def _cell(gallery: pictures.Gallery, index: int, cosine: str, kind: str) -> str:
    label = gallery.class_names[gallery.labels[index]] if gallery.class_names else ""
    caption = " · ".join(filter(None, [label, cosine]))
    image = pictures.element(gallery.thumbnails[index], caption or "an image", kind)
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _map(gallery: pictures.Gallery) -> str:
    count = len(gallery.features)
    coordinates = pictures.layout(gallery.features)
    chart = charts.scatter(
        coordinates, gallery.labels, gallery.class_names, f"Map of {count} images"
    )
    text = (
        f"t-SNE maps the features of {count} images of {gallery.name}{_at_step(gallery)}: images "
        "that are close in the map have close features."
    )
    legend = charts.legend(gallery.class_names)
    return f'<div class="map">{chart}{legend}</div>{note(text)}'


def _at_step(gallery: pictures.Gallery) -> str:
    return "" if gallery.step is None else f" at step {gallery.step}"


def _configuration(run: record.Record) -> str:
    defaults = {
        name: schema.format_value(value) for name, value in schema.defaults(PretrainConfig).items()
    }
    changed = [
        [name, value, defaults.get(name, "(unknown)")]
        for name, value in run.settings.items()
        if value != defaults.get(name)
    ]
    same = [[name, value] for name, value in run.settings.items() if value == defaults.get(name)]
    shown = (
        table(["Flag", "Value", "Default"], changed)
        if changed
        else note("All flags have their default values.")
    )
    return (
        f"{shown}<details><summary>{len(same)} more flags have their default values</summary>"
        f"{table(['Flag', 'Value'], same)}</details>"
    )


def _choices(run: record.Record) -> str:
    """Returns the flags that were chosen, why, and the trials of the learning rate."""
    rows = [
        [name, schema.format_value(choice["value"]), choice["reason"]]
        for name, choice in run.choices["choices"].items()
    ]
    columns = {
        "base_learning_rate": ("Base learning rate", "{:g}"),
        "steps": ("Steps", "{:.0f}"),
        "loss": ("Loss", "{:.3f}"),
        "feature_std": ("Std", "{:.2f}"),
        "effective_rank": ("Effective rank", "{:.1f}"),
        "z_effective_rank": ("Effective rank of z", "{:.1f}"),
    }
    trials = [
        [form.format(trial[name]) if name in trial else "–" for name, (_, form) in columns.items()]
        for trial in run.choices["trials"]
    ]
    chosen = table(["Flag", "Value", "Why"], rows)
    if not trials:
        return chosen
    heads = [title for title, _ in columns.values()]
    return f"{chosen}<h3>Trials of the learning rate</h3>{table(heads, trials)}"


def _versions(run: record.Record) -> str:
    versions = run.summary.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items())
