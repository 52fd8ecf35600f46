"""The encoder as a Keras model, to build on: images in, features out."""

import dataclasses
import os
from typing import Any, Self

import keras
import tensorflow as tf

from simsiam_tf import schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.export import saved_model
from simsiam_tf.models import precision
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.runs import run_folder


@keras.saving.register_keras_serializable("simsiam_tf")
class Encoder(keras.Model):
    """Images `[N, H, W, C]`, uint8 or float in [0, 255] → features `[N, F]`.

    The model normalises its input. With `trainable = False`, its batch normalization uses the
    running statistics in training too, as Keras' own layers do.

    Attributes:
      backbone: the network of normalised images.
      image_size: height and width of the images that evaluation prepares, in pixels.
      crop_ratio: share of the resized image that evaluation's central crop keeps.
      pixels: what the pixels of the images are; images of more than 8 bits have its range of
        values instead of [0, 255].
    """

    def __init__(
        self,
        backbone: Backbone,
        image_size: int,
        crop_ratio: float,
        pixels: Pixels = RGB,
        name: str = "encoder",
    ) -> None:
        """Wraps a backbone; the arguments are the attributes."""
        super().__init__(name=name)
        self.backbone = backbone
        self.image_size = image_size
        self.crop_ratio = crop_ratio
        self.pixels = pixels
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        numbers = self.pixels.from_values(tf.cast(images, self.backbone.compute_dtype))
        return self.backbone(self.pixels.normalize(numbers), training=training and self.trainable)

    def get_config(self) -> dict[str, Any]:
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "image_size": self.image_size,
            "crop_ratio": self.crop_ratio,
            "pixels": dataclasses.asdict(self.pixels),
            "name": self.name,
            "precision": self.dtype_policy.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        settings = dict(config)
        with precision.of_new_layers(settings.pop("precision")):
            backbone = keras.saving.deserialize_keras_object(settings["backbone"], custom_objects)
            pixels = Pixels.from_dict(settings.get("pixels", {}) or dataclasses.asdict(RGB))
            return cls(**settings | {"backbone": backbone, "pixels": pixels})

    def export_folder(self, directory: str) -> None:
        """Writes the folder of a SavedModel that `evaluate.py` reads, with `encoder.json`.

        Args:
          directory: the folder to write; an earlier one is replaced.
        """
        size = {"image_size": self.image_size, "eval_crop_ratio": self.crop_ratio}
        network = dataclasses.asdict(self.backbone.config)
        settings = schema.defaults(PretrainConfig) | size | network
        config = schema.build(PretrainConfig, settings)
        saved_model.save(self.backbone, config, directory, {}, self.pixels)


def load_encoder(path: str | os.PathLike) -> Encoder:
    """Loads the encoder of a run as a Keras model, whose weights can be trained.

    Args:
      path: folder of a run, or of an encoder that a run exported.

    Raises:
      UserError: the folder is missing, or contains no such encoder.
    """
    folder = run_folder.encoder_folder(os.fspath(path))
    backbone, description = saved_model.load_backbone(folder)
    size, crop_ratio = description["image_size"], description["eval_crop_ratio"]
    return Encoder(backbone, size, crop_ratio, saved_model.pixels_of(description))
