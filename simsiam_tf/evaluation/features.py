"""From an encoder and a data set to features."""

import io

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import DataConfig
from simsiam_tf.data import pipeline, quarantine
from simsiam_tf.progress import Progress
from simsiam_tf.schema import UserError


def extract(encode, source, view, batch_size, *, files=None, seed=0, limit=None, data=None):
    """The features of every image of a source, or of a fixed random subset.

    Args:
      encode: images `[b, size, size, 3]` float32 in [0, 255] → features `[b, F]`.
      source: a `datasets.Source`.
      view: image → what `encode` takes.
      batch_size: images that are encoded at once.
      files: two empty files, open for reading and writing in binary, which become the .npy files
        of the features and of the labels; they may be closed afterwards. Memory does not grow with
        the source then. None: features and labels are held in memory.
      seed: of the subset.
      limit: size of the subset; None: all.
      data: a `DataConfig`, which says what becomes of an image that cannot be read; None: the
        defaults.

    Returns:
      features float32 `[N, F]`, labels int32 `[N]`, or as the source has them; NumPy arrays, mapped
      from `files`. N is smaller by the images that cannot be read, where `--on_bad_image=skip`
      leaves them out.

    Raises:
      UserError: an image cannot be read, or by `--on_bad_image=skip`, too many cannot be.
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

    def indices_of(position):
        positions = tf.range(position * batch_size, min((position + 1) * batch_size, count))
        return pipeline.evaluation_order(
            source, tf.cast(positions, tf.int64), seed=seed, limit=limit
        )

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
    """An .npy file that rows are appended to.

    The rows are written, not assigned to a map of the file: a disk that is full is an `OSError`,
    where a map would end the process with a signal, and no row has to be given back at the end.
    """

    def __init__(self, file):
        self.file = file
        self.num_rows = 0

    def append(self, rows):
        """Appends rows `[b, ...]`; those of the first call settle the shape and the dtype."""
        if not self.num_rows:
            self.row_shape, self.dtype = rows.shape[1:], rows.dtype
            self._write_header()
        self.file.write(np.ascontiguousarray(rows).data)
        self.num_rows += len(rows)

    def finish(self):
        """Ends the file and returns its rows, mapped where it is one of the disk's."""
        self._write_header()  # of the same length: NumPy leaves room for the number of rows
        self.file.flush()
        shape = (self.num_rows, *self.row_shape)
        if isinstance(self.file, io.BytesIO):
            rows = np.frombuffer(self.file.getbuffer(), self.dtype, offset=self.file.tell())
            return rows.reshape(shape)
        return np.memmap(self.file, self.dtype, "r", self.file.tell(), shape)

    def _write_header(self):
        self.file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *self.row_shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


def extract_with_thumbnails(encode, source, view, batch_size, size, **options):
    """`extract`, and small pictures of the images.

    Args:
      encode: as for `extract`, like what follows.
      source: a `datasets.Source`.
      view: image → what `encode` takes.
      batch_size: images that are encoded at once.
      size: of the pictures in pixels, at most; they stay as they are where they are smaller.
      **options: of `extract`.

    Returns:
      features float32 `[N, F]`, labels int32 `[N]`, pictures uint8 `[N, s, s, 3]`.
    """
    pictures = []

    def encode_and_keep(images):
        small = min(size, images.shape[1])
        small = tf.image.resize(images, [small, small], antialias=True)
        pictures.append(tf.cast(tf.round(tf.clip_by_value(small, 0, 255)), tf.uint8).numpy())
        return encode(images)

    found, labels = extract(encode_and_keep, source, view, batch_size, **options)
    return found, labels, np.concatenate(pictures)
