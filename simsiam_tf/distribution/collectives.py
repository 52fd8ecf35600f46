"""Collectives: the replicas of a training step exchange tensors, in replica context."""

import tensorflow as tf


def num_replicas() -> int:
    """Returns the number of replicas that take part in the current step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def replica_id() -> tf.Tensor:
    """Returns the index of this replica, an int32 scalar; call it in replica context."""
    return tf.convert_to_tensor(tf.distribute.get_replica_context().replica_id_in_sync_group)


def mean_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the mean of a tensor over all replicas, by one collective, in replica context."""
    return _over_replicas(tf.distribute.ReduceOp.MEAN, value)


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the sum of a tensor over all replicas, by one collective, in replica context."""
    return _over_replicas(tf.distribute.ReduceOp.SUM, value)


def _over_replicas(operation: tf.distribute.ReduceOp, value: tf.Tensor) -> tf.Tensor:
    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(operation, value)


def gather_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the values of all replicas, stacked, by one collective, in replica context.

    The gradient flows back to the value of each replica.

    Args:
      value: this replica's value, `[...]`, with the same static shape on all replicas.

    Returns:
      `[num_replicas, ...]`, in the order of the replicas.
    """
    value = value[tf.newaxis]
    if num_replicas() == 1:
        return value
    # A sum, in which each replica fills its own entry. all_gather would first exchange the shapes
    # of all replicas.
    is_own = tf.equal(tf.range(num_replicas()), replica_id())
    is_own = tf.reshape(is_own, [-1] + [1] * (value.shape.rank - 1))
    return sum_over_replicas(tf.where(is_own, value, 0))


def gather_batch(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a tensor of the global batch, by one collective, in replica context.

    The gradient flows back to the share of each replica.

    Args:
      value: this replica's share, `[b, ...]`.

    Returns:
      The shares of all replicas, `[B, ...]`, and the indices of this replica's share in them,
      `[b] int32`.
    """
    size = value.shape[0]
    gathered = gather_over_replicas(value)
    whole = tf.reshape(gathered, [num_replicas() * size, *value.shape[1:]])
    return whole, replica_id() * size + tf.range(size)
