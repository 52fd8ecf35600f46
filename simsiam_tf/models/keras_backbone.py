"""Any network of Keras as a `Backbone`: of keras.applications, of KerasHub, or the user's own."""

import contextlib
import dataclasses
import functools
import math
import random
import re
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import network_names
from simsiam_tf.config import EncoderConfig
from simsiam_tf.models import keras_networks, keras_normalization, normalization
from simsiam_tf.models.backbone import Backbone, average, random_states
from simsiam_tf.schema import UserError

# A name that Keras gave, with a number that counts what the process has built.
_NUMBERED = re.compile(r"(.+?)_(\d+)")


@keras.saving.register_keras_serializable("simsiam_tf")
class KerasBackbone(Backbone):
    """A network of Keras, whose maps or tokens are averaged to features.

    Its batch normalization becomes this project's: statistics for each view, over all replicas.
    """

    def __init__(
        self, config: EncoderConfig, seed: int, channels: int = 3, view_size: int = 224
    ) -> None:
        """Builds the network with all its weights.

        Args:
          config: the encoder's settings.
          seed: seed of the initial weights.
          channels: C, number of channels of the images.
          view_size: height and width of the views, in pixels.

        Raises:
          UserError: the network is not found, cannot be built, or returns no features.
        """
        super().__init__(name="backbone")
        self.config = config
        self.seed = seed
        self.channels = channels
        self.view_size = view_size
        with _seeded(seed):
            self.network = keras_networks.build(config.backbone, channels, view_size)
            shapes = _output_shapes(self.network, config.backbone, channels, view_size)
        self.image_size: int | None = view_size if len(shapes) == 1 else None
        self.feature_dim = shapes[0][-1]
        self.num_normalizations = keras_normalization.adopt(self.network)
        self.input_map = keras_networks.input_map(config.backbone, channels)
        self.built = True
        self._freeze(config.freeze_stages)

    def get_config(self) -> dict[str, Any]:
        sizes = {"channels": self.channels, "view_size": self.view_size}
        return {**dataclasses.asdict(self.config), "seed": self.seed, **sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KerasBackbone":
        names = {field.name for field in dataclasses.fields(EncoderConfig)}
        settings = {name: value for name, value in config.items() if name in names}
        others = {name: config[name] for name in ("seed", "channels", "view_size")}
        return cls(EncoderConfig(**settings), **others)

    def describe(self) -> None:
        """Logs what was done to the network, and where its exactness ends."""
        if self.num_normalizations:
            logging.info(
                "%s: %d layer(s) of batch normalization take the statistics of each view over all "
                "replicas; momentum 0.9",
                self.config.backbone,
                self.num_normalizations,
            )
        if draws := random_states(self):
            logging.info(
                "%s: %d layer(s) draw at random (dropout, stochastic depth). A resumed run is "
                "exact; another number of devices draws other numbers",
                self.config.backbone,
                len(draws),
            )

    def call(self, images: tf.Tensor, training: bool = False, num_views: int = 1) -> tf.Tensor:
        with keras_normalization.of_views(num_views):
            x = self.network(self._prepare(images), training=training)
        if x.shape.rank == 2:
            return tf.cast(x, self.variable_dtype)
        if x.shape.rank == 3:
            x = _patches(x)
        return average(x, self.variable_dtype, training)

    def _prepare(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the images as the network's own preprocessing would give them."""
        if self.input_map is None:
            return images
        scale, offset, is_reversed = self.input_map
        images = images * tf.constant(scale, images.dtype) + tf.constant(offset, images.dtype)
        return images[..., ::-1] if is_reversed else images

    def feature_maps(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = self._prepare(images)
        if layers := self._stages:
            outputs = [layer.output for layer in layers]
            maps = keras.Model(self.network.inputs, outputs)(images, training=False)
            maps = maps if len(layers) > 1 else [maps]
            return {f"stage{number}": x for number, x in enumerate(maps, start=1)}
        x = self.network(images, training=False)
        if x.shape.rank == 3:
            patches = _patches(x)
            side = math.isqrt(patches.shape[1])
            x = tf.reshape(patches, [-1, side, side, self.feature_dim])
        return {"stage1": x} if x.shape.rank == 4 else {}

    @functools.cached_property
    def _stages(self) -> list[keras.layers.Layer]:
        """The last layer of each resolution; empty if the network does not tell its layers."""
        network = self.network
        if not isinstance(network, keras.Model) or not getattr(network, "inputs", None):
            return []
        if len(network.output.shape) != 4:
            return []
        layers = [layer for layer in network.layers if _has_map(layer)]
        # At a large size the resolutions differ, and none is that of a squeezed map, 1 x 1.
        size = self.image_size or 512
        probe = keras.Model(network.inputs, [layer.output for layer in layers])
        shapes = probe.compute_output_shape((1, size, size, self.channels))
        shapes = shapes if len(layers) > 1 else [shapes]
        halvings = [round(math.log2(size / shape[1])) for shape in shapes]
        last = dict(zip(halvings, layers, strict=True))
        return [last[count] for count in sorted(last) if 1 <= count <= halvings[-1]]

    def _freeze(self, num_stages: int) -> None:
        layers = getattr(self.network, "layers", [])
        with_weights = [layer for layer in layers if layer.weights]
        ends = self._stages or with_weights[:1] if len(with_weights) > 1 else []
        if num_stages > len(ends):
            raise UserError(
                f"--freeze_stages must be at most {len(ends)}, the stages known of "
                f"{self.config.backbone}. Received: {num_stages}"
            )
        if num_stages:
            for layer in layers[: layers.index(ends[num_stages - 1]) + 1]:
                normalization.freeze(layer)

    def named_weights(self) -> dict[str, keras.Variable]:
        return named_weights(self.network)


def named_weights(network: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Returns all weights of a network by Keras' paths.

    Numbers that count what the process has built are replaced by the order in this network.
    """
    counts: dict[str, int] = {}
    renamed: dict[str, str] = {}
    named: dict[str, keras.Variable] = {}
    for variable in network.weights:
        parts = []
        for part in variable.path.split("/"):
            match = _NUMBERED.fullmatch(part)
            stem = match[1] if match else part
            if part not in renamed:
                counts[stem] = counts.get(stem, -1) + 1
                renamed[part] = f"{stem}_{counts[stem]}" if counts[stem] else stem
            parts.append(renamed[part])
        name = "/".join(parts)
        while name in named:
            name += "'"
        named[name] = variable
    return named


def _patches(tokens: tf.Tensor) -> tf.Tensor:
    """Returns the tokens of patches, `[N, T, D]` → `[N, P, D]`: the last square number of them.

    The first tokens belong to no patch: a class token, or registers.
    """
    return tokens[:, tokens.shape[1] - math.isqrt(tokens.shape[1]) ** 2 :]


def _has_map(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer of a functional network has one output, which is a map."""
    skipped = (keras.layers.InputLayer, keras.layers.ZeroPadding2D)
    if isinstance(layer, skipped) or len(layer._inbound_nodes) != 1:
        return False
    output = layer.output
    return isinstance(output, keras.KerasTensor) and len(output.shape) == 4


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context in which Keras draws initial weights, and seeds of dropout, from a seed."""
    before = random.getstate()
    random.seed(zlib.crc32(f"{seed}/backbone".encode()))
    try:
        yield
    finally:
        random.setstate(before)


def published_weights(backbone: KerasBackbone) -> dict[str, np.ndarray]:
    """Returns the weights that Keras or KerasHub publish for a network, by its own names.

    Raises:
      UserError: there are none, or they cannot be downloaded.
    """
    text = backbone.config.backbone
    source = network_names.parse(text).source
    downloads: dict[str, dict[str, Any]] = {
        "keras": {"weights": "imagenet"},
        "keras_hub": {"load_weights": True},
    }
    if source not in downloads:
        raise UserError(
            "--init_from=imagenet needs --backbone=keras:NAME, or keras_hub: with a preset. "
            f"Received: {text}"
        )
    network = keras_networks.build(text, 3, backbone.view_size, **downloads[source])
    return {key: variable.numpy() for key, variable in named_weights(network).items()}


def _output_shapes(
    network: keras.layers.Layer, text: str, channels: int, image_size: int
) -> list[tuple[Any, ...]]:
    """Builds a network if it is not, and returns the shapes of its output.

    Returns:
      The shape for images of the run's size, and that for images of any size if there is one.
    """
    try:
        if not network.built:
            network(tf.zeros([1, image_size, image_size, channels]))
        shapes = [_output_shape(network, image_size, channels)]
    except Exception as error:  # whatever the layers of a network raise
        raise UserError(
            f"--backbone={text} cannot take images of {image_size} x {image_size} x {channels}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(shapes[0]) not in (2, 3, 4) or shapes[0][-1] is None:
        raise UserError(
            f"--backbone={text} must return features [B, F], maps [B, H, W, F] or tokens "
            f"[B, T, F]. Received: an output of shape {shapes[0]}"
        )
    inputs = getattr(network, "inputs", None)
    takes_any = inputs and len(inputs) == 1 and inputs[0].shape[1] is None
    if takes_any and len(shapes[0]) != 3:  # the number of tokens must be known
        with contextlib.suppress(Exception):  # a layer needs one size
            shapes.append(_output_shape(network, None, channels))
    return shapes


def _output_shape(
    network: keras.layers.Layer, size: int | None, channels: int
) -> tuple[int | None, ...]:
    images = keras.KerasTensor((None, size, size, channels), keras.config.floatx())
    output = network.compute_output_spec(images)
    if not isinstance(output, keras.KerasTensor):
        raise TypeError(f"its output must be one tensor, not {type(output).__name__}")
    return tuple(output.shape)
