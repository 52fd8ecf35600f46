"""From an encoder and a data set to features."""

import sys

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from simsiam_tf.data import pipeline


def extract(encode, source, view, batch_size, *, seed=0, limit=None):
    """The features of every image of a source, or of a fixed random subset.

    Args:
      encode: images `[b, size, size, 3]` float32 in [0, 255] → features `[b, F]`.
      source: a `datasets.Source`.
      view: image → what `encode` takes.
      batch_size: images that are encoded at once.
      seed: of the subset.
      limit: size of the subset; None: all.

    Returns:
      features float32 `[N, F]`, labels int32 `[N]`; NumPy arrays.
    """
    batches = pipeline.evaluation_batches(source, view, batch_size, seed=seed, limit=limit)
    count = min(limit or source.num_examples, source.num_examples)

    def indices_of(position):
        positions = tf.range(position * batch_size, min((position + 1) * batch_size, count))
        return pipeline.evaluation_order(
            source, tf.cast(positions, tf.int64), seed=seed, limit=limit
        )

    features, labels = [], []
    with tqdm(
        total=count,
        desc=f"features of {source.name}",
        unit="image",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as progress:
        for images, batch_labels in pipeline.iterate(batches, source, indices_of):
            features.append(encode(images).numpy().astype(np.float32))
            labels.append(batch_labels.numpy())
            progress.update(len(labels[-1]))
    return np.concatenate(features), np.concatenate(labels)
