"""ResNet 10 to 152 as torchvision computes it ("v1.5": the stride is on the 3x3 convolution).

Layers have torchvision's names ("conv1", "layer1.0.conv2", "layer1.0.downsample"), so that a weight
can be found in either library. Padding is symmetric everywhere; the padding "same" of Keras is
asymmetric at stride 2.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from simsiam_tf.config import EncoderConfig
from simsiam_tf.models.initializers import he_normal_fan_out
from simsiam_tf.models.normalization import BatchNormalization
from simsiam_tf.models.pooling import MaxPool

# name → (whether its blocks are bottlenecks, the number of blocks in each of the four stages)
ARCHITECTURES = {
    "resnet10": (False, (1, 1, 1, 1)),
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
_EXPANSION = 4  # the ratio of a bottleneck's output channels to its inner channels


class ConvNorm(keras.layers.Layer):
    """A convolution without bias, then batch normalization, then optionally a ReLU."""

    def __init__(
        self,
        input_channels: int,
        channels: int,
        kernel_size: int,
        strides: int,
        seed: int,
        *,
        name: str,
        relu: bool = True,
        zero_gamma: bool = False,
    ) -> None:
        """Builds both layers.

        Args:
          input_channels: number of channels of the input.
          channels: number of channels of the output.
          kernel_size: height and width of the kernel, in pixels.
          strides: stride of the convolution along both axes.
          seed: seed of the initial weights.
          name: torchvision's name, for example "layer1.0.conv1".
          relu: whether a ReLU follows.
          zero_gamma: start the normalization's gamma at 0.
        """
        super().__init__(name=name.replace(".", "_"))
        # oneDNN's gradient of a strided 1x1 kernel writes past its buffer where the input has fewer
        # than 8 channels (AVX2) or 16 (AVX-512), github.com/uxlfoundation/oneDNN/issues/6035. For
        # such inputs, `call` slices off the pixels that the stride skips, and the stride is 1.
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

    def call(self, x: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        x = x[:, :: self.skip, :: self.skip] if self.skip > 1 else x
        x = self.pad(x) if self.pad else x
        return self.norm(self.conv(x), training=training, num_views=num_views)


class Block(keras.layers.Layer):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 convolutions."""

    def __init__(
        self,
        input_channels: int,
        channels: int,
        strides: int,
        bottleneck: bool,
        seed: int,
        *,
        name: str,
    ) -> None:
        """Builds the convolutions and, where the shapes differ, the downsampling shortcut.

        Args:
          input_channels: number of channels of the input.
          channels: number of inner channels; a bottleneck has four times as many outputs.
          strides: stride of the block's (first) 3x3 convolution.
          bottleneck: whether the block is a bottleneck.
          seed: seed of the initial weights.
          name: torchvision's name, for example "layer1.0".
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
            last = index == len(shapes)  # the ReLU of the last layer follows the sum
            self.conv_norms.append(
                ConvNorm(*shape, seed, name=f"{name}.conv{index}", relu=not last, zero_gamma=last)
            )
        self.downsample = None  # the shortcut is the identity where the shapes allow it
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

    def call(self, x: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        y = x
        for conv_norm in self.conv_norms:
            y = conv_norm(y, training=training, num_views=num_views)
        if self.downsample:
            x = self.downsample(x, training=training, num_views=num_views)
        return tf.nn.relu(x + y)


@keras.saving.register_keras_serializable("simsiam_tf")
class ResNet(keras.layers.Layer):
    """The encoder: normalised images `[N, H, W, C]` → pooled features `[N, feature_dim]`."""

    def __init__(self, config: EncoderConfig, seed: int, channels: int = 3) -> None:
        """Builds the network with all its weights.

        Args:
          config: the encoder's settings.
          seed: seed of the initial weights.
          channels: C, number of channels of the images.
        """
        super().__init__(name=config.backbone)
        self.config = config
        self.seed = seed
        self.channels = channels
        bottleneck, depths = ARCHITECTURES[config.backbone]
        imagenet = config.stem == "imagenet"
        kernel_size, strides = (7, 2) if imagenet else (3, 1)
        self.stem = ConvNorm(channels, config.width, kernel_size, strides, seed, name="conv1")
        self.pool = MaxPool() if imagenet else None
        self.blocks = []
        inner = config.width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                block = Block(
                    inner,
                    config.width * 2**stage,
                    2 if stage > 0 and index == 0 else 1,
                    bottleneck,
                    seed,
                    name=f"layer{stage + 1}.{index}",
                )
                self.blocks.append(block)
                inner = block.output_channels
        self.feature_dim = inner
        self.built = True  # the lines above have created every weight

    def get_config(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "seed": self.seed, "channels": self.channels}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ResNet":
        settings = dict(config)
        seed, channels = settings.pop("seed"), settings.pop("channels", 3)
        return cls(EncoderConfig(**settings), seed, channels)

    def initial_copy(self) -> "ResNet":
        """Returns another network with the weights that this one had when it was built."""
        return ResNet(self.config, self.seed, self.channels)

    def call(self, images: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        """Returns the features of images, `[num_views · B, feature_dim]` in the weights' dtype.

        Args:
          images: `[num_views · B, H, W, C]` float, normalised, the views one after another.
          training: normalise by the statistics of the batch.
          num_views: number of views in `images`.
        """
        x = self.stem(images, training=training, num_views=num_views)
        if self.pool:
            x = self.pool(x, training=training)
        for block in self.blocks:
            x = block(x, training=training, num_views=num_views)
        average = _compiled_average if training else _average
        return average(x, self.variable_dtype)


def _average(x: tf.Tensor, dtype: str) -> tf.Tensor:
    """Returns the mean over all positions: `[N, H, W, C]` of any float dtype → `[N, C]`."""
    return tf.reduce_mean(tf.cast(x, dtype), axis=(1, 2))


# It makes no copy of x in `dtype`.
_compiled_average = tf.function(_average, jit_compile=True, autograph=False)
