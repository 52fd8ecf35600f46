"""Images in memory as data sets: NumPy arrays and `tf.data.Dataset`s."""

import hashlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from simsiam_tf.data.source import UNLABELLED, Source
from simsiam_tf.schema import UserError

_TAKES = (
    "a name, an array of images, a pair of images and labels, a tf.data.Dataset of either, or a "
    "dict of these by split"
)


def load_arrays(data: Any, name: str) -> Source:
    """Returns the `Source` of images in memory. They are kept as files, which lose nothing.

    Args:
      data: images `[N, H, W, C]` or `[N, H, W]`; a pair of images and integer labels `[N]`; or a
        `tf.data.Dataset` of images, or of pairs, whose images may differ in size. Class i has the
        name "i". Other numbers than uint8 are rounded to 8 bits if they are from 0 to 255 and
        exceed 1; otherwise they keep their depth, as files of more than 8 bits do.
      name: name of the split.

    Raises:
      UserError: the data are of another kind, or there is no image.
    """
    images, labels = [], []
    for image, label in _examples(data):
        images.append(_with_channels(image))
        labels.append(UNLABELLED if label is None else int(label))
    is_rounded = _are_levels([image for image in images if image.dtype != np.uint8])
    files = [_encoded(image, is_rounded) for image in images]
    if not files:
        raise UserError(f"dataset must contain an image. Received: none in {name}")
    if (min(labels) < 0 and max(labels, default=0) >= 0) or min(labels) < UNLABELLED:
        raise UserError(f"dataset must have labels from 0 on. Received: {min(labels)} in {name}")
    file_tensor, label_array = tf.constant(files), np.array(labels, np.int32)
    label_tensor = tf.constant(label_array)

    def fingerprint():
        whole = hashlib.sha256(label_array.tobytes())
        for file in files:
            whole.update(hashlib.sha256(file).digest())
        return whole.hexdigest()

    return Source(
        f"the images in memory ({name})",
        len(files),
        tuple(map(str, range(max(labels) + 1))),
        lambda index: f"image {index} of {name}",
        read=lambda indices: (tf.gather(file_tensor, indices), tf.gather(label_tensor, indices)),
        fingerprint=fingerprint,
        labels=label_array,
    )


def _examples(data: Any) -> Iterable[tuple[np.ndarray, Any]]:
    """Yields the images and their labels; the label is None where there is none."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise UserError("dataset must end. Received: a tf.data.Dataset that repeats for ever")
        examples = data.as_numpy_iterator()
    elif isinstance(data, tuple) and len(data) == 2:
        images, labels = map(np.asarray, data)
        if len(images) != len(labels):
            raise UserError(
                f"dataset must have a label for each image. Received: {len(images)} images and "
                f"{len(labels)} labels"
            )
        examples = zip(images, labels.reshape(len(labels)), strict=True)
    elif isinstance(data, np.ndarray):
        examples = iter(data)
    else:
        raise UserError(f"dataset must be {_TAKES}. Received: {type(data).__name__}")
    for example in examples:
        yield example if isinstance(example, tuple) else (example, None)


def _with_channels(image: np.ndarray) -> np.ndarray:
    """Returns an image as `[H, W, C]`."""
    image = np.asarray(image)
    image = image[..., np.newaxis] if image.ndim == 2 else image
    if image.ndim != 3 or image.dtype.kind not in "uif":
        raise UserError(
            "dataset must have images [H, W, C] or [H, W] of numbers. "
            f"Received: one of the shape {list(image.shape)}, {image.dtype}"
        )
    return image


def _are_levels(images: list[np.ndarray]) -> bool:
    """Whether images of other numbers than uint8 are levels of 8 bits: from 0 to 255."""
    images = [image for image in images if image.size]
    if not all(np.round(image.min()) >= 0 and np.round(image.max()) <= 255 for image in images):
        return False
    exceeds_one = any(image.max() > 1 for image in images)
    return exceeds_one or all((np.round(image) == image).all() for image in images)


def _encoded(image: np.ndarray, is_rounded: bool) -> bytes:
    """Returns an image as a file: PNG of 8 bits, which is smaller, or NumPy's own."""
    if image.dtype != np.uint8 and is_rounded:
        image = np.round(image).astype(np.uint8)
    if image.dtype == np.uint8 and image.shape[-1] in (1, 3):
        return tf.io.encode_png(image).numpy()
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()
