"""The loop: one strategy, one model, batches in, metrics out. It knows no method.

`Model.fit` fails under several workers; this plain loop serves every strategy.
"""

import dataclasses
import time

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step left behind."""

    number: int  # of steps done, this one included
    batch: dict  # the first replica's share
    metrics: dict  # {name: scalar tensor}, the mean over all replicas; reading one waits for it
    waited: float  # seconds that the loop waited for the batch


def run_steps(strategy, model, batches, first_step):
    """Trains on each batch in turn; yields a `Step` after each.

    Args:
      strategy: the `tf.distribute.Strategy` that the model was built under.
      model: a `SelfSupervisedModel` with its optimizer.
      batches: an iterable of distributed batches.
      first_step: how many steps were done before.
    """

    @tf.function(reduce_retracing=True)
    def train_step(batch):
        metrics = strategy.run(model.train_step, args=(batch,))
        # The same on every replica.
        return tf.nest.map_structure(first_replica, metrics)

    def first_replica(value):
        return strategy.experimental_local_results(value)[0]

    started = time.perf_counter()
    for number, batch in enumerate(batches, start=first_step + 1):
        waited = time.perf_counter() - started
        metrics = train_step(batch)
        yield Step(number, tf.nest.map_structure(first_replica, batch), metrics, waited)
        started = time.perf_counter()
