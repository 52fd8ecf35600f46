"""The batches of a training run, shared out to the replicas of its strategy."""

import functools
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import pipeline
from simsiam_tf.data.order import step_order
from simsiam_tf.data.quarantine import READ_ERRORS, Quarantine
from simsiam_tf.distribution import workers
from simsiam_tf.methods.base import Plan
from simsiam_tf.training.loop import Step


class TrainingBatches:
    """The batches of a run from any step on."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        config: PretrainConfig,
        make_views: Callable,
        quarantine: Quarantine,
        plan: Plan,
    ) -> None:
        """Args:
        strategy: whose replicas share each batch.
        config: of the run.
        make_views: of `views.build_views`.
        quarantine: of the data set, which it names.
        plan: of the run.
        """
        self.strategy = strategy
        self.quarantine = quarantine
        self.plan = plan
        self.seed = config.system.seed
        self._batches = functools.partial(
            pipeline.training_batches,
            quarantine.source,
            make_views,
            batch_size=plan.batch_size,
            seed=self.seed,
            last_step=plan.num_steps,
            max_pixels=config.data.max_image_pixels,
            quarantine=quarantine,
        )

    def start_at(self, step: int) -> tf.distribute.DistributedDataset:
        """The batches of the steps that follow after `step` steps are done."""

        def of_worker(context):
            batches = self.of_worker(step, context)
            # The loop ends before the data set does. If the data set were known to end, workers
            # would ask each other at every step, by a collective, whether it has ended.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return batches.apply(endless)

        return self.strategy.distribute_datasets_from_function(of_worker)

    def of_worker(
        self, step: int, context: tf.distribute.InputContext | None = None
    ) -> tf.data.Dataset:
        """The batches after `step` steps for one worker; None: the whole global batches."""
        return self._batches(first_step=step, context=context)

    def explain_errors(
        self, steps: Iterable[Step], first_step: int, loop_end: Callable[[int], int]
    ) -> Iterator[Step]:
        """The same steps; an image that cannot be read is a `UserError` that names it.

        Args:
          steps: of `loop.run_steps`.
          first_step: steps done before them.
          loop_end: as `loop.run_steps` takes it.
        """
        steps = iter(steps)
        done = first_step
        while True:
            try:
                step = next(steps, None)
            except READ_ERRORS as error:
                if workers.lost_workers(self.strategy, error):
                    raise
                self.quarantine.check()
                indices = self._indices(range(done, loop_end(done)))
                raise self.quarantine.explain(error, indices) from error
            if step is None:
                return
            done = step.number
            yield step

    def _indices(self, steps: Iterable[int]) -> tf.Tensor:
        """The indices of the images of some steps, in one tensor."""
        num_examples = self.quarantine.source.num_examples
        order = functools.partial(step_order, num_examples, self.plan.batch_size, self.seed)
        return tf.concat([order(step) for step in steps], axis=0)
