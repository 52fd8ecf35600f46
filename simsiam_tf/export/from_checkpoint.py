"""The course of `python -m simsiam_tf.export`, from top to bottom."""

import dataclasses
import os

import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.distribution import devices
from simsiam_tf.export import formats, saved_model
from simsiam_tf.export.settings import ExportConfig
from simsiam_tf.methods.build import build_encoder
from simsiam_tf.runs import checkpoints, run_folder
from simsiam_tf.schema import UserError


def export(config: ExportConfig) -> None:
    """Exports the encoder of a checkpoint and prints its parity with the encoder.

    Raises:
      UserError: there is no complete checkpoint, the output cannot be written, or the exported
        features differ from the encoder's. Then nothing is written.
    """
    workdir, step = checkpoints.locate(config.checkpoint)
    run = run_folder.read_config(workdir, "checkpoint")
    name = "encoder" if step is None else f"encoder-step-{step:09d}"
    output = os.path.abspath(config.output or os.path.join(workdir, name + config.suffix))
    _check_output(output, is_folder=not config.suffix)

    # One device, and arithmetic as precise as the weights.
    precision = "float64" if run.system.precision == "float64" else "float32"
    system = dataclasses.replace(
        run.system, strategy="default", cpu_replicas=1, precision=precision
    )
    devices.build_strategy(system)
    # On a GPU, the rounding of TensorFloat-32 would count as a difference.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    pixels = run_folder.read_pixels(workdir)
    encoder = build_encoder(run, pixels.channels)
    # The weights of the encoder are the first ones of its model.
    saved = checkpoints.Checkpoints(workdir, encoder)
    if step is None:
        step = saved.restore()
    else:
        saved.restore_step(step)
    if step is None:
        raise UserError(
            f"--checkpoint must be a run with a checkpoint; train first. Received: {workdir}"
        )

    try:
        parity = formats.export(encoder, run, config.format, output, {"step": step}, pixels)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output cannot be written ({reason}). Received: {output}") from error
    print(
        f"{output}: the encoder of step {step}. Its features differ by at most "
        f"{parity.absolute:.1e}, {parity.relative:.1e} of the largest; "
        f"{formats.MOST_RELATIVE_DIFFERENCE:.0e} is allowed",
        flush=True,
    )


def _check_output(output: str, is_folder: bool) -> None:
    """Refuses an output that cannot be written, or that exists and is not an earlier export."""
    if is_folder and os.path.exists(output):
        is_encoder = os.path.exists(os.path.join(output, saved_model.DESCRIPTION))
        if not (os.path.isdir(output) and (is_encoder or not os.listdir(output))):
            raise UserError(
                "--output must be a new or an empty folder, or an encoder to replace. "
                f"Received: {output}"
            )
    if not is_folder and os.path.isdir(output):
        raise UserError(f"--output must be a file. Received: {output}, a folder")
    folder = os.path.dirname(output)
    try:
        files.make_folder(folder)
    except OSError as error:
        raise UserError(
            f"--output must be in a folder that can be written to ({error.strerror}). "
            f"Received: {output}"
        ) from error
