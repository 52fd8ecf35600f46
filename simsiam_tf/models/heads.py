"""The projector and the predictor: one multi-layer perceptron, called twice (section 3)."""

import keras
import tensorflow as tf

from simsiam_tf.models.initializers import uniform_fan_in
from simsiam_tf.models.normalization import BatchNormalization


class Mlp(keras.layers.Layer):
    """[fully connected without bias, BN, ReLU] for each hidden layer, then the last layer.

    `linears` and `norms` hold the layers in order, built.
    """

    def __init__(self, linears, norms, **kwargs):
        super().__init__(**kwargs)
        self.linears = linears
        self.norms = norms
        self.built = True

    def call(self, x, training=False, num_views=1):
        """`[num_views · B, input]` → `[num_views · B, output]`, in the weights' precision."""
        for index, linear in enumerate(self.linears):
            x = linear(x)
            if index < len(self.norms):
                x = self.norms[index](x, training=training, num_views=num_views)
            if index < len(self.linears) - 1:
                x = tf.nn.relu(x)
        return tf.cast(x, self.variable_dtype)


def build_projector(config, input_dim, seed):
    """f's head: `projection_layers` layers with BN on each; the last BN has no scale and offset.

    The last layer has a bias that BN cancels; the reference freezes it where it starts.
    """
    hidden_dim = config.projection_hidden_dim or input_dim
    num_hidden = config.projection_layers - 1
    dims = [input_dim, *[hidden_dim] * num_hidden, config.projection_dim]
    linears = [
        _linear(dims[index], dims[index + 1], f"projector.{index}", seed, bias=index == num_hidden)
        for index in range(len(dims) - 1)
    ]
    linears[-1].bias.trainable = False
    norms = [_norm(hidden_dim) for _ in range(num_hidden)]
    norms.append(_norm(config.projection_dim, affine=False))
    return Mlp(linears, norms, name="projector")


def build_predictor(config, seed):
    """h: a bottleneck of two layers; the last has a bias and neither BN nor ReLU."""
    dim, hidden_dim = config.projection_dim, config.prediction_hidden_dim
    linears = [
        _linear(dim, hidden_dim, "predictor.0", seed, bias=False),
        _linear(hidden_dim, dim, "predictor.1", seed, bias=True),
    ]
    return Mlp(linears, [_norm(hidden_dim)], name="predictor")


def _linear(input_dim, output_dim, name, seed, bias):
    layer = keras.layers.Dense(
        output_dim,
        use_bias=bias,
        kernel_initializer=uniform_fan_in(seed, f"{name}.kernel", input_dim),
        bias_initializer=uniform_fan_in(seed, f"{name}.bias", input_dim),
    )
    layer.build((None, input_dim))
    return layer


def _norm(dim, affine=True):
    layer = BatchNormalization(affine=affine)
    layer.build((None, dim))
    return layer
