"""Builds the page about a data set, a JSON file with its numbers and a flagfile that fits it."""

import dataclasses
import datetime
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files, schema
from simsiam_tf.config import Purpose, ViewsConfig
from simsiam_tf.data import advice, census, choices, datasets, duplicates, sampling, views
from simsiam_tf.data.advice import Advice, Duplicates, share
from simsiam_tf.data.census import Census
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.inspect_settings import InspectConfig
from simsiam_tf.data.order import fold_in
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.data.quarantine import READ_ERRORS
from simsiam_tf.reporting import charts, html_page, pictures
from simsiam_tf.reporting.html_page import escape, note, section, table
from simsiam_tf.schema import UserError

_MAX_LISTED = 50  # unreadable images on the page
_MAX_GROUPS = 8  # of duplicates on the page, of each kind
_MAX_OF_GROUP = 8  # images of a group on the page
_MAX_JSON_GROUPS = 10_000
_MAX_SHEET = 60  # images of the contact sheet
_MAX_BARS = 120
_MAX_ROWS = 20  # of the table of classes, from either end
_MAX_PAIRS = 8
_THUMBNAIL = 112  # pixels of the longer side
# Lower ends of the histograms' bins.
_SIDES = (1, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
_RATIOS = (1.0, 1.1, 1.25, 1.4, 1.6, 1.9, 2.3, 3.0, 4.0, 6.0)
_SMALL = "var(--doubt)"  # the colour of images that are smaller than their views
_PERCENTILES = {"smallest": 0, "percentile_5": 5, "median": 50, "percentile_95": 95, "largest": 100}


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that is known about a data set.

    Attributes:
      config: the flags of the inspection.
      census: the facts about the images.
      found: the duplicates among them.
      suggested: flags that fit the images; empty if no image can be read.
      reasons: for each suggested flag.
      warnings: the most important first.
      pixels: what the images become when they are decoded.
    """

    config: InspectConfig
    census: Census
    found: Duplicates
    suggested: dict[str, Any]
    reasons: dict[str, str]
    warnings: list[Advice]
    pixels: Pixels


def write(config: InspectConfig) -> None:
    """Inspects the images of a data set and writes the page, the JSON file and the flagfile.

    Args:
      config: of the program.

    Raises:
      UserError: the data set is missing or breaks off, or a file cannot be written.
    """
    for name, path in (("output", config.output), ("flagfile_output", config.suggestion_output)):
        if not os.access(os.path.dirname(path) or ".", os.W_OK):  # before the long work
            raise UserError(
                f"--{name} must be a file in a folder that exists and can be written to. "
                f"Received: {path}"
            )
    inspection = inspect(config)
    texts = {
        config.json_output: json.dumps(numbers(inspection), indent=1, ensure_ascii=False) + "\n",
        config.output: render(inspection),
    }
    if inspection.suggested:
        texts[config.suggestion_output] = flagfile(inspection)
    for path, text in texts.items():
        try:
            files.write_text(path, text)
        except OSError as error:
            raise UserError(
                f"The files must be in a folder that can be written to ({error.strerror}). "
                f"Received: {path}"
            ) from error
    text = inspection.warnings[0].text if inspection.warnings else "nothing needs your attention."
    logging.info("Wrote %s: %s", config.output, text)


def inspect(config: InspectConfig) -> Inspection:
    """Returns what there is to know about the images of a data set.

    Args:
      config: of the program.

    Raises:
      UserError: the data set is missing or breaks off.
    """
    data = config.data
    source = datasets.load(data.dataset, data.data_dir, data.train_split)
    counts = census.take_census(
        source,
        data.max_image_pixels,
        upright=config.pixels.exif_orientation == "apply",
        limit=config.limit,
        seed=config.system.seed,
    )
    readable = counts.readable
    found = Duplicates(duplicates.exact_groups(readable), duplicates.near_groups(readable))
    chosen = choices.for_images(counts, config) if len(readable) else {}
    suggested = choices.values_of(chosen)
    warnings = advice.advise(counts, found, suggested, config)
    pixels = _pixels(config, source, suggested)
    reasons = choices.reasons_of(chosen)
    return Inspection(config, counts, found, suggested, reasons, warnings, pixels)


def _pixels(config: InspectConfig, source: datasets.Source, suggested: dict[str, Any]) -> Pixels:
    """Returns the `Pixels` of a run with the suggested flags where those given say `auto`."""
    if not suggested:
        return RGB
    given = config.pixels
    if given.channels == "auto":
        given = dataclasses.replace(given, channels=str(suggested["channels"]))
    if given.value_range == "auto":
        given = dataclasses.replace(given, value_range=suggested.get("value_range", "0,255"))
    return sampling.resolve_pixels(given, source, config.data.max_image_pixels)


# The flagfile and the numbers.


def flagfile(inspection: Inspection) -> str:
    """Returns the suggested flags as a flagfile of `train.py`."""
    config = inspection.config
    counts = inspection.census
    return (
        f"# Flags that fit {counts.source.name}, by simsiam-inspect after reading "
        f"{len(counts.records):,} images.\n"
        f"#   {_command(config)}\n"
        "# Images without an up (microscopes, satellites) may also be turned:\n"
        "#   --vertical_flip_probability=0.5 --rotate90_probability=0.5\n"
        f"{schema.to_flagfile(inspection.suggested, inspection.reasons)}"
    )


def _command(config: InspectConfig) -> str:
    path = shlex.quote(config.suggestion_output)
    return f"python train.py --recipe=r18 --flagfile={path} --workdir=runs/mine"


def numbers(inspection: Inspection) -> dict[str, Any]:
    """Returns all numbers of the page, and the paths behind them, for JSON."""
    config, counts = inspection.config, inspection.census
    describe = counts.source.describe
    return {
        "dataset": config.data.dataset,
        "data_dir": config.data.data_dir,
        "split": config.data.train_split,
        "num_images": counts.source.num_examples,
        "num_inspected": len(counts.records),
        "num_bytes": counts.num_bytes,
        "formats": counts.counts("kind"),
        "channels": counts.counts("channels"),
        "dtypes": counts.counts("dtype"),
        "exif_orientations": counts.counts("orientation"),
        "num_with_several_frames": int(np.sum(counts.readable["has_more"])),
        "num_gray_stored_as_rgb": int(np.sum(counts.readable["is_gray"])),
        "extreme_values": counts.extremes,
        "short_side": _percentiles(counts.short_sides),
        "aspect_ratio": _percentiles(counts.aspect_ratios),
        "num_smaller_than_view": int(np.sum(counts.short_sides < config.views.image_size)),
        "classes": advice.class_sizes(counts),
        "num_unreadable": counts.num_unreadable,
        "unreadable_reasons": counts.reasons,
        "unreadable": [
            {"index": index, "path": describe(index), "reason": reason}
            for index, reason in counts.unreadable.items()
        ],
        "num_exact_copies": Duplicates.num_copies(inspection.found.exact),
        "num_near_copies": Duplicates.num_copies(inspection.found.near),
        "exact_duplicates": _paths(counts, inspection.found.exact),
        "near_duplicates": _paths(counts, inspection.found.near),
        "pixels": dataclasses.asdict(inspection.pixels),
        "warnings": [dataclasses.asdict(warning) for warning in inspection.warnings],
        "suggested_flags": inspection.suggested,
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {
        name: round(float(np.percentile(values, percent)), 3)
        for name, percent in _PERCENTILES.items()
    }


def _paths(counts: Census, groups: list[np.ndarray]) -> list[list[str]]:
    indices = counts.readable["index"]
    return [
        [counts.source.describe(index) for index in indices[group].tolist()]
        for group in groups[:_MAX_JSON_GROUPS]
    ]


# The page.


def render(inspection: Inspection) -> str:
    """Returns the page as text."""
    counts = inspection.census
    groups = [*inspection.found.exact[:_MAX_GROUPS], *inspection.found.near[:_MAX_GROUPS]]
    rng = np.random.default_rng(inspection.config.system.seed)
    indices = counts.readable["index"]
    sheet = np.sort(rng.choice(indices, min(_MAX_SHEET, len(indices)), replace=False)).tolist()
    shown = {
        *sheet,
        *(index for group in groups for index in indices[group[:_MAX_OF_GROUP]].tolist()),
    }
    images = _decoded(inspection, sorted(shown))
    thumbnails = {index: _thumbnail(inspection.pixels, image) for index, image in images}
    contents = {
        "What to do": _advice(inspection),
        "Sizes": _sizes(inspection),
        "Files": _files(counts),
        "Unreadable images": _unreadable(counts),
        "Duplicates": _duplicates(inspection, thumbnails),
        "Classes": _classes(counts),
        "Contact sheet": _contact_sheet(counts, sheet, thumbnails),
        "View pairs": _view_pairs(inspection, _spaced(sheet, _MAX_PAIRS)),
    }
    name = os.path.basename(os.path.abspath(inspection.config.data.data_dir))
    name = name if inspection.config.data.data_dir else inspection.config.data.dataset
    return html_page.build_page(
        f"{name}: images",
        _header(inspection, name),
        [section(title, content) for title, content in contents.items() if content],
        f"Written on {datetime.datetime.now():%Y-%m-%d %H:%M} by simsiam-inspect. The numbers are "
        f"in {escape(os.path.basename(inspection.config.json_output))}.",
        charts.scripts(),
    )


def _header(inspection: Inspection, name: str) -> str:
    config, counts, warnings = inspection.config, inspection.census, inspection.warnings
    kind = warnings[0].kind if warnings else "good"
    kind = "good" if kind == "open" else kind
    word = {"bad": "Fix this first.", "doubtful": "Look at this.", "good": "Ready to train."}[kind]
    text = _text(warnings[0]) if kind != "good" else "No warning needs an answer."
    rest = len(warnings) - (kind != "good")
    notes = f"{rest} more {'note' if rest == 1 else 'notes'} below. " if rest else ""
    total, inspected = counts.source.num_examples, len(counts.records)
    sample = f"A random sample of {inspected:,} of {total:,} images. " if inspected < total else ""
    title = f"{config.data.dataset} · {config.data.train_split}"
    return (
        f'<p class="kind">{escape(title)}</p><h1>{escape(name)}</h1>'
        f'<div class="verdict {kind}"><p>{html_page.state(word, kind)} {text}</p>'
        f'<p class="progress">{escape(sample + notes)}{_megabytes(counts.num_bytes)}.</p></div>'
        f'<dl class="facts">{_facts(inspection)}</dl>'
    )


def _text(warning: Advice) -> str:
    """Returns a warning as HTML; a flag in it is not broken after its hyphens."""
    return re.sub(r"(--\w+)", r'<span class="flag">\1</span>', escape(warning.text))


def _megabytes(num_bytes: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _facts(inspection: Inspection) -> str:
    counts = inspection.census
    facts = {"Images": f"{len(counts.records):,}"}
    if len(counts.readable):
        facts["Median short side"] = f"{np.median(counts.short_sides):,.0f} px"
    facts["Unreadable"] = f"{counts.num_unreadable:,}"
    facts["Exact copies"] = f"{Duplicates.num_copies(inspection.found.exact):,}"
    facts["Near copies"] = f"{Duplicates.num_copies(inspection.found.near):,}"
    if counts.source.labelled:
        facts["Classes"] = f"{len(counts.source.class_names):,}"
    return "".join(f"<div><dt>{title}</dt><dd>{text}</dd></div>" for title, text in facts.items())


def _advice(inspection: Inspection) -> str:
    entries = "".join(
        f'<li class="{warning.kind}">{_text(warning)}</li>' for warning in inspection.warnings
    )
    content = f'<ul class="advice">{entries}</ul>' if entries else note("Nothing: no warning.")
    if not inspection.suggested:
        return content
    path = inspection.config.suggestion_output
    lines = schema.to_flagfile(inspection.suggested)
    return (
        f"{content}<h3>Flags that fit these images</h3><pre>{escape(lines)}</pre>"
        f"{note(f'{path} has these flags. Train with them, for example:')}"
        f"<pre>{escape(_command(inspection.config))}</pre>"
    )


def _sizes(inspection: Inspection) -> str:
    counts, size = inspection.census, inspection.config.views.image_size
    if not len(counts.readable):
        return ""
    sides = _histogram(counts.short_sides, _SIDES, "{:.0f}", " pixels", small_below=size)
    ratios = _histogram(counts.aspect_ratios, _RATIOS, "{:g}", "")
    figures = "".join(
        _bar_figure(title, bars, axis)
        for title, bars, axis in (
            ("Short side", sides, "pixels"),
            ("Longer side divided by the shorter", ratios, "ratio"),
        )
    )
    smaller = int(np.sum(counts.short_sides < size))
    text = (
        f"Each bar counts images from its number up to the next. {smaller:,} of "
        f"{len(counts.readable):,} images are smaller than --image_size={size}"
        f"{'; bars wholly below it are ochre' if smaller else ''}."
    )
    rows = [
        [title, *(form.format(value) for value in _percentiles(values).values())]
        for title, values, form in (
            ("Width", counts.readable["width"], "{:,.0f}"),
            ("Height", counts.readable["height"], "{:,.0f}"),
            ("Short side", counts.short_sides, "{:,.0f}"),
            ("Aspect ratio", counts.aspect_ratios, "{:.2f}"),
        )
    ]
    titles = ["", "Smallest", "5 %", "Median", "95 %", "Largest"]
    content = table(titles, rows, numeric=True)
    details = f"<details open><summary>In numbers</summary>{content}</details>"
    return f'<div class="curves">{figures}</div>{note(text)}{details}'


def _bar_figure(title: str, bars: Sequence[charts.Bar], axis: str) -> str:
    chart = charts.element(charts.bar_chart(bars, axis, "images"), title)
    return f"<figure><figcaption>{title}</figcaption>{chart}</figure>"


def _histogram(
    values: np.ndarray, edges: Sequence[float], form: str, unit: str, small_below: float = 0
) -> list[charts.Bar]:
    """Returns a bar for each bin between the smallest and the largest value."""
    bins = np.searchsorted(edges, values, side="right") - 1
    counts = np.bincount(bins, minlength=len(edges))
    bars = []
    for number in range(bins.min(), bins.max() + 1):
        low, high = edges[number], edges[number + 1] if number + 1 < len(edges) else np.inf
        extent = f"from {form.format(low)}" + (f" to {form.format(high)}" if high < np.inf else "")
        text = f"{counts[number]:,} images {extent}{unit}"
        color = _SMALL if high <= small_below else charts.SINGLE
        bars.append(charts.Bar(int(counts[number]), form.format(low), text, color))
    return bars


def _files(counts: Census) -> str:
    total = len(counts.readable)
    if not total:
        return ""
    turned = {number: count for number, count in counts.counts("orientation").items() if number > 1}
    several, gray = (int(np.sum(counts.readable[name])) for name in ("has_more", "is_gray"))
    kinds = {
        "Format": counts.counts("kind"),
        "Channels": counts.counts("channels"),
        "Levels": counts.counts("dtype"),
        "Turned by EXIF": turned,
        "Frames or pages": {"several": several} if several else {},
        "Grey stored as RGB": {"yes": gray} if gray else {},
    }
    rows = [
        [f"{name}: {value}", f"{count:,}", share(count, total)]
        for name, found in kinds.items()
        for value, count in found.items()
    ]
    return table(["Of the readable images", "Images", "Share"], rows, numeric=True)


def _unreadable(counts: Census) -> str:
    if not counts.num_unreadable:
        return note("All images can be read.")
    reasons = [[reason, f"{count:,}"] for reason, count in counts.reasons.items()]
    listed = list(counts.unreadable.items())[:_MAX_LISTED]
    rows = [[str(index), counts.source.describe(index), reason] for index, reason in listed]
    rest = counts.num_unreadable - len(rows)
    more = note(f"{rest:,} more are in the JSON file.") if rest else ""
    return (
        f"{table(['Reason', 'Images'], reasons)}<details open><summary>The images</summary>"
        f"{table(['Index', 'Path', 'Reason'], rows)}{more}</details>"
    )


def _duplicates(inspection: Inspection, thumbnails: Mapping[int, np.ndarray]) -> str:
    counts, found = inspection.census, inspection.found
    parts = [
        _groups(counts, found.exact, thumbnails, "Exact", "Their files have the same bytes."),
        _groups(
            counts,
            found.near,
            thumbnails,
            "Near",
            "They look alike: a perceptual hash and the colours agree. One of each exact group "
            "takes part.",
        ),
    ]
    return "".join(parts) or note("None were found, neither exact nor near.")


def _groups(
    counts: Census,
    groups: list[np.ndarray],
    thumbnails: Mapping[int, np.ndarray],
    title: str,
    text: str,
) -> str:
    if not groups:
        return ""
    sheets = []
    for group in groups[:_MAX_GROUPS]:
        indices = counts.readable["index"][group[:_MAX_OF_GROUP]].tolist()
        cells = "".join(_cell(counts, index, thumbnails) for index in indices)
        rest = len(group) - len(indices)
        more = f"<figure><figcaption>and {rest:,} more</figcaption></figure>" if rest else ""
        sheets.append(f'<div class="sheet">{cells}{more}</div>')
    number = len(groups)
    copies = Duplicates.num_copies(groups)
    text = (
        f"{number:,} group{'s' * (number != 1)} with {copies:,} cop"
        f"{'ies' if copies != 1 else 'y'} beside the first image. {text}"
    )
    rest = number - len(sheets)
    more = note(f"The JSON file lists {rest:,} more.") if rest else ""
    return f'<h3>{title}</h3>{note(text)}<div class="groups">{"".join(sheets)}</div>{more}'


def _classes(counts: Census) -> str:
    sizes = advice.class_sizes(counts)
    if not sizes:
        return note("The images have no labels; training needs none.")
    total = sum(sizes.values())
    entries = list(sizes.items())
    bars = [
        charts.Bar(size, name, f"{name}: {size:,} images, {share(size, total)}")
        for name, size in _spaced(entries, _MAX_BARS)
    ]
    text = f"{len(entries):,} classes, the largest first."
    if len(bars) < len(entries):
        text += f" The chart shows {len(bars)} of them, evenly spaced."
    ends = entries
    if len(entries) > 2 * _MAX_ROWS:
        ends = [*entries[:_MAX_ROWS], *entries[-_MAX_ROWS:]]
    rows = [[name, f"{size:,}", share(size, total)] for name, size in ends]
    summary = "All classes"
    if len(ends) < len(entries):
        summary = f"The {_MAX_ROWS} largest and the {_MAX_ROWS} smallest classes"
    return (
        f'<div class="curves">{_bar_figure("Images of each class", bars, "")}</div>'
        f"{note(text)}<details><summary>{summary}</summary>"
        f"{table(['Class', 'Images', 'Share'], rows, numeric=True)}</details>"
    )


def _spaced(entries: Sequence[Any], count: int) -> list[Any]:
    """Returns so many evenly spaced entries of a list, or all."""
    places = np.linspace(0, len(entries) - 1, min(count, len(entries))).astype(int)
    return [entries[place] for place in places]


def _contact_sheet(
    counts: Census, indices: Sequence[int], thumbnails: Mapping[int, np.ndarray]
) -> str:
    cells = "".join(_cell(counts, index, thumbnails) for index in indices)
    if not cells:
        return ""
    text = "Images at random, each with its index" + (
        " and class." if counts.source.labelled else "."
    )
    return f'<div class="sheet">{cells}</div>{note(text)}'


def _cell(counts: Census, index: int, thumbnails: Mapping[int, np.ndarray]) -> str:
    if index not in thumbnails:
        return ""
    (place,) = np.flatnonzero(counts.records["index"] == index)
    label = counts.records["label"][place]
    name = counts.source.class_names[label] if counts.source.labelled else ""
    caption = " · ".join(filter(None, [str(index), name]))
    path = counts.source.describe(index)
    image = pictures.element(thumbnails[index], path)
    content = f"{image}<figcaption>{escape(caption)}</figcaption>"
    return f'<figure title="{escape(path)}">{content}</figure>'


def _decoded(inspection: Inspection, indices: Sequence[int]) -> Iterator[tuple[int, tf.Tensor]]:
    """Yields the index and the pixels of each of some images that fit `Inspection.pixels`."""
    max_pixels = inspection.config.data.max_image_pixels
    for index, encoded in census.read_some(inspection.census.source, indices).items():
        try:
            yield index, decode_image(encoded, max_pixels, inspection.pixels)
        except READ_ERRORS:
            continue


def _thumbnail(pixels: Pixels, image: tf.Tensor) -> np.ndarray:
    """Returns a small picture, `[h, w, 3]` uint8."""
    shown = np.round(255 * pixels.show(pixels.scale(image)).numpy()).astype(np.uint8)
    return pictures.reduce(shown, _THUMBNAIL)


def _view_pairs(inspection: Inspection, indices: Sequence[int]) -> str:
    """Returns the views of some images, as the given flags and the suggested ones make them."""
    images = dict(_decoded(inspection, indices))
    if not images:
        return ""
    config = inspection.config
    size = config.views.image_size
    parts = [
        _pairs(inspection, images, config.views),
        note(f"Two views of each image, as the given flags make them, with --image_size={size}."),
    ]
    settings = schema.flatten(config.views)
    changed = {name: value for name, value in inspection.suggested.items() if name in settings}
    suggested = schema.build(ViewsConfig, settings | changed)
    if suggested != config.views:
        size = suggested.image_size
        parts += [
            "<h3>With the suggested flags</h3>",
            _pairs(inspection, images, suggested),
            note(f"The same images with --image_size={size}."),
        ]
    return "".join(parts)


def _pairs(inspection: Inspection, images: Mapping[int, tf.Tensor], config: ViewsConfig) -> str:
    make_views = views.build_views(config, num_views=2, pixels=inspection.pixels)
    seed = inspection.config.system.seed
    # Seeded as in the first epoch of a run.
    made = [
        make_views(image, fold_in([seed, Purpose.VIEWS], 0, index))
        for index, image in images.items()
    ]
    batch = tf.nest.map_structure(lambda *parts: tf.stack(parts), *made)
    return pictures.pairs_element(pictures.to_look_at(batch, inspection.pixels))
