"""Keras callbacks that run between the training steps, in the order of their list.

The `logs` of a step are its `loop.Step`, a dict of the step's metrics with further attributes.
"""

import itertools
import signal
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import logging

from simsiam_tf import terminal
from simsiam_tf.config import OptimizationConfig, PretrainConfig
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.distribution import workers
from simsiam_tf.optimization import schedules
from simsiam_tf.runs import diagnosis
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.runs.mirror import Mirror
from simsiam_tf.schema import StoppedError, UserError
from simsiam_tf.training import meter
from simsiam_tf.training.loop import Step
from simsiam_tf.training.run_log import RunLog


class BadImages(keras.callbacks.Callback):
    """Reports images that could not be read, as `--on_bad_image` says."""

    def __init__(self, quarantine: Quarantine) -> None:
        super().__init__()
        self.quarantine = quarantine

    def on_train_batch_end(self, batch: int, logs: Step) -> None:
        self.quarantine.check()


class Metrics(keras.callbacks.Callback):
    """Writes the metrics of every `log_every_steps`-th step and of every skipped step."""

    def __init__(
        self, log: RunLog, settings: OptimizationConfig, log_every_steps: int, peak_flops: float
    ) -> None:
        """Args:
        log: of the run.
        settings: of the run.
        log_every_steps: steps from one line to the next.
        peak_flops: FLOP/s that all devices reach in matrix products.
        """
        super().__init__()
        self.log = log
        self.log_every_steps = log_every_steps
        self.settings = settings
        self.peak_flops = peak_flops
        self.recent = meter.Usage()  # since the last line
        self.usages: list[meter.Usage] = []  # of each line of this start

    def on_train_batch_end(self, batch: int, logs: Step) -> None:
        plan = self.log.plan
        self.recent += meter.Usage(
            plan.batch_size, logs.seconds, logs.waited, logs.processor_seconds, logs.flops
        )
        self.log.progress.update()
        if logs["skipped"]:
            self._write_skipped(logs)
        elif logs.number % self.log_every_steps == 0 or logs.number == plan.num_steps:
            self._write(logs)

    def _write(self, step: Step) -> None:
        # The learning rates that the step was made with.
        steps_per_epoch, done_before = self.log.plan.steps_per_epoch, step.number - 1
        rate = schedules.learning_rate(self.settings, steps_per_epoch, done_before)
        rates = self.recent.rates(self.peak_flops)
        self.usages.append(self.recent)
        self.recent = meter.Usage()
        values = {name: value for name, value in step.items() if name != "skipped"}
        values |= {"learning_rate": rate} | rates
        self.log.write(step.number, values)
        self._show(step.number, done_before // steps_per_epoch, values)

    def _show(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Shows a line to people: in the bar of a terminal, and in the log."""
        plan, speed = self.log.plan, values["images_per_second"]
        epochs = f"epoch {epoch + 1}/{plan.epochs}"
        numbers = [f"loss {values['loss']:.3f}", f"std {values['feature_std']:.2f}"]
        knn = self.log.latest("knn_top1")
        if knn is not None:
            numbers.append(f"kNN {knn:.1f} %")
        self.log.progress.show(epochs, f"{', '.join(numbers)}, {speed:.0f}/s")
        left = terminal.format_seconds((plan.num_steps - step) * plan.batch_size / speed)
        logging.info(
            "%s, step %d/%d, loss %.4f, std %.3f, %.0f images/s, %s left",
            epochs,
            step,
            plan.num_steps,
            values["loss"],
            values["feature_std"],
            speed,
            left,
        )

    def _write_skipped(self, step: Step) -> None:
        self.log.write_line(step.number, {"nonfinite": True, "indices": step.indices})
        self.log.warn(
            step.number,
            f"Step {step.number} changed no weight: its loss or gradient is not finite. Its "
            f"samples: {', '.join(map(str, step.indices))}. --replay_step={step.number} finds the "
            "layer",
        )

    def rates(self) -> dict[str, float]:
        """Returns the rates of this start as a whole, {name of `meter.RATES`: float}."""
        # The first line's time includes tracing and compiling the step.
        usages = self.usages[1:] or self.usages
        if usages:
            return sum(usages, meter.Usage()).rates(self.peak_flops)
        # Every step was done before.
        return {name: self.log.latest(name) or 0.0 for name in meter.RATES}


class SkippedSteps(keras.callbacks.Callback):
    """Stops a run whose loss or gradient is not finite for too many steps in a row."""

    def __init__(self, log: RunLog, max_nonfinite_steps: int) -> None:
        super().__init__()
        self.max_nonfinite_steps = max_nonfinite_steps
        steps = {line["step"] for line in log.lines if "nonfinite" in line}
        last = log.restored_step or 0
        self.in_a_row = next(n for n in itertools.count() if last - n not in steps)

    def on_train_batch_end(self, batch: int, logs: Step) -> None:
        self.in_a_row = self.in_a_row + 1 if logs["skipped"] else 0
        if self.in_a_row >= self.max_nonfinite_steps:
            raise UserError(
                f"The loss or gradient of {self.in_a_row} steps in a row was not finite, most "
                f"recently of step {logs.number}. These steps changed no weight, and the "
                "checkpoints are good. Lower the learning rate, look at the samples that "
                f"metrics.jsonl lists, or find the layer by --replay_step={logs.number}. "
                f"Received: --max_nonfinite_steps={self.max_nonfinite_steps}"
            )


class Diagnoses(keras.callbacks.Callback):
    """Warns at the end of an epoch if the run shows a problem that it did not show before.

    Place it after the callbacks that write metrics.
    """

    def __init__(self, log: RunLog, config: PretrainConfig) -> None:
        """Args:
        log: of the run.
        config: of the run; `--on_collapse` says whether a collapse stops it.
        """
        super().__init__()
        self.log = log
        self.config = config
        self.findings: list[diagnosis.Finding] = []  # of the last epoch
        self.stopped_by: diagnosis.Finding | None = None

    def on_epoch_end(self, epoch: int, logs: Step) -> None:
        known = {finding.name for finding in self.findings}
        self.findings = diagnosis.diagnose(self.log.lines, self.config)
        for finding in self.findings:
            if finding.name not in known:
                self.log.warn(logs.number, f"{finding}")
            elif finding.name == "collapse" and self.config.monitor.on_collapse == "stop":
                self.stopped_by = finding  # at the end of two epochs in a row
                self.model.stop_training = True


class _AtStepEnd(keras.callbacks.Callback):
    """Calls `on_step_end` once for each step; at the end of an epoch, after its other hooks."""

    def on_train_batch_end(self, batch: int, logs: Step) -> None:
        if not logs.ends_epoch:
            self.on_step_end(logs)

    def on_epoch_end(self, epoch: int, logs: Step) -> None:
        self.on_step_end(logs)

    def on_step_end(self, step: Step) -> None:
        raise NotImplementedError


class SaveCheckpoints(_AtStepEnd):
    """Saves a checkpoint at regular steps, after the last step and before the run stops.

    Place it after the callbacks that write metrics: what a run wrote before a checkpoint is kept
    when the run resumes from it.
    """

    def __init__(self, checkpoints: Checkpoints, log: RunLog, every_steps: int) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.log = log
        self.every_steps = every_steps

    def is_due(self, step: Step) -> bool:
        """Returns whether a checkpoint is saved after a step."""
        is_last = step.number == self.log.plan.num_steps
        return is_last or step.stopping or step.number % self.every_steps == 0

    def on_step_end(self, step: Step) -> None:
        if self.is_due(step):
            self.log.flush()
            skipped = (line["step"] for line in reversed(self.log.lines) if "nonfinite" in line)
            self.checkpoints.save(step.number, repeatable=next(skipped, None))


class UploadRun(_AtStepEnd):
    """Uploads the run after each checkpoint, if its workdir is a URL. Place it after `saves`."""

    def __init__(self, mirror: Mirror, saves: SaveCheckpoints) -> None:
        super().__init__()
        self.mirror = mirror
        self.saves = saves

    def on_step_end(self, step: Step) -> None:
        if self.saves.is_due(step):
            self.mirror.upload()


class Interruption(_AtStepEnd):
    """Ends a run that was told to stop, after the checkpoint of its step is saved."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        log: RunLog,
        workdir: str,
        received: Callable[[], signal.Signals | None],
        diagnoses: Diagnoses,
    ) -> None:
        """Args:
        strategy: the run's; all of its workers stop after the same step.
        log: of the run.
        workdir: as the user named it.
        received: returns the signal that this worker received, or None.
        diagnoses: know whether a collapse stops the run.
        """
        super().__init__()
        self.diagnoses = diagnoses
        self.strategy = strategy
        self.log = log
        self.workdir = workdir
        self.received = received

    def on_step_end(self, step: Step) -> None:
        last_step = self.log.plan.num_steps
        if not step.stopping or step.number == last_step:
            return
        workers.gather_over_workers(self.strategy, step.number)  # the chief has saved it
        received = self.received()
        if self.diagnoses.stopped_by:
            raise UserError(
                f"{self.diagnoses.stopped_by}. Stopped by --on_collapse=stop: saved step "
                f"{step.number} of {last_step} in {self.workdir}"
            )
        if received:
            reason = received.name
        elif workers.has_several_workers(self.strategy) and not self.model.stop_training:
            reason = "Another worker was told to stop"
        else:
            reason = "A callback stopped the training"
        raise StoppedError(
            f"{reason}: saved step {step.number} of {last_step} in {self.workdir}"
            "; run the same command again to resume",
            received or signal.SIGTERM,
        )
