"""`--init_from`: the weights that a new run starts with, taken by name and shape."""

import os
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.export import keras_encoder, saved_model
from simsiam_tf.interop import naming, weight_files
from simsiam_tf.methods.base import Plan, SelfSupervisedModel
from simsiam_tf.methods.build import build_model
from simsiam_tf.models import keras_backbone, precision
from simsiam_tf.models.keras_backbone import KerasBackbone
from simsiam_tf.runs import run_folder
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError

# {name of a part, a dot, name of the weight in it: array in Keras' layout}
Weights = dict[str, np.ndarray]

_IMAGENET = "imagenet"
_PARTS = ("encoder", "projector", "predictor")


def check(path: str) -> None:
    """Checks that the value of `--init_from` exists, before other work starts.

    Raises:
      UserError: it does not.
    """
    if path and path != _IMAGENET and not os.path.exists(path):
        raise UserError(
            "--init_from must be a run, an encoder folder, a file of weights, or imagenet. "
            f"Received: {path}, which does not exist"
        )


def load(model: SelfSupervisedModel, path: str) -> None:
    """Sets the weights of a new model that have a counterpart of the same name and shape.

    The heads are taken from a run or the authors' checkpoint. The log has a table of what was
    taken. A first convolution for another number of channels is adapted: each channel gets an equal
    share of the sum over the channels there.

    Args:
      model: the model, with its initial weights.
      path: value of `--init_from`.

    Raises:
      UserError: the file or folder cannot be read, or no weight fits.
    """
    ours = _named(model)
    theirs = _read(model, path)
    taken, adapted = set(), []
    for name, variable in ours.items():
        array = theirs.get(name)
        if array is None:
            continue
        if _differs_in_channels(array, variable, model.encoder.channels):
            adapted.append(f"{name} from {array.shape[2]} to {variable.shape[2]} channels")
            total = array.sum(axis=2, keepdims=True)
            array = np.broadcast_to(total / variable.shape[2], variable.shape)
        if array.shape == tuple(variable.shape):
            variable.assign(array)
            taken.add(name)
    if not taken:
        examples = f"{_some(theirs)}, where this run has {_some(ours)}"
        raise UserError(
            f"--init_from={path} must have weights of the names and shapes of this run's. "
            f"Received: {examples}"
        )
    model.restart_targets()
    logging.info("%s", _table(path, ours, theirs, taken))
    for text in adapted:
        logging.info("Adapted %s; the sum over the channels is the same", text)


def _named(model: SelfSupervisedModel) -> dict[str, keras.Variable]:
    """Returns the variables of a model's encoder and heads."""
    return {
        f"{part}.{name}": variable
        for part in _PARTS
        if hasattr(model, part)
        for name, variable in getattr(model, part).named_weights().items()
    }


def _differs_in_channels(array: np.ndarray, variable: keras.Variable, channels: int) -> bool:
    """Returns whether an array is the variable's first convolution, for other images."""
    shape = tuple(variable.shape)
    return (
        len(shape) == 4 == array.ndim
        and shape[2] == channels != array.shape[2]
        and shape[:2] + shape[3:] == array.shape[:2] + array.shape[3:]
    )


def _table(path: str, ours: Mapping, theirs: Mapping, taken: set[str]) -> str:
    """Describes for each part how many weights were taken, are new, or were left out."""
    lines = [f"Weights from {path}:", f"  {'':10} taken  new  left out"]
    for part in _PARTS:
        here = {name for name in ours if name.startswith(f"{part}.")}
        left_out = {name for name in theirs if name.startswith(f"{part}.")} - taken
        if here or left_out:
            counts = (len(here & taken), len(here - taken), len(left_out))
            lines.append("  {:10} {:5}{:5}{:10}".format(part, *counts))
    for title, names in (("new", set(ours) - taken), ("left out", set(theirs) - taken)):
        if names:
            lines.append(f"  {title}: {_some(names)}")
    return "\n".join(lines)


def _some(names: Mapping | set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _read(model: SelfSupervisedModel, path: str) -> Weights:
    """Returns the weights at the path that `--init_from` names."""
    if path == _IMAGENET:
        if not isinstance(model.encoder, KerasBackbone):
            raise UserError(
                "--init_from=imagenet needs --backbone=keras:NAME. "
                f"Received: --backbone={model.encoder.config.backbone}"
            )
        return _of_encoder(keras_backbone.published_weights(model.encoder))
    if os.path.isdir(path):
        is_run = os.path.exists(os.path.join(path, run_folder.FLAGFILE))
        return _read_run(path) if is_run else _read_encoder(path)
    if path.endswith(".keras"):
        return _of_encoder(_values(_named_of(_load_keras(path))))
    if path.endswith(".weights.h5"):
        return _read_keras_weights(model, path)
    return _read_torch(path)


def _of_encoder(weights: Weights) -> Weights:
    return {f"encoder.{name}": array for name, array in weights.items()}


def _values(variables: Mapping[str, keras.Variable]) -> Weights:
    return {name: variable.numpy() for name, variable in variables.items()}


def _read_run(workdir: str) -> Weights:
    """Returns the weights of the newest checkpoint of a run."""
    run = run_folder.read_config(workdir, "init_from")
    pixels = run_folder.read_pixels(workdir)
    images, settings = run_folder.read_images(workdir), run.optimization
    plan = Plan(
        num_examples=images.get("images", settings.batch_size),
        num_classes=len(images.get("classes", ())),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        channels=pixels.channels,
    )
    with precision.of_new_layers(run.system.precision):
        model, _ = build_model(run, tf.distribute.get_strategy(), plan)
    if Checkpoints(workdir, model).restore() is None:
        raise UserError(f"--init_from must be a run with a checkpoint. Received: {workdir}")
    return _values(_named(model))


def _read_encoder(folder: str) -> Weights:
    try:
        encoder, _ = saved_model.load_backbone(folder)
    except UserError as error:
        raise UserError(str(error).replace("--encoder", "--init_from")) from error
    return _of_encoder(_values(encoder.named_weights()))


def _load_keras(path: str) -> keras.layers.Layer:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # a damaged file, or layers that are not known, raise anything
        raise UserError(f"--init_from cannot be read ({error}). Received: {path}") from error


def _named_of(network: keras.layers.Layer) -> dict[str, keras.Variable]:
    if isinstance(network, keras_encoder.Encoder):
        return network.backbone.named_weights()
    return keras_backbone.named_weights(network)


def _read_keras_weights(model: SelfSupervisedModel, path: str) -> Weights:
    """Returns what a `.weights.h5` file has for the network, or for an `Encoder` around it."""
    copy = model.encoder.copy()
    # Weights that the file lacks stay NaN.
    copy.set_weights([np.full_like(array, np.nan) for array in copy.get_weights()])
    models = [keras_encoder.Encoder(copy, image_size=0, crop_ratio=1.0)]
    if isinstance(copy, KerasBackbone):
        models.append(copy.network)
    for reader in models:
        try:
            reader.load_weights(path, skip_mismatch=True)
        except Exception as error:  # a damaged file raises anything
            raise UserError(f"--init_from cannot be read ({error}). Received: {path}") from error
    values = _values(copy.named_weights())
    return _of_encoder({name: array for name, array in values.items() if np.isfinite(array).all()})


def _read_torch(path: str) -> Weights:
    """Returns the tensors of a PyTorch file of torchvision's, timm's or the authors' names."""
    accept: Callable[[dict], None] = lambda shapes: None  # noqa: E731 (names are matched later)
    try:
        tensors = weight_files.read(path, accept, with_momenta=False).tensors
    except UserError as error:
        raise UserError(str(error).replace("--checkpoint", "--init_from")) from error
    prefix = naming.encoder_prefix(tensors)
    heads = {"encoder.fc.": "projector.", "predictor.": "predictor."} if prefix else {}
    weights = {}
    for name, tensor in tensors.items():
        start = next((start for start in heads if name.startswith(start)), prefix)
        part = heads.get(start, "encoder.")
        weights[part + name.removeprefix(start)] = naming.to_keras(tensor)
    return weights
