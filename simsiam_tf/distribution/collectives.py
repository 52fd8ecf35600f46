"""Values that the replicas of a training step exchange, in replica context."""

import tensorflow as tf


def num_replicas():
    """How many replicas take part in the current step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def replica_id():
    """The number of this replica, in replica context: an int32 tensor."""
    return tf.convert_to_tensor(tf.distribute.get_replica_context().replica_id_in_sync_group)


def mean_over_replicas(value):
    """The mean of a tensor over all replicas, in replica context: one collective."""
    return _over_replicas(tf.distribute.ReduceOp.MEAN, value)


def sum_over_replicas(value):
    """The sum of a tensor over all replicas, in replica context: one collective."""
    return _over_replicas(tf.distribute.ReduceOp.SUM, value)


def _over_replicas(operation, value):
    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(operation, value)


def gather_over_replicas(value):
    """`[...]` of each replica → `[replicas, ...]`, in replica context: one collective.

    The gradient flows back to each replica's own.
    """
    value = value[tf.newaxis]
    if num_replicas() == 1:
        return value
    # A sum in which each has its own place: all_gather would ask for everyone's shape before.
    is_mine = tf.equal(tf.range(num_replicas()), replica_id())
    is_mine = tf.reshape(is_mine, [-1] + [1] * (value.shape.rank - 1))
    return sum_over_replicas(tf.where(is_mine, value, 0))


def gather_batch(value):
    """`[b, ...]` of each replica → those of all, `[B, ...]`, and this replica's places, int `[b]`.

    In replica context: one collective. The gradient flows back to each replica's own.
    """
    size = value.shape[0]
    gathered = gather_over_replicas(value)
    whole = tf.reshape(gathered, [num_replicas() * size, *value.shape[1:]])
    return whole, replica_id() * size + tf.range(size)
