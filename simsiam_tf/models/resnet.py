"""ResNet 10 to 152 as torchvision computes it ("v1.5": the stride is on the 3x3 convolution).

Layers have torchvision's names ("conv1", "layer1.0.conv2", "layer1.0.downsample"), so that a weight
can be found in either library. Padding is symmetric everywhere; the padding "same" of Keras is
asymmetric at stride 2.
"""

import dataclasses
import itertools
from typing import Any

import keras
import tensorflow as tf

from simsiam_tf.config import EncoderConfig
from simsiam_tf.models import normalization
from simsiam_tf.models.backbone import Backbone, average
from simsiam_tf.models.initializers import he_normal_fan_out
from simsiam_tf.models.normalization import BatchNormalization
from simsiam_tf.models.pooling import MaxPool
from simsiam_tf.schema import UserError

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

    def named_weights(self, conv_name: str, norm_name: str) -> dict[str, keras.Variable]:
        """Returns the weights of both layers by torchvision's names.

        Args:
          conv_name: torchvision's name of the convolution.
          norm_name: torchvision's name of the normalization.
        """
        return {f"{conv_name}.weight": self.conv.kernel} | self.norm.named_weights(norm_name)


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
class ResNet(Backbone):
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
        self.image_size = None
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
        self._freeze(config.freeze_stages)

    def get_config(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "seed": self.seed, "channels": self.channels}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ResNet":
        settings = dict(config)
        seed, channels = settings.pop("seed"), settings.pop("channels", 3)
        return cls(EncoderConfig(**settings), seed, channels)

    @property
    def stages(self) -> list[list[Block]]:
        """The blocks of each of the four stages."""
        depths = iter(ARCHITECTURES[self.config.backbone][1])
        blocks = iter(self.blocks)
        return [list(itertools.islice(blocks, depth)) for depth in depths]

    def _freeze(self, num_stages: int) -> None:
        stages = self.stages
        if num_stages > len(stages):
            raise UserError(
                f"--freeze_stages must be at most {len(stages)}, the stages of a "
                f"{self.config.backbone}. Received: {num_stages}"
            )
        frozen = [self.stem, *itertools.chain(*stages[:num_stages])] if num_stages else []
        for layer in frozen:
            normalization.freeze(layer)

    def named_weights(self) -> dict[str, keras.Variable]:
        """Returns all weights by torchvision's names, in the order of its state dict."""
        named = self.stem.named_weights("conv1", "bn1")
        for block in self.blocks:
            name = block.name.replace("_", ".")
            for index, conv_norm in enumerate(block.conv_norms, start=1):
                named |= conv_norm.named_weights(f"{name}.conv{index}", f"{name}.bn{index}")
            if block.downsample:
                shortcut = f"{name}.downsample"
                named |= block.downsample.named_weights(f"{shortcut}.0", f"{shortcut}.1")
        return named

    def call(self, images: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        options = {"training": training, "num_views": num_views}
        x = self._run_stem(images, options)
        for block in self.blocks:
            x = block(x, **options)
        return average(x, self.variable_dtype, training)

    def feature_maps(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        x = self._run_stem(images, {})
        maps = {}
        for number, stage in enumerate(self.stages, start=1):
            for block in stage:
                x = block(x)
            maps[f"stage{number}"] = x
        return maps

    def _run_stem(self, images: tf.Tensor, options: dict[str, Any]) -> tf.Tensor:
        x = self.stem(images, **options)
        return self.pool(x, training=options.get("training", False)) if self.pool else x
