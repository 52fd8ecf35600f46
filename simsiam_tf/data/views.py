"""The recipes that turn an image into the views for the network.

All random numbers of a view are drawn first, separately from the pixels. So they are the same on
the host and on the device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simsiam_tf.config import Purpose, ViewsConfig
from simsiam_tf.data import kernels, ops
from simsiam_tf.data.pixels import RGB, Pixels

# (image of `decode_image`, seed `[2]` int32) → {"views": a tuple of views, …}.
MakeViews = Callable[[tf.Tensor, tf.Tensor], dict[str, Any]]

_JITTER, _GRAY, _BLUR, _FLIP = range(4)


def build_views(config: ViewsConfig, num_views: int, pixels: Pixels = RGB) -> MakeViews:
    """Returns the pre-training recipe (section 3) as a function.

    Args:
      config: the settings of the recipe.
      num_views: number of views of each image.
      pixels: what the pixels of the data set are. Saturation, hue and grey are for RGB only, and
        are left out for others.

    Returns:
      A function (image of `decode_image`, seed `[2]` int32) → {"views": a tuple of independent
      views, `[size, size, C]` in the dtype of the image}. With `--augment_on=device` the views are
      only cropped and turned, and the entry "draws" has the arguments with which `prepare`
      completes each.
    """
    if pixels.channels != 3:
        config = dataclasses.replace(config, saturation=0.0, hue=0.0, grayscale_probability=0.0)
    is_rgb = pixels.depth == "uint8"

    def views(image, seed):
        boxes, draws = draw(seed, tf.shape(image), config, num_views)
        if config.augment_on == "host":
            kernel = kernels.views if is_rgb else kernels.deep_views
            return {"views": turn(_on_host(kernel, image, boxes, config.image_size, draws), seed)}
        kernel = kernels.crops if is_rgb else kernels.deep_crops
        crops = turn(_on_host(kernel, image, boxes, config.image_size), seed, draws["flip"])
        return {"views": crops, "draws": tuple(_by_view(draws))}

    def turn(made, seed, flips=None):
        if not config.vertical_flip_probability and not config.rotate90_probability:
            return made
        return _turn(made, seed, config, flips)

    return views


def _turn(
    made: tuple[tf.Tensor, ...], seed: tf.Tensor, config: ViewsConfig, flips: tf.Tensor | None
) -> tuple[tf.Tensor, ...]:
    """Returns the views after an up-down flip and a rotation by quarter turns, at random.

    Args:
      made: the views.
      seed: of the image.
      config: the settings of the recipe.
      flips: `[V]` bool, the left-right flips that follow; None: they are done. A rotation before a
        flip goes the other way round, so that both orders give the same view.
    """
    seed = tf.random.experimental.stateless_fold_in(seed, int(Purpose.TURNS))
    uniform = tf.random.stateless_uniform([len(made), 3], seed)
    quarters = 1 + tf.cast(3 * uniform[:, 2], tf.int32)
    turned = []
    for number, view in enumerate(made):
        is_flipped = uniform[number, 0] < config.vertical_flip_probability
        view = tf.where(is_flipped, view[::-1], view)
        is_rotated = uniform[number, 1] < config.rotate90_probability
        count = tf.where(is_rotated, quarters[number], 0)
        if flips is not None:
            count = tf.where(flips[number], -count % 4, count)
        across = tf.where(count % 2 == 1, tf.transpose(view, [1, 0, 2])[::-1], view)
        view = tf.where(count >= 2, across[::-1, ::-1], across)
        turned.append(view)
    return tuple(turned)


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
        image.dtype,
        stateful=False,
    )
    shape = [boxes.shape[0], size, size, image.shape[-1]]
    return tuple(tf.unstack(tf.ensure_shape(made, shape)))


def prepare(batch: dict[str, Any], pixels: Pixels = RGB) -> tuple[tf.Tensor, ...]:
    """Returns the views of a batch as inputs of the network, computed on the batch's device.

    Args:
      batch: {"views": a tuple of `[B, S, S, C]`, uint8 or float32 in [0, 1]}, and with
        `--augment_on=device` "draws", a tuple with the draws of each view.
      pixels: what the pixels of the data set are.

    Returns:
      A tuple of `[B, S, S, C]` float, normalised.
    """
    images = [
        tf.cast(view, keras.config.floatx()) / (255 if view.dtype == tf.uint8 else 1)
        for view in batch["views"]
    ]
    if "draws" in batch:
        pairs = zip(images, batch["draws"], strict=True)
        images = [ops.recolor(image, **draws) for image, draws in pairs]
    return tuple(pixels.normalize(image) for image in images)


def build_linear_view(
    image_size: int, crop_min_area: float, flip_probability: float, pixels: Pixels = RGB
) -> MakeViews:
    """Returns the training recipe of the linear protocol as a function: crop and flip.

    Args:
      image_size: height and width of the view, in pixels.
      crop_min_area: smallest area of the crop as a share of the image's, in (0, 1].
      flip_probability: in [0, 1].
      pixels: what the pixels of the data set are.

    Returns:
      A function (image of `decode_image`, seed `[2]` int32) → {"views": a tuple of one view,
      `[image_size, image_size, C]` in the dtype of the image}.
    """
    kernel = kernels.crops if pixels.depth == "uint8" else kernels.deep_crops

    def views(image, seed):
        uniform = tf.random.stateless_uniform([1, ops.BOX_DRAWS + 1], seed)
        boxes = ops.random_boxes(tf.shape(image), uniform[:, 1:], crop_min_area)
        (view,) = _on_host(kernel, image, boxes, image_size)
        flipped = tf.reverse(view, axis=[1])
        return {"views": (tf.where(uniform[0, 0] < flip_probability, flipped, view),)}

    return views


def build_evaluation_view(
    image_size: int, crop_ratio: float, pixels: Pixels = RGB
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the view of evaluation as a function: resize and central crop.

    Args:
      image_size: height and width of the view, in pixels.
      crop_ratio: `image_size` divided by the resized short side, in (0, 1].
      pixels: what the pixels of the data set are.

    Returns:
      A function: image of `decode_image` → `[image_size, image_size, C]` float32 in [0, 255], or in
      the range of values of `pixels`.
    """

    def view(image):
        return pixels.to_values(ops.central_crop(image, image_size, crop_ratio))

    return view
