"""Saving and loading of the encoder as a SavedModel that needs no code of this project.

The folder `encoder/` contains the SavedModel and `encoder.json`, which describes the encoder's
input and how the encoder was made. The SavedModel has these signatures:
- `serving_default`: `images` float32 `[N, H, W, C]` → `features` float32 `[N, F]`. The images are
  in [0, 255], or in the run's `value_range` where they have more than 8 bits.
- `serve_encoded`: `encoded` string `[N]`, JPEG, PNG or BMP files → `features` float32 `[N, F]`.
  Only encoders of grey and RGB images have it.
- `feature_maps`: `images` as above → `stage1`, `stage2`, ..., float32 `[N, h, w, c]`, the last
  map of each resolution. Networks that return no maps do not have it.
Normalisation is inside the signatures, and gradients flow through them to the weights.
"""

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.config import EncoderConfig, PretrainConfig
from simsiam_tf.data import decoding, views
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.models import backbones, precision
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError

DESCRIPTION = "encoder.json"
_BACKBONE_FILE = "backbone.keras"  # a copy of the file that --backbone names


class ServedEncoder(tf.Module):
    """The signatures of the SavedModel, around an encoder of normalised images."""

    def __init__(
        self, encoder: Backbone, image_size: int, crop_ratio: float, pixels: Pixels = RGB
    ) -> None:
        """Args:
        encoder: normalised images `[N, H, W, C]` → features `[N, F]`.
        image_size: height and width of the view of an encoded file, in pixels.
        crop_ratio: share of the resized image that the central crop of an encoded file keeps.
        pixels: what the pixels of the run's images are.
        """
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        # In the order of the encoder's weights, so that `load_backbone` can restore them.
        self.weights = [variable.value for variable in encoder.weights]
        self.view = views.build_evaluation_view(image_size, crop_ratio, pixels)
        shape = [None, encoder.image_size, encoder.image_size, pixels.channels]
        self.features = tf.function(
            self._features,
            input_signature=[tf.TensorSpec(shape, tf.float32, "images")],
            autograph=False,
        )
        self.feature_maps = tf.function(
            self._feature_maps, input_signature=self.features.input_signature, autograph=False
        )
        self.features_of_encoded = None
        if pixels.channels in (1, 3):
            self.features_of_encoded = tf.function(
                self._features_of_encoded,
                input_signature=[tf.TensorSpec([None], tf.string, "encoded")],
                autograph=False,
            )

    def _features(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns {"features": `[N, F]` float32} of images `[N, H, W, C]` float32."""
        features = self.encoder(self._normalize(images), training=False)
        return {"features": tf.cast(features, tf.float32)}

    def _feature_maps(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns {"stage1": `[N, h, w, c]` float32, ...} of images `[N, H, W, C]` float32."""
        maps = self.encoder.feature_maps(self._normalize(images))
        return {name: tf.cast(x, tf.float32) for name, x in maps.items()}

    def _normalize(self, images: tf.Tensor) -> tf.Tensor:
        numbers = self.pixels.from_values(tf.cast(images, self.encoder.compute_dtype))
        return self.pixels.normalize(numbers)

    def _features_of_encoded(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns {"features": `[N, F]` float32} of JPEG or PNG files, string `[N]`."""
        images = tf.map_fn(
            lambda file: self.view(
                decoding.decode_image(file, pixels=self.pixels, by_python=False)
            ),
            encoded,
            fn_output_signature=tf.float32,
        )
        return self.features(images)


def save(
    encoder: Backbone,
    config: PretrainConfig,
    directory: str,
    facts: dict[str, Any],
    pixels: Pixels = RGB,
) -> None:
    """Writes the encoder of a run, trained under any strategy; an earlier export is replaced.

    Args:
      encoder: the trained encoder.
      config: settings of the encoder's run.
      directory: the folder to write.
      facts: more entries of `encoder.json`.
      pixels: what the pixels of the run's images are.
    """
    served = serve(encoder, config, encoder.variable_dtype, pixels)
    with files.written_whole(directory) as staging:
        write(served, staging)
        write_description(os.path.join(staging, DESCRIPTION), served, config, facts)
        if config.encoder.backbone.endswith(".keras"):
            shutil.copyfile(config.encoder.backbone, os.path.join(staging, _BACKBONE_FILE))


def serve(
    encoder: Backbone, config: PretrainConfig, dtype: str, pixels: Pixels = RGB
) -> ServedEncoder:
    """Returns a `ServedEncoder` of a new copy of an encoder.

    The copy keeps replicas, strategies, training graphs and mixed precision out of the file.

    Args:
      encoder: the trained encoder.
      config: settings of the encoder's run.
      dtype: dtype of the weights and arithmetic of the copy.
      pixels: what the pixels of the run's images are.
    """
    with precision.of_new_layers(dtype):
        copy = encoder.copy()
    return ServedEncoder(copy, config.views.image_size, config.views.eval_crop_ratio, pixels)


def write(served: ServedEncoder, directory: str) -> None:
    """Writes the SavedModel of a `ServedEncoder`, without `encoder.json`."""
    signatures = {"serving_default": served.features}
    if served.feature_maps.get_concrete_function().structured_outputs:
        signatures["feature_maps"] = served.feature_maps
    if served.features_of_encoded:
        signatures["serve_encoded"] = served.features_of_encoded
    tf.saved_model.save(served, directory, signatures=signatures)


def write_description(
    path: str, served: ServedEncoder, config: PretrainConfig, facts: dict[str, Any]
) -> None:
    """Writes `encoder.json`: the input of an encoder, and how the encoder was made.

    Args:
      path: the file.
      served: the encoder.
      config: settings of the encoder's run.
      facts: more entries of the file.
    """
    description = {
        "image_size": config.views.image_size,
        "takes_any_size": served.encoder.image_size is None,
        "channels": served.pixels.channels,
        "features": served.encoder.feature_dim,
        "eval_crop_ratio": config.views.eval_crop_ratio,
        "resize": "bilinear, antialiased",
        "mean": served.pixels.mean,
        "std": served.pixels.std,
        "depth": served.pixels.depth,
        "value_range": [served.pixels.low, served.pixels.high],
        "exif_orientation": served.pixels.exif_orientation,
        "backbone": config.encoder.backbone,
        "width": config.encoder.width,
        "stem": config.encoder.stem,
        "method": config.method.method,
        "dataset": config.data.dataset,
        **facts,
        "versions": versions(),
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(description, file, indent=2)


def load(directory: str) -> tuple[Callable[[tf.Tensor], tf.Tensor], dict[str, Any]]:
    """Loads the encoder of any SavedModel that has the signature `serving_default` of `save`.

    Returns:
      A function: images `[N, H, W, C]` float32, in [0, 255] or in the `value_range` of
      `encoder.json`, → features `[N, F]` float32; and the entries of `encoder.json`, an empty dict
      if the file is missing.

    Raises:
      UserError: the folder is missing or contains no such SavedModel.
    """
    loaded, description = _load(directory)
    try:
        signature = loaded.signatures["serving_default"]
        inputs = set(signature.structured_input_signature[1])
        outputs = set(signature.structured_outputs)
    except KeyError as error:
        raise UserError(
            f"--encoder must have the signature serving_default. Received: {directory}"
        ) from error
    if inputs != {"images"} or "features" not in outputs:
        raise UserError(
            "--encoder's signature serving_default must take images and return features. "
            f"Received: {', '.join(inputs)} and {', '.join(outputs)}, in {directory}"
        )

    def encode(images: tf.Tensor) -> tf.Tensor:
        # The closure keeps `loaded` alive, and with it the variables; a signature does not.
        return loaded.signatures["serving_default"](images=images)["features"]

    return encode, description


def pixels_of(description: dict[str, Any]) -> Pixels:
    """Returns what the pixels of an encoder's images are.

    Args:
      description: entries of `encoder.json`. An encoder of an earlier version, or of another
        project, takes RGB of 8 bits.
    """
    low, high = description.get("value_range", (RGB.low, RGB.high))
    names = ("channels", "depth", "mean", "std", "exif_orientation")
    known = {name: description[name] for name in names if name in description}
    return Pixels.from_dict(dataclasses.asdict(RGB) | known | {"low": low, "high": high})


def load_backbone(directory: str) -> tuple[Backbone, dict[str, Any]]:
    """Loads an encoder that `save` wrote as a `Backbone`, whose weights can be trained.

    Returns:
      The encoder, and the entries of `encoder.json`.

    Raises:
      UserError: the folder is missing, or contains no SavedModel of this version's `save`.
    """
    loaded, description = _load(directory)
    try:
        settings = {key: description[key] for key in ("backbone", "width", "stem")}
        copied = os.path.join(directory, _BACKBONE_FILE)
        if os.path.exists(copied):
            settings["backbone"] = copied
        encoder = backbones.build(
            EncoderConfig(**settings),
            seed=0,
            channels=description.get("channels", 3),
            image_size=description["image_size"],
        )
        encoder.set_weights([variable.numpy() for variable in loaded.weights])
    except (KeyError, AttributeError, ValueError) as error:
        raise UserError(
            "--encoder must be an encoder that this version of the project exported; train.py "
            f"--export exports the encoder of a run again. Received: {directory}"
        ) from error
    return encoder, description


def load_resnet(directory: str) -> ResNet:
    """Loads an encoder as `load_backbone` does, for programs that need a ResNet.

    Raises:
      UserError: as in `load_backbone`, or the encoder is another network.
    """
    encoder, _ = load_backbone(directory)
    return check_resnet(encoder, directory)


def check_resnet(encoder: Backbone, path: str) -> ResNet:
    """Returns an encoder that is a ResNet; raises `UserError` for another one, from `path`."""
    if not isinstance(encoder, ResNet):
        raise UserError(
            "The encoder must be a ResNet, whose weights have names in PyTorch. "
            f"Received: {encoder.config.backbone}, in {path}"
        )
    return encoder


def _load(directory: str) -> tuple[Any, dict[str, Any]]:
    """The SavedModel in a folder and the entries of its `encoder.json`."""
    if not os.path.isdir(directory):
        raise UserError(f"--encoder must be a folder that exists. Received: {directory}")
    if not tf.saved_model.contains_saved_model(directory):
        raise UserError(
            "--encoder must be the folder of a SavedModel, with saved_model.pb in it. "
            f"Received: {directory}"
        )
    path = os.path.join(directory, DESCRIPTION)
    description = {}
    try:
        loaded = tf.saved_model.load(directory)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                description = json.load(file)
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"--encoder cannot be loaded: {error}. Received: {directory}") from error
    return loaded, description


def versions() -> dict[str, str]:
    """Returns the versions of Python and the packages that compute a result: {name: version}."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
