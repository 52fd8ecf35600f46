"""The weighted k-nearest-neighbour classifier, as in the reference's monitor."""

import numpy as np
import tensorflow as tf

from simsiam_tf.terminal import Progress

# Queries, and rows of the feature bank, that are compared at once: 128 MB of cosines.
_QUERY_BLOCK = 512
_BANK_BLOCK = 65_536
_GROUP = 16  # columns; about √(bank / k) leaves the fewest scores to sort

_SMALLEST_SQUARE = 1e-12  # of a norm, as in `tf.math.l2_normalize`: a row of zeros stays zero

# Cosines [q, k] float, largest first, and labels [q, k] int. Equal cosines are in the bank's order,
# and `tf.math.top_k` takes the first of equals. So the blocks do not decide which neighbours vote.
_Neighbours = tuple[tf.Tensor, tf.Tensor]


def class_votes(
    bank: np.ndarray | tf.Tensor,
    bank_labels: np.ndarray | tf.Tensor,
    queries: np.ndarray | tf.Tensor,
    num_classes: int,
    k: int,
    temperature: float,
) -> tf.Tensor:
    """Returns the votes of each query's k nearest neighbours in the bank, by cosine similarity.

    A neighbour votes for its class with weight exp(cosine / temperature). The search is exact. The
    bank is read once, in blocks, so the memory that is needed besides does not grow with the bank.

    Args:
      bank: features `[N, F]` float; may be memory-mapped.
      bank_labels: class indices of the bank, `[N]` int.
      queries: features to classify, `[Q, F]` float.
      num_classes: number of classes.
      k: number of neighbours; if the bank is smaller, all of it votes. Of neighbours of equal
        similarity, the first in the bank vote.
      temperature: above 0.

    Returns:
      Votes `[Q, num_classes]` float.
    """
    starts = range(0, len(queries), _QUERY_BLOCK)
    query_blocks = [_normalized(queries[start : start + _QUERY_BLOCK]) for start in starts]
    nearest: list[_Neighbours] = []
    bank_starts = range(0, len(bank), _BANK_BLOCK)
    num_pairs = len(bank_starts) * len(query_blocks)
    with Progress(num_pairs, "nearest neighbours", "block") as progress:
        for start in bank_starts:
            bank_block = _normalized(bank[start : start + _BANK_BLOCK])
            labels = tf.convert_to_tensor(bank_labels[start : start + _BANK_BLOCK])
            for block, query_block in enumerate(query_blocks):
                found = _search(query_block, bank_block, labels, k)
                if start:
                    nearest[block] = _merge(nearest[block], found, k)
                else:
                    nearest.append(found)
                progress.update()
    return tf.concat(
        [_count(labels, tf.exp(cosine / temperature), num_classes) for cosine, labels in nearest],
        axis=0,
    )


def _normalized(features: np.ndarray | tf.Tensor) -> tf.Tensor:
    # `tf.math.l2_normalize` multiplies by `rsqrt`, which some processors only approximate: equal
    # rows of a batch then differ in their last bit, and equal neighbours are no longer equal.
    features = tf.convert_to_tensor(features)
    square = tf.reduce_sum(tf.square(features), axis=1, keepdims=True)
    return features / tf.sqrt(tf.maximum(square, _SMALLEST_SQUARE))


def _search(queries: tf.Tensor, bank: tf.Tensor, labels: tf.Tensor, k: int) -> _Neighbours:
    """The k nearest neighbours of each query in a block of the bank."""
    cosine, index = _top_k(tf.matmul(queries, bank, transpose_b=True), k)
    return cosine, tf.gather(labels, index)


def _top_k(scores: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k largest scores of each row and their columns; a shorter row is kept whole.

    The k largest scores are in the k groups of columns whose maxima are the largest. Searching
    only these groups takes half the time of searching a long row.
    """
    rows, columns = scores.shape
    num_groups = -(-columns // _GROUP)
    if num_groups <= k:
        return tf.math.top_k(scores, min(k, columns))
    if columns % _GROUP:
        padding = num_groups * _GROUP - columns
        scores = tf.pad(scores, [[0, 0], [0, padding]], constant_values=scores.dtype.min)
    groups = tf.reshape(scores, [rows, num_groups, _GROUP])
    _, chosen = tf.math.top_k(tf.reduce_max(groups, axis=2), k, sorted=False)
    chosen = tf.sort(chosen)
    candidates = tf.reshape(tf.gather(groups, chosen, batch_dims=1), [rows, k * _GROUP])
    largest, index = tf.math.top_k(candidates, k)
    group = tf.gather(chosen, index // _GROUP, batch_dims=1)
    return largest, group * _GROUP + index % _GROUP


def _merge(nearest: _Neighbours, found: _Neighbours, k: int) -> _Neighbours:
    """The k nearest neighbours among those of two blocks."""
    cosine, labels = (tf.concat(parts, axis=1) for parts in zip(nearest, found, strict=True))
    cosine, index = tf.math.top_k(cosine, min(k, cosine.shape[1]))
    return cosine, tf.gather(labels, index, batch_dims=1)


def _count(labels: tf.Tensor, weights: tf.Tensor, num_classes: int) -> tf.Tensor:
    """The sum of each row's weights by label: labels and weights `[q, k]` → `[q, num_classes]`."""
    num_rows = labels.shape[0]
    cells = tf.range(num_rows)[:, tf.newaxis] * num_classes + tf.cast(labels, tf.int32)
    votes = tf.math.unsorted_segment_sum(weights, cells, num_rows * num_classes)
    return tf.reshape(votes, [num_rows, num_classes])


def top_k_accuracy(scores: np.ndarray | tf.Tensor, labels: np.ndarray | tf.Tensor, k: int) -> float:
    """Returns the top-k accuracy: the percentage of rows that are in the top k of `is_in_top_k`."""
    return 100 * float(np.mean(is_in_top_k(scores, labels, k)))


def is_in_top_k(
    scores: np.ndarray | tf.Tensor, labels: np.ndarray | tf.Tensor, k: int
) -> np.ndarray:
    """Returns for each row whether its label has one of the k top scores.

    Args:
      scores: `[Q, classes]` float.
      labels: class indices, `[Q]` int.
      k: number of highest scores.

    Returns:
      `[Q] bool`.
    """
    labels = tf.cast(labels, tf.int32)
    return tf.math.in_top_k(labels, tf.cast(scores, tf.float32), k).numpy()
