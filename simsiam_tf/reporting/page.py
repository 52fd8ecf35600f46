"""Builds the report on one run: an HTML page that needs no other file."""

import datetime
import os
from collections.abc import Callable

import numpy as np
from scipy import stats

from simsiam_tf import schema, terminal
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import quarantine
from simsiam_tf.reporting import charts, gallery_sections, html_page, panels, pictures, record
from simsiam_tf.reporting.html_page import escape, note, table
from simsiam_tf.runs import run_folder

EVALUATION_TITLES = ["Protocol", "Data set", "Top-1", "95 % interval", "Top-5", "File"]
KINDS = {"healthy": "good", "doubtful": "doubtful", "collapsed": "bad", "unknown": "open"}


def render(run: record.Record) -> str:
    """Returns the page as text."""
    word, sentence = run.verdict
    sections = [
        ("Curves", _curves(run)),
        ("Warnings", _warnings(run)),
        ("Speed", _speed(run)),
        ("Evaluation", _evaluation(run)),
        ("View pairs", _or_reason(lambda: _view_pairs(run))),
        *gallery_sections.sections(run),
        *([("Choices of --recipe=auto", _choices(run))] if run.choices else []),
        ("Configuration", _configuration(run)),
        ("Starts", _starts(run)),
    ]
    name = os.path.basename(os.path.abspath(run.workdir))
    return html_page.build_page(
        f"{name}: {word}",
        _header(run, name, word, sentence),
        [html_page.section(title, content) for title, content in sections],
        f"{escape(_versions(run))}<br>Report written on {datetime.datetime.now():%Y-%m-%d %H:%M}. "
        "A std of 1 is healthy; a std of 0 is a collapse.",
        charts.scripts(),
    )


def _header(run: record.Record, name: str, word: str, sentence: str) -> str:
    config = run.config
    kind = f"{config.method.method} · {config.encoder.backbone} · {config.data.dataset}"
    state = html_page.state(f"{word.capitalize()}.", KINDS[word])
    return (
        f'<p class="kind">{escape(kind)}</p><h1>{escape(name)}</h1>'
        f'<div class="verdict {KINDS[word]}"><p>{state} {escape(sentence)}</p>'
        f'<p class="progress">{escape(_progress(run))}</p></div>'
        f'<dl class="facts">{_facts(run)}</dl>'
    )


def _or_reason(build: Callable[[], str]) -> str:
    """Returns the HTML that `build` returns, or why it cannot be built."""
    try:
        return build()
    except gallery_sections.READ_ERRORS as error:
        return gallery_sections.reason(error)


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
    time = f", in {terminal.format_seconds(summary['seconds_of_last_start'])}"
    device = f" on {run.starts[-1]['device']}" if run.starts else ""
    last = " since the last start" if len(run.starts) > 1 else ""
    return f"Finished: {epochs} epochs, {size}{time}{device}{last}.{extended}"


def _facts(run: record.Record) -> str:
    facts = [
        ("loss", "Loss", "{:.3f}"),
        ("feature_std", "Std of features", "{:.2f}"),
        ("knn_top1", "kNN top-1", "{:.1f} %"),
        ("effective_rank", "Effective rank", "{:.1f}"),
        ("images_per_second", "Images per second", "{:.0f}"),
    ]
    images = run.summary.get("knn_images")
    parts = []
    for name, title, form in facts:
        value = run.summary.get(name, run.latest(name))
        if value is None:
            continue
        text = ""
        if name == "knn_top1" and images:
            text = f"<small>{escape(interval(value, images))}</small>"
        parts.append(f"<div><dt>{title}</dt><dd>{form.format(value)}{text}</dd></div>")
    return "".join(parts)


def interval(percent: float, images: int) -> str:
    """Returns the 95 % interval of Wilson of an accuracy.

    Args:
      percent: of images that are classified correctly.
      images: number of images that were classified.
    """
    correct = round(percent / 100 * images)
    found = stats.binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return f"{100 * found.low:.1f} to {100 * found.high:.1f} % ({images:,} images)"


def _curves(run: record.Record) -> str:
    found = panels.line_charts(panels.PANELS, {"": run.lines}, seams=run.seams)
    if not found:
        return note("No step is logged yet.")
    text = "A dashed vertical line is where the run was extended by a larger --epochs."
    return f"{panels.CONTROLS}{panels.figures(found)}{note(text) if run.seams else ''}"


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
        command = run_folder.evaluation_command(run.config, run.workdir)
        reason = note("The folder of the run holds no evaluation result. This command writes one:")
        return f"{reason}<pre>{escape(command)}</pre>"
    rows = [[*evaluation_cells(result), file] for file, result in run.results.items()]
    text = (
        "The interval is Wilson's, of the images alone. Another seed of the training adds its own "
        "difference."
    )
    return f"{table(EVALUATION_TITLES, rows)}{note(text)}"


def evaluation_cells(result: dict) -> list[str]:
    """Returns a result of evaluate.py as the cells of `EVALUATION_TITLES`, but for the file."""
    names = [str(result.get(name, "?")) for name in ("protocol", "dataset")]
    top1, top5, images = (result.get(name) for name in ("top1", "top5", "num_test"))
    if not isinstance(top1, float):
        rank = result.get("effective_rank")
        return [*names, f"effective rank {rank:.1f}" if isinstance(rank, float) else "?", "", ""]
    return [
        *names,
        f"{top1:.2f}\N{NO-BREAK SPACE}%",
        interval(top1, images) if isinstance(images, int) else "?",
        f"{top5:.2f}\N{NO-BREAK SPACE}%" if isinstance(top5, float) else "?",
    ]


def _view_pairs(run: record.Record) -> str:
    views = pictures.view_pairs(run.config, run_folder.read_pixels(run.workdir))
    text = "Each pair is two views of one image, as the first training step received them."
    return f"{pictures.pairs_element(views)}{note(text)}"


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
    return f"{chosen}<h3>Trials of the learning rate</h3>{table(heads, trials, numeric=True)}"


def _starts(run: record.Record) -> str:
    """Returns when, where and by which command the run was started."""
    if not run.starts:
        return note("Earlier versions did not write when a run was started.")
    return "".join(
        f"<p>{escape(start['time'].replace('T', ' '))}, from step {start['step']}, on "
        f"{start['replicas']} × {escape(start['device'])}, version {escape(start['version'])}</p>"
        f"<pre>{escape(start['command'])}</pre>"
        for start in run.starts
    )


def _versions(run: record.Record) -> str:
    versions = run.summary.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items())
