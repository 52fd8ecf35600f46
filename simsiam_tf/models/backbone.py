"""The interface of an encoder's network: all that methods, evaluation and export use of it."""

from typing import Any, Self

import keras
import tensorflow as tf

from simsiam_tf.config import EncoderConfig


class Backbone(keras.layers.Layer):
    """A network: normalised images `[N, H, W, C]` → features `[N, feature_dim]`.

    The first `config.freeze_stages` stages, and the layers before them, are frozen: neither their
    weights nor their running statistics change.

    Attributes:
      config: the encoder's settings.
      seed: seed of the initial weights.
      channels: C, number of channels of the images.
      feature_dim: number of features.
      image_size: H and W, in pixels, if the network takes no other size; None: any size.
    """

    config: EncoderConfig
    seed: int
    channels: int
    feature_dim: int
    image_size: int | None

    def call(self, images: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        """Returns the features of images, `[num_views · B, feature_dim]` in the weights' dtype.

        Args:
          images: `[num_views · B, H, W, C]` float, normalised, the views one after another.
          training: normalise by the statistics of the batch.
          num_views: number of views in `images`.
        """
        raise NotImplementedError

    def feature_maps(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the last map of each resolution, in inference mode, the largest map first.

        Args:
          images: `[N, H, W, C]` float, normalised.

        Returns:
          {"stage1": `[N, h, w, c]`, "stage2": ...} in the compute dtype; empty if the network has
          no maps.
        """
        raise NotImplementedError

    def copy(self) -> Self:
        """Returns another network with the same weights, in the number format of new layers."""
        other = self.from_config(self.get_config())
        other.set_weights(self.get_weights())
        return other

    def describe(self) -> None:
        """Logs what the user should know of the network; by default nothing."""

    def named_weights(self) -> dict[str, keras.Variable]:
        """Returns all weights by names that do not depend on what else the process has built."""
        raise NotImplementedError


def average(x: tf.Tensor, dtype: str, training: bool) -> tf.Tensor:
    """Returns the mean over all positions, `[N, ..., C]` of any float dtype → `[N, C]`."""
    return (_compiled_average if training else _average)(x, dtype)


def _average(x: tf.Tensor, dtype: str) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(x, dtype), axis=list(range(1, x.shape.rank - 1)))


# It makes no copy of x in `dtype`.
_compiled_average = tf.function(_average, jit_compile=True, autograph=False)


def is_statistic(variable: Any) -> bool:
    """Returns whether a weight is a running mean or variance of a normalization."""
    return variable.name in ("running_mean", "running_variance", "moving_mean", "moving_variance")


def random_states(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the states of the random generators in a layer, which its weights do not include."""
    return [variable for variable in layer.variables if variable.name == "seed_generator_state"]
