"""A bank of targets: one row for each of many images, with the rows divided among the replicas."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.distribution import collectives, devices

_ROWS_PER_CHUNK = 1024


class Bank:
    """A float array `[num_rows, *shape]`, initially zero; each replica stores its part of the rows.

    Keras does not track a bank as a part of the model. Checkpoints ask the model for its bank. They
    read and write whole rows, so a run can resume with another number of replicas.
    """

    def __init__(self, num_rows: int, shape: Sequence[int], dtype: str) -> None:
        """Allocates the rows and logs how much memory they take.

        Args:
          num_rows: number of rows, one for each image.
          shape: shape of one row.
          dtype: float dtype of the values.
        """
        self.num_rows = num_rows
        self.shape = tuple(shape)
        self.dtype = dtype
        self.strategy = tf.distribute.get_strategy()
        num_replicas = self.strategy.num_replicas_in_sync
        self.rows_per_replica = -(-num_rows // num_replicas)
        num_bytes = (self.rows_per_replica + 1) * math.prod(self.shape) * tf.as_dtype(dtype).size
        # The size is logged before the allocation, which may fail.
        logging.info(
            "Targets of %d images: %.3g GB on each of %d replica(s), in the memory of the %s",
            num_rows,
            num_bytes / 1e9,
            num_replicas,
            devices.device_type(self.strategy),
        )
        # The variable takes over the buffer of the zeros, so the bank is never in memory twice. The
        # last row is a dummy, to which the indices of other replicas' rows are redirected.
        self.shard = tf.Variable(
            tf.zeros([self.rows_per_replica + 1, *self.shape], dtype),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def lookup(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the rows that this replica asks for; call it in replica context.

        Args:
          indices: row indices, `[b] int64`.

        Returns:
          The values of these rows, `[b, *shape]`.
        """
        is_local, local_indices = self._locate(collectives.gather_over_replicas(indices))
        values = tf.raw_ops.ResourceGather(
            resource=self.shard.handle, indices=local_indices, dtype=self.shard.dtype
        )
        is_local = tf.reshape(is_local, [*is_local.shape, *[1] * len(self.shape)])
        values = collectives.sum_over_replicas(tf.where(is_local, values, 0))
        return values[collectives.replica_id()]

    def update(self, indices: tf.Tensor, values: tf.Tensor) -> None:
        """Sets rows to new values; call it in replica context.

        Args:
          indices: row indices, `[b] int64`. An index of −1 sets no row.
          values: new values of these rows, `[b, *shape]`.
        """
        _, local_indices = self._locate(collectives.gather_over_replicas(indices))
        _scatter_rows(self.shard.handle, local_indices, collectives.gather_over_replicas(values))

    def _locate(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns whether each row is on this replica, and its index in the replica's shard.

        A row of another replica gets the index of the dummy row, whose value is never used.
        """
        owner = indices // self.rows_per_replica
        is_local = tf.equal(owner, tf.cast(collectives.replica_id(), indices.dtype))
        dummy = self.rows_per_replica
        return is_local, tf.where(is_local, indices % self.rows_per_replica, dummy)

    def parts(self) -> Iterator[np.ndarray]:
        """Yields all rows in order, in NumPy arrays `[n, *shape]`.

        Every worker must iterate to the end, because a collective reads each array.
        """

        @tf.function(autograph=False)
        def lookup(indices):
            values = self.strategy.run(self.lookup, args=(indices,))
            return self.strategy.experimental_local_results(values)[0]

        for start in range(0, self.num_rows, _ROWS_PER_CHUNK):
            indices = np.arange(start, start + _ROWS_PER_CHUNK)
            yield lookup(tf.constant(np.minimum(indices, self.num_rows - 1)))[
                : self.num_rows - start
            ].numpy()

    def restore(self, values: np.ndarray) -> None:
        """Sets all rows; every worker must call it.

        Args:
          values: all rows, `[num_rows, *shape]`. The array may be memory-mapped.
        """

        @tf.function(autograph=False)
        def update(indices, values):
            self.strategy.run(self.update, args=(indices, values))

        for start in range(0, self.num_rows, _ROWS_PER_CHUNK):
            chunk = values[start : start + _ROWS_PER_CHUNK]
            update(tf.range(start, start + len(chunk), dtype=tf.int64), tf.constant(chunk))


@tf.function(jit_compile=True, autograph=False)
def _scatter_rows(handle, indices, values):
    """Sets rows of a variable in place, given the variable's handle.

    XLA compiles it, because TensorFlow's own operation has no deterministic kernel for GPUs. That
    operation would copy the bank to the host and back at every step.
    """
    tf.raw_ops.ResourceScatterUpdate(resource=handle, indices=indices, updates=values)
