"""The sections of a report that show images by their features: neighbours, and a map."""

import os

import numpy as np
import tensorflow as tf

from simsiam_tf.reporting import charts, pictures
from simsiam_tf.reporting.html_page import escape, note
from simsiam_tf.reporting.record import Record
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError

_NUM_QUERIES = 8  # typical images
_NUM_WORST = 4
_NUM_NEIGHBOURS = 5
_MAP_THUMBNAIL = 40  # pixels of the longer side
# A data set that is missing, wholly or in part, changes only the sections that show its images.
READ_ERRORS = (UserError, OSError, tf.errors.OpError)


def sections(run: Record) -> list[tuple[str, str]]:
    """Returns the titles and contents of the sections that need the exported encoder."""
    titles = "Nearest neighbours", "Map of the features"
    try:
        gallery = pictures.gallery(run.config, os.path.join(run.workdir, run_folder.ENCODER))
    except READ_ERRORS as error:
        return [(title, reason(error)) for title in titles]
    try:
        shown_map = _map(gallery)
    except UserError as error:
        shown_map = reason(error)
    return [(titles[0], _neighbours(gallery)), (titles[1], shown_map)]


def reason(error: Exception) -> str:
    """Returns why a section is not shown."""
    return note(f"Not shown. {' '.join(str(error).split())}")


def _neighbours(gallery: pictures.Gallery) -> str:
    count = len(gallery.features)
    if count < 2:
        return note("The data set has only one image.")
    found, cosines = pictures.nearest(gallery.features, np.arange(count), _NUM_NEIGHBOURS)
    typical = _typical(gallery)
    text = (
        f"Each row starts with an image of {gallery.name}. Its {_NUM_NEIGHBOURS} nearest of "
        f"{count} images follow, by cosine similarity of the features{_at_step(gallery)}."
    )
    if gallery.class_names:
        share = np.mean(gallery.labels[found] == gallery.labels[:, np.newaxis])
        text += (
            f" {share:.0%} of the neighbours of all images have the class of their image; in the "
            "rows, the others have a red frame."
        )
    worst = _worst(gallery, found, cosines, typical)
    return (
        f"{_rows(gallery, typical, found, cosines)}<h3>The worst</h3>"
        f"{_rows(gallery, worst, found, cosines)}{note(text)}"
    )


def _typical(gallery: pictures.Gallery) -> np.ndarray:
    """Returns the first image of each class, of classes evenly spaced; or images evenly spaced."""
    indices = np.arange(len(gallery.features))
    if gallery.class_names:
        _, indices = np.unique(gallery.labels, return_index=True)
    spaced = np.linspace(0, len(indices) - 1, _NUM_QUERIES).astype(int)
    return indices[np.unique(spaced)]


def _worst(
    gallery: pictures.Gallery, found: np.ndarray, cosines: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Returns the images whose neighbours fit them least, at most one of each class.

    Those are the images with the fewest neighbours of their own class; among these, and without
    labels, those whose neighbours are the farthest.
    """
    same = np.zeros(len(found))
    if gallery.class_names:
        same = np.mean(gallery.labels[found] == gallery.labels[:, np.newaxis], axis=1)
    order = np.lexsort([cosines.mean(axis=1), same])
    order = order[~np.isin(order, others)]
    if gallery.class_names:
        _, first = np.unique(gallery.labels[order], return_index=True)
        order = order[np.sort(first)]
    return order[:_NUM_WORST]


def _rows(
    gallery: pictures.Gallery, queries: np.ndarray, found: np.ndarray, cosines: np.ndarray
) -> str:
    rows = []
    for query in queries:
        cells = [_cell(gallery, query, "", "query")]
        for index, cosine in zip(found[query], cosines[query], strict=True):
            kind = ""
            if gallery.class_names:
                kind = "same" if gallery.labels[index] == gallery.labels[query] else "other"
            cells.append(_cell(gallery, index, f"{cosine:.2f}", kind))
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    return f'<div class="neighbours">{"".join(rows)}</div>'


def _cell(gallery: pictures.Gallery, index: int, cosine: str, kind: str) -> str:
    label = gallery.class_names[gallery.labels[index]] if gallery.class_names else ""
    caption = " · ".join(filter(None, [label, cosine]))
    image = pictures.element(gallery.thumbnails[index], caption or "an image", kind)
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _map(gallery: pictures.Gallery) -> str:
    count = len(gallery.features)
    coordinates = pictures.layout(gallery.features)
    found, cosines = pictures.nearest(gallery.features, np.arange(count), _NUM_NEIGHBOURS)
    facts = [
        {
            "index": index,
            "image": pictures.data_url(pictures.reduce(thumbnail, _MAP_THUMBNAIL)),
            "near": [
                [int(other), round(float(cosine), 3)]
                for other, cosine in zip(found[index], cosines[index], strict=True)
            ],
        }
        for index, thumbnail in enumerate(gallery.thumbnails)
    ]
    chart = charts.scatter(coordinates, gallery.labels, gallery.class_names, facts)
    text = (
        f"t-SNE maps the features of {count} images of {gallery.name}{_at_step(gallery)}: images "
        "that are close in the map have close features."
    )
    how = "Point at a mark to see its image. Click it, and its nearest images appear below the map."
    return (
        f'<div class="map">{charts.element(chart, f"Map of {count} images")}'
        f'<div class="chosen" aria-live="polite"></div></div>'
        f'{note(text)}<p class="note with-script" hidden>{how}</p>'
    )


def _at_step(gallery: pictures.Gallery) -> str:
    return "" if gallery.step is None else f" at step {gallery.step}"
