"""Files that contain many images: which files, which split, and reading by index."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from simsiam_tf.data.source import ReadImages
from simsiam_tf.schema import UserError, one_line

SPLIT_NAMES = ("train", "val", "validation", "test")


def find_splits(data_dir: str, suffixes: Sequence[str], dataset: str) -> dict[str, list[str]]:
    """Returns the files of each split: {split: paths}.

    The split of a file is the first word of its name that is one of `SPLIT_NAMES`, as in
    `imagenet-train-0007.tar`; or else the name of the folder that contains it, if that is one. All
    other files are "train".

    Args:
      data_dir: files, patterns or folders, separated by commas. A pattern has ranges (`{00..99}`),
        choices (`{a,b}`), `*` and `?`. The files of a folder, and of the folders in it, are sorted.
      suffixes: of the files in a folder.
      dataset: name of the data set, for messages.

    Raises:
      UserError: there is no file, or a file or folder does not exist.
    """
    if not data_dir:
        raise UserError(
            f"--dataset={dataset} needs --data_dir, its files or their folder. Received: none"
        )
    splits: dict[str, list[str]] = {}
    for path in dict.fromkeys(_find_files(data_dir, suffixes)):
        splits.setdefault(split_of(path), []).append(path)
    if not splits:
        raise UserError(
            f"--data_dir must contain a file {' or '.join(suffixes)}. Received: {data_dir}"
        )
    return splits


def split_of(path: str) -> str:
    """Returns the name of the split of a file; see `find_splits`."""
    folder, name = os.path.split(path)
    words = [*re.split(r"[^a-z]+", name.lower()), os.path.basename(folder).lower()]
    return next((word for word in words if word in SPLIT_NAMES), SPLIT_NAMES[0])


def files_of(splits: dict[str, list[str]], data_dir: str, split: str) -> list[str]:
    """Returns the files of a split of `find_splits`.

    Raises:
      UserError: there is no such split.
    """
    if split not in splits:
        raise UserError(f"{data_dir} has the splits {', '.join(splits)}. Received: {split}")
    return splits[split]


def _find_files(data_dir: str, suffixes: Sequence[str]) -> Iterator[str]:
    for text in re.split(r",(?![^{}]*\})", data_dir):  # not at a comma inside of braces
        for pattern in _expand_braces(os.path.expanduser(text)):
            if os.path.isdir(pattern):
                yield from _files_below(pattern, suffixes)
            elif os.path.isfile(pattern):
                yield pattern
            else:
                found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []
                if not found:
                    raise UserError(
                        f"Every file of --data_dir must exist. Received: {pattern}, which does not"
                    )
                yield from found


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yields the texts of a pattern such as `{000..099}` or `{a,b}`, as a shell does."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]) if braces else None
    if braces is None or (ends is None and "," not in braces[1]):
        yield pattern
        return
    choices: Iterable[str] = braces[1].split(",")
    if ends:
        choices = (f"{n:0{len(ends[1])}}" for n in range(int(ends[1]), int(ends[2]) + 1))
    for choice in choices:
        yield from _expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _files_below(root: str, suffixes: Sequence[str]) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        ]
    return sorted(found)


def reader(
    fetch: Callable[[int], bytes], labels: np.ndarray, *, num_threads: int = 1
) -> ReadImages:
    """Returns the `read` of a source whose images a Python function reads.

    Args:
      fetch: index → encoded image; called by several threads at once. The text of its exception is
        the reason for which an image cannot be read.
      labels: `[N]` int32.
      num_threads: number of images that are read at once, where reading waits for a network.

    Returns:
      The function. An image that cannot be read is an error if it is read alone. Among others it is
      an empty file, so that only this one is missing in a batch.
    """
    label_tensor = tf.constant(labels)
    threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def try_to_fetch(index):
        try:
            return fetch(index), ""
        except Exception as error:  # those of the file system, of tarfile, of Arrow, ...
            return b"", one_line(error)

    def fetch_all(indices):
        fetched = (threads.map if threads else map)(try_to_fetch, indices.tolist())
        files, reasons = zip(*fetched, strict=True) if len(indices) else ((), ())
        reason = reasons[0] if len(indices) == 1 else ""
        # An array of objects: NumPy's own texts lose the zeros at their ends.
        return np.array(files, dtype=object), np.array(reason.encode(), dtype=object)

    def read(indices):
        # A stateful function would make `enable_op_determinism` run the pipeline sequentially.
        encoded, reason = tf.numpy_function(
            fetch_all, [indices], (tf.string, tf.string), stateful=False
        )
        check = tf.raw_ops.Assert(condition=tf.equal(reason, ""), data=[reason])
        with tf.control_dependencies([] if tf.executing_eagerly() else [check]):
            encoded = tf.ensure_shape(encoded, indices.shape)
        return encoded, tf.gather(label_tensor, indices)

    return read


def fingerprint_of(paths: Sequence[str], *facts: object) -> str:
    """Returns a text that changes when a file is added, removed or written again.

    Args:
      paths: of the files.
      *facts: further values of JSON that matter.
    """
    entries = []
    for path in paths:
        status = os.stat(path)
        entries.append([os.path.basename(path), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps([entries, *facts]).encode()).hexdigest()
