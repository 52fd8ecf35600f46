"""Parquet files of images as data sets, in the layout of Hugging Face, read by index.

Parquet has no access to a single row: the smallest part that can be read is the column of a row
group. The row groups that were used last are kept in memory, up to a limit.
"""

import collections
import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow
from absl import logging
from pyarrow import parquet

from simsiam_tf.data import shards
from simsiam_tf.data.source import UNLABELLED, Source
from simsiam_tf.schema import UserError, one_line

_READ_AT_ONCE = 16
_MOST_CLASSES = 1_000_000  # without names; larger numbers are no classes
_CACHE_BYTES = 256 * 2**20  # of row groups in memory; one is kept whatever its size


@dataclasses.dataclass(frozen=True)
class _File:
    """A Parquet file.

    Attributes:
      path: of the file.
      metadata: Parquet's description of the file.
      column: name of the column of the encoded images, "image.bytes" where it is a part of another.
      labels: `[n]` int64 or texts, or None where there is no column of labels.
      class_names: by label; empty where the file does not name them.
    """

    path: str
    metadata: parquet.FileMetaData
    column: str
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def load_parquet(data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split of Parquet files, in the order of the files and their rows.

    The images are the column `image`, of bytes or of {bytes, path}; the labels are the column
    `label`, numbers or texts. Without these names, they are the first columns that Hugging Face's
    description in the file calls Image and ClassLabel. That description also names the classes; a
    class without a name is called by its number, and texts are sorted. An unlabelled split has no
    such column, or -1 in all of it.

    Args:
      data_dir: the files, patterns or folders, separated by commas; `shards.find_splits` says which
        file is of which split.
      split: name of the split.

    Raises:
      UserError: a file does not exist, is broken, or has no column of images; an image is only a
        path; the split is unknown or empty; or a label is missing or has no class.
    """
    splits = shards.find_splits(data_dir, [".parquet"], "parquet")
    paths = shards.files_of(splits, data_dir, split)
    everything = {path: _open(path) for of_split in splits.values() for path in of_split}
    found = [everything[path] for path in paths]
    name = f"{data_dir} ({split})"
    groups = [(file, number) for file in found for number in range(file.metadata.num_row_groups)]
    starts = np.cumsum([0, *(file.metadata.row_group(n).num_rows for file, n in groups)])
    file_starts = dict(
        zip(
            paths,
            np.cumsum([0, *(file.metadata.num_rows for file in found)]).tolist(),
            strict=False,
        )
    )
    num_images = int(starts[-1])
    if not num_images:
        raise UserError(f"Parquet files must contain an image. Received: {name}, without one")

    def describe(index):
        file, _ = groups[int(np.searchsorted(starts, index, side="right")) - 1]
        return f"{file.path}: row {index - file_starts[file.path]}"

    class_names, labels = _number_labels(found, list(everything.values()), describe)
    sizes = [_bytes_of(file, number) for file, number in groups]
    logging.info(
        "Parquet files %s: %d images in %d row groups of %d files, %s",
        name,
        num_images,
        len(groups),
        len(paths),
        f"{len(class_names)} classes" if class_names else "unlabelled",
    )
    if sum(sizes) > _CACHE_BYTES:
        logging.info(
            "%s: each image in random order reads a row group of %.0f MB on average, because at "
            "most %.0f MB of the images are kept in memory. simsiam-pack makes files in which each "
            "image is read alone",
            name,
            sum(sizes) / len(sizes) / 1e6,
            _CACHE_BYTES / 1e6,
        )
    cache = _RowGroups(lambda number: _read_images(*groups[number]), _CACHE_BYTES)
    fingerprint = shards.fingerprint_of(paths)

    def fetch(index):
        number = int(np.searchsorted(starts, index, side="right")) - 1
        value = cache.get(number)[index - int(starts[number])].as_py()
        encoded = value["bytes"] if isinstance(value, dict) else value
        if encoded is None:
            raise ValueError("the file has no bytes of the image")
        return encoded

    return Source(
        name,
        num_images,
        class_names,
        describe,
        read=shards.reader(fetch, labels),
        read_at_once=_READ_AT_ONCE,
        fingerprint=lambda: fingerprint,
        labels=labels,
    )


class _RowGroups:
    """The images of row groups; those used last are kept up to a number of bytes. Thread-safe."""

    def __init__(self, read: Callable[[int], pyarrow.ChunkedArray], max_bytes: int) -> None:
        """Args:
        read: number of a row group → its images.
        max_bytes: largest size of all row groups that are kept, if they are more than one.
        """
        self._read = read
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._reading: dict[int, threading.Lock] = collections.defaultdict(threading.Lock)
        self._kept: collections.OrderedDict[int, pyarrow.ChunkedArray] = collections.OrderedDict()

    def get(self, number: int) -> pyarrow.ChunkedArray:
        """Returns the images of a row group. Threads that need the same one read it once."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            reading = self._reading[number]
        with reading:
            with self._lock:
                if number in self._kept:
                    return self._kept[number]
            images = self._read(number)
            with self._lock:
                self._kept[number] = images
                while len(self._kept) > 1 and self.num_bytes > self._max_bytes:
                    self._kept.popitem(last=False)
            return images

    @property
    def num_bytes(self) -> int:
        """Size of the row groups that are kept."""
        return sum(images.nbytes for images in self._kept.values())


def _open(path: str) -> _File:
    """Returns a Parquet file with its labels."""
    try:
        with parquet.ParquetFile(path) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
            features = _features(schema)
            image = _key_of("image", "Image", schema, features)
            if image is None:
                raise UserError(
                    "A Parquet file must have a column image. Received: "
                    f"{path}, with {', '.join(schema.names)}"
                )
            label = _key_of("label", "ClassLabel", schema, features)
            labels = _read_labels(opened, label) if label else None
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"The file cannot be read as Parquet ({one_line(error)}): {path}"
        ) from error
    kind = schema.field(image).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        image += ".bytes"
    elif not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise UserError(
            f"The column {image} must be bytes, or bytes and path; --dataset=list reads paths. "
            f"Received: {kind} in {path}"
        )
    class_names = tuple(features.get(label or "", {}).get("names") or ())
    file = _File(path, metadata, image, labels, class_names)
    _check_bytes(file)
    return file


def _features(schema: pyarrow.Schema) -> dict[str, Any]:
    """Returns Hugging Face's description of the columns: {name: {"_type": ...}}; may be empty."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in described.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _key_of(name: str, kind: str, schema: pyarrow.Schema, features: dict[str, Any]) -> str | None:
    """Returns the name of a column: the usual one, or else the first one of a kind."""
    of_kind = [key for key, feature in features.items() if feature.get("_type") == kind]
    return next((key for key in (name, *of_kind) if key in schema.names), None)


def _read_labels(opened: parquet.ParquetFile, label: str) -> np.ndarray:
    """Returns the labels, `[n]` int64 or objects; a missing one is -1 or ""."""
    column = opened.read(columns=[label]).column(0)
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pyarrow.types.is_integer(column.type):
        return column.fill_null(-1).to_numpy().astype(np.int64)
    return np.array(["" if text is None else str(text) for text in column.to_pylist()], object)


def _image_chunks(file: _File, number: int) -> Any:
    """Returns Parquet's description of the images of a row group."""
    group = file.metadata.row_group(number)
    columns = map(group.column, range(group.num_columns))
    return next(column for column in columns if column.path_in_schema == file.column)


def _bytes_of(file: _File, number: int) -> int:
    return _image_chunks(file, number).total_uncompressed_size


def _check_bytes(file: _File) -> None:
    """Checks that every image is in the file, as far as the statistics of the file tell."""
    first = 0
    for number in range(file.metadata.num_row_groups):
        statistics = _image_chunks(file, number).statistics
        end = first + file.metadata.row_group(number).num_rows
        if statistics is not None and statistics.has_null_count and statistics.null_count:
            raise UserError(
                "Every image must be in the Parquet file, not only its path (Hugging Face's "
                "datasets embed the files with push_to_hub). Received: "
                f"{statistics.null_count} images without bytes in the rows {first} to {end - 1} of "
                f"{file.path}"
            )
        first = end


def _read_images(file: _File, number: int) -> pyarrow.ChunkedArray:
    # Every call opens the file: a `ParquetFile` is not for several threads. Its description is
    # not read again.
    with parquet.ParquetFile(file.path, metadata=file.metadata) as opened:
        return opened.read_row_group(number, columns=[file.column], use_threads=False).column(0)


def _number_labels(
    found: Sequence[_File], everything: Sequence[_File], describe: Callable[[int], str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes and the label of each image, `[N]` int32.

    Args:
      found: the files of the split.
      everything: the files of all splits, which have the same classes.
      describe: index of an image in the split → its file and row.
    """
    parts = [_labels_of(file) for file in found]
    of_all = [_labels_of(file) for file in everything]
    is_text = any(part.dtype == object for part in of_all)
    if is_text:
        parts, of_all = list(map(_as_texts, parts)), list(map(_as_texts, of_all))
    labels = np.concatenate(parts)
    is_labelled = labels != "" if is_text else labels >= 0
    if not is_labelled.any():
        return (), np.full(len(labels), UNLABELLED, np.int32)
    if not is_labelled.all():
        raise UserError(
            "Either every image of a split has a label, or none has. Received: "
            f"{describe(int(np.argmin(is_labelled)))}, without a label"
        )
    if is_text:
        class_names = tuple(sorted({text for part in of_all for text in part} - {""}))
        number_of = {text: number for number, text in enumerate(class_names)}
        return class_names, np.array([number_of[text] for text in labels], np.int32)
    named = {file.class_names for file in everything} - {()}
    if len(named) > 1:
        raise UserError(
            "All Parquet files must name the same classes. Received: "
            f"{' and '.join(file.path for file in everything)} with {len(named)} lists of classes"
        )
    highest = max(int(part.max(initial=-1)) for part in of_all)
    num_classes = len(next(iter(named))) if named else min(highest + 1, _MOST_CLASSES)
    if labels.max() >= num_classes:
        raise UserError(
            f"A label must be the number of one of {num_classes} classes. Received: {labels.max()} "
            f"in {describe(int(labels.argmax()))}"
        )
    class_names = next(iter(named), tuple(map(str, range(num_classes))))
    return class_names, labels.astype(np.int32)


def _labels_of(file: _File) -> np.ndarray:
    """Returns the labels of a file, `[n]` int64 or objects; a missing one is -1 or ""."""
    return np.full(file.metadata.num_rows, -1) if file.labels is None else file.labels


def _as_texts(labels: np.ndarray) -> np.ndarray:
    if labels.dtype == object:
        return labels
    return np.array(["" if label < 0 else str(label) for label in labels.tolist()], object)
