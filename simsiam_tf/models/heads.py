"""The projector and the predictor: one multi-layer perceptron, called twice (section 3)."""

import keras
import tensorflow as tf

from simsiam_tf.models.initializers import uniform_fan_in
from simsiam_tf.models.normalization import BatchNormalization


class Mlp(keras.layers.Layer):
    """[fully connected, BN, ReLU] for each hidden layer, then the last layer; the identity without.

    `linears` and `norms` hold the layers in order, built. There may be fewer norms than linears.
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
            if index < len(self.norms):  # with its ReLU
                x = self.norms[index](x, training=training, num_views=num_views)
            elif index < len(self.linears) - 1:
                x = tf.nn.relu(x)
        return tf.cast(x, self.variable_dtype)


def build_projector(config, input_dim, seed):
    """f's head: `projection_layers` layers, by default with BN on each and no affine on the last.

    The reference freezes the last layer's bias where it starts, as BN cancels it.
    """
    hidden_dim = config.projection_hidden_dim or input_dim
    hidden_dims = [hidden_dim] * (config.projection_layers - 1)
    dims = [input_dim, *hidden_dims, config.projection_dim]
    return _mlp("projector", dims, config.projection_bn, seed)


def build_predictor(config, seed):
    """h: a bottleneck of two layers, by default without BN on the last; or the identity."""
    if config.predictor == "none":
        return Mlp([], [], name="predictor")
    dims = [config.projection_dim, config.prediction_hidden_dim, config.projection_dim]
    norm = "all_affine" if config.prediction_bn == "all" else config.prediction_bn
    predictor = _mlp("predictor", dims, norm, seed)
    predictor.trainable = config.predictor != "fixed"
    return predictor


def _mlp(name, dims, norm, seed):
    """The layers of a head; `norm` as `--projection_bn` has it."""
    last = len(dims) - 2
    num_norms = {"none": 0, "hidden": last}.get(norm, last + 1)
    linears = [
        # A hidden layer's bias would be cancelled by the BN that follows.
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


def _linear(input_dim, output_dim, name, seed, bias):
    layer = keras.layers.Dense(
        output_dim,
        use_bias=bias,
        kernel_initializer=uniform_fan_in(seed, f"{name}.kernel", input_dim),
        bias_initializer=uniform_fan_in(seed, f"{name}.bias", input_dim),
    )
    layer.build((None, input_dim))
    return layer


def _norm(dim, affine, relu):
    layer = BatchNormalization(affine=affine, relu=relu)
    layer.build((None, dim))
    return layer
