"""Batch normalization as the reference computes it, on several views at once.

The reference runs its encoder on each view by itself. Here the views of a batch are concatenated,
so that a convolution is launched once, and this layer keeps their statistics apart: each view is
normalised by its own, and the running statistics move once per view, in the order of the views.
"""

import keras
import tensorflow as tf

from simsiam_tf import distribution


class BatchNormalization(keras.layers.Layer):
    """PyTorch's `SyncBatchNorm` over the last axis, for one or more concatenated views.

    Epsilon 1e-5; running = 0.9·running + 0.1·batch; the running variance is unbiased; statistics
    are those of the global batch, over all replicas.
    """

    def __init__(self, affine=True, zero_gamma=False, momentum=0.9, epsilon=1e-5, **kwargs):
        """Args:
        affine: whether there is a scale gamma and an offset beta.
        zero_gamma: start gamma at 0 instead of 1 (the last of each residual block).
        momentum: share of the old running statistic that is kept.
        epsilon: added to the variance.
        """
        super().__init__(**kwargs)
        self.affine = affine
        self.zero_gamma = zero_gamma
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        # Statistics and what is made of them keep the weights' precision, whatever x has.
        weight = {"shape": input_shape[-1:], "autocast": False}
        if self.affine:
            self.gamma = self.add_weight(
                name="gamma", initializer="zeros" if self.zero_gamma else "ones", **weight
            )
            self.beta = self.add_weight(name="beta", initializer="zeros", **weight)
        # Every replica computes the same update, so the first one's is the one to keep.
        statistic = {"trainable": False, "aggregation": "only_first_replica"} | weight
        self.running_mean = self.add_weight(name="running_mean", initializer="zeros", **statistic)
        self.running_variance = self.add_weight(
            name="running_variance", initializer="ones", **statistic
        )

    def call(self, x, training=False, num_views=1):
        """Args:
        x: `[num_views · B, ..., C]`, the views one after the other.
        training: normalise by the batch and move the running statistics, else by the latter.
        num_views: how many views were concatenated.
        """
        dtype, channels = x.dtype, x.shape[-1]
        x = tf.cast(x, self.variable_dtype)
        if self.affine:
            gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        else:
            gamma, beta = tf.ones([channels], x.dtype), tf.zeros([channels], x.dtype)
        if not training:
            scale = gamma * tf.math.rsqrt(self.running_variance + self.epsilon)
            return tf.cast((x - self.running_mean) * scale + beta, dtype)
        shape = tf.shape(x)
        images, positions = shape[0] // num_views, tf.reduce_prod(shape[1:-1])
        by_view = tf.reshape(x, [num_views, images, positions, channels])
        y, mean, variance = _normalize(by_view, gamma, beta, self.epsilon)
        self._move_running_statistics(mean, variance, images * positions)
        return tf.cast(tf.reshape(y, shape), dtype)

    def _move_running_statistics(self, mean, variance, count):
        count = tf.cast(count * distribution.num_replicas(), variance.dtype)
        variance = variance * count / (count - 1)
        running_mean = tf.convert_to_tensor(self.running_mean)
        running_variance = tf.convert_to_tensor(self.running_variance)
        for view in range(mean.shape[0]):
            running_mean += (1 - self.momentum) * (mean[view] - running_mean)
            running_variance += (1 - self.momentum) * (variance[view] - running_variance)
        self.running_mean.assign(running_mean)
        self.running_variance.assign(running_variance)


def _normalize(x, gamma, beta, epsilon):
    """Normalises each view by its statistics over all replicas.

    The gradient is written out: it takes one collective for all views, as the forward pass does.
    What reads or writes a tensor of the size of x is compiled by XLA, piece by piece between the
    collectives: each piece passes over memory once or twice, where single operations do ten times.

    Args:
      x: `[V, B, P, C]`, view by view, the P positions of B images that share their statistics.
      gamma: `[C]`.
      beta: `[C]`.
      epsilon: added to the variance.

    Returns:
      y `[V, B, P, C]`; the mean and the biased variance of the global batch, `[V, C]` each, through
      which no gradient flows.
    """

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        # Means of equal shares: the variance is the mean of the variances plus that of the means,
        # each a sum of squares, so nothing cancels.
        means, variances = tf.unstack(
            distribution.gather_over_replicas(_local_statistics(x)), axis=1
        )
        mean = tf.reduce_mean(means, axis=0)
        variance = tf.reduce_mean(variances + tf.math.squared_difference(means, mean), axis=0)
        inverse_std = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse_std
        y = _scale_and_shift(x, mean, scale, beta + tf.zeros_like(mean))

        def gradient(dy, *_):
            local = _local_gradients(x, dy, mean, inverse_std)
            mean_dy, mean_dy_normalized = tf.unstack(distribution.mean_over_replicas(local))
            dx = _gradient_of_input(x, dy, mean, scale, mean_dy, inverse_std * mean_dy_normalized)
            count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), x.dtype)
            dbeta, dgamma = tf.unstack(count * tf.reduce_sum(local, axis=1))
            return dx, dgamma, dbeta

        return (y, mean, variance), gradient

    return normalize(x, gamma, beta)


@tf.function(jit_compile=True)
def _local_statistics(x):
    """`[V, B, P, C]` → this replica's means and biased variances, `[2, V, C]`."""
    mean = _mean(x)
    return tf.stack([mean, _mean(tf.math.squared_difference(x, _broadcast(mean)))])


@tf.function(jit_compile=True)
def _scale_and_shift(x, mean, scale, beta):
    return (x - _broadcast(mean)) * _broadcast(scale) + _broadcast(beta)


@tf.function(jit_compile=True)
def _local_gradients(x, dy, mean, inverse_std):
    """The means of dy and of dy · (x − mean) / std on this replica, `[2, V, C]`."""
    normalized = (x - _broadcast(mean)) * _broadcast(inverse_std)
    return tf.stack([_mean(dy), _mean(dy * normalized)])


@tf.function(jit_compile=True)
def _gradient_of_input(x, dy, mean, scale, mean_dy, slope):
    centered = x - _broadcast(mean)
    return _broadcast(scale) * (dy - _broadcast(mean_dy) - centered * _broadcast(slope))


def _mean(x):
    """`[V, B, P, C]` → `[V, C]`.

    The sum runs over the positions of an image first, then over the images: with a hundred terms at
    a time instead of thousands, it rounds ten times less.
    """
    return tf.reduce_mean(tf.reduce_mean(x, axis=2), axis=1)


def _broadcast(statistic):
    """`[V, C]` → `[V, 1, 1, C]`."""
    return statistic[:, tf.newaxis, tf.newaxis]
