"""From an image to what the network sees of it: the recipes, as functions.

Draws come first and by themselves, so that they are the same wherever they are applied.
"""

import keras
import tensorflow as tf

from simsiam_tf.data import kernels, ops

# Of ImageNet, for RGB in [0, 1]; every recipe of the reference normalises by them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_JITTER, _GRAY, _BLUR, _FLIP = range(4)


def build_views(config, num_views):
    """The pre-training recipe of a `ViewsConfig` (section 3), for a number of views.

    Returns:
      A function (image `[H, W, 3]` uint8, seed int32 `[2]`) → {"views": a tuple of independent
      views, `[size, size, 3]` uint8}. With `--augment_on=device` these are mere crops, and "draws"
      has what `prepare` does with each.
    """

    def views(image, seed):
        boxes, draws = draw(seed, tf.shape(image), config, num_views)
        if config.augment_on == "host":
            return {"views": _on_host(kernels.views, image, boxes, config.image_size, draws)}
        crops = _on_host(kernels.crops, image, boxes, config.image_size)
        return {"views": crops, "draws": tuple(_by_view(draws))}

    return views


def draw(seed, shape, config, num_views):
    """What is random about the views of an image.

    Args:
      seed: int32 `[2]`.
      shape: of the image: height, width, …
      config: a `ViewsConfig`.
      num_views: V, views of the image.

    Returns:
      Boxes, `[V, 4]` int32 as of `ops.random_boxes`, and a dict of what `ops.recolor` takes.
    """
    kinds = {"box": ops.BOX_DRAWS, "chance": 4, "factor": 4, "order": 4, "sigma": 1}
    uniform = tf.random.stateless_uniform([num_views, sum(kinds.values())], seed)
    uniform = dict(zip(kinds, tf.split(uniform, list(kinds.values()), axis=1), strict=True))
    boxes = ops.random_boxes(shape, uniform["box"], config.crop_min_area)
    strengths = [config.brightness, config.contrast, config.saturation, config.hue]
    unchanged = tf.constant([1.0, 1.0, 1.0, 0.0])
    probabilities = [
        config.jitter_probability,
        config.grayscale_probability,
        config.blur_probability,
        config.flip_probability,
    ]
    happens = uniform["chance"] < tf.constant(probabilities)
    factors = unchanged + strengths * ops.between(uniform["factor"], -1.0, 1.0)
    sigma = ops.between(uniform["sigma"][:, 0], config.blur_sigma_min, config.blur_sigma_max)
    return boxes, {
        "factors": tf.where(happens[:, _JITTER, tf.newaxis], factors, unchanged),
        "order": tf.argsort(uniform["order"]),
        "gray": happens[:, _GRAY],
        "sigma": tf.where(happens[:, _BLUR], sigma, 0.0),
        "flip": happens[:, _FLIP],
    }


def _by_view(draws):
    """A dict of columns → a dict for each view."""
    columns = [tf.unstack(column) for column in draws.values()]
    return [dict(zip(draws, values, strict=True)) for values in zip(*columns, strict=True)]


def _on_host(kernel, image, boxes, size, draws=None):
    """A kernel's views as a tuple; stateless, or determinism would make them one by one."""
    made = tf.numpy_function(
        lambda image, boxes, *columns: kernel(image, boxes, size, *columns),
        [image, boxes, *(draws or {}).values()],
        tf.uint8,
        stateful=False,
    )
    return tuple(tf.unstack(tf.ensure_shape(made, [boxes.shape[0], size, size, 3])))


def prepare(batch):
    """The views of a batch as the network takes them, on the device that it is on.

    Args:
      batch: {"views": a tuple of `[B, S, S, 3]` uint8, and by `--augment_on=device` their "draws"}.

    Returns:
      A tuple of `[B, S, S, 3]` float, normalised.
    """
    images = [tf.cast(view, keras.config.floatx()) / 255 for view in batch["views"]]
    if "draws" in batch:
        pairs = zip(images, batch["draws"], strict=True)
        images = [ops.recolor(image, **draws) for image, draws in pairs]
    return tuple(normalize(image) for image in images)


def build_linear_view(image_size, crop_min_area, flip_probability):
    """The linear protocol's training view: crop and flip, a tuple of one, uint8."""

    def views(image, seed):
        uniform = tf.random.stateless_uniform([1, ops.BOX_DRAWS + 1], seed)
        boxes = ops.random_boxes(tf.shape(image), uniform[:, 1:], crop_min_area)
        (view,) = _on_host(kernels.crops, image, boxes, image_size)
        flipped = tf.reverse(view, axis=[1])
        return {"views": (tf.where(uniform[0, 0] < flip_probability, flipped, view),)}

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
