"""The parts of a run, built in the order in which they depend on each other, and its steps."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from simsiam_tf.config import OptimizationConfig, PretrainConfig
from simsiam_tf.data import datasets, sampling, views
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.data.source import Source
from simsiam_tf.data.views import MakeViews
from simsiam_tf.distribution import devices
from simsiam_tf.methods.base import Plan, SelfSupervisedModel
from simsiam_tf.methods.build import build_model, plan_of
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training import loop
from simsiam_tf.training.batches import TrainingBatches


@dataclasses.dataclass(frozen=True)
class Parts:
    """The model of a run, with its optimizer and the batches that it trains on."""

    config: PretrainConfig
    strategy: tf.distribute.Strategy
    plan: Plan
    model: SelfSupervisedModel
    optimizer: keras.optimizers.Optimizer
    quarantine: Quarantine  # of the images to train on
    make_views: MakeViews
    batches: TrainingBatches

    @property
    def prepare(self) -> Callable[[dict[str, Any]], tuple[tf.Tensor, ...]]:
        """`views.prepare` for the images of the run."""
        return functools.partial(views.prepare, pixels=self.quarantine.source.pixels)

    def build_freezer(self, first_step: int) -> loop.TargetFreezer | None:
        """Returns what freezes the targets after `first_step` steps; None: the method has none."""
        if not self.model.freeze_every:
            return None
        return loop.TargetFreezer(
            self.strategy,
            self.model,
            self.batches.start_at,
            self.prepare,
            plan=self.plan,
            first_step=first_step,
        )

    def steps(
        self,
        first_step: int,
        last_step: int | None = None,
        *,
        stop_wanted: Callable[[], bool] = lambda: False,
        xla: bool = False,
    ) -> Iterator[loop.Step]:
        """Trains; yields a `Step` for each step.

        Args:
          first_step: number of steps done before.
          last_step: number of the step to end with; None: the last of the run.
          stop_wanted: as `loop.run_steps` takes it.
          xla: as `loop.run_steps` takes it.

        Raises:
          UserError: an image cannot be read.
        """
        strategy, plan = self.strategy, self.plan
        freezer = self.build_freezer(first_step)
        last_step = plan.num_steps if last_step is None else last_step
        loop_end = _schedule_loops(self.config, strategy, plan.steps_per_epoch, last_step, freezer)
        steps = loop.run_steps(
            strategy,
            self.model,
            self.batches.start_at(first_step),
            self.prepare,
            replica_batch_size=plan.batch_size // strategy.num_replicas_in_sync,
            first_step=first_step,
            loop_end=loop_end,
            before_loop=freezer.freeze_if_due if freezer else None,
            stop_wanted=stop_wanted,
            xla=xla,
        )
        return self.batches.explain_errors(steps, first_step, loop_end)


def assemble(
    config: PretrainConfig,
    strategy: tf.distribute.Strategy,
    source: Source,
    quarantine_file: str | None = None,
) -> Parts:
    """Builds the parts of a run, with the model's initial weights.

    Args:
      config: of the run.
      strategy: under whose scope the variables are created.
      source: the images to train on.
      quarantine_file: file that lists the images that cannot be read; None: none.

    Raises:
      UserError: the batch does not fit the images or the devices.
    """
    _check_batch(config.optimization, source, strategy.num_replicas_in_sync)
    plan = plan_of(config, source)
    model, optimizer = build_model(config, strategy, plan)
    quarantine = Quarantine(source, config.data, path=quarantine_file)
    make_views = views.build_views(config.views, model.num_views, source.pixels)
    batches = TrainingBatches(strategy, config, make_views, quarantine, plan)
    parts: dict[str, Any] = {"quarantine": quarantine, "make_views": make_views}
    return Parts(config, strategy, plan, model, optimizer, batches=batches, **parts)


def load_source(config: PretrainConfig) -> Source:
    """Returns the images to train on. Their pixels are those that the run began with."""
    data, workdir = config.data, config.system.workdir
    source = datasets.load(data.dataset, data.data_dir, data.train_split)
    if os.path.exists(os.path.join(workdir, run_folder.FLAGFILE)):
        pixels = run_folder.read_pixels(workdir)
    else:
        pixels = sampling.resolve_pixels(config.pixels, source, data.max_image_pixels)
    return dataclasses.replace(source, pixels=pixels)


def _check_batch(settings: OptimizationConfig, source: Source, num_replicas: int) -> None:
    batch_size, parts = settings.batch_size, num_replicas * settings.accumulate_steps
    among = f"{num_replicas} replica(s)"
    if settings.accumulate_steps > 1:
        among += f" of --accumulate_steps={settings.accumulate_steps} parts"
    if batch_size % parts:
        raise UserError(
            f"--batch_size must be divisible by {parts}, as it is shared by {among}. "
            f"Received: {batch_size}"
        )
    if batch_size // parts < 2:
        raise UserError(
            f"--batch_size must leave two images or more to each part of it. "
            f"Received: {batch_size} for {among}"
        )
    if batch_size > source.num_examples:
        raise UserError(
            f"--batch_size must be at most the number of images, {source.num_examples} in "
            f"{source.name}. Received: {batch_size}"
        )


def _schedule_loops(
    config: PretrainConfig,
    strategy: tf.distribute.Strategy,
    steps_per_epoch: int,
    last_step: int,
    freezer: loop.TargetFreezer | None,
) -> Callable[[int], int]:
    """Returns a function: steps done → steps done after the next loop.

    A loop ends where Python has something to do: a checkpoint, an evaluation, new frozen targets
    and, on accelerators, a line of metrics.
    """
    monitor, steps_per_loop = config.monitor, config.system.steps_per_loop
    periods = [
        config.system.checkpoint_every_steps,
        monitor.health_every_epochs * steps_per_epoch,
        monitor.knn_every_epochs * steps_per_epoch,
        monitor.histogram_every_epochs * steps_per_epoch,
    ]
    if steps_per_loop != "auto":
        longest = int(steps_per_loop)
    elif devices.on_accelerators(strategy):
        longest = monitor.log_every_steps
        periods.append(longest)  # the host waits for the devices only where a line is due
    else:
        longest = 1

    def loop_end(done: int) -> int:
        due = [(done // period + 1) * period for period in periods if period]
        if freezer:
            due.append(freezer.end(done))
        return min(done + longest, last_step, *due)

    return loop_end
