"""The weighted k-nearest-neighbour classifier (the reference's monitor)."""

import tensorflow as tf

_BLOCK = 1024  # queries that are compared with the whole bank at once


def class_votes(bank, bank_labels, queries, num_classes, k, temperature):
    """The votes of each query's k nearest neighbours in the bank, by cosine similarity.

    A neighbour votes for its class with weight exp(cosine / temperature).

    Args:
      bank: features `[N, F]` float.
      bank_labels: `[N]` int.
      queries: features `[Q, F]` float.
      num_classes: an int.
      k: neighbours; all of the bank where that is smaller.
      temperature: above 0.

    Returns:
      votes `[Q, num_classes]`, float.
    """
    bank = tf.math.l2_normalize(tf.convert_to_tensor(bank), axis=1)
    queries = tf.math.l2_normalize(tf.convert_to_tensor(queries), axis=1)
    bank_classes = tf.one_hot(bank_labels, num_classes, dtype=bank.dtype)
    k = min(k, bank.shape[0])
    votes = []
    for start in range(0, queries.shape[0], _BLOCK):
        cosine = tf.matmul(queries[start : start + _BLOCK], bank, transpose_b=True)
        nearest, index = tf.math.top_k(cosine, k)
        weight = tf.exp(nearest / temperature)
        votes.append(tf.einsum("qk,qkc->qc", weight, tf.gather(bank_classes, index)))
    return tf.concat(votes, axis=0)


def top_k_accuracy(scores, labels, k):
    """The share of rows whose label is among the k highest scores, in percent.

    Args:
      scores: `[Q, classes]` float.
      labels: `[Q]` int.
      k: an int.
    """
    hits = tf.math.in_top_k(tf.cast(labels, tf.int32), tf.cast(scores, tf.float32), k)
    return 100 * float(tf.reduce_mean(tf.cast(hits, tf.float64)))
