"""The batch normalization in networks of Keras, with this project's statistics."""

import contextlib
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf

from simsiam_tf.models.normalization import normalize_by_batch, normalize_by_running
from simsiam_tf.schema import UserError


@keras.saving.register_keras_serializable("simsiam_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer with the statistics of `normalization`: of each view, over all replicas.

    It has the name of Keras' class, which is part of the names in Keras' files of weights.
    """

    frozen = False  # as in `normalization.BatchNormalization`

    def call(
        self, x: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        gamma, beta = self.gamma if self.scale else None, self.beta if self.center else None
        weights = (gamma, beta, self.moving_mean, self.moving_variance)
        if self.frozen or not (training and self.trainable):
            return normalize_by_running(x, weights, self.epsilon)
        num_views = getattr(_of_thread, "num_views", 1)
        return normalize_by_batch(x, weights, num_views, self.momentum, self.epsilon)


_MOMENTUM = 0.9  # that of PyTorch and of `normalization.BatchNormalization`

# The number of views in a batch, in the thread that traces a replica's step.
_of_thread = threading.local()


@contextlib.contextmanager
def of_views(num_views: int) -> Iterator[None]:
    """A context in which `BatchNormalization` takes its input for several views."""
    before = getattr(_of_thread, "num_views", 1)
    _of_thread.num_views = num_views
    try:
        yield
    finally:
        _of_thread.num_views = before


def adopt(network: keras.layers.Layer) -> int:
    """Makes every batch normalization of a network a `BatchNormalization`, with its weights.

    The momentum of its running statistics becomes 0.9.

    Returns:
      The number of these layers.

    Raises:
      UserError: a layer normalises another axis than the last one, or by other statistics.
    """
    layers = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
        rank = layer.input_spec.ndim if layer.input_spec else None
        if axis not in (-1, rank and rank - 1) or layer.renorm:
            raise UserError(
                "--backbone must normalise the last axis of its tensors, without "
                f"renormalization. Received: the layer {layer.name} with axis={axis}"
            )
        layer.__class__ = BatchNormalization
        # With Keras' 0.99 or 0.999, the running statistics of a run of 1,000 steps are still partly
        # the initial ones, and evaluation sees other features than training.
        layer.momentum = min(layer.momentum, _MOMENTUM)
        for variable in layer.weights:
            variable._autocast = False  # statistics have the precision of the weights
    return len(layers)
