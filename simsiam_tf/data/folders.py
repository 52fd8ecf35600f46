"""Folders of images as data sets, read file by file."""

import functools
import hashlib
import json
import os

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.data.source import UNLABELLED, Source
from simsiam_tf.schema import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")


def load_folder(data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split of an image folder.

    The images are labelled if each of them is in a class folder. Hidden files and folders are
    ignored.

    Args:
      data_dir: the folder; "~" is expanded.
      split: one of `folder_splits`; "train" where the folder has none of these.

    Raises:
      UserError: the folder or the split does not exist, or contains no image.
    """
    root, split_root, splits = _find_split(data_dir, split)
    paths = _find_images(split_root)
    if not paths:
        raise UserError(
            f"No image ({', '.join(IMAGE_SUFFIXES)}) was found. --data_dir must contain at least "
            f"one. Received: {split_root}"
        )
    # Cutting off the folder's name is fast; os.path.relpath takes a minute for a million paths.
    names = [path.removeprefix(os.path.join(split_root, "")) for path in paths]
    class_roots = [os.path.join(root, name) for name in splits] or [root]
    class_names, labels = _find_labels(names, class_roots)
    logging.info(
        "Folder %s: %d images, %s",
        split_root,
        len(paths),
        f"{len(class_names)} classes" if class_names else "unlabelled",
    )
    # An array of objects: a NumPy array of text needs 4 bytes for every character of the longest
    # path, once for each path.
    path_tensor = tf.constant(np.array(paths, dtype=object))
    label_tensor = tf.constant(labels)

    def read(indices):
        encoded = tf.map_fn(tf.io.read_file, tf.gather(path_tensor, indices))
        return encoded, tf.gather(label_tensor, indices)

    @functools.cache  # one result asks for it several times
    def fingerprint():
        # The hash of the JSON list of all files. One file is added at a time to save memory.
        whole, separator = hashlib.sha256(b"["), b""
        for name, path in zip(names, paths, strict=True):
            whole.update(separator + json.dumps([name, *_size_and_time(path)]).encode())
            separator = b", "
        whole.update(b"]")
        return whole.hexdigest()

    return Source(
        split_root,
        len(paths),
        class_names,
        lambda index: paths[index],
        read=read,
        fingerprint=fingerprint,
        labels=labels,
    )


def folder_splits(data_dir: str) -> list[str]:
    """Returns the names of the splits that have a subfolder in an image folder.

    The list is empty where the folder has no such subfolder; all its images are then "train".

    Args:
      data_dir: the folder; "~" is expanded.
    """
    root = os.path.expanduser(data_dir)
    return [name for name in SPLIT_FOLDERS if os.path.isdir(os.path.join(root, name))]


def _find_split(data_dir: str, split: str) -> tuple[str, str, list[str]]:
    """Returns the expanded folder, the folder of the split and the names of all splits."""
    if not data_dir:
        raise UserError("--dataset=folder needs --data_dir, the folder of images. Received: none")
    root = os.path.expanduser(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"--data_dir must be a folder that exists. Received: {data_dir}")
    splits = folder_splits(data_dir)
    if not splits and split != "train":
        raise UserError(
            f"{data_dir} has no split {split!r}: it has no folder {', '.join(SPLIT_FOLDERS)}, so "
            f"all its images are 'train'. Received: {split}"
        )
    if splits and split not in splits:
        raise UserError(f"{data_dir} has the splits {', '.join(splits)}. Received: {split}")
    return root, os.path.join(root, split) if splits else root, splits


def _find_labels(names: list[str], class_roots: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes and the label of each image, `[N]` int32.

    Args:
      names: N paths relative to the folder of the split.
      class_roots: the folders of all splits. All splits have the same list of classes, because a
        class that one split lacks must not shift the labels of the others.
    """
    if not all(os.sep in name for name in names):
        return (), np.full(len(names), UNLABELLED, np.int32)
    class_names = sorted({name for folder in class_roots for name in _subfolders(folder)})
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name.split(os.sep, 1)[0]] for name in names], np.int32)
    return tuple(class_names), labels


def _find_images(root: str) -> list[str]:
    """Returns the sorted paths of all images below a folder, without hidden files and folders."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        start = os.path.join(folder, "")
        found += [
            start + name
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _subfolders(folder: str) -> list[str]:
    return [
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    ]


def _size_and_time(path: str) -> tuple[int, ...]:
    """Returns the size and the modification time of a file; an empty tuple if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
