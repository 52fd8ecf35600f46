"""Features on disk, so that an encoder sees the images of a data set only once."""

import hashlib
import json
import os
import time

import numpy as np
from absl import logging

from simsiam_tf import files
from simsiam_tf.schema import UserError

_FACTS, _FEATURES, _LABELS = "facts.json", "features.npy", "labels.npy"


def check(folder):
    """Finds out before the work whether features can be kept; makes the folder."""
    try:
        files.make_folder(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def hash_of_folder(folder):
    """The SHA-256 of all files in a folder, by name and content; hexadecimal."""
    whole = hashlib.sha256()
    for parent, subfolders, names in os.walk(folder):
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{os.path.relpath(path, folder)}\n{content}\n".encode())
    return whole.hexdigest()


def load_or_extract(folder, facts, name, extract):
    """Features and labels from the cache, or extracted into it.

    Args:
      folder: of the cache.
      facts: all that the features depend on, a dict that JSON can hold.
      name: of the images, for the log.
      extract: called with two empty binary files, which become .npy files of the features, float32
        `[N, F]`, and of the labels, int32 `[N, …]`.

    Returns:
      features and labels, memory-mapped.

    Raises:
      UserError: the features cannot be written; or whatever `extract` raises.
    """
    text = json.dumps(facts, indent=2, sort_keys=True)
    entry = os.path.join(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
    kept = _load(entry)
    if kept:
        logging.info("Features of %s: %d from %s", name, len(kept[0]), entry)
        return kept
    started = time.perf_counter()
    _save(entry, text, extract)
    seconds = time.perf_counter() - started
    features, labels = _map(entry)
    logging.info("Features of %s: %d extracted in %.1f s", name, len(features), seconds)
    return features, labels


def _load(entry):
    """What an entry holds; None where there is none that can be read."""
    if not os.path.isdir(entry):
        return None
    try:
        return _map(entry)
    except (OSError, ValueError, EOFError) as error:
        logging.warning("%s is damaged (%s): its features are extracted anew", entry, error)
        return None


def _map(entry):
    return tuple(np.load(os.path.join(entry, name), mmap_mode="r") for name in (_FEATURES, _LABELS))


def _save(entry, text, extract):
    """Extracts an entry, which has its name once it is complete."""
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


def _unwritable(folder, error):
    return UserError(
        f"--feature_cache must be a folder that can be written to ({error.strerror or error}). "
        f"Received: {folder}"
    )
