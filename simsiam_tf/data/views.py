"""From an image to what the network sees of it: the recipes, as functions."""

import tensorflow as tf

from simsiam_tf.data import ops

NUM_VIEWS = 2
# Of ImageNet, for RGB in [0, 1]; every recipe of the reference normalises by them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build_views(config):
    """The pre-training recipe of a `ViewsConfig` (section 3).

    Returns:
      A function (image `[H, W, 3]` uint8, seed int32 `[2]`) → a tuple of independent views,
      `[size, size, 3]` float32, normalised.
    """

    def views(image, seed):
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, NUM_VIEWS))
        return tuple(augment(image, seed, config) for seed in seeds)

    return views


def augment(image, seed, config):
    """One view: crop, jitter, grey, blur, flip, normalise, in the reference's order."""
    crop, jitter, gray, blur, flip, jitter_values, blur_values = tf.unstack(
        tf.random.experimental.stateless_split(seed, 7)
    )
    image = ops.random_resized_crop(image, crop, config.image_size, config.crop_min_area)
    if config.jitter_probability:
        image = ops.maybe(
            lambda image: ops.color_jitter(
                image,
                jitter_values,
                config.brightness,
                config.contrast,
                config.saturation,
                config.hue,
            ),
            image,
            jitter,
            config.jitter_probability,
        )
    if config.grayscale_probability:
        image = ops.maybe(ops.grayscale, image, gray, config.grayscale_probability)
    if config.blur_probability:
        image = ops.maybe(
            lambda image: ops.random_gaussian_blur(
                image, blur_values, config.blur_sigma_min, config.blur_sigma_max
            ),
            image,
            blur,
            config.blur_probability,
        )
    if config.flip_probability:
        image = ops.maybe(ops.flip, image, flip, config.flip_probability)
    return normalize(image)


def build_linear_view(image_size, crop_min_area, flip_probability):
    """The linear protocol's training view: crop and flip, a tuple of one, in [0, 255]."""

    def views(image, seed):
        crop, flip = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        image = ops.random_resized_crop(image, crop, image_size, crop_min_area)
        return (255 * ops.maybe(ops.flip, image, flip, flip_probability),)

    return views


def build_evaluation_view(image_size, crop_ratio):
    """Evaluation's only view: resize and central crop, `[size, size, 3]` float32 in [0, 255]."""

    def view(image):
        return 255 * ops.central_crop(image, image_size, crop_ratio)

    return view


def normalize(image):
    """[0, 1] → zero mean and unit variance per channel, over ImageNet."""
    return (image - tf.constant(MEAN, image.dtype)) / tf.constant(STD, image.dtype)


def denormalize(image):
    """The inverse of `normalize`, clipped to [0, 1]: for looking at views."""
    image = image * tf.constant(STD, image.dtype) + tf.constant(MEAN, image.dtype)
    return tf.clip_by_value(image, 0, 1)
