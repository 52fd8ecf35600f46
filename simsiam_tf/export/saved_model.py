"""The encoder as a SavedModel that stands by itself, and back.

`encoder/` holds the SavedModel and `encoder.json`, which says what it takes and how it was made.
`serving_default`: `images` float32 `[N, H, W, 3]` in [0, 255] → `features` float32 `[N, F]`.
`serve_encoded`: `encoded` string `[N]`, JPEG or PNG files → the same.
Normalisation is inside; the gradient flows through both to the weights.
"""

import json
import os
import platform

import keras
import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.config import EncoderConfig
from simsiam_tf.data import decoding, views
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError

DESCRIPTION = "encoder.json"


class ServedEncoder(tf.Module):
    """Images in [0, 255] → features, around an encoder of normalised images."""

    def __init__(self, encoder, image_size, crop_ratio):
        super().__init__()
        self.encoder = encoder
        # By position, for who wants the weights back (`load_weights`).
        self.weights = [variable.value for variable in encoder.weights]
        self.view = views.build_evaluation_view(image_size, crop_ratio)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "images")],
        autograph=False,
    )
    def features(self, images):
        normalized = views.normalize(tf.cast(images, self.encoder.compute_dtype) / 255)
        return {"features": tf.cast(self.encoder(normalized, training=False), tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "encoded")], autograph=False)
    def features_of_encoded(self, encoded):
        images = tf.map_fn(
            lambda file: self.view(decoding.decode_image(file)),
            encoded,
            fn_output_signature=tf.float32,
        )
        return self.features(images)


def save(encoder, config, directory, facts):
    """Writes the encoder of a run, whatever strategy it was trained under; replaces what is there.

    Args:
      encoder: the trained encoder.
      config: the run's `PretrainConfig`.
      directory: where to; a folder.
      facts: more entries of `encoder.json`, a dict.
    """
    served = serve(encoder, config, encoder.variable_dtype)
    with files.written_whole(directory) as staging:
        write(served, staging)
        write_description(os.path.join(staging, DESCRIPTION), served, config, facts)


def serve(encoder, config, dtype):
    """A `ServedEncoder` of a fresh copy, whose weights and arithmetic are of a `dtype`.

    No replica, strategy, training graph or mixed precision goes into the file.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    copy = resnet.ResNet(config.encoder, config.system.seed)
    keras.config.set_dtype_policy(policy)
    copy.set_weights(encoder.get_weights())
    return ServedEncoder(copy, config.views.image_size, config.views.eval_crop_ratio)


def write(served, directory):
    """Writes a `ServedEncoder`'s SavedModel, without `encoder.json`."""
    signatures = {
        "serving_default": served.features,
        "serve_encoded": served.features_of_encoded,
    }
    tf.saved_model.save(served, directory, signatures=signatures)


def write_description(path, served, config, facts):
    """Writes what a `ServedEncoder` takes and how it was made, as `encoder.json` says it."""
    description = {
        "image_size": config.views.image_size,
        "channels": 3,
        "features": served.encoder.feature_dim,
        "eval_crop_ratio": config.views.eval_crop_ratio,
        "resize": "bilinear, antialiased",
        "mean": views.MEAN,
        "std": views.STD,
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


def load(directory):
    """The encoder of a SavedModel with `save`'s signature, whoever wrote it.

    Returns:
      images `[N, H, W, 3]` float32 in [0, 255] → features `[N, F]` float32; and what
      `encoder.json` says, an empty dict where there is none.

    Raises:
      UserError: the folder is missing or holds no such SavedModel.
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
            "--encoder's signature serving_default must take images and give features. "
            f"Received: {', '.join(inputs)} and {', '.join(outputs)}, in {directory}"
        )

    def encode(images):
        return signature(images=images)["features"]

    encode.keep_alive = loaded  # a signature does not hold its variables
    return encode, description


def load_resnet(directory):
    """The `ResNet` inside an encoder that `save` wrote, to go on working with its weights.

    Raises:
      UserError: as `load` does, and where the SavedModel is not one of `save`'s.
    """
    loaded, description = _load(directory)
    try:
        config = EncoderConfig(*(description[key] for key in ("backbone", "width", "stem")))
        encoder = resnet.ResNet(config, seed=0)
        encoder.set_weights([variable.numpy() for variable in loaded.weights])
    except (KeyError, AttributeError, ValueError) as error:
        raise UserError(
            "--encoder must be an encoder that this version of the project exported; train.py "
            f"--export writes a run's anew. Received: {directory}"
        ) from error
    return encoder


def _load(directory):
    """The SavedModel in a folder and what its `encoder.json` says."""
    if not os.path.isdir(directory):
        raise UserError(f"--encoder must be a folder that exists. Received: {directory}")
    if not tf.saved_model.contains_saved_model(directory):
        raise UserError(
            "--encoder must be a SavedModel's folder, with saved_model.pb in it. "
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


def versions():
    """Versions of what computed a result: {package: version}."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
