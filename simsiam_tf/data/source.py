"""The contract of a data set: a `Source` gives encoded images by index, or as a stream."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tensorflow as tf

from simsiam_tf.data.pixels import RGB, Pixels

UNLABELLED = -1  # the label of every image of an unlabelled source
ALL_FILES = (0, 1)  # share 0 of 1: one worker reads every file of a stream

Transform = Callable[[tf.data.Dataset], tf.data.Dataset]


class ReadImages(Protocol):
    """Random access to the images of a source."""

    def __call__(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the images and labels at some indices; works eagerly and in a graph.

        Args:
          indices: `[k]` int64, in any order and with repetitions.

        Returns:
          The encoded images, `[k]` string, and their labels, `[k]` int32.
        """


class StreamImages(Protocol):
    """Sequential reader, for formats without fast random access (TFRecord)."""

    def __call__(
        self,
        seed: tf.Tensor | None,
        transform: Transform = ...,
        share: tuple[int, int] = ...,
    ) -> tf.data.Dataset:
        """Returns a data set of (index int64, encoded image string, label int32).

        Args:
          seed: `[2]` int32, which determines the order; None: the order on disk.
          transform: applied to the data set of (index, record) before any record is parsed, so
            that a skipped record costs no parsing. Default: no change.
          share: (number, count): the records of worker `number` of `count`. `count` is at most
            the source's `num_stream_files`. Default: every record.
        """


@dataclasses.dataclass(frozen=True)
class Source:
    """The encoded images of a split, their labels, and the functions that read them.

    Attributes:
      name: name of the split in messages.
      num_examples: N, the number of images.
      class_names: names of the classes, by label. Empty where the images are unlabelled; every
        label is then `UNLABELLED`.
      describe: index → where that image is stored, for error messages.
      read: random access to the images.
      read_at_once: number of indices that `read` processes best in one call.
      fingerprint: returns a text that changes when the images change, as far as this is cheap to
        detect.
      stream: sequential reader; None where `read` is fast.
      num_stream_files: largest number of workers that can share `stream`.
      labels: `[N]` int32 where the labels are known without reading the images, else None.
      pixels: what the images become when they are decoded.
    """

    name: str
    num_examples: int
    class_names: tuple[str, ...]
    describe: Callable[[int], str]
    read: ReadImages
    read_at_once: int = 1
    fingerprint: Callable[[], str] = str
    stream: StreamImages | None = None
    num_stream_files: int = 1
    labels: np.ndarray | None = None
    pixels: Pixels = RGB

    @property
    def labelled(self) -> bool:
        """True if the images have labels."""
        return bool(self.class_names)


def unchanged(records: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the records as they are: the default `transform` of a stream."""
    return records
