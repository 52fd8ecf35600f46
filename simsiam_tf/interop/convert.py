"""The import of PyTorch weights, and the export to PyTorch and Detectron2."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import config as config_lib
from simsiam_tf import files, schema
from simsiam_tf.distribution import devices
from simsiam_tf.export import saved_model
from simsiam_tf.interop import naming, weight_files
from simsiam_tf.interop.settings import (
    Detectron2ExportConfig,
    ImportConfig,
    SourceConfig,
    TorchExportConfig,
)
from simsiam_tf.methods.build import build_encoder, build_model
from simsiam_tf.methods.simsiam import SimSiam
from simsiam_tf.models import resnet
from simsiam_tf.optimization import optimizers, schedules
from simsiam_tf.runs import run_folder
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError

# torchvision's names → Detectron2's: every substitution is applied, in this order.
_RENAMINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
    (r"bn(\d)", r"conv\1.norm"),
]


def import_torch(config: ImportConfig) -> None:
    """Imports a PyTorch file as an encoder and, with `workdir`, as a run that `train.py` resumes.

    Args:
      config: the settings of the import.

    Raises:
      UserError: a folder is not empty, or the file is not a valid checkpoint. In both cases nothing
        is written.
    """
    for flag, path in (("output", config.output), ("workdir", config.workdir)):
        if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
            raise UserError(f"--{flag} must be a new or an empty folder. Received: {path}")

    checkpoint = weight_files.read(config.checkpoint, lambda shapes: _check(shapes, config))
    run = _run_of(checkpoint.shapes, config)
    if config.workdir:
        run_folder.check_workdir(run)
        model, optimizer = build_model(run, tf.distribute.get_strategy())
        encoder, variables = model.encoder, naming.model_variables(model)
    else:
        encoder = build_encoder(run, 3)
        prefix = naming.encoder_prefix(checkpoint.shapes)
        variables = {prefix + name: value for name, value in encoder.named_weights().items()}
    for name, variable in variables.items():
        variable.assign(naming.to_keras(checkpoint.tensors[name]))

    name = os.path.basename(config.checkpoint)
    facts = {"step": config.step, "method": "", "dataset": "", "imported_from": name}
    saved_model.save(encoder, run, config.output, facts)
    logging.info("Exported the %s of %s to %s", encoder.name, config.checkpoint, config.output)
    if config.workdir:
        velocities = _velocities(model, optimizer)
        for name, variable in variables.items():
            if name in checkpoint.momenta and id(variable) in velocities:
                velocities[id(variable)].assign(naming.to_keras(checkpoint.momenta[name]))
        optimizer.iterations.assign(config.step)
        # Only the flags that the file determines; train.py adds those of the run.
        flags = schema.to_flagfile(naming.infer_settings(checkpoint.shapes))
        files.write_text(os.path.join(config.workdir, run_folder.FLAGFILE), flags)
        Checkpoints(config.workdir, model, optimizer).save(config.step)
        logging.info(
            "train.py --workdir=%s resumes from step %d %s momentum; completed epochs according to "
            "the file: %s",
            config.workdir,
            config.step,
            "with" if checkpoint.momenta else "without",
            "unknown" if checkpoint.epoch is None else checkpoint.epoch,
        )


def _check(shapes: Mapping[str, naming.Shape], config: ImportConfig) -> None:
    if config.workdir and not naming.encoder_prefix(shapes):
        raise UserError(
            "--workdir needs a checkpoint with the projector and the predictor. Received: "
            f"{config.checkpoint}, which has only an encoder"
        )
    naming.check(shapes, _run_of(shapes, config))


def _run_of(shapes: Mapping[str, naming.Shape], config: ImportConfig) -> config_lib.PretrainConfig:
    """Returns the settings of the network that these tensors belong to."""
    settings: dict[str, Any] = schema.defaults(config_lib.PretrainConfig)
    settings |= naming.infer_settings(shapes)
    settings |= {"image_size": config.image_size, "eval_crop_ratio": config.eval_crop_ratio}
    if config.workdir:
        settings["workdir"] = config.workdir
    return schema.build(config_lib.PretrainConfig, settings)


def export_torch(config: TorchExportConfig) -> None:
    """Exports an encoder, or with `whole` the authors' checkpoint, as a PyTorch state dict.

    Args:
      config: the settings of the export.

    Raises:
      UserError: the source cannot be read, or the output cannot be written.
    """
    weight_files.check_output(config.output)
    if config.whole:
        content = _authors_checkpoint(config)
    else:
        content = _tensors_of(_load_encoder(config.source).named_weights())
    weight_files.write(config.output, content)
    logging.info("Wrote %s", config.output)


def _authors_checkpoint(config: TorchExportConfig) -> dict[str, Any]:
    """Returns the checkpoint that the authors' `main_simsiam.py --resume` reads."""
    model, optimizer, run = load_run(config.source.workdir)
    variables = naming.model_variables(model)
    velocities = _velocities(model, optimizer)
    # PyTorch numbers first the encoder's parameters and then the predictor's, which is this order.
    parameters = [name for name in variables if not naming.is_statistic(name)]
    momenta = {
        number: {"momentum_buffer": naming.to_torch(velocities[id(variables[name])].numpy())}
        for number, name in enumerate(parameters)
        if id(variables[name]) in velocities
    }
    groups = [
        {
            "params": [
                number
                for number, name in enumerate(parameters)
                if name.startswith("predictor.") == is_predictor
            ],
            "lr": schedules.initial_learning_rate(run.optimization),
            "momentum": run.optimization.momentum,
            "dampening": 0,
            "weight_decay": run.optimization.weight_decay,
            "nesterov": False,
            "fix_lr": is_predictor and run.optimization.fix_predictor_learning_rate,
        }
        for is_predictor in (False, True)
    ]
    return {
        "epoch": config.epoch,
        "arch": run.encoder.backbone,
        "state_dict": {f"module.{name}": value for name, value in _tensors_of(variables).items()},
        "optimizer": {"state": momenta, "param_groups": groups},
    }


def _velocities(model: SimSiam, optimizer: optimizers.SGD) -> dict[int, keras.Variable]:
    """Returns {id of a learned variable: its momentum}; a frozen variable has no momentum."""
    return dict(zip(map(id, model.learned_variables), optimizer.velocities, strict=True))


def export_detectron2(config: Detectron2ExportConfig) -> None:
    """Exports an encoder as a backbone for Detectron2.

    Args:
      config: the settings of the export.

    Raises:
      UserError: the source cannot be read, its stem is not ImageNet's, or the output cannot be
        written.
    """
    weight_files.check_output(config.output)
    encoder = _load_encoder(config.source)
    tensors = _tensors_of(encoder.named_weights())
    if tensors["conv1.weight"].shape[2] != 7:
        raise UserError(
            "The encoder must have been trained with --stem=imagenet, because Detectron2's ResNet "
            "starts with a 7x7 convolution. "
            f"Received: {config.source.encoder or config.source.workdir}"
        )
    content = {
        "model": {detectron2_name(name): value for name, value in tensors.items()},
        "__author__": "simsiam_tf",
        "matching_heuristics": True,
    }
    weight_files.write_pickle(config.output, content)
    logging.info("Wrote %s", config.output)


def detectron2_name(name: str) -> str:
    """Returns Detectron2's name for torchvision's.

    For example, `layer1.0.bn1.bias` becomes `res2.0.conv1.norm.bias`.
    """
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _tensors_of(variables: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
    """Returns the values of the variables, in PyTorch's layout, by the same names."""
    return {name: naming.to_torch(variable.numpy()) for name, variable in variables.items()}


def _load_encoder(config: SourceConfig) -> resnet.ResNet:
    """Returns the encoder of a SavedModel, or of a run's newest checkpoint."""
    if config.encoder:
        return saved_model.load_resnet(config.encoder)
    run = _run_in(config.workdir)
    encoder = saved_model.check_resnet(build_encoder(run, 3), config.workdir)
    _restore(config.workdir, encoder)
    return encoder


def load_run(workdir: str) -> tuple[SimSiam, optimizers.SGD, config_lib.PretrainConfig]:
    """Restores a SimSiam run from its newest checkpoint, on one device.

    Args:
      workdir: the run's folder.

    Returns:
      The model, the optimizer and the run's settings.

    Raises:
      UserError: the folder has no run or no checkpoint, or the run's method is not SimSiam.
    """
    run = _run_in(workdir)
    if run.method.method != "simsiam":
        raise UserError(
            "--whole needs a run of --method=simsiam, the only method of the authors' code. "
            f"Received: {run.method.method}"
        )
    model, optimizer = build_model(run, tf.distribute.get_strategy())
    saved_model.check_resnet(model.encoder, workdir)
    _restore(workdir, model, optimizer)
    return model, optimizer, run


def _run_in(workdir: str) -> config_lib.PretrainConfig:
    """Returns a run's settings and starts the strategy for one device."""
    run = run_folder.read_config(workdir, "workdir")
    one_device = dataclasses.replace(run.system, strategy="default", cpu_replicas=1)
    devices.build_strategy(one_device)
    return run


def _restore(workdir: str, *parts: Any) -> None:
    if Checkpoints(workdir, *parts).restore() is None:
        raise UserError(f"--workdir must contain a checkpoint. Received: {workdir}")
