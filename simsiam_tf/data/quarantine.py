"""Images that cannot be read: the pipeline notes them, and the training loop checks the notes."""

import json
import os
import queue
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files
from simsiam_tf.config import DataConfig
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.source import Source
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
    """The samples of a source that could not be read and for which others were substituted.

    The pipeline notes a sample before any step uses its batch. `check` then applies
    `--on_bad_image`. So a run that must stop neither saves that step nor starts another.

    Attributes:
      source: the `Source` that is read.
      data: the `DataConfig` with the rules for unreadable images.
      path: the file that lists the samples, or None.
    """

    def __init__(
        self, source: Source, data: DataConfig, path: str | os.PathLike | None = None
    ) -> None:
        """Args:
        source: the `Source` that is read.
        data: the `DataConfig` with the rules for unreadable images.
        path: file that lists the samples, one line of JSON each. A sample that it already lists is
          not listed again. None: no file is written, as on all workers but one.
        """
        self.source = source
        self.data = data
        self.path = path
        self._noted: queue.SimpleQueue[int] = queue.SimpleQueue()  # the pipeline's threads fill it
        self._listed = _read_listed(path) if path else {}
        self._bad = {
            index
            for path, index in self._listed.items()
            if index < source.num_examples and source.describe(index) == path
        }

    @property
    def num_bad(self) -> int:
        """Number of images found so far that cannot be read."""
        return len(self._bad)

    def note(self, tried: np.ndarray) -> np.int64:
        """Notes unreadable samples and returns the index that was read. Thread-safe.

        Args:
          tried: `[k]` int64, the index of a sample and of each of its substitutes, in the order in
            which they were tried. Only the last could be read.
        """
        *unreadable, read = tried
        for index in unreadable:
            self._noted.put(int(index))
        return read

    def check(self) -> None:
        """Processes the samples noted since the last call. Takes no time if there are none.

        Raises:
          UserError: with `--on_bad_image=error`, an image cannot be read; with `skip`, too many
            cannot.
        """
        while not self._noted.empty():
            index = self._noted.get()
            if index not in self._bad:
                self._bad.add(index)
                self._process(index)

    def explain(self, error: tf.errors.OpError, indices: Iterable[int]) -> UserError:
        """Returns the error for a failed iterator: an image for which no substitute was found.

        Args:
          error: raised by the iterator, one of `READ_ERRORS`.
          indices: `[k]`, the samples that the iterator was reading.
        """
        found = _first_unreadable(self.source, indices, self.data.max_image_pixels)
        if found is None:
            return UserError(f"{self.source.name} cannot be read ({reason_of(error)})")
        path, reason = found
        return UserError(
            f"An image cannot be read, nor can any of its substitutes: {path} ({reason})"
        )

    def _process(self, index: int) -> None:
        path = self.source.describe(index)
        reason = _why_unreadable(self.source, index, self.data.max_image_pixels)
        reason = reason or "the first attempt failed, the second one succeeded"
        if self.data.on_bad_image == "error":
            raise _error_of(path, reason)
        logging.warning(
            "An image cannot be read; another one is used instead: %s (%s)", path, reason
        )
        if self.path and path not in self._listed:
            self._listed[path] = index
            entry = {"path": path, "index": index, "reason": reason}
            with (
                files.writing_to(os.path.dirname(self.path)),
                open(self.path, "a", encoding="utf-8") as file,
            ):
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        check_fraction(self.num_bad, self.source.num_examples, self.data.max_bad_fraction)


def explain(
    error: tf.errors.OpError, source: Source, indices: Iterable[int], max_pixels: int
) -> UserError:
    """Returns the error for a failed iterator without substitutes.

    Args:
      error: raised by the iterator, one of `READ_ERRORS`.
      source: the `Source` of the iterator.
      indices: `[k]`, the samples that the iterator was reading.
      max_pixels: as the iterator's data set was made with.
    """
    found = _first_unreadable(source, indices, max_pixels)
    return _error_of(*(found or (f"one of {source.name}", reason_of(error))))


def _first_unreadable(
    source: Source, indices: Iterable[int], max_pixels: int
) -> tuple[str, str] | None:
    """Returns (location, reason) of the first unreadable image; None if every image is readable."""
    if source.stream:  # the order of its samples is not that of `indices`
        return None
    for index in np.asarray(indices).tolist():
        reason = _why_unreadable(source, index, max_pixels)
        if reason:
            return source.describe(index), reason
    return None


def _why_unreadable(source: Source, index: int, max_pixels: int) -> str | None:
    try:
        encoded, _ = source.read(tf.constant([index], tf.int64))
        decode_image(encoded[0], max_pixels, source.pixels)
    except READ_ERRORS as error:
        return reason_of(error)
    return None


def _error_of(path: str, reason: str) -> UserError:
    return UserError(
        f"An image cannot be read: {path} ({reason}). Remove or replace it, or use other images "
        "instead of unreadable ones: --on_bad_image=skip"
    )


def check_fraction(num_bad: int, num_examples: int, max_bad_fraction: float) -> None:
    """Checks that at most `--max_bad_fraction` of the images cannot be read.

    Args:
      num_bad: number of unreadable images.
      num_examples: number of all images.
      max_bad_fraction: largest allowed fraction, in [0, 1].

    Raises:
      UserError: too many images cannot be read.
    """
    if num_bad > max_bad_fraction * num_examples:
        raise UserError(
            "At most --max_bad_fraction of the images may be unreadable. "
            f"Received: {num_bad} of {num_examples}, with --max_bad_fraction={max_bad_fraction}"
        )


def reason_of(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message about an image, without the names of operations and devices.

    Args:
      error: one of `READ_ERRORS`.
    """
    text = error.message.split("}} ")[-1].split(" [Op:")[0].split("[[")[0]
    if "assertion failed: " in text:
        text = text.split("assertion failed: ")[1].replace("[", "").replace("]", "")
    return " ".join(text.split())


def _read_listed(path: str | os.PathLike) -> dict[str, int]:
    """Returns {path: index} of the samples in the file; removes an incomplete last line from it."""
    listed: dict[str, int] = {}
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
            logging.warning("%s: ignoring a line that is not an entry of this file", path)
    return listed
