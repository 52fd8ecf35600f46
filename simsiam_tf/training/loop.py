"""The loop: one strategy, one model, batches in, metrics out. It knows no method.

`Model.fit` fails under several workers; this plain loop serves every strategy.
"""

import dataclasses
import time

import keras
import numpy as np
import tensorflow as tf

from simsiam_tf import distribution
from simsiam_tf.training import meter


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step left behind."""

    number: int  # of steps done, this one included
    metrics: dict  # {name: float}, the mean over all replicas
    indices: list  # of this worker's samples
    seconds: float  # its share of the time that its loop took
    waited: float  # its share of the time that the devices waited for batches
    flops: float  # floating-point operations, over all replicas
    stopping: bool  # whether a worker was told to stop


def _now():
    """Seconds, in a graph; tf.timestamp refuses to work where operations are deterministic."""
    return tf.numpy_function(time.perf_counter, [], tf.float64)


def _flops_of_step(graphs):
    """Those of one replica; a graph may hold the steps of several."""
    return sum(meter.count_flops(graph.get_operations()) for graph in set(graphs)) / len(graphs)


def _prepared(batch, prepare, size):
    """What the model takes of one replica's share of a batch, all of it with a static size."""
    batch = tf.nest.map_structure(
        lambda rows: tf.ensure_shape(rows, [size, *rows.shape[1:]]), batch
    )
    return {name: batch[name] for name in batch if name != "draws"} | {"views": prepare(batch)}


class TargetHolder:
    """Has a model hold the targets of its next `hold_every` steps, where it has any to hold.

    Steps that share such a moment are neighbours in one epoch.
    """

    def __init__(
        self, strategy, model, batches_from, prepare, *, replica_batch_size, plan, first_step
    ):
        """Args:
        strategy: as of `run_steps`, like all that is not said otherwise.
        model: a `SelfSupervisedModel` with `hold_targets`.
        batches_from: a step → a distributed data set of that step's batch and the following ones.
        prepare: likewise.
        replica_batch_size: likewise.
        plan: the run's `Plan`.
        first_step: likewise. What is held then is in the model's bank, unless it is a first one.
        """
        self.every = model.hold_every
        self.steps_per_epoch = plan.steps_per_epoch
        is_due = self._is_due(first_step)
        self.batches = iter(batches_from(first_step if is_due else self.end(first_step)))

        def replica_hold(batch, place):
            model.hold_targets(_prepared(batch, prepare, replica_batch_size), place)

        @tf.function(reduce_retracing=True)
        def hold(batches, count):
            for place in tf.range(count):
                strategy.run(replica_hold, args=(batches.get_next(), place))

        self.hold = hold

    def end(self, done):
        """The step up to which the targets of the step after `done` are held."""
        place = done % self.steps_per_epoch
        next_place = (place // self.every + 1) * self.every
        return done - place + min(next_place, self.steps_per_epoch)

    def hold_if_due(self, done):
        """Holds targets anew if the step after `done` is the first to take them."""
        if self._is_due(done):
            self.hold(self.batches, tf.constant(self.end(done) - done))

    def _is_due(self, done):
        return done % self.steps_per_epoch % self.every == 0


def run_steps(
    strategy,
    model,
    batches,
    prepare,
    *,
    replica_batch_size,
    first_step,
    loop_end,
    before_loop=None,
    stop_wanted=lambda: False,
    xla=False,
):
    """Trains on each batch in turn; yields a `Step` for each, a loop at a time.

    The host waits for the devices only at the end of a loop.

    Args:
      strategy: the `tf.distribute.Strategy` that the model was built under.
      model: a `SelfSupervisedModel` with its optimizer.
      batches: a distributed data set of the steps from `first_step` on.
      prepare: one replica's share of a batch → its views as the network takes them.
      replica_batch_size: size of a replica's share, which is not static under several workers.
      first_step: how many steps were done before.
      loop_end: steps done → steps done after the next loop, which runs without Python; no more
        than were done ends the training.
      before_loop: called with the steps done, before each loop; None: nothing.
      stop_wanted: whether this worker was told to stop. The workers tell each other within the
        steps of the next loop, so that all of them stop after the same one.
      xla: compile each replica's step by XLA.
    """
    names = []  # of the metrics, known once the step is traced
    graphs = []  # that of each time that a replica's step is traced

    def replica_step(batch, stop):
        data = _prepared(batch, prepare, replica_batch_size) | {"stop": stop}
        with tf.name_scope(meter.SCOPE):
            metrics = model.train_step(data)
        names[:] = metrics
        graphs.append(tf.compat.v1.get_default_graph())
        return tf.stack([tf.cast(value, keras.config.floatx()) for value in metrics.values()])

    if xla:
        replica_step = tf.function(replica_step, jit_compile=True)

    @tf.function(reduce_retracing=True)
    def run_loop(iterator, count, stop):
        began = _now()  # tracing is over
        rows = tf.TensorArray(keras.config.floatx(), count, infer_shape=False)
        indices = tf.TensorArray(tf.int64, count, infer_shape=False)
        arrivals = tf.TensorArray(tf.float64, count)
        for index in tf.range(count):
            batch = iterator.get_next()
            of_replicas = strategy.experimental_local_results(batch["index"])
            with tf.control_dependencies(of_replicas):
                arrivals = arrivals.write(index, _now())
            indices = indices.write(index, tf.concat(of_replicas, axis=0))
            row = strategy.experimental_local_results(
                strategy.run(replica_step, args=(batch, stop))
            )[0]  # the same on every replica
            rows = rows.write(index, row)
        return rows.stack(), indices.stack(), arrivals.stack() - began, began

    iterator = iter(batches)
    done, flops = first_step, None
    while (end := loop_end(done)) > done:
        if before_loop:
            before_loop(done)
        started = time.perf_counter()
        stop = tf.constant(float(stop_wanted()))
        columns = run_loop(iterator, tf.constant(end - done), stop)
        rows, indices, arrivals, began = (column.numpy() for column in columns)
        ended = time.perf_counter()
        took, waited = ended - started, _waiting(arrivals, ended - began)
        flops = flops or _flops_of_step(graphs) * strategy.num_replicas_in_sync
        for number, (row, of_step) in enumerate(
            zip(rows.tolist(), indices.tolist(), strict=True), start=done + 1
        ):
            metrics = dict(zip(names, row, strict=True))
            told = metrics.pop("stop") > 0 or (
                stop_wanted() and not distribution.has_several_workers(strategy)
            )
            yield Step(
                number,
                metrics,
                of_step,
                took / len(rows),
                waited / len(rows),
                flops,
                told and number == end,
            )
        done = end


def _waiting(arrivals, took):
    """The seconds of a loop in which its devices waited for batches, if all steps take the same.

    The host hands steps out without waiting for the devices, so what the host waits for a batch
    need not hold them up. A step begins when its batch is there and the step before is done: so
    from the arrival of any batch, the steps that were left took at most the rest of the loop.

    Args:
      arrivals: of each step's batch, seconds from the loop's start, ascending, `[steps]`.
      took: seconds from the loop's start to its end.
    """
    steps_left = np.arange(len(arrivals), 0, -1)
    return took - len(arrivals) * np.min((took - arrivals) / steps_left)
