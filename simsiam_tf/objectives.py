"""The losses, as pure functions of tensors; the caller gathers tensors over replicas."""

import math

import tensorflow as tf


def negative_cosine_similarity(p: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Returns −cos(p, z), averaged over the batch (equation 1).

    Args:
      p: predictions `[B, D]`, float.
      z: targets `[B, D]`, float. The method stops their gradient; this function does not.

    Returns:
      A scalar in [−1, 1] of the inputs' dtype.
    """
    p, z = tf.math.l2_normalize(p, axis=1), tf.math.l2_normalize(z, axis=1)
    return -tf.reduce_mean(tf.reduce_sum(p * z, axis=1))


def cross_entropy_similarity(p: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Returns −softmax(z) · log softmax(p), averaged over the batch (section 4.5).

    Args:
      p: predictions `[B, D]`, float.
      z: targets `[B, D]`, float. The method stops their gradient; this function does not.

    Returns:
      A scalar of the inputs' dtype.
    """
    return -tf.reduce_mean(tf.reduce_sum(tf.nn.softmax(z) * tf.nn.log_softmax(p), axis=1))


SIMILARITIES = {
    "cosine": negative_cosine_similarity,
    "cross_entropy": cross_entropy_similarity,
}


def nt_xent(
    anchors: tf.Tensor, candidates: tf.Tensor, indices: tf.Tensor, temperature: float
) -> tf.Tensor:
    """Returns SimCLR's loss (Chen et al. 2020, equation 1) of one replica's anchors.

    For each view of an image, the positive is the other view of the same image. The negatives are
    both views of all other images of the global batch.

    Args:
      anchors: `[2, b, D]` float, both views of this replica's images.
      candidates: `[2, B, D]` float, both views of all images, including this replica's.
      indices: `[b]` int, the indices of this replica's images among all images.
      temperature: above 0.

    Returns:
      A scalar, the mean over the anchors.
    """
    num_candidates = candidates.shape[1]
    anchors, candidates = (
        tf.reshape(tf.math.l2_normalize(z, axis=2), [-1, z.shape[2]]) for z in (anchors, candidates)
    )
    logits = tf.matmul(anchors, candidates, transpose_b=True) / temperature
    own = tf.concat([indices, indices + num_candidates], axis=0)
    positive = tf.concat([indices + num_candidates, indices], axis=0)
    own_mask = tf.one_hot(own, 2 * num_candidates, dtype=logits.dtype) * 1e9
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(positive, logits - own_mask)
    )


def info_nce(q: tf.Tensor, k: tf.Tensor, negatives: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns MoCo's loss (He et al. 2020, equation 1): each query's key against the negatives.

    Args:
      q: queries `[B, D]`, float.
      k: keys of the queries `[B, D]`, float.
      negatives: vectors of length 1, `[K, D]` float.
      temperature: above 0.

    Returns:
      A scalar, the mean over the queries.
    """
    q, k = tf.math.l2_normalize(q, axis=1), tf.math.l2_normalize(k, axis=1)
    positive = tf.reduce_sum(q * k, axis=1, keepdims=True)
    logits = tf.concat([positive, tf.matmul(q, negatives, transpose_b=True)], axis=1) / temperature
    return -tf.reduce_mean(tf.nn.log_softmax(logits)[:, 0])


def sinkhorn(scores: tf.Tensor, epsilon: float, iterations: int) -> tf.Tensor:
    """Returns SwAV's codes (Caron et al. 2020, algorithm 1): images assigned to prototypes.

    The codes use all prototypes equally. The Sinkhorn-Knopp iteration on exp(scores / epsilon)
    works with logarithms, so that large scores do not overflow.

    Args:
      scores: scores of all images of the global batch with the prototypes, `[B, K]` float.
      epsilon: above 0; a small value makes the codes hard.
      iterations: number of iterations.

    Returns:
      `[B, K]`; each row sums to 1. The gradient flows through it; the method stops it.
    """
    num_rows, num_prototypes = scores.shape
    log_codes = scores / epsilon
    for _ in range(iterations):
        log_codes -= tf.reduce_logsumexp(log_codes, axis=0) + math.log(num_prototypes)
        log_codes -= tf.reduce_logsumexp(log_codes, axis=1, keepdims=True) + math.log(num_rows)
    return tf.exp(log_codes + math.log(num_rows))


def swapped_prediction(codes: tf.Tensor, scores: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns SwAV's loss: the cross-entropy of one view's codes and another view's scores.

    Args:
      codes: `[B, K]` float; each row sums to 1.
      scores: `[B, K]` float.
      temperature: above 0.

    Returns:
      A scalar, the mean over the batch.
    """
    log_probabilities = tf.nn.log_softmax(scores / temperature)
    return -tf.reduce_mean(tf.reduce_sum(codes * log_probabilities, axis=1))


def feature_std(mean: tf.Tensor, mean_square: tf.Tensor) -> tf.Tensor:
    """Returns the mean over channels of the batch std of z/‖z‖, times √d: it tells collapse.

    It is about 1 if z is spread over the sphere, and 0 if z has collapsed to a point (section 4.1).

    Args:
      mean: `[D]` float, the batch mean of z/‖z‖.
      mean_square: `[D]` float, the batch mean of the square of z/‖z‖.

    Returns:
      A scalar.
    """
    variance = tf.maximum(mean_square - tf.square(mean), 0)
    dimension = tf.cast(tf.size(mean), mean.dtype)
    return tf.reduce_mean(tf.sqrt(variance)) * tf.sqrt(dimension)
