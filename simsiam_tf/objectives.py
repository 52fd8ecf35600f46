"""The losses, as pure functions of tensors; what is gathered over replicas arrives gathered."""

import math

import tensorflow as tf

COLLAPSED_STD = 0.3  # `feature_std` below which features count as collapsed


def negative_cosine_similarity(p, z):
    """−cos(p, z), averaged over the batch (equation 1).

    Args:
      p: predictions `[B, D]`, float.
      z: targets `[B, D]`, float. Nothing here stops their gradient: the method does.

    Returns:
      A scalar in [−1, 1] of the inputs' dtype.
    """
    p, z = tf.math.l2_normalize(p, axis=1), tf.math.l2_normalize(z, axis=1)
    return -tf.reduce_mean(tf.reduce_sum(p * z, axis=1))


def cross_entropy_similarity(p, z):
    """−softmax(z) · log softmax(p), averaged over the batch (section 4.5); both `[B, D]`."""
    return -tf.reduce_mean(tf.reduce_sum(tf.nn.softmax(z) * tf.nn.log_softmax(p), axis=1))


SIMILARITIES = {
    "cosine": negative_cosine_similarity,
    "cross_entropy": cross_entropy_similarity,
}


def nt_xent(anchors, candidates, positions, temperature):
    """SimCLR's loss (Chen et al. 2020, equation 1), over one replica's anchors.

    Each view of an image is to be told from all other images of the global batch, by the other view
    of the same image.

    Args:
      anchors: `[2, b, D]` float, both views of this replica's images.
      candidates: `[2, B, D]` float, both views of all images, these among them.
      positions: of this replica's images among all, int `[b]`.
      temperature: above 0.

    Returns:
      A scalar, the mean over the anchors.
    """
    num_candidates = candidates.shape[1]
    anchors, candidates = (
        tf.reshape(tf.math.l2_normalize(z, axis=2), [-1, z.shape[2]]) for z in (anchors, candidates)
    )
    logits = tf.matmul(anchors, candidates, transpose_b=True) / temperature
    itself = tf.concat([positions, positions + num_candidates], axis=0)
    positive = tf.concat([positions + num_candidates, positions], axis=0)
    out_of_reach = tf.one_hot(itself, 2 * num_candidates, dtype=logits.dtype) * 1e9
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(positive, logits - out_of_reach)
    )


def info_nce(q, k, negatives, temperature):
    """MoCo's loss (He et al. 2020, equation 1): a query's key is to be told from negatives.

    Args:
      q: queries `[B, D]`, float.
      k: their keys `[B, D]`, float.
      negatives: `[K, D]`, float, of length 1.
      temperature: above 0.

    Returns:
      A scalar, the mean over the queries.
    """
    q, k = tf.math.l2_normalize(q, axis=1), tf.math.l2_normalize(k, axis=1)
    positive = tf.reduce_sum(q * k, axis=1, keepdims=True)
    logits = tf.concat([positive, tf.matmul(q, negatives, transpose_b=True)], axis=1) / temperature
    return -tf.reduce_mean(tf.nn.log_softmax(logits)[:, 0])


def sinkhorn(scores, epsilon, iterations):
    """SwAV's codes (Caron et al. 2020, algorithm 1): each row's share in equally used prototypes.

    Sinkhorn's and Knopp's iteration on exp(scores / epsilon), in logarithms, which large scores do
    not overflow.

    Args:
      scores: of all images of the global batch with the prototypes, `[B, K]` float.
      epsilon: above 0; small makes codes hard.
      iterations: an int.

    Returns:
      `[B, K]`, rows of sum 1. The gradient flows: the method stops it.
    """
    num_rows, num_prototypes = scores.shape
    log_codes = scores / epsilon
    for _ in range(iterations):
        log_codes -= tf.reduce_logsumexp(log_codes, axis=0) + math.log(num_prototypes)
        log_codes -= tf.reduce_logsumexp(log_codes, axis=1, keepdims=True) + math.log(num_rows)
    return tf.exp(log_codes + math.log(num_rows))


def swapped_prediction(codes, scores, temperature):
    """SwAV's loss of one view's codes and another view's scores: their cross-entropy.

    Args:
      codes: `[B, K]` float, rows of sum 1.
      scores: `[B, K]` float.
      temperature: above 0.

    Returns:
      A scalar, the mean over the batch.
    """
    log_probabilities = tf.nn.log_softmax(scores / temperature)
    return -tf.reduce_mean(tf.reduce_sum(codes * log_probabilities, axis=1))


def feature_std(mean, mean_square):
    """The collapse signal: std of each channel of z/‖z‖ over the batch, averaged, times √d.

    About 1 where z is spread over the sphere, 0 where it has collapsed to a point (section 4.1).

    Args:
      mean: `[D]`, the batch mean of z/‖z‖.
      mean_square: `[D]`, the batch mean of its square.
    """
    variance = tf.maximum(mean_square - tf.square(mean), 0)
    dimension = tf.cast(tf.size(mean), mean.dtype)
    return tf.reduce_mean(tf.sqrt(variance)) * tf.sqrt(dimension)
