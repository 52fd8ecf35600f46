"""Computes the pictures of a run: view pairs, nearest neighbours and a map of the features."""

import base64
import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image
from sklearn import manifold

from simsiam_tf.config import DataConfig, PretrainConfig
from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import features
from simsiam_tf.export import saved_model
from simsiam_tf.reporting.html_page import escape
from simsiam_tf.schema import UserError

_MAX_IMAGES = 1000
_THUMBNAIL_SIZE = 96
_BATCH_SIZE = 64
_MAX_PNG_HEIGHT = 64  # in pixels; taller images are smaller as JPEG


def view_pairs(config: PretrainConfig, pixels: Pixels = RGB) -> list[np.ndarray]:
    """Returns two views of a few images, as the first training step received them.

    Args:
      config: of the run.
      pixels: of the run's images.

    Returns:
      The first views and the second views, `[N, S, S, 3] uint8` each.

    Raises:
      UserError: the data set is missing, or too many of its images cannot be read.
    """
    data = dataclasses.replace(config.data, on_bad_image="skip")
    source = datasets.load(data.dataset, data.data_dir, data.train_split)
    source = dataclasses.replace(source, pixels=pixels)
    make_views = views.build_views(config.views, num_views=2, pixels=pixels)
    batch = pipeline.first_views(make_views, config.system.seed, Quarantine(source, data))
    return to_look_at(batch, pixels)


def to_look_at(batch: pipeline.Batch, pixels: Pixels = RGB) -> list[np.ndarray]:
    """Returns the views of a batch as RGB images, `[N, S, S, 3] uint8` each.

    Args:
      batch: as `views.prepare` takes it.
      pixels: of the images.
    """
    prepared = views.prepare(batch, pixels)
    return [_to_uint8(255 * pixels.show(pixels.denormalize(view))) for view in prepared]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images of a data set with the features that the encoder computes for them."""

    name: str  # of the data set
    step: int | None  # of the encoder's weights; None: unknown
    class_names: tuple[str, ...]  # empty: the images have no labels
    labels: np.ndarray  # [N] int
    thumbnails: np.ndarray  # [N, s, s, 3] uint8
    features: np.ndarray  # [N, F] float32, of length 1


def gallery(config: PretrainConfig, encoder: str) -> Gallery:
    """Encodes images of the evaluation split, or of the training split if there is no other.

    Args:
      config: of the run.
      encoder: folder of the run's encoder.

    Raises:
      UserError: the encoder is missing, its features are not finite, or the data set is missing or
        cannot be read.
    """
    if not os.path.isdir(encoder):
        raise UserError(f"There is no {encoder}; train.py --export writes it at any time")
    encode, description = saved_model.load(encoder)
    data = dataclasses.replace(config.data, on_bad_image="skip")
    pixels = saved_model.pixels_of(description)
    source = dataclasses.replace(_evaluation_source(data), pixels=pixels)
    view = views.build_evaluation_view(
        config.views.image_size, config.views.eval_crop_ratio, pixels
    )
    found, labels, thumbnails = features.extract_with_thumbnails(
        encode,
        source,
        view,
        _BATCH_SIZE,
        _THUMBNAIL_SIZE,
        seed=config.system.seed,
        limit=_MAX_IMAGES,
        data=data,
    )
    if not np.isfinite(found).all():
        raise UserError("The encoder's features are not all finite")
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return Gallery(
        source.name,
        description.get("step"),
        source.class_names,
        labels,
        thumbnails,
        found / np.maximum(length, np.finfo(np.float32).tiny),
    )


def _evaluation_source(data: DataConfig) -> datasets.Source:
    try:
        return datasets.load(data.dataset, data.data_dir, data.eval_split)
    except UserError as error:
        logging.info("The report shows images of the training split: %s", error)
        return datasets.load(data.dataset, data.data_dir, data.train_split)


def nearest(
    unit_features: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest other images of some images, by cosine similarity.

    Args:
      unit_features: `[N, F] float`, rows of length 1.
      queries: indices of the images, `[Q] int`.
      k: number of neighbours; at most N − 1 are found.

    Returns:
      The indices of the neighbours, `[Q, k] int`, nearest first, and their cosines.
    """
    cosines = unit_features[queries] @ unit_features.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, len(unit_features) - 1)]
    return order, np.take_along_axis(cosines, order, axis=1)


def layout(unit_features: np.ndarray) -> np.ndarray:
    """Maps features to the plane by t-SNE, so that close features have close coordinates.

    Args:
      unit_features: `[N, F] float`, rows of length 1.

    Returns:
      Coordinates, `[N, 2] float`.

    Raises:
      UserError: there are fewer than 8 images, or all have the same features.
    """
    count = len(unit_features)
    if count < 8:
        raise UserError(f"A map needs 8 images or more. Received: {count}")
    if np.ptp(unit_features, axis=0).max() < 1e-5:
        raise UserError("A map needs features that differ; all images have the same features")
    perplexity = min(30, (count - 1) / 3)
    return manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        unit_features
    )


def reduce(image: np.ndarray, size: int) -> np.ndarray:
    """Returns an image `[H, W, 3] uint8` whose longer side has at most so many pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((size, size), Image.Resampling.BOX)
    return np.asarray(picture)


def data_url(image: np.ndarray) -> str:
    """Returns a `data:` URL of an image `[H, W, 3] uint8`: PNG up to 64 rows, JPEG above."""
    if image.shape[0] <= _MAX_PNG_HEIGHT:
        kind, file = "png", tf.io.encode_png(image)
    else:
        kind, file = "jpeg", tf.io.encode_jpeg(image, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.numpy()).decode()}"


def element(image: np.ndarray, text: str, kind: str = "") -> str:
    """Returns an image as an HTML element.

    Args:
      image: `[H, W, 3]` uint8.
      text: read out by screen readers.
      kind: CSS classes; empty: none.
    """
    height, width, _ = image.shape
    kinds = " ".join(filter(None, [kind, "small" if height <= 64 else ""]))
    return (
        f'<img src="{data_url(image)}" width="{width}" height="{height}" '
        f'alt="{escape(text)}" class="{kinds}">'
    )


def pairs_element(views: Sequence[np.ndarray]) -> str:
    """Returns pairs of views as an HTML element.

    Args:
      views: the first views and the second views, `[N, S, S, 3]` uint8 each.
    """
    pairs = "".join(
        f'<div class="pair">{element(first, "first view")}{element(second, "second view")}</div>'
        for first, second in zip(*views, strict=True)
    )
    return f'<div class="pairs">{pairs}</div>'


def _to_uint8(images: tf.Tensor) -> np.ndarray:
    return tf.cast(tf.round(tf.clip_by_value(images, 0, 255)), tf.uint8).numpy()
