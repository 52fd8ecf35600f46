"""The losses, as pure functions of tensors; what is gathered over replicas arrives gathered."""

import tensorflow as tf


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
