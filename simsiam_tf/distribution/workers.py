"""Several processes that train one model: which of them this is, and when one is lost."""

import contextlib
import re

import tensorflow as tf

from simsiam_tf.schema import UserError

_TASK = re.compile(r"/job:(\w+)/replica:\d+/task:(\d+)")


def has_several_workers(strategy):
    """Whether the strategy spans several processes, of which this is one."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def worker_name(strategy):
    """What this process is called: "worker-0" where it is the only one."""
    if not has_several_workers(strategy):
        return "worker-0"
    resolver = strategy.cluster_resolver
    return f"{resolver.task_type}-{resolver.task_id}"


def is_chief(strategy):
    """Whether this process is the one that writes the run's files."""
    if not has_several_workers(strategy):
        return True
    first = "chief" if "chief" in strategy.cluster_resolver.cluster_spec().jobs else "worker"
    return worker_name(strategy) == f"{first}-0"


def gather_over_workers(strategy, value):
    """An int of each worker → all of them, a list on each; every worker waits for the others."""
    if not has_several_workers(strategy):
        return [value]

    @tf.function
    def gather():
        def replica():
            here = tf.fill([1], tf.constant(value, tf.int64))
            return tf.distribute.get_replica_context().all_gather(here, axis=0)

        return strategy.experimental_local_results(strategy.run(replica))[0]

    return gather().numpy().tolist()


@contextlib.contextmanager
def chief_first(strategy):
    """A context that the chief passes through before the other workers enter it."""
    if not is_chief(strategy):
        gather_over_workers(strategy, 0)
    yield
    if is_chief(strategy):
        gather_over_workers(strategy, 0)


def lost_workers(strategy, error):
    """The names of the other workers that a TensorFlow error is about."""
    if not has_several_workers(strategy):
        return []
    named = {f"{job}-{task}" for job, task in _TASK.findall(error.message)}
    return sorted(named - {worker_name(strategy)})


@contextlib.contextmanager
def lost_workers_named(strategy):
    """A context that ends with a `UserError` that names the worker which the others have lost."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = lost_workers(strategy, error)
        if not lost:
            raise
        cluster = strategy.cluster_resolver.cluster_spec()
        places = ", ".join(
            f"{name} at {cluster.task_address(name.split('-')[0], int(name.split('-')[1]))}"
            for name in lost
        )
        raise UserError(
            f"Lost {places}; its own log says why. The same command on every worker goes on from "
            "the newest checkpoint"
        ) from error
