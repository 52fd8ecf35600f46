"""The weighted k-nearest-neighbour classifier (the reference's monitor)."""

import tensorflow as tf

from simsiam_tf.progress import Progress

# So many queries are compared at once with so much of the bank: 128 MB of cosines.
_QUERY_BLOCK = 512
_BANK_BLOCK = 65_536
_GROUP = 16  # about √(bank / k) has the fewest scores to sort


def class_votes(bank, bank_labels, queries, num_classes, k, temperature):
    """The votes of each query's k nearest neighbours in the bank, by cosine similarity.

    A neighbour votes for its class with weight exp(cosine / temperature). The search is exact. The
    bank passes by once, in blocks, so that beside it no memory is taken that grows with it.

    Args:
      bank: features `[N, F]` float; a memory-mapped array too.
      bank_labels: `[N]` int.
      queries: features `[Q, F]` float.
      num_classes: an int.
      k: neighbours; all of the bank where that is smaller. Of equal ones any may vote.
      temperature: above 0.

    Returns:
      votes `[Q, num_classes]`, float.
    """
    starts = range(0, len(queries), _QUERY_BLOCK)
    queries = [_normalized(queries[start : start + _QUERY_BLOCK]) for start in starts]
    nearest = [None] * len(queries)
    bank_starts = range(0, len(bank), _BANK_BLOCK)
    with Progress(len(bank_starts) * len(queries), "nearest neighbours", "block") as progress:
        for start in bank_starts:
            block = _normalized(bank[start : start + _BANK_BLOCK])
            labels = tf.convert_to_tensor(bank_labels[start : start + _BANK_BLOCK])
            for row, query in enumerate(queries):
                found = _search(query, block, labels, k)
                nearest[row] = _merge(nearest[row], found, k) if start else found
                progress.update()
    return tf.concat(
        [_count(labels, tf.exp(cosine / temperature), num_classes) for cosine, labels in nearest],
        axis=0,
    )


def _normalized(features):
    return tf.math.l2_normalize(tf.convert_to_tensor(features), axis=1)


def _search(queries, bank, labels, k):
    """The cosines of each query's k nearest in a part of the bank, and their labels; unsorted."""
    cosine, index = _top_k(tf.matmul(queries, bank, transpose_b=True), k)
    return cosine, tf.gather(labels, index)


def _top_k(scores, k):
    """The k largest of each row and their columns, unsorted; all of a row that is shorter.

    They are in the k groups of columns whose maxima are the largest. Only these are searched, which
    takes half the time of searching a long row.
    """
    rows, columns = scores.shape
    num_groups = -(-columns // _GROUP)
    if num_groups <= k:
        return tf.math.top_k(scores, min(k, columns), sorted=False)
    if columns % _GROUP:
        padding = num_groups * _GROUP - columns
        scores = tf.pad(scores, [[0, 0], [0, padding]], constant_values=scores.dtype.min)
    groups = tf.reshape(scores, [rows, num_groups, _GROUP])
    _, chosen = tf.math.top_k(tf.reduce_max(groups, axis=2), k, sorted=False)
    candidates = tf.reshape(tf.gather(groups, chosen, batch_dims=1), [rows, k * _GROUP])
    largest, place = tf.math.top_k(candidates, k, sorted=False)
    group = tf.gather(chosen, place // _GROUP, batch_dims=1)
    return largest, group * _GROUP + place % _GROUP


def _merge(nearest, found, k):
    """The k nearest of two pairs (cosines, labels), each `[q, …]`."""
    cosine, labels = (tf.concat(parts, axis=1) for parts in zip(nearest, found, strict=True))
    cosine, index = tf.math.top_k(cosine, min(k, cosine.shape[1]), sorted=False)
    return cosine, tf.gather(labels, index, batch_dims=1)


def _count(labels, weights, num_classes):
    """The sum of each row's weights by label: both `[q, k]` → `[q, num_classes]`."""
    num_rows = labels.shape[0]
    cells = tf.range(num_rows)[:, tf.newaxis] * num_classes + tf.cast(labels, tf.int32)
    votes = tf.math.unsorted_segment_sum(weights, cells, num_rows * num_classes)
    return tf.reshape(votes, [num_rows, num_classes])


def top_k_accuracy(scores, labels, k):
    """The share of rows whose label is among the k highest scores, in percent.

    Args:
      scores: `[Q, classes]` float.
      labels: `[Q]` int.
      k: an int.
    """
    hits = tf.math.in_top_k(tf.cast(labels, tf.int32), tf.cast(scores, tf.float32), k)
    return 100 * float(tf.reduce_mean(tf.cast(hits, tf.float64)))
