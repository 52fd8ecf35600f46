"""Networks of keras.applications, of KerasHub, of files and of the user's own functions."""

import dataclasses
import importlib
import inspect
import os
import sys
from typing import Any

import keras
import numpy as np

from simsiam_tf import network_names
from simsiam_tf.config import IMAGENET_MEAN, IMAGENET_STD
from simsiam_tf.schema import UserError

_SHAPE_ARGUMENTS = ("image_shape", "input_shape")


def build(text: str, channels: int, image_size: int, **arguments: Any) -> keras.layers.Layer:
    """Returns the network of a value of `--backbone`.

    Args:
      text: the value, which names none of this project's ResNets.
      channels: number of channels of the images.
      image_size: height and width of the views, in pixels.
      **arguments: more arguments of the class, preset or function.

    Raises:
      UserError: the network is not found or cannot be built.
    """
    name = network_names.parse(text)
    name = dataclasses.replace(name, arguments=name.arguments | arguments)
    builders = {
        "keras": _build_application,
        "keras_hub": _build_of_keras_hub,
        "file": _load_file,
        "function": _call_function,
    }
    try:
        network = builders[name.source](name, channels, image_size)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever another library, or the user's own code, raises
        raise UserError(
            f"--backbone={text} cannot be built: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, keras.layers.Layer):
        raise UserError(
            f"--backbone={text} must return a keras.Model or a layer. "
            f"Received: {type(network).__name__}"
        )
    return network


def _build_application(
    name: network_names.NetworkName, channels: int, image_size: int
) -> keras.Model:
    build = getattr(keras.applications, name.name, None)
    if not inspect.isfunction(build):
        raise UserError(
            f"--backbone=keras:NAME must be a network of keras.applications, such as MobileNetV2. "
            f"Received: {name.name}"
        )
    options = {"weights": None, "include_top": False} | name.arguments
    return _of_any_size(build, "input_shape", channels, image_size, options)


def _of_any_size(
    build: Any, argument: str, channels: int, image_size: int, options: dict[str, Any]
) -> keras.Model:
    """Returns a network for images of any size or, if it needs one size, for the run's views."""
    try:
        return build(**{argument: (None, None, channels)} | options)
    except (ValueError, TypeError):
        return build(**{argument: (image_size, image_size, channels)} | options)


def _build_of_keras_hub(
    name: network_names.NetworkName, channels: int, image_size: int
) -> keras.Model:
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(
            "--backbone=keras_hub:NAME needs KerasHub: pip install -r requirements-detection.txt, "
            f"or simsiam-tf[detection] ({error})"
        ) from error
    build = getattr(keras_hub.models, name.name, None)
    if build is None:
        options = {"load_weights": False} | name.arguments
        return keras_hub.models.Backbone.from_preset(name.name, **options)
    argument = next(
        (known for known in inspect.signature(build).parameters if known in _SHAPE_ARGUMENTS), None
    )
    if argument is None:
        return build(**name.arguments)
    return _of_any_size(build, argument, channels, image_size, name.arguments)


def _load_file(name: network_names.NetworkName, channels: int, image_size: int) -> keras.Model:
    if not os.path.exists(name.name):
        raise UserError(f"--backbone must be a file that exists. Received: {name.name}")
    return keras.models.load_model(name.name, compile=False)


def _call_function(
    name: network_names.NetworkName, channels: int, image_size: int
) -> keras.layers.Layer:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module = importlib.import_module(name.module)
    return getattr(module, name.name)(**name.arguments)


def input_map(text: str, channels: int) -> tuple[list[float], list[float], bool] | None:
    """Returns how the run's images become what a network of `keras.applications` was made for.

    Returns:
      The factor and the summand of each channel, and whether the channels are reversed afterwards.
      None for a network of another source, which takes normalised images.
    """
    name = network_names.parse(text)
    if name.source != "keras":
        return None
    build = getattr(keras.applications, name.name)
    preprocess = sys.modules[build.__module__].preprocess_input

    def given(normalized: np.ndarray) -> np.ndarray:
        return preprocess(255 * (normalized * IMAGENET_STD + IMAGENET_MEAN)[None, None])[0, 0]

    offset = given(np.zeros(3))
    is_reversed = bool(given(np.array([1.0, 0, 0]))[0] == offset[0])
    scale = given(np.ones(3)) - offset
    if is_reversed:
        scale, offset = scale[::-1], offset[::-1]
    if channels != 3:
        scale, offset = np.full(channels, scale.mean()), np.full(channels, offset.mean())
        is_reversed = False
    return scale.tolist(), offset.tolist(), is_reversed
