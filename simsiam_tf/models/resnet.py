"""ResNet 10 to 152 as torchvision computes it ("v1.5": the stride is on the 3x3 convolution).

Layers carry torchvision's names ("conv1", "layer1.0.conv2", "layer1.0.downsample"), so that a
weight is found in either library. Padding is symmetric everywhere; Keras' "same" is not, at stride
2.
"""

import keras
import tensorflow as tf

from simsiam_tf.models.initializers import he_normal_fan_out
from simsiam_tf.models.normalization import BatchNormalization
from simsiam_tf.models.pooling import MaxPool

# name → (whether its blocks are bottlenecks, blocks in each of the four stages)
ARCHITECTURES = {
    "resnet10": (False, (1, 1, 1, 1)),
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
_EXPANSION = 4  # output channels of a bottleneck per inner channel


class ConvNorm(keras.layers.Layer):
    """Convolution without bias, then batch normalization, then a ReLU if there is one."""

    def __init__(
        self,
        input_channels,
        channels,
        kernel_size,
        strides,
        seed,
        *,
        name,
        relu=True,
        zero_gamma=False,
    ):
        """Args:
        input_channels: of what comes in.
        channels: of what goes out.
        kernel_size: height and width of the kernel.
        strides: of the convolution.
        seed: of the initial weights.
        name: torchvision's, for example "layer1.0.conv1".
        relu: whether a ReLU follows.
        zero_gamma: start the normalization's gamma at 0.
        """
        super().__init__(name=name.replace(".", "_"))
        # oneDNN's gradient of a strided 1x1 kernel writes past its buffer where the input has fewer
        # than 8 channels (AVX2) or 16 (AVX-512), github.com/uxlfoundation/oneDNN/issues/6035. What
        # the stride leaves out is cut away before, then.
        self.skip = strides if kernel_size == 1 and input_channels < 16 else 1
        strides //= self.skip
        padding = kernel_size // 2
        self.pad = keras.layers.ZeroPadding2D(padding) if strides > 1 and padding else None
        self.conv = keras.layers.Conv2D(
            channels,
            kernel_size,
            strides,
            padding="valid" if self.pad else "same",
            use_bias=False,
            kernel_initializer=he_normal_fan_out(seed, name),
        )
        self.conv.build((None, None, None, input_channels))
        self.norm = BatchNormalization(zero_gamma=zero_gamma, relu=relu)
        self.norm.build((None, channels))
        self.built = True

    def call(self, x, training=False, num_views=1):
        x = x[:, :: self.skip, :: self.skip] if self.skip > 1 else x
        x = self.pad(x) if self.pad else x
        return self.norm(self.conv(x), training=training, num_views=num_views)


class Block(keras.layers.Layer):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1."""

    def __init__(self, input_channels, channels, strides, bottleneck, seed, *, name):
        """Args:
        input_channels: of what comes in.
        channels: inner channels; a bottleneck puts out four times as many.
        strides: of the block's (first) 3x3 convolution.
        bottleneck: which of the two kinds.
        seed: of the initial weights.
        name: torchvision's, for example "layer1.0".
        """
        super().__init__(name=name.replace(".", "_"))
        self.output_channels = channels * (_EXPANSION if bottleneck else 1)
        if bottleneck:
            shapes = [
                (input_channels, channels, 1, 1),
                (channels, channels, 3, strides),
                (channels, self.output_channels, 1, 1),
            ]
        else:
            shapes = [(input_channels, channels, 3, strides), (channels, channels, 3, 1)]
        self.conv_norms = []
        for index, shape in enumerate(shapes, start=1):
            last = index == len(shapes)  # its ReLU follows the sum
            self.conv_norms.append(
                ConvNorm(*shape, seed, name=f"{name}.conv{index}", relu=not last, zero_gamma=last)
            )
        self.downsample = None  # the identity, where the shapes allow it
        if strides > 1 or input_channels != self.output_channels:
            self.downsample = ConvNorm(
                input_channels,
                self.output_channels,
                1,
                strides,
                seed,
                name=f"{name}.downsample",
                relu=False,
            )
        self.built = True

    def call(self, x, training=False, num_views=1):
        y = x
        for conv_norm in self.conv_norms:
            y = conv_norm(y, training=training, num_views=num_views)
        if self.downsample:
            x = self.downsample(x, training=training, num_views=num_views)
        return tf.nn.relu(x + y)


class ResNet(keras.layers.Layer):
    """Images `[N, H, W, 3]`, normalised, → pool features `[N, feature_dim]`."""

    def __init__(self, config, seed):
        """Args:
        config: an `EncoderConfig`.
        seed: of the initial weights, an int.
        """
        super().__init__(name=config.backbone)
        self.config = config
        self.seed = seed
        bottleneck, depths = ARCHITECTURES[config.backbone]
        imagenet = config.stem == "imagenet"
        kernel_size, strides = (7, 2) if imagenet else (3, 1)
        self.stem = ConvNorm(3, config.width, kernel_size, strides, seed, name="conv1")
        self.pool = MaxPool() if imagenet else None
        self.blocks = []
        channels = config.width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                block = Block(
                    channels,
                    config.width * 2**stage,
                    2 if stage > 0 and index == 0 else 1,
                    bottleneck,
                    seed,
                    name=f"layer{stage + 1}.{index}",
                )
                self.blocks.append(block)
                channels = block.output_channels
        self.feature_dim = channels
        self.built = True  # every weight is made above

    def twin(self):
        """Another network that begins with the same weights."""
        return ResNet(self.config, self.seed)

    def call(self, images, training=False, num_views=1):
        """Args:
        images: `[num_views · B, H, W, 3]`, the views one after the other.
        training: normalise by the batch's statistics.
        num_views: how many views were concatenated.
        """
        x = self.stem(images, training=training, num_views=num_views)
        if self.pool:
            x = self.pool(x, training=training)
        for block in self.blocks:
            x = block(x, training=training, num_views=num_views)
        average = _compiled_average if training else _average
        return average(x, self.variable_dtype)


def _average(x, dtype):
    """The mean over all positions, `[N, H, W, C]` of any float dtype → `[N, C]` in `dtype`."""
    return tf.reduce_mean(tf.cast(x, dtype), axis=(1, 2))


_compiled_average = tf.function(_average, jit_compile=True)  # it makes no copy of x in `dtype`
