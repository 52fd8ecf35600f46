"""A bank of targets, one for each of many images, that is shared out among the replicas."""

import math

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import distribution

_ROWS_AT_ONCE = 1024


class Bank:
    """`[num_rows, ...]` float, zeros at first; each replica holds its part of the rows.

    A Keras model does not see it: checkpoints ask the model for its banks, and read and write whole
    rows, so that a run may go on with another number of replicas.
    """

    def __init__(self, num_rows, shape, dtype):
        """Args:
        num_rows: an int.
        shape: of a row.
        dtype: of the numbers.
        """
        self.num_rows = num_rows
        self.shape = tuple(shape)
        self.dtype = dtype
        self.strategy = tf.distribute.get_strategy()
        num_replicas = self.strategy.num_replicas_in_sync
        self.rows_each = -(-num_rows // num_replicas)
        self.shard = tf.Variable(
            tf.zeros(
                [self.rows_each + 1, *self.shape], dtype
            ),  # the last: for other replicas' rows
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        size = (self.rows_each + 1) * math.prod(self.shape) * tf.as_dtype(dtype).size
        logging.info(
            "Targets of %d images, %.1f MB on each of %d replica(s)",
            num_rows,
            size / 1e6,
            num_replicas,
        )

    def lookup(self, rows):
        """This replica's rows int64 `[b]` → their values `[b, ...]`, in replica context."""
        mine, places = self._places(distribution.gather_over_replicas(rows))
        found = tf.raw_ops.ResourceGather(
            resource=self.shard.handle, indices=places, dtype=self.shard.dtype
        )
        mine = tf.reshape(mine, [*mine.shape, *[1] * len(self.shape)])
        found = distribution.sum_over_replicas(tf.where(mine, found, 0))
        return found[distribution.replica_id()]

    def update(self, rows, values):
        """Sets rows int64 `[b]` to values `[b, ...]`, in replica context; none of number −1."""
        _, places = self._places(distribution.gather_over_replicas(rows))
        tf.raw_ops.ResourceScatterUpdate(
            resource=self.shard.handle,
            indices=places,
            updates=distribution.gather_over_replicas(values),
        )

    def _places(self, rows):
        """Which rows are on this replica, and where: others have the place that nobody reads."""
        mine = tf.equal(rows // self.rows_each, tf.cast(distribution.replica_id(), rows.dtype))
        return mine, tf.where(mine, rows % self.rows_each, self.rows_each)

    def parts(self):
        """All rows, part by part: NumPy arrays. Each worker has to ask for all."""

        @tf.function
        def lookup(rows):
            found = self.strategy.run(self.lookup, args=(rows,))
            return self.strategy.experimental_local_results(found)[0]

        for start in range(0, self.num_rows, _ROWS_AT_ONCE):
            rows = np.arange(start, start + _ROWS_AT_ONCE)
            yield lookup(tf.constant(np.minimum(rows, self.num_rows - 1)))[
                : self.num_rows - start
            ].numpy()

    def restore(self, values):
        """Sets all rows; every worker has to do it. A memory-mapped array will do."""

        @tf.function
        def update(rows, values):
            self.strategy.run(self.update, args=(rows, values))

        for start in range(0, self.num_rows, _ROWS_AT_ONCE):
            part = values[start : start + _ROWS_AT_ONCE]
            update(tf.range(start, start + len(part), dtype=tf.int64), tf.constant(part))
