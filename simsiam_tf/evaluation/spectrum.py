"""The spread of features, without labels: it shows partial collapse, which a loss does not show."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from simsiam_tf import objectives
from simsiam_tf.data import pipeline
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.terminal import Progress

_BLOCK = 4096  # rows that are processed at once


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean `[F]` and the covariance `[F, F]` of features, in float64.

    Args:
      features: `[N, F]` float; may be memory-mapped, because they are read in blocks.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), _BLOCK):
        centred = features[start : start + _BLOCK] - mean
        scatter += centred.T @ centred
    return mean, scatter / len(features)


def singular_values(covariance: np.ndarray, count: int) -> np.ndarray:
    """Returns the singular values of the centred features `[N, F]`, the largest first.

    Args:
      covariance: the features' covariance, `[F, F]` float64.
      count: number of features, N.

    Returns:
      Singular values `[min(N, F)]` float64. Values below 1e-8 of the largest are rounding.
    """
    largest_first = np.linalg.eigvalsh(covariance)[::-1][:count]
    return np.sqrt(count * np.maximum(largest_first, 0))


def effective_rank(singular_values: np.ndarray) -> float:
    """Returns RankMe (Garrido et al. 2023, equation 1): exp of the entropy of σ / Σσ.

    The value is in [1, min(N, F)]. It is 0 if all singular values are 0, that is if all features
    have collapsed to one point.

    Args:
      singular_values: σ, `[min(N, F)]` float.
    """
    total = np.sum(singular_values)
    if total == 0:
        return 0.0
    p = singular_values / total + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def alignment(x: tf.Tensor | np.ndarray, y: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Returns E‖x − y‖² of unit features of two views of the same images.

    This is the alignment of Wang & Isola 2020, with α = 2.

    Args:
      x: features of the first views, `[B, F]` float.
      y: features of the second views, `[B, F]` float.

    Returns:
      A scalar in [0, 4]; 0 if all views of an image have the same features.
    """
    x, y = tf.math.l2_normalize(x, axis=1), tf.math.l2_normalize(y, axis=1)
    return tf.reduce_mean(tf.reduce_sum(tf.math.squared_difference(x, y), axis=1))


def uniformity(features: np.ndarray) -> float:
    """Returns log E exp(−2‖x − y‖²) over all pairs of unit features (Wang & Isola 2020, t = 2).

    Args:
      features: `[N, F]` float, N ≥ 2; may be memory-mapped.

    Returns:
      A float in [−8, 0]: about −4 if the features are spread over the sphere, 0 at one point.
    """
    count, total = len(features), 0.0
    for row in range(0, count, _BLOCK):
        x = _unit(features[row : row + _BLOCK])
        for column in range(row, count, _BLOCK):
            y = x if column == row else _unit(features[column : column + _BLOCK])
            # ‖x − y‖² is 2 − 2 x·y.
            kernel = tf.exp(4 * tf.matmul(x, y, transpose_b=True) - 4)
            if column == row:  # count each pair once
                kernel = tf.linalg.band_part(kernel, 0, -1) - tf.linalg.band_part(kernel, 0, 0)
            total += float(tf.reduce_sum(tf.cast(kernel, tf.float64)))
    return float(np.log(total / (count * (count - 1) / 2)))


def feature_std(features: np.ndarray) -> float:
    """Returns `objectives.feature_std` of features: 0 if all are one point, 1 at most.

    A healthy projection z has about 1. Features of a backbone stay below, because they are never
    negative.

    Args:
      features: `[N, F]` float; may be memory-mapped.
    """
    mean, mean_square = np.zeros((2, features.shape[1]))
    for start in range(0, len(features), _BLOCK):
        unit = tf.cast(_unit(features[start : start + _BLOCK]), tf.float64)
        mean += tf.reduce_sum(unit, axis=0)
        mean_square += tf.reduce_sum(tf.square(unit), axis=0)
    return float(objectives.feature_std(mean / len(features), mean_square / len(features)))


def _unit(features: np.ndarray) -> tf.Tensor:
    return tf.math.l2_normalize(tf.convert_to_tensor(features), axis=1)


def summarize(features: np.ndarray) -> dict[str, Any]:
    """Returns the entries of `--protocol=spectrum`: {name: number, or a list of numbers}.

    Args:
      features: `[N, F]` float, N ≥ 2; may be memory-mapped.
    """
    mean, covariance = moments(features)
    values = singular_values(covariance, len(features))
    # RankMe does not centre the features: their mean counts as one more direction.
    uncentred = singular_values(covariance + np.outer(mean, mean), len(features))
    variance = np.diag(covariance)
    return {
        "effective_rank": effective_rank(values),
        "rankme": effective_rank(uncentred),
        "uniformity": uniformity(features),
        "feature_std": feature_std(features),
        # A float32 channel that differs only by rounding counts as constant.
        "num_constant_channels": int(np.sum(variance <= 1e-12 * (variance + mean**2))),
        "channel_std": np.sqrt(variance).tolist(),
        "singular_values": values.tolist(),
    }


def alignment_of_crops(
    encode: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    view: Callable[[tf.Tensor, tf.Tensor], dict[str, Any]],
    batch_size: int,
    seed: int,
    quarantine: Quarantine,
) -> float:
    """Returns the mean `alignment` of two random crops of each image of a source.

    Args:
      encode: images `[b, size, size, 3]` uint8 in [0, 255] → features `[b, F]`.
      source: the images; an incomplete last batch is left out.
      view: crop and flip of the linear protocol: (image, seed) → {"views": a tuple of one view}.
      batch_size: number of images that are encoded at once; if the source is smaller, all of it.
      seed: seed of the crops.
      quarantine: says how to treat an image of the source that cannot be read.

    Raises:
      UserError: an image cannot be read, or with `--on_bad_image=skip`, too many cannot be read.
    """
    batch_size = min(batch_size, source.num_examples)
    num_steps = source.num_examples // batch_size

    def two_views(image: tf.Tensor, view_seed: tf.Tensor) -> dict[str, Any]:
        other_seed = tf.random.experimental.stateless_fold_in(view_seed, 1)
        return {"views": view(image, view_seed)["views"] + view(image, other_seed)["views"]}

    batches = pipeline.first_steps(
        two_views, batch_size=batch_size, seed=seed, num_steps=num_steps, quarantine=quarantine
    )
    found = []
    with Progress(num_steps * batch_size, f"crops of {source.name}", "image") as progress:
        for batch in batches:
            x, y = map(encode, batch["views"])
            found.append(float(alignment(x, y)))
            progress.update(batch_size)
    return float(np.mean(found))
