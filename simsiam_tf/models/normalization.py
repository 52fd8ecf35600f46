"""Batch normalization as the reference computes it, on several views at once.

The reference runs its encoder on each view separately. Here the views of a batch are concatenated,
so that each convolution is launched once. This layer keeps the statistics of the views separate: it
normalises each view by its own statistics. The running statistics are updated once per view, in the
order of the views.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from simsiam_tf.distribution import collectives


class BatchNormalization(keras.layers.Layer):
    """PyTorch's `SyncBatchNorm` over the last axis, for one or more concatenated views.

    Epsilon is 1e-5, and running = 0.9·running + 0.1·batch. The running variance is unbiased. The
    statistics are those of the global batch, over all replicas.
    """

    def __init__(
        self,
        affine: bool = True,
        zero_gamma: bool = False,
        relu: bool = False,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        **kwargs: object,
    ) -> None:
        """Configures the layer; `build` creates its variables.

        Args:
          affine: multiply by a scale gamma and add an offset beta.
          zero_gamma: start gamma at 0 instead of 1 (the last of each residual block).
          relu: apply a ReLU to the result, in the same pass over memory.
          momentum: share of the old running statistic in the new one.
          epsilon: added to the variance.
          **kwargs: arguments of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.affine = affine
        self.zero_gamma = zero_gamma
        self.relu = relu
        self.momentum = momentum
        self.epsilon = epsilon
        self.frozen = False  # whether training uses the running statistics and leaves them

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # Variables and statistics have the precision of the weights, whatever the dtype of x.
        weight = {"shape": input_shape[-1:], "autocast": False}
        if self.affine:
            self.gamma = self.add_weight(
                name="gamma", initializer="zeros" if self.zero_gamma else "ones", **weight
            )
            self.beta = self.add_weight(name="beta", initializer="zeros", **weight)
        # Every replica computes the same update, so no broadcast is needed.
        statistic = {"trainable": False} | weight
        self.running_mean = self.add_weight(name="running_mean", initializer="zeros", **statistic)
        self.running_variance = self.add_weight(
            name="running_variance", initializer="ones", **statistic
        )

    def call(self, x: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        """Returns x normalised, with the same shape and dtype.

        Args:
          x: `[num_views · B, ..., C]` of any float dtype, the views one after another.
          training: normalise by the statistics of the batch and update the running statistics;
            otherwise normalise by the running statistics.
          num_views: number of views in `x`.
        """
        gamma, beta = (self.gamma, self.beta) if self.affine else (None, None)
        weights = (gamma, beta, self.running_mean, self.running_variance)
        if self.frozen or not training:
            return normalize_by_running(x, weights, self.epsilon, self.relu)
        return normalize_by_batch(x, weights, num_views, self.momentum, self.epsilon, self.relu)

    def named_weights(self, name: str) -> dict[str, keras.Variable]:
        """Returns the weights by PyTorch's names of a normalization called `name`."""
        affine = {"weight": self.gamma, "bias": self.beta} if self.affine else {}
        statistics = {"running_mean": self.running_mean, "running_var": self.running_variance}
        return {f"{name}.{key}": value for key, value in (affine | statistics).items()}


def freeze(layer: keras.layers.Layer) -> None:
    """Freezes the weights of a layer and of all layers in it, and their running statistics."""
    layer.trainable = False
    for inner in layer._flatten_layers():
        if hasattr(inner, "frozen"):
            inner.frozen = True


# Gamma, beta, the running mean and the running variance, `[C]` each; gamma and beta may be None.
Weights = tuple[Any, Any, keras.Variable, keras.Variable]


def normalize_by_running(
    x: tf.Tensor, weights: Weights, epsilon: float, relu: bool = False
) -> tf.Tensor:
    """Returns x, `[N, ..., C]` of any float dtype, normalised by the running statistics.

    Args:
      x: the tensor.
      weights: of the layer.
      epsilon: added to the variance.
      relu: whether a ReLU follows.
    """
    gamma, beta, running_mean, running_variance = weights
    dtype = running_mean.dtype
    scale = tf.math.rsqrt(tf.convert_to_tensor(running_variance) + epsilon)
    if gamma is not None:
        scale = tf.convert_to_tensor(gamma) * scale
    y = (tf.cast(x, dtype) - tf.convert_to_tensor(running_mean)) * scale
    if beta is not None:
        y += tf.convert_to_tensor(beta)
    return tf.cast(tf.nn.relu(y) if relu else y, x.dtype)


def normalize_by_batch(
    x: tf.Tensor,
    weights: Weights,
    num_views: int,
    momentum: float,
    epsilon: float,
    relu: bool = False,
) -> tf.Tensor:
    """Returns x normalised by each view's statistics, and updates the running statistics.

    Args:
      x: `[num_views · B, ..., C]` of any float dtype, the views one after another.
      weights: of the layer.
      num_views: number of views in `x`.
      momentum: share of the old running statistic in the new one.
      epsilon: added to the variance.
      relu: whether a ReLU follows.
    """
    gamma, beta, running_mean, running_variance = weights
    channels, dtype = x.shape[-1], running_mean.dtype
    gamma = tf.ones([channels], dtype) if gamma is None else tf.convert_to_tensor(gamma)
    beta = tf.zeros([channels], dtype) if beta is None else tf.convert_to_tensor(beta)
    shape = tf.shape(x)
    images, positions = shape[0] // num_views, tf.reduce_prod(shape[1:-1])
    by_view = tf.reshape(x, [num_views, images, positions, channels])
    y, mean, variance = _normalizer(epsilon, relu, momentum)(
        by_view,
        gamma,
        beta,
        tf.convert_to_tensor(running_mean),
        tf.convert_to_tensor(running_variance),
    )
    running_mean.assign(mean)
    running_variance.assign(variance)
    return tf.reshape(y, shape)


def _normalizer(epsilon: float, relu: bool, momentum: float) -> Callable[..., tuple]:
    """Returns a function that normalises each view by its statistics over all replicas.

    Its gradient is written by hand, so that it needs one collective for all views, as the forward
    pass does.

    XLA compiles every operation on a tensor of the size of x, in pieces between the collectives.
    Each piece passes over memory once or twice; single operations would pass over it ten times. The
    pieces cast half-precision numbers inside, so there is never a copy of x in float32. The
    backward pass computes the ReLU's mask again, so the ReLU's input need not stay in memory.

    Args:
      epsilon: added to the variance.
      relu: whether a ReLU follows.
      momentum: share of the old running statistic in the new one.

    Returns:
      A function of x, gamma, beta, the running mean and the running variance. x is `[V, B, P, C]`
      of any float dtype; the P positions of the B images of a view share their statistics. All
      other arguments are `[C]` in the weights' dtype. The function returns y like x and the new
      running statistics, through which no gradient flows.
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
    """Returns this replica's means and biased variances of x, `[2, V, C]` in `dtype`.

    x is `[V, B, P, C]` of any float dtype.
    One pass over x computes the means of x − r and of (x − r)², where r is an element of x. The
    variance is the second mean minus the square of the first. It keeps its precision however large
    the mean of x is.
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
    """Returns y, the mean and variance over all replicas, and the new running statistics.

    y is like x, mean and variance are `[V, C]`, the running statistics `[C]`. All replicas have
    shares of equal size. So the variance is the mean of their variances plus the variance of their
    means. Both are sums of squares, so there is no cancellation.
    """
    means, variances = tf.unstack(statistics, axis=1)
    mean = tf.reduce_mean(means, axis=0)
    variance = tf.reduce_mean(variances + tf.math.squared_difference(means, mean), axis=0)
    y = _affine(x, mean, gamma * tf.math.rsqrt(variance + epsilon), beta)
    y = tf.cast(tf.nn.relu(y) if relu else y, x.dtype)
    # Each view in turn updates the running statistics; the running variance is unbiased.
    count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]) * num_replicas, mean.dtype)
    unbiased = variance * count / (count - 1)
    for view in range(mean.shape[0]):
        running_mean += (1 - momentum) * (mean[view] - running_mean)
        running_variance += (1 - momentum) * (unbiased[view] - running_variance)
    return y, mean, variance, running_mean, running_variance


@tf.function(jit_compile=True, autograph=False)
def _local_gradients(x, dy, mean, variance, gamma, beta, epsilon, relu):
    """Returns this replica's means of dy and of dy · (x − mean) / std, `[2, V, C]`."""
    inverse_std = tf.math.rsqrt(variance + epsilon)
    dy = _before_relu(x, dy, mean, gamma * inverse_std, beta) if relu else tf.cast(dy, mean.dtype)
    normalized = (tf.cast(x, mean.dtype) - _broadcast(mean)) * _broadcast(inverse_std)
    return tf.stack([_mean(dy), _mean(dy * normalized)])


@tf.function(jit_compile=True, autograph=False)
def _gradient_of_input(x, dy, mean, variance, gamma, beta, means, epsilon, relu):
    """Returns dx like x; `means` are those of `_local_gradients`, averaged over all replicas."""
    inverse_std = tf.math.rsqrt(variance + epsilon)
    scale = gamma * inverse_std
    dy_mean, slope = tf.unstack(means)
    dy = _before_relu(x, dy, mean, scale, beta) if relu else tf.cast(dy, mean.dtype)
    centered = tf.cast(x, mean.dtype) - _broadcast(mean)
    dx = dy - _broadcast(dy_mean) - centered * _broadcast(inverse_std * slope)
    return tf.cast(_broadcast(scale) * dx, x.dtype)


def _before_relu(x, dy, mean, scale, beta):
    """Returns the gradient before the ReLU that follows `_affine`, in the statistics' dtype."""
    return tf.where(_affine(x, mean, scale, beta) > 0, tf.cast(dy, mean.dtype), 0)


def _affine(x, mean, scale, beta):
    return (tf.cast(x, mean.dtype) - _broadcast(mean)) * _broadcast(scale) + beta


def _mean(x):
    """Returns the mean over images and positions: `[V, B, P, C]` → `[V, C]`.

    It averages over the positions of an image first, then over the images. Each sum then has about
    a hundred terms instead of thousands, and the rounding error is ten times smaller.
    """
    return tf.reduce_mean(tf.reduce_mean(x, axis=2), axis=1)


def _broadcast(statistic):
    """Returns a statistic `[V, C]` as `[V, 1, 1, C]`."""
    return statistic[:, tf.newaxis, tf.newaxis]
