"""Folders of images as data sets, read file by file. A folder may be a URL, such as gs://bucket."""

import functools
import hashlib
import json
import os

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import storage
from simsiam_tf.data import shards
from simsiam_tf.data.listing import (
    IMAGE_SUFFIXES,
    Listing,
    is_hidden,
    list_images,
    split_names,
)
from simsiam_tf.data.source import UNLABELLED, ReadImages, Source
from simsiam_tf.schema import UserError

SPLIT_FOLDERS = ("train", "val", "validation", "test")


def load_folder(data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split of an image folder.

    The images are labelled if each of them is in a class folder. `list_images` says which files
    are images and which links are followed.

    Args:
      data_dir: the folder; "~" is expanded. Or its URL.
      split: one of `folder_splits`; "train" where the folder has none of these.

    Raises:
      UserError: the folder or the split does not exist, or contains no image.
    """
    root, split_root, splits = _find_split(data_dir, split)
    listing = list_images(split_root)
    left_out = listing.describe_left_out()
    left_out = f"; left out: {left_out}" if left_out else ""
    _warn_of_folders(split_root, listing)
    num_examples = len(listing.lengths)
    if not num_examples:
        raise UserError(
            f"No image ({', '.join(IMAGE_SUFFIXES)}) was found{left_out}. --data_dir must contain "
            f"at least one. Received: {split_root}"
        )
    class_roots = [os.path.join(root, name) for name in splits] or [root]
    class_names, labels = _find_labels(listing, class_roots)
    logging.info(
        "Folder %s: %d images, %s%s",
        split_root,
        num_examples,
        f"{len(class_names)} classes" if class_names else "unlabelled",
        left_out,
    )
    start, names = os.path.join(split_root, ""), listing.names
    ends = np.concatenate([[0], np.cumsum(listing.lengths, dtype=np.int64)])

    def describe(index):
        return start + os.fsdecode(names[ends[index] : ends[index + 1]])

    @functools.cache  # one result asks for it several times
    def fingerprint():
        # The hash of the JSON list of all files. One file is added at a time to save memory.
        whole, separator = hashlib.sha256(b"["), b""
        stored = storage.find_files(split_root) if storage.is_url(split_root) else None
        for name in split_names(names, listing.lengths):
            facts = _size_and_time(start + name) if stored is None else [stored.get(name)]
            whole.update(separator + json.dumps([name, *facts]).encode())
            separator = b", "
        whole.update(b"]")
        return whole.hexdigest()

    if storage.is_url(split_root):
        read, read_at_once = _url_reader(start, names, ends, labels), storage.READS_AT_ONCE
    else:
        read, read_at_once = _reader(start, names, ends, labels), 1
    return Source(
        split_root,
        num_examples,
        class_names,
        describe,
        read=read,
        read_at_once=read_at_once,
        fingerprint=fingerprint,
        labels=labels,
    )


def _url_reader(start: str, names: bytes, ends: np.ndarray, labels: np.ndarray) -> ReadImages:
    """As `_reader`, where the start of each path is a URL."""
    system, root = storage.open_url(start)

    def fetch(index):
        name = os.fsdecode(names[ends[index] : ends[index + 1]])
        return storage.read_from(system, f"{root.rstrip('/')}/{name}")

    return shards.reader(fetch, labels, num_threads=storage.READS_AT_ONCE)


def _reader(start: str, names: bytes, ends: np.ndarray, labels: np.ndarray) -> ReadImages:
    """Returns the `read` of a `Source`.

    Args:
      start: the start of each path.
      names: the rest of the N paths, one after the other.
      ends: `[N + 1]` int64, where each name starts and the last one ends.
      labels: `[N]` int32.
    """
    # Cutting a name out of one text is as fast as looking it up in a tensor of N texts, and saves
    # 16 bytes or more for each of them.
    with tf.device("CPU"):
        start_tensor = tf.constant(os.fsencode(start))
        names_tensor = tf.constant(np.array(names, object))  # bytes would be copied four times
        ends_tensor, labels_tensor = tf.constant(ends), tf.constant(labels)

    def read_one(bounds):
        name = tf.strings.substr(names_tensor, bounds[0], bounds[1] - bounds[0])
        return tf.io.read_file(start_tensor + name)

    def read(indices):
        bounds = tf.gather(ends_tensor, indices[:, tf.newaxis] + [[0, 1]])
        encoded = tf.map_fn(read_one, bounds, fn_output_signature=tf.string)
        return encoded, tf.gather(labels_tensor, indices)

    return read


def folder_splits(data_dir: str) -> list[str]:
    """Returns the names of the splits that have a subfolder in an image folder.

    The list is empty where the folder has no such subfolder; all its images are then "train".

    Args:
      data_dir: the folder; "~" is expanded. Or its URL.
    """
    if storage.is_url(data_dir):
        found = storage.subfolders(data_dir)
        return [name for name in SPLIT_FOLDERS if name in found]
    root = os.path.expanduser(data_dir)
    return [name for name in SPLIT_FOLDERS if os.path.isdir(os.path.join(root, name))]


def _find_split(data_dir: str, split: str) -> tuple[str, str, list[str]]:
    """Returns the expanded folder, the folder of the split and the names of all splits."""
    if not data_dir:
        raise UserError("--dataset=folder needs --data_dir, the folder of images. Received: none")
    root = os.path.expanduser(data_dir)
    exists = storage.is_folder(root) if storage.is_url(root) else os.path.isdir(root)
    if not exists:
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


def _find_labels(listing: Listing, class_roots: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes and the label of each image, `[N]` int32.

    Args:
      listing: the N images of the split.
      class_roots: the folders of all splits. All splits have the same list of classes, because a
        class that one split lacks must not shift the labels of the others.
    """
    if listing.num_loose:
        return (), np.full(len(listing.lengths), UNLABELLED, np.int32)
    class_names = sorted({name for folder in class_roots for name in _subfolders(folder)})
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in listing.subfolders], np.int32)
    return tuple(class_names), np.repeat(labels, list(listing.subfolders.values()))


def _warn_of_folders(root: str, listing: Listing) -> None:
    """Logs which folders are not listed, or not under each of their paths."""
    if listing.num_repeated:
        logging.warning(
            "Folder %s: %d path(s) lead to folders that are listed under another path, and are "
            "left out",
            root,
            listing.num_repeated,
        )
    if listing.unreadable:
        logging.warning(
            "Folder %s: %d folder(s) cannot be read and are left out, the first one is %s",
            root,
            len(listing.unreadable),
            listing.unreadable[0],
        )


def _subfolders(folder: str) -> list[str]:
    if storage.is_url(folder):
        return [name for name in storage.subfolders(folder) if not is_hidden(name)]
    return [
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name)
    ]


def _size_and_time(path: str) -> tuple[int, ...]:
    """Returns the size and the modification time of a file; an empty tuple if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
