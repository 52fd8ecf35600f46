"""Networks of a user's own, for --backbone=own_networks:NAME."""

import keras

# Values of --backbone, to be formatted with a dropout rate.
VIT = (
    "keras_hub:ViTBackbone(patch_size=2,num_layers=2,num_heads=2,hidden_dim=8,mlp_dim=16,"
    "dropout_rate={dropout})"
)
EFFICIENT_NET = (
    "keras_hub:EfficientNetBackbone(stackwise_kernel_sizes=[3,3],stackwise_num_repeats=[1,2],"
    "stackwise_input_filters=[8,8],stackwise_output_filters=[8,16],"
    "stackwise_expansion_ratios=[1,4],stackwise_squeeze_and_excite_ratios=[0.25,0.25],"
    "stackwise_strides=[1,2],stackwise_block_types=['v1','v1'],dropout={dropout},"
    "stackwise_width_coefficients=[1,1],stackwise_depth_coefficients=[1,1],"
    "stackwise_force_input_filters=[0,0],stackwise_nores_option=[False,False])"
)


def maps(width=4):
    """A functional network of three strided convolutions, [N, H, W, 3] → [N, H/8, W/8, 4 width]."""
    x = inputs = keras.Input((None, None, 3))
    for stage in range(3):
        x = keras.layers.Conv2D(width * 2**stage, 3, 2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, x)


def grouped():
    """A network with a grouped convolution, which Keras lets XLA compile on a CPU."""
    x = inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 3, 2, groups=3, activation="gelu")(x)
    return keras.Model(inputs, keras.layers.LayerNormalization()(x))


class Subclassed(keras.Model):
    """A network whose layers Keras cannot list in order, with dropout; it returns features."""

    def __init__(self, dropout):
        super().__init__()
        self.conv = keras.layers.Conv2D(8, 3, 2)
        self.norm = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(dropout)
        self.linear = keras.layers.Dense(12)

    def call(self, x, training=False):
        x = keras.ops.relu(self.norm(self.conv(x), training=training))
        return self.linear(self.dropout(keras.ops.mean(x, axis=(1, 2)), training=training))


def subclassed(dropout=0.2):
    return Subclassed(dropout)


def no_network():
    return "a text"


def wrong():
    raise RuntimeError("no such layer")


def channels_first():
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, keras.layers.BatchNormalization(axis=1)(inputs))
