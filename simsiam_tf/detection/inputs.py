"""From images with boxes to what the detector takes."""

import tensorflow as tf

from simsiam_tf.data import views

_NO_BOX = -1.0  # fills up the boxes of a batch; no anchor overlaps with it


def fit(image, size):
    """Resizes an image to a square of `size`, its shape kept, and normalises it.

    Args:
      image: `[H, W, 3]` uint8.
      size: height and width in pixels, an int.

    Returns:
      `[size, size, 3]` float32, with zeros on the right or at the bottom, and by what the image's
      coordinates were multiplied, for each of x, y, x, y: `[4]` float32.
    """
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    wanted = tf.maximum(tf.round(shape * size / tf.reduce_max(shape)), 1)
    height, width = tf.unstack(tf.cast(wanted, tf.int32))
    resized = tf.image.resize(image, (height, width), antialias=True)
    normalized = views.normalize(resized / 255)
    padded = tf.pad(normalized, [[0, size - height], [0, size - width], [0, 0]])
    scale = tf.reverse(wanted / shape, axis=[0])
    return tf.ensure_shape(padded, [size, size, 3]), tf.tile(scale, [2])


def training_batches(split, config):
    """A data set of an epoch's batches: normalised images, and a dict of boxes and labels.

    Some images are flipped from left to right, others in every epoch.

    Args:
      split: a `voc.Split`.
      config: a `TransferConfig`.
    """
    size = config.image_size

    def prepare(example, draw):
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


def evaluation_examples(split, size):
    """A data set of the split's examples, with `input` and `scale` as of `fit` besides."""

    def prepare(example):
        image, scale = fit(example["image"], size)
        return example | {"input": image, "scale": scale}

    return split.examples(None).map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(16)
