"""Extraction of features: an encoder over the images of a data set."""

import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import DataConfig
from simsiam_tf.data import pipeline, quarantine
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.order import evaluation_order
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress


def extract(
    encode: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    view: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    *,
    files: Sequence[BinaryIO] | None = None,
    seed: int = 0,
    limit: int | None = None,
    data: DataConfig | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of every image of a source, or of a fixed random subset.

    Args:
      encode: images `[b, size, size, 3]` float32 in [0, 255] → features `[b, F]`.
      source: the images.
      view: image `[H, W, 3]` → image `[size, size, 3]` for `encode`.
      batch_size: number of images that are encoded at once.
      files: two empty files, open for reading and writing in binary, which become the .npy files
        of the features and of the labels. They may be closed afterwards. With files, memory does
        not grow with the source. None: features and labels stay in memory.
      seed: seed of the subset.
      limit: size of the subset; None: all images.
      data: says how to treat an image that cannot be read; None: the defaults.

    Returns:
      Features float32 `[N, F]` and labels int32 `[N]` or in the source's own shape; NumPy arrays,
      memory-mapped from `files`. With `--on_bad_image=skip`, images that cannot be read are left
      out, and N is smaller by their number.

    Raises:
      UserError: an image cannot be read, or with `--on_bad_image=skip`, too many cannot be read.
      OSError: a file cannot be written.
    """
    data = data or DataConfig()
    count = min(limit or source.num_examples, source.num_examples)
    batches = pipeline.evaluation_batches(
        source,
        view,
        batch_size,
        seed=seed,
        limit=limit,
        max_pixels=data.max_image_pixels,
        skip_bad=data.on_bad_image == "skip",
    )

    def indices_of(batch_number: int) -> tf.Tensor:
        first = batch_number * batch_size
        order = tf.range(first, min(first + batch_size, count))
        return evaluation_order(source, tf.cast(order, tf.int64), seed=seed, limit=limit)

    features, labels = map(_RowFile, files or (io.BytesIO(), io.BytesIO()))
    with Progress(count, f"features of {source.name}", "image") as progress:
        for images, batch_labels in pipeline.iterate(
            batches, source, indices_of, max_pixels=data.max_image_pixels
        ):
            features.append(encode(images).numpy().astype(np.float32, copy=False))
            labels.append(batch_labels.numpy())
            progress.update(len(batch_labels))
    num_left_out = count - labels.num_rows
    if num_left_out:
        quarantine.check_fraction(num_left_out, count, data.max_bad_fraction)
        logging.warning(
            "%d of %d images of %s cannot be read and are left out",
            num_left_out,
            count,
            source.name,
        )
    if not labels.num_rows:
        raise UserError(f"No image of {source.name} can be read")
    return features.finish(), labels.finish()


class _RowFile:
    """An .npy file to which rows are appended.

    A full disk raises an `OSError`, because the rows are written; assigning them to a memory map
    would end the process with a signal. The file also needs no truncation at the end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Appends rows `[b, ...]`; the first call sets their shape and dtype."""
        if not self.num_rows:
            self.row_shape, self.dtype = rows.shape[1:], rows.dtype
            self._write_header()
        self.file.write(np.ascontiguousarray(rows).data)
        self.num_rows += len(rows)

    def finish(self) -> np.ndarray:
        """Completes the file and returns its rows, memory-mapped if the file is on disk."""
        self._write_header()  # of the same length: NumPy pads it for the final number of rows
        self.file.flush()
        shape = (self.num_rows, *self.row_shape)
        if isinstance(self.file, io.BytesIO):
            rows = np.frombuffer(self.file.getbuffer(), self.dtype, offset=self.file.tell())
            return rows.reshape(shape)
        return np.memmap(self.file, self.dtype, "r", self.file.tell(), shape)

    def _write_header(self) -> None:
        self.file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *self.row_shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


def extract_with_thumbnails(
    encode: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    view: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    size: int,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features and labels as `extract` does, and thumbnails of the images.

    Args:
      encode: as for `extract`.
      source: as for `extract`.
      view: as for `extract`.
      batch_size: as for `extract`.
      size: largest height and width of a thumbnail in pixels; smaller images keep their size.
      **options: keyword arguments of `extract`.

    Returns:
      Features float32 `[N, F]`, labels int32 `[N]`, thumbnails uint8 `[N, s, s, 3]`.

    Raises:
      UserError: as `extract` does.
    """
    thumbnails = []

    def encode_and_keep(images: tf.Tensor) -> tf.Tensor:
        small = min(size, images.shape[1])
        small = tf.image.resize(images, [small, small], antialias=True)
        small = 255 * source.pixels.show(source.pixels.from_values(small))
        thumbnails.append(tf.cast(tf.round(tf.clip_by_value(small, 0, 255)), tf.uint8).numpy())
        return encode(images)

    found, labels = extract(encode_and_keep, source, view, batch_size, **options)
    return found, labels, np.concatenate(thumbnails)
