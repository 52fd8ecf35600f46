"""How spread out features are, without labels: partial collapse, which a loss does not show."""

import numpy as np
import tensorflow as tf

from simsiam_tf import objectives
from simsiam_tf.data import pipeline
from simsiam_tf.progress import Progress

_BLOCK = 4096  # rows that are worked on at once


def moments(features):
    """The mean and the covariance of features `[N, F]`, in float64, `[F]` and `[F, F]`.

    Features may be memory-mapped: they pass by block by block.
    """
    mean = np.mean(features, axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), _BLOCK):
        centred = features[start : start + _BLOCK] - mean
        scatter += centred.T @ centred
    return mean, scatter / len(features)


def singular_values(covariance, count):
    """The singular values of the centred features `[N, F]`, the largest first.

    Args:
      covariance: of `moments`.
      count: N.

    Returns:
      `[min(N, F)]`. Below 1e-8 of the largest they are rounding.
    """
    largest_first = np.linalg.eigvalsh(covariance)[::-1][:count]
    return np.sqrt(count * np.maximum(largest_first, 0))


def effective_rank(singular_values):
    """exp of the entropy of σ / Σσ: RankMe (Garrido et al. 2023, equation 1), in [1, min(N, F)].

    0 where all singular values are 0: everything has collapsed to a point.
    """
    total = np.sum(singular_values)
    if total == 0:
        return 0.0
    p = singular_values / total + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def alignment(x, y):
    """E‖x − y‖² of unit features of two views of the same images (Wang & Isola 2020, α = 2).

    Args:
      x: features `[B, F]` float.
      y: of the other views, `[B, F]`.

    Returns:
      A scalar in [0, 4]; 0 where all views of an image have the same features.
    """
    x, y = tf.math.l2_normalize(x, axis=1), tf.math.l2_normalize(y, axis=1)
    return tf.reduce_mean(tf.reduce_sum(tf.math.squared_difference(x, y), axis=1))


def uniformity(features):
    """log E exp(−2‖x − y‖²) over all pairs of unit features (Wang & Isola 2020, t = 2).

    Args:
      features: `[N, F]` float, N ≥ 2; a memory-mapped array too.

    Returns:
      A float in [−8, 0]; −4 or so where they are spread over the sphere, 0 at one point.
    """
    count, total = len(features), 0.0
    for row in range(0, count, _BLOCK):
        x = _unit(features[row : row + _BLOCK])
        for column in range(row, count, _BLOCK):
            y = x if column == row else _unit(features[column : column + _BLOCK])
            # ‖x − y‖² is 2 − 2 x·y.
            kernel = tf.exp(4 * tf.matmul(x, y, transpose_b=True) - 4)
            if column == row:  # each pair once
                kernel = tf.linalg.band_part(kernel, 0, -1) - tf.linalg.band_part(kernel, 0, 0)
            total += float(tf.reduce_sum(tf.cast(kernel, tf.float64)))
    return float(np.log(total / (count * (count - 1) / 2)))


def feature_std(features):
    """`objectives.feature_std` of features `[N, F]`: 0 where all are one point, 1 at most.

    A backbone's features are never negative and stay below the 1 that a healthy z has.
    """
    mean, mean_square = np.zeros((2, features.shape[1]))
    for start in range(0, len(features), _BLOCK):
        unit = tf.cast(_unit(features[start : start + _BLOCK]), tf.float64)
        mean += tf.reduce_sum(unit, axis=0)
        mean_square += tf.reduce_sum(tf.square(unit), axis=0)
    return float(objectives.feature_std(mean / len(features), mean_square / len(features)))


def _unit(features):
    return tf.math.l2_normalize(tf.convert_to_tensor(features), axis=1)


def summarize(features):
    """What `evaluate.py --protocol=spectrum` says of features `[N, F]`, a dict of numbers."""
    mean, covariance = moments(features)
    values = singular_values(covariance, len(features))
    # RankMe itself, where the mean counts as one more direction.
    uncentred = singular_values(covariance + np.outer(mean, mean), len(features))
    variance = np.diag(covariance)
    return {
        "effective_rank": effective_rank(values),
        "rankme": effective_rank(uncentred),
        "uniformity": uniformity(features),
        "feature_std": feature_std(features),
        # A float32 that differs by no more than its rounding does not vary.
        "num_constant_channels": int(np.sum(variance <= 1e-12 * (variance + mean**2))),
        "channel_std": np.sqrt(variance).tolist(),
        "singular_values": values.tolist(),
    }


def alignment_of_crops(encode, source, view, batch_size, seed, quarantine):
    """`alignment` over two random crops of each image of a source.

    Args:
      encode: images `[b, size, size, 3]` uint8 in [0, 255] → features `[b, F]`.
      source: a `datasets.Source`; what is left after whole batches is left out.
      view: the linear protocol's, crop and flip: (image, seed) → {"views": a tuple of one}.
      batch_size: images that are encoded at once; all of the source where that is smaller.
      seed: of the crops.
      quarantine: the source's `Quarantine`.

    Returns:
      A float.
    """
    batch_size = min(batch_size, source.num_examples)
    num_steps = source.num_examples // batch_size

    def two_views(image, view_seed):
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
