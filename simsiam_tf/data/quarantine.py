"""The images that cannot be read: noted by the pipeline, judged by who trains on its batches."""

import json
import os
import queue

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.schema import UserError

FILE_NAME = "quarantine.jsonl"
READ_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DataLossError,
    tf.errors.UnknownError,
)


class Quarantine:
    """The samples of a source that the pipeline had to put others in the place of.

    The pipeline notes a sample before any step has it; `check` does what `--on_bad_image` says, so
    that a step is not followed by another, nor saved, where the run was to stop.
    """

    def __init__(self, source, data, path=None):
        """Args:
        source: the `datasets.Source` that is read.
        data: a `DataConfig`.
        path: file to list the samples in, a line of JSON each; what it lists is not listed again.
          None: none is written, as by all workers but one.
        """
        self.source = source
        self.data = data
        self.path = path
        self._noted = queue.SimpleQueue()  # filled by the pipeline's threads
        self._listed = _read_listed(path) if path else {}
        self._bad = {
            index
            for path, index in self._listed.items()
            if index < source.num_examples and source.describe(index) == path
        }

    @property
    def num_bad(self):
        """How many images cannot be read, of those that were tried."""
        return len(self._bad)

    def note(self, tried):
        """Called by the pipeline, from any thread.

        Args:
          tried: int64 `[k]`, an array: a sample's index and those drawn in its place, one after
            another, until the last could be read.

        Returns:
          The last.
        """
        *unreadable, read = tried
        for index in unreadable:
            self._noted.put(int(index))
        return read

    def check(self):
        """Deals with what was noted since the last call; costs nothing where nothing was.

        Raises:
          UserError: by `--on_bad_image=error`, of the image; else where there are too many of them.
        """
        while not self._noted.empty():
            index = self._noted.get()
            if index not in self._bad:
                self._bad.add(index)
                self._judge(index)

    def explain(self, error, indices):
        """The `UserError` for an iterator's failure: an image that none takes the place of.

        Args:
          error: what the iterator raised, one of `READ_ERRORS`.
          indices: of the samples that it was to give, `[k]`.
        """
        found = _first_unreadable(self.source, indices, self.data.max_image_pixels)
        if found is None:
            return UserError(f"{self.source.name} cannot be read ({reason_of(error)})")
        path, reason = found
        return UserError(
            f"An image cannot be read, nor any that was tried in its place: {path} ({reason})"
        )

    def _judge(self, index):
        path = self.source.describe(index)
        reason = _why_unreadable(self.source, index, self.data.max_image_pixels)
        reason = reason or "at first; it was when it was tried again"
        if self.data.on_bad_image == "error":
            raise _error_of(path, reason)
        logging.warning("Another image takes the place of %s (%s)", path, reason)
        if self.path and path not in self._listed:
            self._listed[path] = index
            entry = {"path": path, "index": index, "reason": reason}
            with (
                files.writing_to(os.path.dirname(self.path)),
                open(self.path, "a", encoding="utf-8") as file,
            ):
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        check_fraction(self.num_bad, self.source.num_examples, self.data.max_bad_fraction)


def explain(error, source, indices, max_pixels):
    """The `UserError` for an iterator's failure where no image takes another's place.

    Args:
      error: what the iterator raised, one of `READ_ERRORS`.
      source: the `datasets.Source`.
      indices: of the samples that the iterator was to give, `[k]`.
      max_pixels: as the iterator's data set was made with.
    """
    found = _first_unreadable(source, indices, max_pixels)
    return _error_of(*(found or (f"one of {source.name}", reason_of(error))))


def _first_unreadable(source, indices, max_pixels):
    """(where it is, why) of the first of some images that cannot be read; None: all can be."""
    if source.stream:  # the order of its samples is not that of `indices`
        return None
    for index in np.asarray(indices).tolist():
        reason = _why_unreadable(source, index, max_pixels)
        if reason:
            return source.describe(index), reason
    return None


def _why_unreadable(source, index, max_pixels):
    try:
        encoded, _ = source.read(tf.constant([index], tf.int64))
        decode_image(encoded[0], max_pixels)
    except READ_ERRORS as error:
        return reason_of(error)
    return None


def _error_of(path, reason):
    return UserError(
        f"An image cannot be read: {path} ({reason}). Remove or replace it, or let other images "
        "take the place of such ones: --on_bad_image=skip"
    )


def check_fraction(num_bad, num_examples, max_bad_fraction):
    """Raises `UserError` where more images than `--max_bad_fraction` cannot be read."""
    if num_bad > max_bad_fraction * num_examples:
        raise UserError(
            "At most --max_bad_fraction of the images may be ones that cannot be read. "
            f"Received: {num_bad} of {num_examples}, with --max_bad_fraction={max_bad_fraction}"
        )


def reason_of(error):
    """TensorFlow's message on one image, without what it says of operations and devices."""
    text = error.message.split("}} ")[-1].split(" [Op:")[0].split("[[")[0]
    if "assertion failed: " in text:
        text = text.split("assertion failed: ")[1].replace("[", "").replace("]", "")
    return " ".join(text.split())


def _read_listed(path):
    """{path: index} of what an earlier start listed; a line that a kill cut off leaves the file."""
    listed = {}
    if not os.path.exists(path):
        return listed
    with open(path, "rb+") as file:
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        file.truncate(len(whole))
    for line in whole.splitlines():
        try:
            entry = json.loads(line)
            listed[entry["path"]] = entry["index"]
        except (ValueError, KeyError, TypeError):
            logging.warning("%s: a line that is none of this file's is passed over", path)
    return listed
