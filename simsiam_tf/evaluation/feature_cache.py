"""Features on disk, so that an encoder sees the images of a data set only once."""

import hashlib
import json
import os
import shutil
import tempfile
import time

import numpy as np
from absl import logging

from simsiam_tf.schema import UserError

_FACTS, _FEATURES, _LABELS = "facts.json", "features.npy", "labels.npy"


def check(folder):
    """Finds out before the work whether features can be kept; makes the folder."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
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
    """Has an entry extracted aside and renames it: an entry under its name is complete."""
    folder = os.path.dirname(entry)
    try:
        staging = tempfile.mkdtemp(prefix=".partial-", dir=folder)
        try:
            with (
                open(os.path.join(staging, _FEATURES), "w+b") as features,
                open(os.path.join(staging, _LABELS), "w+b") as labels,
            ):
                extract(features, labels)
            with open(os.path.join(staging, _FACTS), "w", encoding="utf-8") as file:
                file.write(text + "\n")
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one, or another process was first
            os.replace(staging, entry)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder, error):
    return UserError(
        f"--feature_cache must be a folder that can be written to ({error.strerror or error}). "
        f"Received: {folder}"
    )
