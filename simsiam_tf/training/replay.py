"""`--replay_step`: one step again, with every layer checked, to find what is not finite first.

The state before the step is not saved for every step. It is that of the newest checkpoint before,
or the initial one, after the steps in between: they are trained again. Nothing is written.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import PretrainConfig
from simsiam_tf.distribution import devices, workers
from simsiam_tf.runs import run_folder
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress
from simsiam_tf.training import assembly, initial_weights, loop

_FOUND = re.compile(r"(detected in gradient\. )?(?:b')?<(.+?)>'? : Tensor had (.+?) values")


def replay(config: PretrainConfig, strategy: tf.distribute.Strategy) -> str:
    """Trains again up to a step, and runs that step with every layer checked.

    Args:
      config: of the run; `--replay_step` is the step.
      strategy: of this machine alone. XLA compiles the steps before it as in the run, but not the
        step itself.

    Returns:
      A sentence that names the first layer whose output or gradient is not finite, or says that
      the step is finite.

    Raises:
      UserError: there is no such run or step.
    """
    step, workdir = config.system.replay_step, config.system.workdir
    if not os.path.exists(os.path.join(workdir, run_folder.FLAGFILE)):
        raise UserError(f"--replay_step needs the run's --workdir. Received: {workdir}")
    if workers.has_several_workers(strategy):
        raise UserError(
            "--replay_step runs on one machine; choose --strategy=mirrored or default. "
            f"Received: --strategy={config.system.strategy}"
        )
    if devices.device_type(strategy) == "TPU":
        raise UserError(
            "--replay_step needs a CPU or GPU, whose steps Python can watch. Received: a TPU"
        )
    source = assembly.load_source(config)
    run_folder.check_images(workdir, source)
    parts = assembly.assemble(config, strategy, source)
    if step > parts.plan.num_steps:
        raise UserError(
            f"--replay_step must be at most {parts.plan.num_steps}, the last step of the run. "
            f"Received: {step}"
        )
    model = parts.model
    checkpoints = Checkpoints(workdir, model, parts.optimizer, bank=model.bank, writes=False)
    restored = checkpoints.restore(before=step)
    if restored is None and config.start.init_from:
        initial_weights.load(model, config.start.init_from)
    done = restored or 0
    with Progress(step - 1 - done, f"steps {done + 1} to {step - 1} again", "step") as progress:
        for _ in parts.steps(done, step - 1, xla=devices.uses_xla(config.system, strategy)):
            progress.update(1)
    checks = _Checks()
    try:
        loss = _run_checked(parts, step, checks)
    except tf.errors.InvalidArgumentError as error:
        found = _FOUND.search(error.message)
        if not found:
            raise
        in_gradient, name, kind = found.groups()
        subject = f"the gradient at the output of {name}" if in_gradient else name
        text = f"Step {step}: {subject} is the first that is not finite ({kind})"
    else:
        text = f"Step {step} is finite when it is repeated here: its loss is {loss:.6g}"
    checks.log()
    return text


class _Checks:
    """The names of what is checked, and the largest absolute value of what was computed."""

    def __init__(self) -> None:
        self.names: list[str] = []  # in the order of the computation
        self.largest: dict[str, float] = {}
        self.variable_names: dict[int, str] = {}  # by the id of the variable

    def check(self, name: str, value: tf.Tensor) -> tf.Tensor:
        """Returns a tensor that fails if it, or its gradient, is not finite."""
        self.names.append(name)

        def note(value: np.ndarray) -> np.float64:
            self.largest[name] = max(self.largest.get(name, 0.0), float(value))
            return np.float64(0)

        size = tf.cast(tf.reduce_max(tf.abs(value)), tf.float64)
        with tf.control_dependencies([tf.numpy_function(note, [size], tf.float64)]):
            return tf.debugging.check_numerics(value, f"<{name}>")

    @contextlib.contextmanager
    def of_layers(self) -> Iterator[None]:
        """A context in which every layer that is called checks its outputs under its name."""
        call = keras.layers.Layer.__call__
        path: list[str] = []

        def checked_call(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
            path.append(layer.name)
            try:
                outputs = call(layer, *arguments, **options)
                name = "/".join(path)
            finally:
                path.pop()
            for variable in layer.trainable_variables:  # an inner layer has named its own
                self.variable_names.setdefault(id(variable), f"{name}/{variable.name}")
            return tf.nest.map_structure(
                lambda x: self.check(name, x) if tf.is_tensor(x) and x.dtype.is_floating else x,
                outputs,
            )

        keras.layers.Layer.__call__ = checked_call  # type: ignore[method-assign]
        try:
            yield
        finally:
            keras.layers.Layer.__call__ = call  # type: ignore[method-assign]

    def log(self) -> None:
        """Logs the largest absolute values, in the order of the computation."""
        for name in dict.fromkeys(self.names):
            if name in self.largest:
                logging.info("%-60s largest absolute value %.4g", name, self.largest[name])


def _run_checked(parts: assembly.Parts, step: int, checks: _Checks) -> float:
    """Returns the loss of a step, whose state before is that of the model.

    Raises:
      tf.errors.InvalidArgumentError: something is not finite; its text has the name in <>.
    """
    model, strategy = parts.model, parts.strategy
    freezer = parts.build_freezer(step - 1)
    if freezer:
        freezer.freeze_if_due(step - 1)
    share = parts.plan.batch_size // strategy.num_replicas_in_sync

    def replica_step(batch):
        batch = loop.prepared(batch, parts.prepare, share)
        batch["views"] = tuple(checks.check("the views", view) for view in batch["views"])
        gradients, outputs = model.compute_gradients(model.with_positions(batch))
        loss = checks.check("the loss", outputs["loss"])
        for variable, gradient in zip(model.learned_variables, gradients, strict=True):
            name = checks.variable_names.get(id(variable), variable.path)
            with tf.control_dependencies([loss]):
                checks.check(f"the gradient of {name}", gradient)
        return loss

    @tf.function(autograph=False)
    def run(batch):
        return strategy.experimental_local_results(strategy.run(replica_step, args=(batch,)))

    batch = next(iter(parts.batches.start_at(step - 1)))
    with checks.of_layers():
        return float(np.mean([loss.numpy() for loss in run(batch)]))
