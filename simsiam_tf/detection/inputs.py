"""The detector's input: images of one size, with their boxes, in batches."""

import tensorflow as tf

from simsiam_tf.data.pixels import RGB
from simsiam_tf.detection.settings import TransferConfig
from simsiam_tf.detection.voc import Split

_NO_BOX = -1.0  # pads the boxes and labels of a batch; no anchor overlaps with such a box


def fit(image: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the normalised image, resized to fit into a square, and the scale of the resizing.

    The aspect ratio is kept; the rest of the square is padded.

    Args:
      image: `[H, W, 3]` uint8.
      size: height and width of the square in pixels.

    Returns:
      The image `[size, size, 3]` float32, padded with zeros on the right or at the bottom, and the
      scale `[4]` float32. The scale times a box of the original image (x, y, x, y in pixels) is the
      box in the resized image.
    """
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    target = tf.maximum(tf.round(shape * size / tf.reduce_max(shape)), 1)
    height, width = tf.unstack(tf.cast(target, tf.int32))
    resized = tf.image.resize(image, (height, width), antialias=True)
    normalized = RGB.normalize(resized / 255)
    padded = tf.pad(normalized, [[0, size - height], [0, size - width], [0, 0]])
    scale = tf.reverse(target / shape, axis=[0])
    return tf.ensure_shape(padded, [size, size, 3]), tf.tile(scale, [2])


def training_batches(split: Split, config: TransferConfig) -> tf.data.Dataset:
    """Returns the batches of one epoch of training.

    Every iteration over the data set draws anew which images are flipped from left to right.

    Args:
      split: the images with boxes.
      config: the settings of the training.

    Returns:
      A data set of (images, objects). Images are `[batch_size, size, size, 3]` float32, normalised.
      Objects are a dict of `boxes` `[batch_size, n, 4]` float32, left, top, right, bottom in
      pixels, and `labels` `[batch_size, n]` int32, both padded with -1.
    """
    size = config.image_size

    def prepare(example: dict, draw: tf.Tensor) -> tuple[tf.Tensor, dict]:
        image, boxes = example["image"], example["boxes"]
        if tf.cast(draw, tf.float64) < config.flip_probability * 2**32:
            width = tf.cast(tf.shape(image)[1], tf.float32)
            left, top, right, bottom = tf.unstack(boxes, axis=-1)
            image = image[:, ::-1]
            boxes = tf.stack([width - right, top, width - left, bottom], axis=-1)
        image, scale = fit(image, size)
        return image, {"boxes": boxes * scale, "labels": example["labels"]}

    draws = tf.data.Dataset.random(config.seed, rerandomize_each_iteration=True)
    batches = tf.data.Dataset.zip(split.examples(config.seed), draws).map(
        prepare, num_parallel_calls=tf.data.AUTOTUNE
    )
    return batches.padded_batch(
        config.batch_size,
        padded_shapes=([size, size, 3], {"boxes": [None, 4], "labels": [None]}),
        padding_values=(None, {"boxes": _NO_BOX, "labels": int(_NO_BOX)}),
        drop_remainder=True,
    ).prefetch(tf.data.AUTOTUNE)


def evaluation_examples(split: Split, size: int) -> tf.data.Dataset:
    """Returns the examples of a split with two more entries, `input` and `scale`, from `fit`.

    Args:
      split: the images with boxes.
      size: height and width of the detector's input in pixels.
    """

    def prepare(example: dict) -> dict:
        image, scale = fit(example["image"], size)
        return example | {"input": image, "scale": scale}

    return split.examples(None).map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(16)
