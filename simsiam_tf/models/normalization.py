"""Batch normalization as the reference computes it, on several views at once.

The reference runs its encoder on each view by itself. Here the views of a batch are concatenated,
so that a convolution is launched once, and this layer keeps their statistics apart: each view is
normalised by its own, and the running statistics move once per view, in the order of the views.
"""

import keras
import tensorflow as tf

from simsiam_tf.distribution import collectives


class BatchNormalization(keras.layers.Layer):
    """PyTorch's `SyncBatchNorm` over the last axis, for one or more concatenated views.

    Epsilon 1e-5; running = 0.9·running + 0.1·batch; the running variance is unbiased; statistics
    are those of the global batch, over all replicas.
    """

    def __init__(
        self, affine=True, zero_gamma=False, relu=False, momentum=0.9, epsilon=1e-5, **kwargs
    ):
        """Args:
        affine: whether there is a scale gamma and an offset beta.
        relu: apply a ReLU to the result, in the same pass over memory.
        zero_gamma: start gamma at 0 instead of 1 (the last of each residual block).
        momentum: share of the old running statistic that is kept.
        epsilon: added to the variance.
        """
        super().__init__(**kwargs)
        self.affine = affine
        self.zero_gamma = zero_gamma
        self.relu = relu
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
        # Every replica computes the same update for itself, so nothing is broadcast.
        statistic = {"trainable": False} | weight
        self.running_mean = self.add_weight(name="running_mean", initializer="zeros", **statistic)
        self.running_variance = self.add_weight(
            name="running_variance", initializer="ones", **statistic
        )

    def call(self, x, training=False, num_views=1):
        """Args:
        x: `[num_views · B, ..., C]`, the views one after the other, of any float dtype.
        training: normalise by the batch and move the running statistics, else by the latter.
        num_views: how many views were concatenated.

        Returns:
          The same shape and dtype.
        """
        channels, dtype = x.shape[-1], self.variable_dtype
        running_mean = tf.convert_to_tensor(self.running_mean)
        running_variance = tf.convert_to_tensor(self.running_variance)
        if self.affine:
            gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        else:
            gamma, beta = tf.ones([channels], dtype), tf.zeros([channels], dtype)
        if not training:
            scale = gamma * tf.math.rsqrt(running_variance + self.epsilon)
            y = (tf.cast(x, dtype) - running_mean) * scale + beta
            return tf.cast(tf.nn.relu(y) if self.relu else y, x.dtype)
        shape = tf.shape(x)
        images, positions = shape[0] // num_views, tf.reduce_prod(shape[1:-1])
        by_view = tf.reshape(x, [num_views, images, positions, channels])
        normalize = _normalizer(self.epsilon, self.relu, self.momentum)
        y, running_mean, running_variance = normalize(
            by_view, gamma, beta, running_mean, running_variance
        )
        self.running_mean.assign(running_mean)
        self.running_variance.assign(running_variance)
        return tf.reshape(y, shape)


def _normalizer(epsilon, relu, momentum):
    """Normalises each view by its statistics over all replicas.

    The gradient is written out: it takes one collective for all views, as the forward pass does.
    What reads or writes a tensor of the size of x is compiled by XLA, piece by piece between the
    collectives: each piece passes over memory once or twice, where single operations do ten times.
    Numbers of half precision are cast inside the pieces, so no copy of x in float32 is ever made,
    and the ReLU's mask is computed again on the way back, so its input need not be kept.

    Args:
      epsilon: added to the variance.
      relu: whether a ReLU follows.
      momentum: share of the old running statistic that is kept.

    Returns:
      A function (x `[V, B, P, C]` of any float dtype, view by view, the P positions of B images
      that share their statistics; gamma, beta and both running statistics, `[C]` each in the
      weights' dtype) → y like x, and the new running statistics, through which no gradient flows.
    """

    @tf.custom_gradient
    def normalize(x, gamma, beta, *running):
        statistics = collectives.gather_over_replicas(_local_statistics(x, gamma.dtype))
        num_replicas = collectives.num_replicas()
        y, mean, variance, *running = _scale_and_shift(
            x, statistics, gamma, beta, *running, num_replicas, momentum, epsilon, relu
        )

        def gradient(dy, *_):
            local = _local_gradients(x, dy, mean, variance, gamma, beta, epsilon, relu)
            means = collectives.mean_over_replicas(local)
            dx = _gradient_of_input(x, dy, mean, variance, gamma, beta, means, epsilon, relu)
            # The optimizer sums the gradients of weights over replicas.
            count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), local.dtype)
            dbeta, dgamma = tf.unstack(count * tf.reduce_sum(local, axis=1))
            return dx, dgamma, dbeta, None, None

        return (y, *running), gradient

    return normalize


@tf.function(jit_compile=True, autograph=False)
def _local_statistics(x, dtype):
    """`[V, B, P, C]` → this replica's means and biased variances, `[2, V, C]` in `dtype`.

    One pass over x takes the means of x − r and of its square, r a number of x itself: so the
    variance, the latter less the squared former, keeps its digits whatever the mean is.
    """
    reference = tf.cast(x[:, 0, tf.shape(x)[2] // 2], dtype)
    centered = tf.cast(x, dtype) - _broadcast(reference)
    offset, mean_square = _mean(centered), _mean(tf.square(centered))
    return tf.stack([reference + offset, tf.maximum(mean_square - tf.square(offset), 0)])


@tf.function(jit_compile=True, autograph=False)
def _scale_and_shift(
    x,
    statistics,
    gamma,
    beta,
    running_mean,
    running_variance,
    num_replicas,
    momentum,
    epsilon,
    relu,
):
    """y like x; mean and variance over all replicas, `[V, C]`; the new running statistics `[C]`.

    Means of equal shares: the variance is the mean of the variances plus that of the means, each a
    sum of squares, so nothing cancels.
    """
    means, variances = tf.unstack(statistics, axis=1)
    mean = tf.reduce_mean(means, axis=0)
    variance = tf.reduce_mean(variances + tf.math.squared_difference(means, mean), axis=0)
    y = _affine(x, mean, gamma * tf.math.rsqrt(variance + epsilon), beta)
    y = tf.cast(tf.nn.relu(y) if relu else y, x.dtype)
    # The running statistics move with each view in turn; the running variance is the unbiased one.
    count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]) * num_replicas, mean.dtype)
    unbiased = variance * count / (count - 1)
    for view in range(mean.shape[0]):
        running_mean += (1 - momentum) * (mean[view] - running_mean)
        running_variance += (1 - momentum) * (unbiased[view] - running_variance)
    return y, mean, variance, running_mean, running_variance


@tf.function(jit_compile=True, autograph=False)
def _local_gradients(x, dy, mean, variance, gamma, beta, epsilon, relu):
    """The means of dy and of dy · (x − mean) / std on this replica, `[2, V, C]`."""
    inverse_std = tf.math.rsqrt(variance + epsilon)
    dy = _before_relu(x, dy, mean, gamma * inverse_std, beta) if relu else tf.cast(dy, mean.dtype)
    normalized = (tf.cast(x, mean.dtype) - _broadcast(mean)) * _broadcast(inverse_std)
    return tf.stack([_mean(dy), _mean(dy * normalized)])


@tf.function(jit_compile=True, autograph=False)
def _gradient_of_input(x, dy, mean, variance, gamma, beta, means, epsilon, relu):
    """dx like x, from `means` of `_local_gradients` over all replicas."""
    inverse_std = tf.math.rsqrt(variance + epsilon)
    scale = gamma * inverse_std
    dy_mean, slope = tf.unstack(means)
    dy = _before_relu(x, dy, mean, scale, beta) if relu else tf.cast(dy, mean.dtype)
    centered = tf.cast(x, mean.dtype) - _broadcast(mean)
    dx = dy - _broadcast(dy_mean) - centered * _broadcast(inverse_std * slope)
    return tf.cast(_broadcast(scale) * dx, x.dtype)


def _before_relu(x, dy, mean, scale, beta):
    """The gradient before a ReLU of `_affine`, in the statistics' dtype."""
    return tf.where(_affine(x, mean, scale, beta) > 0, tf.cast(dy, mean.dtype), 0)


def _affine(x, mean, scale, beta):
    return (tf.cast(x, mean.dtype) - _broadcast(mean)) * _broadcast(scale) + beta


def _mean(x):
    """`[V, B, P, C]` → `[V, C]`.

    The sum runs over the positions of an image first, then over the images: with a hundred terms at
    a time instead of thousands, it rounds ten times less.
    """
    return tf.reduce_mean(tf.reduce_mean(x, axis=2), axis=1)


def _broadcast(statistic):
    """`[V, C]` → `[V, 1, 1, C]`."""
    return statistic[:, tf.newaxis, tf.newaxis]
