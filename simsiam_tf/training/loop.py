"""The loop: one strategy, one model, batches in, metrics out, callbacks in between.

It knows no method. `Model.fit` fails under several workers; this plain loop serves every strategy.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from simsiam_tf.distribution import workers
from simsiam_tf.methods.base import Plan, SelfSupervisedModel
from simsiam_tf.training import meter


class Step(dict):
    """The metrics of one step, {name: float}, means over all replicas: the `logs` of callbacks."""

    def __init__(
        self,
        metrics: dict[str, float],
        *,
        number: int,
        indices: list[int],
        seconds: float,
        waited: float,
        processor_seconds: float,
        flops: float,
        stopping: bool,
    ) -> None:
        """Args:
        metrics: of the step.
        number: steps done, this one included.
        indices: of this worker's samples.
        seconds: the step's share of the time that its loop took.
        waited: its share of the time that the devices waited for batches.
        processor_seconds: its share of the time that this machine's processors worked.
        flops: floating-point operations, over all replicas.
        stopping: whether the training stops here because a worker was told to stop.
        """
        super().__init__(metrics)
        self.number = number
        self.indices = indices
        self.seconds = seconds
        self.waited = waited
        self.processor_seconds = processor_seconds
        self.flops = flops
        self.stopping = stopping
        self.ends_epoch = False  # whether it is the last of its epoch; `call_back` knows


def call_back(
    steps: Iterable[Step],
    callbacks: Sequence[keras.callbacks.Callback],
    model: keras.Model,
    steps_per_epoch: int,
) -> None:
    """Takes the steps one by one and calls Keras' hooks for each, callback after callback.

    The hooks of a loop's steps are called together after the loop, `on_train_batch_begin` too.

    Args:
      steps: of `run_steps`, from any step on.
      callbacks: in the order in which they are called.
      model: that the callbacks see as `self.model`.
      steps_per_epoch: number of steps in an epoch.
    """

    def each(hook: str, *arguments: object) -> None:
        for callback in callbacks:
            getattr(callback, hook)(*arguments)

    for callback in callbacks:
        callback.set_params({"steps": steps_per_epoch})
        callback.set_model(model)
    model.stop_training = False
    each("on_train_begin", None)
    step, is_first = None, True
    for step in steps:
        epoch, batch = divmod(step.number - 1, steps_per_epoch)
        step.ends_epoch = batch == steps_per_epoch - 1
        if is_first or batch == 0:
            each("on_epoch_begin", epoch, None)
        is_first = False
        each("on_train_batch_begin", batch, None)
        each("on_train_batch_end", batch, step)
        if step.ends_epoch:
            each("on_epoch_end", epoch, step)
    each("on_train_end", step)


def _now() -> tf.Tensor:
    """Seconds, in a graph. `tf.timestamp` raises where operations are deterministic."""
    return tf.numpy_function(time.perf_counter, [], tf.float64)


def _flops_of_step(graphs: Sequence[tf.Graph]) -> float:
    """The FLOP of one replica's step, from the graphs of all traces; several may share a graph."""
    return sum(meter.count_flops(graph.get_operations()) for graph in set(graphs)) / len(graphs)


def prepared(batch: dict, prepare: Callable, size: int) -> dict:
    """One replica's share of a batch as the model takes it, with static shapes."""
    batch = tf.nest.map_structure(
        lambda rows: tf.ensure_shape(rows, [size, *rows.shape[1:]]), batch
    )
    return {name: batch[name] for name in batch if name != "draws"} | {"views": prepare(batch)}


class TargetFreezer:
    """Has a model compute and keep the targets of its next steps, if its method freezes targets.

    The targets of up to `model.freeze_every` steps of one epoch come from the same weights.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: SelfSupervisedModel,
        batches_from: Callable[[int], tf.distribute.DistributedDataset],
        prepare: Callable,
        *,
        plan: Plan,
        first_step: int,
    ) -> None:
        """Args:
        strategy: under which the model was built.
        model: one with `freeze_targets`.
        batches_from: returns the batches of the steps that follow after a number of steps.
        prepare: one replica's share of a batch → its views as the network takes them.
        plan: of the run.
        first_step: steps done before. Targets that were frozen then are in the model's bank, unless
          the next step is the first to take new ones.
        """
        self.every = model.freeze_every
        self.steps_per_epoch = plan.steps_per_epoch
        is_due = self._is_due(first_step)
        self.batches = iter(batches_from(first_step if is_due else self.end(first_step)))
        size = plan.batch_size // strategy.num_replicas_in_sync

        @tf.autograph.experimental.do_not_convert  # only the loop needs AutoGraph, which is slow
        def replica_freeze(batch, offset):
            model.freeze_targets(prepared(batch, prepare, size), offset)

        @tf.function(reduce_retracing=True)
        def freeze(batches, count):
            for offset in tf.range(count):
                strategy.run(replica_freeze, args=(batches.get_next(), offset))

        self.freeze = freeze

    def end(self, done: int) -> int:
        """The last step whose targets are frozen together with those of the step after `done`."""
        in_epoch = done % self.steps_per_epoch
        next_due = (in_epoch // self.every + 1) * self.every
        return done - in_epoch + min(next_due, self.steps_per_epoch)

    def freeze_if_due(self, done: int) -> None:
        """Freezes targets anew if the step after `done` is the first to take them."""
        if self._is_due(done):
            self.freeze(self.batches, tf.constant(self.end(done) - done))

    def _is_due(self, done: int) -> bool:
        return done % self.steps_per_epoch % self.every == 0


def run_steps(
    strategy: tf.distribute.Strategy,
    model: SelfSupervisedModel,
    batches: tf.distribute.DistributedDataset,
    prepare: Callable,
    *,
    replica_batch_size: int,
    first_step: int,
    loop_end: Callable[[int], int],
    before_loop: Callable[[int], None] | None = None,
    stop_wanted: Callable[[], bool] = lambda: False,
    xla: bool = False,
) -> Iterator[Step]:
    """Trains on each batch in turn; yields a `Step` for each, a loop at a time.

    The host waits for the devices only at the end of a loop.

    Args:
      strategy: the `tf.distribute.Strategy` that the model was built under.
      model: with its optimizer.
      batches: of the steps from `first_step` on.
      prepare: one replica's share of a batch → its views as the network takes them.
      replica_batch_size: size of a replica's share, which is not static under several workers.
      first_step: number of steps done before.
      loop_end: steps done → steps done after the next loop, which runs without Python. The training
        ends when it returns no more than were done.
      before_loop: called with the steps done, before each loop; None: nothing.
      stop_wanted: whether this worker was told to stop. The workers tell each other within the
        steps of the next loop, so that all of them stop after the same step.
      xla: compile each replica's step by XLA.
    """
    names: list[str] = []  # of the metrics, known once the step is traced
    graphs: list[tf.Graph] = []  # that of each time that a replica's step is traced

    @tf.autograph.experimental.do_not_convert  # only the loop needs AutoGraph, which is slow
    def replica_step(batch, stop):
        data = prepared(batch, prepare, replica_batch_size) | {"stop": stop}
        with tf.name_scope(meter.SCOPE):
            metrics = model.train_step(data)
        names[:] = metrics
        graphs.append(tf.compat.v1.get_default_graph())
        return tf.stack([tf.cast(value, keras.config.floatx()) for value in metrics.values()])

    if xla:
        replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

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
                arrival = _now()
            arrivals = arrivals.write(index, arrival)
            indices = indices.write(index, tf.concat(of_replicas, axis=0))
            with tf.control_dependencies([arrival]):  # else a single core notes it after the step
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
        started, worked = time.perf_counter(), meter.processor_seconds()
        stop = tf.constant(float(stop_wanted()))
        columns = run_loop(iterator, tf.constant(end - done), stop)
        rows, indices, arrivals, began = (column.numpy() for column in columns)
        ended, worked = time.perf_counter(), meter.processor_seconds() - worked
        took, waited = ended - started, _waiting(arrivals, ended - began)
        flops = flops or _flops_of_step(graphs) * strategy.num_replicas_in_sync
        for number, (row, of_step) in enumerate(
            zip(rows.tolist(), indices.tolist(), strict=True), start=done + 1
        ):
            metrics = dict(zip(names, row, strict=True))
            told = metrics.pop("stop") > 0 or (
                stop_wanted() and not workers.has_several_workers(strategy)
            )
            yield Step(
                metrics,
                number=number,
                indices=of_step,
                seconds=took / len(rows),
                waited=waited / len(rows),
                processor_seconds=worked / len(rows),
                flops=flops,
                stopping=told and number == end,
            )
        done = end


def _waiting(arrivals: np.ndarray, took: float) -> float:
    """The seconds of a loop in which its devices waited for batches, if all steps take the same.

    The host hands out steps without waiting for the devices, so the devices may be busy while the
    host waits for a batch. A step begins when its batch is there and the step before is done. So
    from the arrival of any batch, the steps that were left took at most the rest of the loop.

    Args:
      arrivals: of each step's batch, seconds from the loop's start, ascending, `[steps]`.
      took: seconds from the loop's start to its end.
    """
    steps_left = np.arange(len(arrivals), 0, -1)
    return took - len(arrivals) * np.min((took - arrivals) / steps_left)
