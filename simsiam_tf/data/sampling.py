"""Decides by a sample of the images what `--channels=auto` and `--value_range=auto` mean."""

import dataclasses

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import DataConfig, PixelsConfig, Purpose
from simsiam_tf.data import image_files
from simsiam_tf.data.order import epoch_order
from simsiam_tf.data.pixels import Pixels
from simsiam_tf.data.source import Source
from simsiam_tf.schema import UserError

_SAMPLE = 64  # number of images
_SMALLEST_STD = 1e-3  # a constant channel is not divided by zero


def resolve_pixels(
    config: PixelsConfig, source: Source, max_pixels: int = DataConfig.max_image_pixels
) -> Pixels:
    """Returns the `Pixels` of a run. `auto` is decided by a sample of the images.

    The sample is the same in every run on the same images.

    Args:
      config: the settings.
      source: the images to train on.
      max_pixels: largest number of pixels of an image.

    Raises:
      UserError: the images have different numbers of channels, or the settings do not fit them.
    """
    sample = _sample(source, max_pixels)
    channels = _channels(config, sample)
    deep = [levels for levels in sample if levels.dtype != np.uint8]
    low, high = _range(config.value_range, deep)
    is_rgb = channels == 3 and (low, high) == (0, 255) and not deep
    pixels = Pixels(
        channels,
        "uint8" if is_rgb else "float32",
        low,
        high,
        exif_orientation=config.exif_orientation,
    )
    pixels = _with_statistics(config, pixels, source, sample)
    if pixels.depth != "uint8":
        logging.info(
            "Images of %d channel(s), values from %g to %g, mean %s, deviation %s%s",
            channels,
            low,
            high,
            _listed(pixels.mean),
            _listed(pixels.std),
            "" if channels == 3 else "; saturation, hue and grey are for RGB only and switched off",
        )
    return pixels


def _sample(source: Source, max_pixels: int) -> list[np.ndarray]:
    """Returns the levels of some images, `[H, W, C]` each, in their own dtype."""
    count = min(_SAMPLE, source.num_examples)
    if source.stream:
        files = [encoded for _, encoded, _ in source.stream(None).take(count)]
    else:
        indices = epoch_order(
            source.num_examples, 0, 0, tf.range(count, dtype=tf.int64), Purpose.SUBSET
        )
        files = []
        for index in indices:
            try:
                files.append(source.read(index[tf.newaxis])[0][0])
            except tf.errors.OpError:  # the pipeline reports it, or leaves it out
                continue
    found = []
    for file in files:
        levels, reason = image_files.decode(file.numpy(), max_pixels, upright=False)
        if not reason:
            found.append(levels)
    return found


def _channels(config: PixelsConfig, sample: list[np.ndarray]) -> int:
    if config.channels != "auto":
        return int(config.channels)
    counts = {levels.shape[-1] for levels in sample}
    if counts <= {1, 3}:  # an empty sample too: the pipeline will say what cannot be read
        return 1 if counts == {1} else 3
    if len(counts) > 1:
        raise UserError(
            "--channels=auto needs images that all have as many channels as each other. Received: "
            f"{', '.join(map(str, sorted(counts)))} channels"
        )
    return counts.pop()


def _range(value_range: str, deep: list[np.ndarray]) -> tuple[float, float]:
    """Returns the values that become 0 and 1."""
    if value_range != "auto":
        low, high = map(float, value_range.split(","))
        return low, high
    return range_of(deep) if deep else (0.0, 255.0)


def range_of(deep: list[np.ndarray]) -> tuple[float, float]:
    """Returns the values that become 0 and 1 in images of more than 8 bits.

    Args:
      deep: levels of one image or more, or only their extremes.
    """
    if all(levels.dtype.kind == "u" for levels in deep):
        # Cameras of 10, 12 or 14 bits fill a part of 16.
        bits = max(int(levels.max()).bit_length() for levels in deep)
        return 0.0, float(2 ** max(8, bits + bits % 2) - 1)
    finite = np.concatenate([levels[np.isfinite(levels)].ravel() for levels in deep])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def _with_statistics(
    config: PixelsConfig, pixels: Pixels, source: Source, sample: list[np.ndarray]
) -> Pixels:
    """Returns the pixels with the given mean and deviation, ImageNet's, or those of a sample."""
    given = {
        name: tuple(map(float, text.split(",")))
        for name, text in (("mean", config.channel_mean), ("std", config.channel_std))
        if text
    }
    for name, values in given.items():
        if len(values) != pixels.channels:
            raise UserError(
                f"--channel_{name} must have a number for each of the {pixels.channels} channels. "
                f"Received: {len(values)}"
            )
    if pixels.channels == 3 or len(given) == 2:
        return _replaced(pixels, given)
    rows = [
        image_files.to_float(levels, pixels.channels, pixels.low, pixels.high).reshape(
            -1, pixels.channels
        )
        for levels in sample
        if levels.shape[-1] == pixels.channels or {levels.shape[-1], pixels.channels} <= {1, 3}
    ]
    if not rows:
        raise UserError(
            f"No image of {source.name} could be read with --channels={pixels.channels}"
        )
    every = np.concatenate(rows).astype(np.float64)
    measured = {
        "mean": tuple(np.round(every.mean(axis=0), 4).tolist()),
        "std": tuple(np.round(np.maximum(every.std(axis=0), _SMALLEST_STD), 4).tolist()),
    }
    return _replaced(pixels, measured | given)


def _replaced(pixels: Pixels, statistics: dict[str, tuple[float, ...]]) -> Pixels:
    mean, std = statistics.get("mean", pixels.mean), statistics.get("std", pixels.std)
    return dataclasses.replace(pixels, mean=mean, std=std)


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
