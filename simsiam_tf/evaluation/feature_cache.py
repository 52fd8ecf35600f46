"""A cache of features on disk, so that an encoder sees each image of a data set only once."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from simsiam_tf import files
from simsiam_tf.schema import UserError

_FACTS, _FEATURES, _LABELS = "facts.json", "features.npy", "labels.npy"


def check(folder: str) -> None:
    """Makes the folder of the cache, and checks that it can be written to before work starts.

    Raises:
      UserError: it cannot.
    """
    try:
        files.make_folder(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def hash_of_folder(folder: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of the names and contents of all files in a folder, in hexadecimal."""
    whole = hashlib.sha256()
    for parent, subfolders, names in os.walk(folder):
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{os.path.relpath(path, folder)}\n{content}\n".encode())
    return whole.hexdigest()


def load_or_extract(
    folder: str,
    facts: dict[str, Any],
    name: str,
    extract: Callable[[BinaryIO, BinaryIO], object],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and labels from the cache, after extracting them if they are missing.

    Args:
      folder: folder of the cache.
      facts: everything that the features depend on; a dict that JSON can represent.
      name: name of the images in the log.
      extract: function that writes two empty binary files as .npy files: the features, float32
        `[N, F]`, and the labels, int32 `[N, …]`.

    Returns:
      Features and labels, memory-mapped.

    Raises:
      UserError: the features cannot be written. Errors of `extract` pass through.
    """
    text = json.dumps(facts, indent=2, sort_keys=True)
    entry = os.path.join(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
    kept = _load(entry)
    if kept:
        logging.info("Features of %s: read %d from %s", name, len(kept[0]), entry)
        return kept
    started = time.perf_counter()
    _save(entry, text, extract)
    seconds = time.perf_counter() - started
    features, labels = _map(entry)
    logging.info("Features of %s: extracted %d in %.1f s", name, len(features), seconds)
    return features, labels


def _load(entry: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Features and labels of an entry; None if it is missing or cannot be read."""
    if not os.path.isdir(entry):
        return None
    try:
        return _map(entry)
    except (OSError, ValueError, EOFError) as error:
        logging.warning("%s is damaged (%s); its features are extracted again", entry, error)
        return None


def _map(entry: str) -> tuple[np.ndarray, np.ndarray]:
    features, labels = (
        np.load(os.path.join(entry, name), mmap_mode="r") for name in (_FEATURES, _LABELS)
    )
    return features, labels


def _save(entry: str, text: str, extract: Callable[[BinaryIO, BinaryIO], object]) -> None:
    """Extracts features into an entry, which gets its name only once it is complete."""
    folder = os.path.dirname(entry)
    try:
        with files.written_whole(entry, by_several=True) as staging:
            os.mkdir(staging)
            with (
                open(os.path.join(staging, _FEATURES), "w+b") as features,
                open(os.path.join(staging, _LABELS), "w+b") as labels,
            ):
                extract(features, labels)
            files.write_text(os.path.join(staging, _FACTS), text + "\n")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: str, error: OSError) -> UserError:
    return UserError(
        f"--feature_cache must be a folder that can be written to ({error.strerror or error}). "
        f"Received: {folder}"
    )
