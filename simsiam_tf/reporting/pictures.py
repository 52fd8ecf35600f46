"""What a run's data and encoder look like: view pairs, nearest neighbours, a map."""

import base64
import dataclasses
import os

import numpy as np
import tensorflow as tf
from absl import logging
from sklearn import manifold

from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import features
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError

MOST_IMAGES = 1000
_THUMBNAIL = 96
_ENCODE_AT_ONCE = 64
_FEW_PIXELS = 64  # up to which an image is small as PNG


def view_pairs(config):
    """The views of a few images, as the first step saw them.

    Args:
      config: the run's `PretrainConfig`.

    Returns:
      uint8 `[n, S, S, 3]` of the first views, and of the second.

    Raises:
      UserError: the data set cannot be had, or too much of it cannot be read.
    """
    data = dataclasses.replace(config.data, on_bad_image="skip")
    source = datasets.load(data.dataset, data.data_dir, data.train_split)
    make_views = views.build_views(config.views, num_views=2)
    batch = pipeline.first_views(make_views, config.system.seed, Quarantine(source, data))
    return [_to_uint8(255 * views.denormalize(view)) for view in views.prepare(batch)]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Some images of a data set and what the encoder makes of them."""

    name: str  # of the data set
    step: int | None  # that the encoder is of
    class_names: tuple[str, ...]  # empty: unlabelled
    labels: np.ndarray  # [N] int
    thumbnails: np.ndarray  # [N, s, s, 3] uint8
    features: np.ndarray  # [N, F] float32, of length 1


def gallery(config, encoder):
    """A `Gallery` of the evaluation split, or of the training split where there is no other.

    Args:
      config: the run's `PretrainConfig`.
      encoder: folder of its encoder.

    Raises:
      UserError: there is no encoder, or the data set cannot be had or read.
    """
    if not os.path.isdir(encoder):
        raise UserError(f"There is no {encoder}; train.py --export writes it at any time")
    encode, description = saved_model.load(encoder)
    data = dataclasses.replace(config.data, on_bad_image="skip")
    source = _evaluation_source(data)
    view = views.build_evaluation_view(config.views.image_size, config.views.eval_crop_ratio)
    found, labels, thumbnails = features.extract_with_thumbnails(
        encode,
        source,
        view,
        _ENCODE_AT_ONCE,
        _THUMBNAIL,
        seed=config.system.seed,
        limit=MOST_IMAGES,
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


def _evaluation_source(data):
    try:
        return datasets.load(data.dataset, data.data_dir, data.eval_split)
    except UserError as error:
        logging.info("The training split is looked at: %s", error)
        return datasets.load(data.dataset, data.data_dir, data.train_split)


def nearest(unit_features, queries, k):
    """The k nearest of some images by cosine, the images themselves left out.

    Args:
      unit_features: `[N, F]`, of length 1.
      queries: indices int `[q]`.
      k: an int; N − 1 where that is smaller.

    Returns:
      indices int `[q, k]`, the nearest first, and their cosines.
    """
    cosines = unit_features[queries] @ unit_features.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, len(unit_features) - 1)]
    return order, np.take_along_axis(cosines, order, axis=1)


def layout(unit_features):
    """A place in the plane for each image, near for near features: t-SNE.

    Args:
      unit_features: `[N, F]`, of length 1.

    Returns:
      `[N, 2]`.

    Raises:
      UserError: there is nothing to lay out.
    """
    count = len(unit_features)
    if count < 8:
        raise UserError(f"A map needs 8 images or more. Received: {count}")
    if np.ptp(unit_features, axis=0).max() < 1e-5:
        raise UserError("There is no map: all images have the same features")
    perplexity = min(30, (count - 1) / 3)
    return manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        unit_features
    )


def data_url(image):
    """An image `[H, W, 3]` uint8 as text that stands for a file: PNG, or JPEG for larger ones."""
    if image.shape[0] <= _FEW_PIXELS:
        kind, file = "png", tf.io.encode_png(image)
    else:
        kind, file = "jpeg", tf.io.encode_jpeg(image, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.numpy()).decode()}"


def _to_uint8(images):
    return tf.cast(tf.round(tf.clip_by_value(images, 0, 255)), tf.uint8).numpy()
