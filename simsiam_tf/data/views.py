"""The recipes that turn an image into the views for the network.

All random numbers of a view are drawn first, separately from the pixels. So they are the same on
the host and on the device.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simsiam_tf.config import ViewsConfig
from simsiam_tf.data import kernels, ops

# (image `[H, W, 3]` uint8, seed `[2]` int32) → {"views": a tuple of views, …}.
MakeViews = Callable[[tf.Tensor, tf.Tensor], dict[str, Any]]

# ImageNet's mean and deviation of RGB in [0, 1]. Every recipe of the reference normalises by them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_JITTER, _GRAY, _BLUR, _FLIP = range(4)


def build_views(config: ViewsConfig, num_views: int) -> MakeViews:
    """Returns the pre-training recipe (section 3) as a function.

    Args:
      config: the settings of the recipe.
      num_views: number of views of each image.

    Returns:
      A function (image `[H, W, 3]` uint8, seed `[2]` int32) → {"views": a tuple of independent
      views, `[size, size, 3]` uint8}. With `--augment_on=device` the views are only cropped, and
      the entry "draws" has the arguments with which `prepare` completes each.
    """

    def views(image, seed):
        boxes, draws = draw(seed, tf.shape(image), config, num_views)
        if config.augment_on == "host":
            return {"views": _on_host(kernels.views, image, boxes, config.image_size, draws)}
        crops = _on_host(kernels.crops, image, boxes, config.image_size)
        return {"views": crops, "draws": tuple(_by_view(draws))}

    return views


def draw(
    seed: tf.Tensor, shape: tf.Tensor, config: ViewsConfig, num_views: int
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Returns all random numbers of the views of an image.

    Args:
      seed: `[2]` int32.
      shape: of the image: height, width, …, in pixels.
      config: the settings of the recipe.
      num_views: V, number of views.

    Returns:
      The boxes of `ops.random_boxes`, `[V, 4]` int32, and the arguments of `ops.recolor` by name,
      with one row per view.
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


def _by_view(draws: dict[str, tf.Tensor]) -> list[dict[str, tf.Tensor]]:
    """Returns a dict for each view, from a dict of columns."""
    columns = [tf.unstack(column) for column in draws.values()]
    return [dict(zip(draws, values, strict=True)) for values in zip(*columns, strict=True)]


def _on_host(
    kernel: Callable[..., np.ndarray],
    image: tf.Tensor,
    boxes: tf.Tensor,
    size: int,
    draws: dict[str, tf.Tensor] | None = None,
) -> tuple[tf.Tensor, ...]:
    """Returns the views that a function of `kernels` makes, as a tuple."""
    # A stateful function would make `enable_op_determinism` run the pipeline sequentially.
    made = tf.numpy_function(
        lambda image, boxes, *columns: kernel(image, boxes, size, *columns),
        [image, boxes, *(draws or {}).values()],
        tf.uint8,
        stateful=False,
    )
    return tuple(tf.unstack(tf.ensure_shape(made, [boxes.shape[0], size, size, 3])))


def prepare(batch: dict[str, Any]) -> tuple[tf.Tensor, ...]:
    """Returns the views of a batch as inputs of the network, computed on the batch's device.

    Args:
      batch: {"views": a tuple of `[B, S, S, 3]` uint8}, and with `--augment_on=device` "draws", a
        tuple with the draws of each view.

    Returns:
      A tuple of `[B, S, S, 3]` float, normalised.
    """
    images = [tf.cast(view, keras.config.floatx()) / 255 for view in batch["views"]]
    if "draws" in batch:
        pairs = zip(images, batch["draws"], strict=True)
        images = [ops.recolor(image, **draws) for image, draws in pairs]
    return tuple(normalize(image) for image in images)


def build_linear_view(image_size: int, crop_min_area: float, flip_probability: float) -> MakeViews:
    """Returns the training recipe of the linear protocol as a function: crop and flip.

    Args:
      image_size: height and width of the view, in pixels.
      crop_min_area: smallest area of the crop as a share of the image's, in (0, 1].
      flip_probability: in [0, 1].

    Returns:
      A function (image `[H, W, 3]` uint8, seed `[2]` int32) → {"views": a tuple of one view,
      `[image_size, image_size, 3]` uint8}.
    """

    def views(image, seed):
        uniform = tf.random.stateless_uniform([1, ops.BOX_DRAWS + 1], seed)
        boxes = ops.random_boxes(tf.shape(image), uniform[:, 1:], crop_min_area)
        (view,) = _on_host(kernels.crops, image, boxes, image_size)
        flipped = tf.reverse(view, axis=[1])
        return {"views": (tf.where(uniform[0, 0] < flip_probability, flipped, view),)}

    return views


def build_evaluation_view(image_size: int, crop_ratio: float) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the view of evaluation as a function: resize and central crop.

    Args:
      image_size: height and width of the view, in pixels.
      crop_ratio: `image_size` divided by the resized short side, in (0, 1].

    Returns:
      A function: image `[H, W, 3]` uint8 → `[image_size, image_size, 3]` float32 in [0, 255].
    """

    def view(image):
        return 255 * ops.central_crop(image, image_size, crop_ratio)

    return view


def normalize(image: tf.Tensor) -> tf.Tensor:
    """Returns the image with zero mean and unit variance per channel, on average over ImageNet.

    Args:
      image: `[..., 3]` float in [0, 1].
    """
    return (image - tf.constant(MEAN, image.dtype)) / tf.constant(STD, image.dtype)


def denormalize(image: tf.Tensor) -> tf.Tensor:
    """Returns the inverse of `normalize`, clipped to [0, 1], for looking at views.

    Args:
      image: `[..., 3]` float, normalised.
    """
    image = image * tf.constant(STD, image.dtype) + tf.constant(MEAN, image.dtype)
    return tf.clip_by_value(image, 0, 1)
