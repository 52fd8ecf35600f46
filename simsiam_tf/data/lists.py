"""Lists of image files as data sets: CSV, TSV, Parquet, or a plain text of paths."""

import csv
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import storage
from simsiam_tf.data import shards
from simsiam_tf.data.source import UNLABELLED, ReadImages, Source
from simsiam_tf.schema import UserError, one_line

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_PATH_COLUMNS = ("path", "image", "file_name")
SPLIT_NAMES = ("train", "val", "validation", "test")
_DEFAULT_SPLIT = "train"


class _Row(NamedTuple):
    """One image of a list.

    Attributes:
      file: the list.
      number: of the line (Parquet: of the row), for messages.
      path: as it is written in the list.
      label: text of the label; empty if there is none.
      split: name of the split.
    """

    file: str
    number: int
    path: str
    label: str
    split: str


def load_list(data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split of a list of image files, in the order of the list.

    A list has the columns `path` (or `image`, or `file_name`), `label` and `split`; only the first
    is required. Without a header the columns are the path and the label. Relative paths start at
    the folder of the list. A path may be a URL, which is first opened when its image is read.
    Labels that are all integers are sorted by value, others as text.

    Args:
      data_dir: the list, or a folder with a list for each split, such as `train.csv`.
      split: a value of the column `split`, or the name of a file in the folder, without its
        suffix. A list without this column is the split "train".

    Raises:
      UserError: the list or the split does not exist, a row has no path or no label, or an image
        file does not exist.
    """
    everything = list(_read_lists(data_dir))
    splits = sorted({row.split for row in everything})
    rows = [row for row in everything if row.split == split]
    if not everything:
        raise UserError(f"The list of --data_dir must name an image. Received: {data_dir}, empty")
    if not rows:
        raise UserError(f"{data_dir} has the splits {', '.join(splits)}. Received: {split}")
    _check_labels(rows)
    # All splits have the same classes: a class that one split lacks must not shift the others.
    class_names, label_of = _number_classes([row for row in everything if row.label])
    if not rows[0].label:
        class_names = ()
    labels = np.array([label_of.get(row.label, UNLABELLED) for row in rows], np.int32)
    paths = [
        row.path if storage.is_url(row.path) else os.path.join(os.path.dirname(row.file), row.path)
        for row in rows
    ]
    _check_files(rows, paths)
    written = [row.path for row in rows]
    del everything, rows  # a million rows take more memory than all else here
    title = f"{data_dir} ({split})"
    logging.info(
        "List %s: %d images, %s",
        title,
        len(paths),
        f"{len(class_names)} classes" if class_names else "unlabelled",
    )
    has_urls = any(map(storage.is_url, paths))

    @functools.cache  # one result asks for it several times
    def fingerprint():
        whole = hashlib.sha256()
        for name, label, path in zip(written, labels.tolist(), paths, strict=True):
            whole.update(json.dumps([name, label, *_size_and_time(path)]).encode())
        return whole.hexdigest()

    return Source(
        title,
        len(paths),
        class_names,
        lambda index: paths[index],
        read=_url_reader(paths, labels) if has_urls else _reader(paths, labels),
        read_at_once=storage.READS_AT_ONCE if has_urls else 1,
        fingerprint=fingerprint,
        labels=labels,
    )


def _reader(paths: list[str], labels: np.ndarray) -> ReadImages:
    # Arrays of objects: a NumPy array of text is as wide as the longest path.
    path_tensor = tf.constant(np.array(paths, dtype=object))
    label_tensor = tf.constant(labels)

    def read(indices):
        encoded = tf.map_fn(tf.io.read_file, tf.gather(path_tensor, indices))
        return encoded, tf.gather(label_tensor, indices)

    return read


def _url_reader(paths: list[str], labels: np.ndarray) -> ReadImages:
    for url in {path.split("://")[0]: path for path in paths if storage.is_url(path)}.values():
        storage.open_url(url)  # a driver that is missing would make every image unreadable
    return shards.reader(
        lambda index: storage.read_bytes(paths[index]), labels, num_threads=storage.READS_AT_ONCE
    )


def _read_lists(data_dir: str) -> Iterator[_Row]:
    """Yields the rows of the list, or of all lists of the folder."""
    if not data_dir:
        raise UserError("--dataset=list needs --data_dir, the list of images. Received: none")
    root = os.path.expanduser(data_dir)
    if os.path.isfile(root):
        yield from _read_list(root, None)
    elif os.path.isdir(root):
        candidates = [(split, split + suffix) for split in SPLIT_NAMES for suffix in LIST_SUFFIXES]
        found = [(split, name) for split, name in candidates if name in os.listdir(root)]
        if not found:
            raise UserError(
                f"A folder of lists must contain {', '.join(SPLIT_NAMES)} as "
                f"{', '.join(LIST_SUFFIXES)}. Received: {data_dir}"
            )
        if len(dict(found)) < len(found):
            names = ", ".join(name for _, name in found)
            raise UserError(f"A split must have one list. Received: {data_dir}, with {names}")
        for split, name in found:
            yield from _read_list(os.path.join(root, name), split)
    else:
        raise UserError(
            f"--data_dir must be a list of images, or a folder of lists. Received: {data_dir}, "
            "which does not exist"
        )


def _read_list(file: str, split: str | None) -> Iterator[_Row]:
    """Yields the rows of a list.

    Args:
      file: the path of the list.
      split: of all its rows; None: the one that its column `split` names.
    """
    is_parquet = file.lower().endswith(".parquet")
    table = _parquet_rows(file) if is_parquet else _text_rows(file)
    columns: dict[str, int] = {}
    for number, cells in table:
        if not columns:
            columns, is_header = _find_columns(cells, file)
            if split is not None and "split" in columns:
                raise UserError(
                    "A list in a folder of lists must have no column split, because its name is "
                    f"its split. Received: {file}"
                )
            if is_header:
                continue
        row = {name: cells[at].strip() for name, at in columns.items() if at < len(cells)}
        if not row.get("path"):
            raise UserError(f"Every row must have a path. Received: row {number} of {file}")
        if "split" in columns and not row.get("split"):
            raise UserError(f"Every row must have a split. Received: row {number} of {file}")
        of_split = split or row.get("split") or _DEFAULT_SPLIT
        yield _Row(file, number, row["path"], row.get("label", ""), of_split)


def _find_columns(cells: Sequence[str], file: str) -> tuple[dict[str, int], bool]:
    """Returns the offset of each column, and whether the first row of the list is a header."""
    names = [cell.strip().lower() for cell in cells]
    path = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    others: dict[str, int] = {
        name: names.index(name) for name in ("label", "split") if name in names
    }
    if path is not None:
        return {"path": path, **others}, True
    if len(names) > 2 or others:
        raise _no_path_column(file, cells)
    return {"path": 0, "label": 1}, False


def _no_path_column(file: str, names: Iterable[str]) -> UserError:
    return UserError(
        f"A list must have a column {' or '.join(_PATH_COLUMNS)}. Received: {file}, with "
        f"{', '.join(names)}"
    )


def _text_rows(file: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the cells of each line that is not blank."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            start = lines.readline()
            lines.seek(0)
            is_tsv = file.lower().endswith(".tsv")
            has_tabs = "\t" in start and not file.lower().endswith(".csv")
            reader = csv.reader(lines, delimiter="\t" if is_tsv or has_tabs else ",")
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The list cannot be read as UTF-8 text ({error}): {file}") from error


def _parquet_rows(file: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the names of the columns as row 0, then the number and the cells of each row."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            fields = {field.name.lower(): field for field in opened.schema_arrow}
            wanted = [name for name in (*_PATH_COLUMNS, "label", "split") if name in fields]
            image = fields.get("image")
            if image is not None and not _is_text(image.type):
                raise UserError(
                    "--dataset=list reads paths; images inside of Parquet files are "
                    f"--dataset=parquet. Received: {file}"
                )
            if not set(_PATH_COLUMNS).intersection(wanted):
                raise _no_path_column(file, fields)
            yield 0, wanted
            number = 0
            for batch in opened.iter_batches(columns=[fields[name].name for name in wanted]):
                by_name = {name.lower(): batch.column(name) for name in batch.schema.names}
                for cells in zip(*(by_name[name].to_pylist() for name in wanted), strict=True):
                    number += 1
                    yield number, ["" if cell is None else str(cell) for cell in cells]
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"The list cannot be read as Parquet ({one_line(error)}): {file}") from None


def _is_text(kind) -> bool:
    import pyarrow

    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return pyarrow.types.is_string(values) or pyarrow.types.is_large_string(values)


def _number_classes(rows: list[_Row]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the names of the classes, sorted, and the number of the class of each label.

    Args:
      rows: of all splits, each with a label.
    """
    labels = {row.label for row in rows}
    if not all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        names = sorted(labels)
        return tuple(names), {name: number for number, name in enumerate(names)}
    values = sorted({int(label) for label in labels})
    if values and values[0] < 0:
        row = next(row for row in rows if int(row.label) < 0)
        raise UserError(
            "Labels are names or numbers from 0 on; an image without a label has an empty one. "
            f"Received: {row.label} in row {row.number} of {row.file}"
        )
    number_of = {value: number for number, value in enumerate(values)}
    return tuple(map(str, values)), {label: number_of[int(label)] for label in labels}


def _check_labels(rows: list[_Row]) -> None:
    labelled = [row for row in rows if row.label]
    if labelled and len(labelled) < len(rows):
        row = next(row for row in rows if not row.label)
        raise UserError(
            "Either every image of a split has a label, or none has. Received: row "
            f"{row.number} of {row.file}, without a label"
        )


def _check_files(rows: list[_Row], paths: list[str]) -> None:
    for row, path in zip(rows, paths, strict=True):
        if not storage.is_url(path) and not os.path.isfile(path):
            is_first = row.number == 1 and not row.file.lower().endswith(".parquet")
            hint = f" (a header names its column {' or '.join(_PATH_COLUMNS)})" if is_first else ""
            raise UserError(
                f"Every image of a list must exist. Received: {path}, row {row.number} of "
                f"{row.file}{hint}"
            )


def _size_and_time(path: str) -> tuple[int, ...]:
    """Returns the size and the modification time of a file; an empty tuple if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
