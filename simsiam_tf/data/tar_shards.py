"""Tar files of images as data sets, by WebDataset's convention, read by index.

The headers of all tar files are read once. The place of every image is then kept in an index file,
so that a sample of a random order is one read at a known offset.
"""

import dataclasses
import functools
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from simsiam_tf import files
from simsiam_tf.data import shards
from simsiam_tf.data.folders import IMAGE_SUFFIXES
from simsiam_tf.data.source import UNLABELLED, Source
from simsiam_tf.schema import UserError, one_line
from simsiam_tf.terminal import Progress

INDEX_NAME = ".simsiam_index.npz"
_INDEX_VERSION = 1
_READ_AT_ONCE = 16
_CLASS_NUMBER = "[0-9]{1,6}"  # a longer number is a name
_FILES_OPEN = 128  # systems allow a process 1024 or more, for all that it does
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # to name the compressed


@dataclasses.dataclass(frozen=True)
class _Shard:
    """The images of a tar file, in its order.

    Attributes:
      path: of the tar file.
      offsets: `[n]` int64, the offset of each image in bytes.
      sizes: `[n]` int64, in bytes.
      names: `[n]` bytes, the name of each image in the tar file, in UTF-8.
      labels: `[n]` bytes, the text of each label in UTF-8; empty if there is none.
    """

    path: str
    offsets: np.ndarray
    sizes: np.ndarray
    names: np.ndarray
    labels: np.ndarray


def load_tar(data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split of tar files, in the order of the files and in theirs.

    Files of one tar file with the same name up to its first dot are one sample: an image, and its
    label in `.cls` (a number) or in `.json` (the key "label" or "cls", a number or a text). Other
    files are ignored. Numbers are the labels themselves, unless a label is a text or has more than
    six digits; the labels are then sorted as texts.

    Args:
      data_dir: tar files, patterns such as `shards/{000..099}.tar`, or folders, separated by
        commas; `shards.find_splits` says which file is of which split.
      split: name of the split.

    Raises:
      UserError: a file does not exist, is compressed, broken or truncated, or contains no image;
        the split is unknown; or some of its images have labels and others none.
    """
    splits = shards.find_splits(data_dir, _SUFFIXES, "tar")
    paths = shards.files_of(splits, data_dir, split)
    everything = _index([path for of_split in splits.values() for path in of_split])
    found = [everything[path] for path in paths]
    starts = np.cumsum([0, *(len(shard.offsets) for shard in found)])
    num_images = int(starts[-1])
    name = f"{data_dir} ({split})"
    if not num_images:
        raise UserError(
            f"Tar files must contain an image ({', '.join(IMAGE_SUFFIXES)}). "
            f"Received: {name}, without one"
        )

    def find(index):
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return found[number], index - int(starts[number])

    def describe(index):
        shard, at = find(index)
        return (
            f"{shard.path}: {shard.names[at].decode(errors='replace')} at byte {shard.offsets[at]}"
        )

    texts = np.concatenate([shard.labels for shard in found])
    is_labelled = texts != b""
    if is_labelled.any() and not is_labelled.all():
        raise UserError(
            "Either every image of a split has a label (.cls, or .json with the key label or cls), "
            f"or none has. Received: {describe(int(np.argmin(is_labelled)))}, without a label"
        )
    class_names: tuple[str, ...] = ()
    labels = np.full(num_images, UNLABELLED, np.int32)
    if is_labelled.all():
        class_names, labels = _number_labels(texts, list(everything.values()))
    logging.info(
        "Tar files %s: %d images in %d files, %s",
        name,
        num_images,
        len(paths),
        f"{len(class_names)} classes" if class_names else "unlabelled",
    )
    fingerprint = shards.fingerprint_of(paths)
    opened = functools.lru_cache(_FILES_OPEN)(_Descriptor)

    def fetch(index):
        shard, at = find(index)
        size = int(shard.sizes[at])
        encoded = opened(shard.path).read(int(shard.offsets[at]), size)
        if len(encoded) < size:
            raise OSError("the tar file has become shorter")
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


class _Descriptor:
    """An open file that any number of threads read. It is closed when the last one lets go."""

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` on; fewer at the end of the file."""
        return os.pread(self._number, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)


def _number_labels(
    texts: np.ndarray, everything: Sequence[_Shard]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes and the label of each image, `[N]` int32.

    Args:
      texts: `[N]` bytes, the label of each image of a split.
      everything: the shards of all splits, which have the same classes.
    """
    distinct = {text.decode() for shard in everything for text in np.unique(shard.labels)} - {""}
    if all(re.fullmatch(_CLASS_NUMBER, text) for text in distinct):
        num_classes = max(map(int, distinct)) + 1
        return tuple(map(str, range(num_classes))), texts.astype(np.int32)
    names = sorted(distinct)  # UTF-8 sorts like the text
    labels = np.searchsorted(np.array([name.encode() for name in names]), texts)
    return tuple(names), labels.astype(np.int32)


# The index.


def _index(paths: Sequence[str]) -> dict[str, _Shard]:
    """Returns the images of each tar file by its path; headers are read where no index has them."""
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(os.path.abspath(path)), []).append(path)
    kept = {folder: _load_index(folder) for folder in by_folder}
    shards_of = {}
    missing = []
    for folder, group in by_folder.items():
        for path in group:
            shard = kept[folder].get(_key_of(path))
            if shard is None:
                missing.append(path)
            else:
                shards_of[path] = dataclasses.replace(shard, path=path)
    with Progress(len(missing), "index of the tar files", "file") as progress:
        for path in missing:
            shards_of[path] = _read_headers(path)
            progress.update(1)
    for folder in {os.path.dirname(os.path.abspath(path)) for path in missing}:
        new = {_key_of(path): shards_of[path] for path in by_folder[folder]}
        # A changed tar file has another key: what the index says of the old one is dropped.
        names = {name for name, _, _ in new}
        old = {key: shard for key, shard in kept[folder].items() if key[0] not in names}
        _save_index(folder, old | new)
    return shards_of


def _key_of(path: str) -> tuple[str, int, int]:
    """Returns the name, the size and the modification time of a file."""
    status = os.stat(path)
    return os.path.basename(path), status.st_size, status.st_mtime_ns


def _index_paths(folder: str) -> list[str]:
    """Returns the paths that the index of a folder may have: in it, or in the user's cache."""
    return [os.path.join(folder, INDEX_NAME), files.cache_path("tar", folder)]


def _load_index(folder: str) -> dict[tuple[str, int, int], _Shard]:
    """Returns the shards in the index files of a folder; none if there is no file of this form."""
    found: dict[tuple[str, int, int], _Shard] = {}
    for path in _index_paths(folder):
        try:
            with np.load(path) as arrays:
                if int(arrays["version"]) != _INDEX_VERSION:
                    continue
                cuts = np.cumsum(arrays["counts"])[:-1]
                columns = [
                    np.split(arrays[name], cuts) for name in ("offsets", "sizes", "names", "labels")
                ]
                keys = zip(*(arrays[f"shard_{name}"].tolist() for name in _KEYS), strict=True)
                found |= {
                    key: _Shard(os.path.join(folder, key[0]), *parts)
                    for key, *parts in zip(keys, *columns, strict=True)
                }
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logging.info("%s is made again (%s)", path, one_line(error))
    return found


_KEYS = ("names", "sizes", "times")


def _save_index(folder: str, by_key: dict[tuple[str, int, int], _Shard]) -> None:
    """Writes an index; a folder that cannot be written to has it in the user's cache."""
    keys = zip(*by_key, strict=True)
    arrays: dict[str, Any] = {
        f"shard_{name}": np.array(column) for name, column in zip(_KEYS, keys, strict=True)
    }
    for name in ("offsets", "sizes", "names", "labels"):
        arrays[name] = np.concatenate([getattr(shard, name) for shard in by_key.values()])
    arrays["version"] = np.array(_INDEX_VERSION)
    arrays["counts"] = np.array([len(shard.offsets) for shard in by_key.values()])
    for path in _index_paths(folder):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with (
                files.written_whole(path, by_several=True) as staging,
                open(staging, "wb") as file,
            ):
                np.savez_compressed(file, **arrays)
            return
        except OSError as error:
            logging.info("No index in %s (%s)", path, files.reason_of(error))


# A tar file.


def _read_headers(path: str) -> _Shard:
    """Returns the images of a tar file."""
    _check_uncompressed(path)
    samples: dict[str, _Sample] = {}
    offset = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # of every header so far
                offset = tar.offset
                if member.isreg():
                    _add(samples, member, tar)
        _check_end(path, offset)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"A tar file is broken or truncated at byte {offset} ({one_line(error)}): {path}"
        ) from error
    except ValueError as error:
        raise UserError(f"{one_line(error)} in {path}") from error
    found = [sample for sample in samples.values() if sample.name]
    return _Shard(
        path,
        np.array([sample.offset for sample in found], np.int64),
        np.array([sample.size for sample in found], np.int64),
        np.array([sample.name.encode("utf-8", "surrogateescape") for sample in found], np.bytes_),
        np.array([sample.label.encode() for sample in found], np.bytes_),
    )


@dataclasses.dataclass
class _Sample:
    """One sample of a tar file; the name is empty where the image is missing."""

    name: str = ""
    offset: int = 0
    size: int = 0
    label: str = ""


def _add(samples: dict[str, _Sample], member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Adds a file to its sample. Raises `ValueError` if it is wrong."""
    folder, name = os.path.split(member.name)
    stem, _, suffix = name.partition(".")
    suffix = f".{suffix.lower()}"
    if not stem or suffix not in (*IMAGE_SUFFIXES, ".cls", ".json"):
        return
    sample = samples.setdefault(os.path.join(folder, stem), _Sample())
    if suffix in IMAGE_SUFFIXES:
        if sample.name:
            raise ValueError(f"Two images have one name, {sample.name} and {member.name},")
        sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size
        return
    content = tar.extractfile(member)
    text = content.read().decode() if content else ""
    if suffix == ".cls":
        sample.label = text.strip()
        if not re.fullmatch("[0-9]+", sample.label):
            raise ValueError(f"The label of {member.name} must be a number, not {sample.label!r},")
    elif not sample.label:
        sample.label = _label_in_json(text, member.name)


def _label_in_json(text: str, name: str) -> str:
    """Returns the label in a JSON file; empty if it has none. Raises `ValueError`."""
    try:
        values = json.loads(text)
    except ValueError:
        raise ValueError(f"{name} is no JSON") from None
    label = values.get("label", values.get("cls")) if isinstance(values, dict) else None
    if label is None:
        return ""
    if not isinstance(label, int | str) or isinstance(label, bool) or str(label).startswith("-"):
        raise ValueError(
            f"The label of {name} must be a number from 0 on or a text, not {label!r},"
        )
    return str(label)


def _check_uncompressed(path: str) -> None:
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, (name, program) in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"A tar file must not be compressed, because an image in it could not be read "
                f"alone; {program} uncompresses it, and the images keep their own compression. "
                f"Received: {path}, compressed by {name}"
            )


def _check_end(path: str, offset: int) -> None:
    """Raises `OSError` if the end mark is missing, at which tarfile passes over any damage."""
    with open(path, "rb") as file:
        file.seek(offset)
        mark = file.read(tarfile.BLOCKSIZE)
    if mark != bytes(tarfile.BLOCKSIZE):
        raise OSError("the file ends without an end mark" if len(mark) < 512 else "no header")
