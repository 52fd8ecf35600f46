"""Images in memory as data sets: NumPy arrays and `tf.data.Dataset`s."""

import hashlib
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
    """Returns the `Source` of images in memory. They are kept as PNG files, which lose nothing.

    Args:
      data: images `[N, H, W, 3]`, `[N, H, W, 1]` or `[N, H, W]` of uint8, or of float in [0, 255],
        which is rounded; a pair of images and integer labels `[N]`; or a `tf.data.Dataset` of
        images, or of pairs, whose images may differ in size. Class i has the name "i".
      name: name of the split.

    Raises:
      UserError: the data are of another kind, or there is no image.
    """
    files, labels = [], []
    for image, label in _examples(data):
        files.append(tf.io.encode_png(_as_uint8(image)).numpy())
        labels.append(UNLABELLED if label is None else int(label))
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


def _as_uint8(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    image = image[..., np.newaxis] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise UserError(
            "dataset must have images [H, W, 3], [H, W, 1] or [H, W]. "
            f"Received: one of the shape {list(image.shape)}"
        )
    if image.dtype != np.uint8:
        levels = np.round(image)
        is_scaled_to_one = levels.max() <= 1 and bool((levels != image).any())
        if is_scaled_to_one or levels.min() < 0 or levels.max() > 255:
            raise UserError(
                "dataset must have images of uint8, or of other numbers from 0 to 255. Received: "
                f"{image.dtype} from {image.min():g} to {image.max():g}"
            )
        image = levels.astype(np.uint8)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
