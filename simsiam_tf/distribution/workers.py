"""The workers of a run: processes that train one model together, and the loss of one of them."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from simsiam_tf.schema import UserError

_TASK = re.compile(r"/job:(\w+)/replica:\d+/task:(\d+)")


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the strategy spans several processes, of which this is one."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def worker_name(strategy: tf.distribute.Strategy) -> str:
    """Returns the name of this process; it is "worker-0" for the only process of a run."""
    if not has_several_workers(strategy):
        return "worker-0"
    resolver = strategy.cluster_resolver
    return f"{resolver.task_type}-{resolver.task_id}"


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the one that writes the run's files."""
    if not has_several_workers(strategy):
        return True
    first = "chief" if "chief" in strategy.cluster_resolver.cluster_spec().jobs else "worker"
    return worker_name(strategy) == f"{first}-0"


def gather_over_workers(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """Returns the values of all workers; every worker must call it and waits for the others."""
    if not has_several_workers(strategy):
        return [value]

    @tf.function(autograph=False)
    def gather():
        def replica():
            own = tf.fill([1], tf.constant(value, tf.int64))
            return tf.distribute.get_replica_context().all_gather(own, axis=0)

        return strategy.experimental_local_results(strategy.run(replica))[0]

    return gather().numpy().tolist()


@contextlib.contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Context that the other workers enter only after the chief has left it."""
    if not is_chief(strategy):
        gather_over_workers(strategy, 0)
    yield
    if is_chief(strategy):
        gather_over_workers(strategy, 0)


def lost_workers(strategy: tf.distribute.Strategy, error: tf.errors.OpError) -> list[str]:
    """Returns the names of the other workers that a TensorFlow error mentions."""
    if not has_several_workers(strategy):
        return []
    named = {f"{job}-{task}" for job, task in _TASK.findall(error.message)}
    return sorted(named - {worker_name(strategy)})


@contextlib.contextmanager
def lost_workers_named(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Context that turns the error of a lost connection into one that names the lost workers.

    Raises:
      UserError: TensorFlow has lost the connection to other workers.
    """
    try:
        yield
    except tf.errors.OpError as error:
        lost = lost_workers(strategy, error)
        if not lost:
            raise
        cluster = strategy.cluster_resolver.cluster_spec()
        addresses = ", ".join(
            f"{name} at {cluster.task_address(name.split('-')[0], int(name.split('-')[1]))}"
            for name in lost
        )
        raise UserError(
            f"Lost {addresses}; the log of a lost worker gives the reason. Run the same command on "
            "every worker to resume from the newest checkpoint"
        ) from error
