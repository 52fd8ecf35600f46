"""The pixels of a data set: channels, range of values, mean and standard deviation."""

import dataclasses
from typing import Any, Self

import tensorflow as tf

from simsiam_tf.config import IMAGENET_MEAN, IMAGENET_STD


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How the images of a run become numbers. An encoder keeps it, so that it serves the same ones.

    Attributes:
      channels: C, number of channels.
      depth: "uint8" for RGB of 8 bits, the usual and fast case; "float32" for everything else.
      low: value that becomes 0, in images of more than 8 bits.
      high: value that becomes 1, in images of more than 8 bits.
      mean: of each channel, in [0, 1].
      std: of each channel, in [0, 1].
      exif_orientation: "apply" turns an image as EXIF says; "ignore" leaves it as it is stored.
    """

    channels: int = 3
    depth: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    exif_orientation: str = "ignore"

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Self:
        """Returns the `Pixels` of `dataclasses.asdict`, as read from JSON."""
        lists = {name: tuple(entries[name]) for name in ("mean", "std")}
        return cls(**entries | lists)

    @property
    def upright(self) -> bool:
        """True if an image is turned as EXIF says."""
        return self.exif_orientation == "apply"

    def scale(self, levels: tf.Tensor) -> tf.Tensor:
        """Returns levels as numbers in [0, 1].

        Args:
          levels: uint8 of any range, or numbers of more bits in [low, high]; others are clipped.
        """
        # A graph would replace a division by this product, which is rounded otherwise.
        if levels.dtype == tf.uint8:
            return tf.cast(levels, tf.float32) * (1 / 255)
        levels = (tf.cast(levels, tf.float32) - self.low) * (1 / (self.high - self.low))
        return tf.clip_by_value(levels, 0, 1)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """Returns images with zero mean and unit variance per channel, on average.

        Args:
          images: `[..., C]` float in [0, 1].
        """
        mean, std = tf.constant(self.mean, images.dtype), tf.constant(self.std, images.dtype)
        return (images - mean) / std

    def denormalize(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the inverse of `normalize`, clipped to [0, 1], for looking at images.

        Args:
          images: `[..., C]` float, normalised.
        """
        mean, std = tf.constant(self.mean, images.dtype), tf.constant(self.std, images.dtype)
        return tf.clip_by_value(images * std + mean, 0, 1)

    def show(self, images: tf.Tensor) -> tf.Tensor:
        """Returns images as RGB to look at: grey thrice, or the first three of more channels.

        Args:
          images: `[..., C]` float in [0, 1].
        """
        if self.channels < 3:
            return tf.repeat(tf.reduce_mean(images, axis=-1, keepdims=True), 3, axis=-1)
        return images[..., :3]

    def to_values(self, images: tf.Tensor) -> tf.Tensor:
        """Returns images in [0, 1] as values in [low, high], which an exported encoder takes."""
        return self.low + (self.high - self.low) * images

    def from_values(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the inverse of `to_values`."""
        return (images - self.low) / (self.high - self.low)


RGB = Pixels()
