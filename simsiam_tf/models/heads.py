"""The projector and the predictor: one multi-layer perceptron, built twice (section 3)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.models.initializers import uniform_fan_in
from simsiam_tf.models.normalization import BatchNormalization


class Mlp(keras.layers.Layer):
    """[fully connected, BN, ReLU] for each hidden layer, then the last layer.

    An `Mlp` without layers is the identity.
    """

    def __init__(
        self,
        linears: list[keras.layers.Dense],
        norms: list[BatchNormalization],
        **kwargs: object,
    ) -> None:
        """Chains layers that are already built.

        Args:
          linears: the fully connected layers, in order.
          norms: their normalizations, in order; there may be fewer of them than `linears`.
          **kwargs: arguments of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.linears = linears
        self.norms = norms
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        """Returns the output of the last layer, in the precision of the weights.

        Args:
          x: `[num_views · B, input_dim]` float, the views one after another.
          training: normalise by the statistics of the batch.
          num_views: number of views in `x`.

        Returns:
          `[num_views · B, output_dim]`.
        """
        for index, linear in enumerate(self.linears):
            x = linear(x)
            if index < len(self.norms):  # the normalization applies the ReLU itself
                x = self.norms[index](x, training=training, num_views=num_views)
            elif index < len(self.linears) - 1:
                x = tf.nn.relu(x)
        return tf.cast(x, self.variable_dtype)

    def named_weights(self) -> dict[str, keras.Variable]:
        """Returns all weights by the names that the authors' code gives them."""
        # torch.nn.Sequential numbers [linear, norm, ReLU] of each layer consecutively.
        named = {}
        for index, linear in enumerate(self.linears):
            named[f"{3 * index}.weight"] = linear.kernel
            if linear.use_bias:
                named[f"{3 * index}.bias"] = linear.bias
            if index < len(self.norms):
                named |= self.norms[index].named_weights(f"{3 * index + 1}")
        return named


def build_projector(config: MethodConfig, input_dim: int, seed: int) -> Mlp:
    """Returns the projector, the head of f (section 3).

    It has `projection_layers` layers. By default BN follows each of them, without scale and offset
    on the last. The last layer's bias then stays at its initial value, as in the reference, because
    BN cancels it.

    Args:
      config: the method's settings.
      input_dim: number of the encoder's features.
      seed: seed of the initial weights.
    """
    hidden_dim = config.projection_hidden_dim or input_dim
    hidden_dims = [hidden_dim] * (config.projection_layers - 1)
    dims = [input_dim, *hidden_dims, config.projection_dim]
    return _mlp("projector", dims, config.projection_bn, seed)


def build_predictor(config: MethodConfig, seed: int) -> Mlp:
    """Returns the predictor h (section 3): a bottleneck of two layers, or the identity.

    By default the last layer has no BN. The weights of `--predictor=fixed` are not trained.

    Args:
      config: the method's settings.
      seed: seed of the initial weights.
    """
    if config.predictor == "none":
        return Mlp([], [], name="predictor")
    dims = [config.projection_dim, config.prediction_hidden_dim, config.projection_dim]
    norm = "all_affine" if config.prediction_bn == "all" else config.prediction_bn
    predictor = _mlp("predictor", dims, norm, seed)
    predictor.trainable = config.predictor != "fixed"
    return predictor


def _mlp(name: str, dims: Sequence[int], norm: str, seed: int) -> Mlp:
    """Returns a head with layers of the widths `dims`; `norm` is a value of `--projection_bn`."""
    last = len(dims) - 2
    num_norms = {"none": 0, "hidden": last}.get(norm, last + 1)
    linears = [
        # A hidden layer has no bias where BN follows, because BN would cancel it.
        _linear(
            dims[index],
            dims[index + 1],
            f"{name}.{index}",
            seed,
            bias=index == last or num_norms == 0,
        )
        for index in range(last + 1)
    ]
    if num_norms > last:
        linears[-1].bias.trainable = False
    norms = [
        _norm(dims[index + 1], affine=index < last or norm == "all_affine", relu=index < last)
        for index in range(num_norms)
    ]
    return Mlp(linears, norms, name=name)


def _linear(
    input_dim: int, output_dim: int, name: str, seed: int, bias: bool
) -> keras.layers.Dense:
    layer = keras.layers.Dense(
        output_dim,
        use_bias=bias,
        kernel_initializer=uniform_fan_in(seed, f"{name}.kernel", input_dim),
        bias_initializer=uniform_fan_in(seed, f"{name}.bias", input_dim),
    )
    layer.build((None, input_dim))
    return layer


def _norm(dim: int, affine: bool, relu: bool) -> BatchNormalization:
    layer = BatchNormalization(affine=affine, relu=relu)
    layer.build((None, dim))
    return layer
