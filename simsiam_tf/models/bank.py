"""A bank of targets, one for each of many images, that is shared out among the replicas."""

import math

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.distribution import collectives, devices

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
        num_bytes = (self.rows_each + 1) * math.prod(self.shape) * tf.as_dtype(dtype).size
        logging.info(  # before the memory is asked for
            "Targets of %d images: %.3g GB on each of %d replica(s), in the memory of the %s",
            num_rows,
            num_bytes / 1e9,
            num_replicas,
            devices.device_type(self.strategy),
        )
        # The variable takes over the buffer of the zeros: there is no second copy of a bank. The
        # last row is for the rows of other replicas.
        self.shard = tf.Variable(
            tf.zeros([self.rows_each + 1, *self.shape], dtype),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def lookup(self, rows):
        """This replica's rows int64 `[b]` → their values `[b, ...]`, in replica context."""
        mine, places = self._places(collectives.gather_over_replicas(rows))
        found = tf.raw_ops.ResourceGather(
            resource=self.shard.handle, indices=places, dtype=self.shard.dtype
        )
        mine = tf.reshape(mine, [*mine.shape, *[1] * len(self.shape)])
        found = collectives.sum_over_replicas(tf.where(mine, found, 0))
        return found[collectives.replica_id()]

    def update(self, rows, values):
        """Sets rows int64 `[b]` to values `[b, ...]`, in replica context; none of number −1."""
        _, places = self._places(collectives.gather_over_replicas(rows))
        _scatter_rows(self.shard.handle, places, collectives.gather_over_replicas(values))

    def _places(self, rows):
        """Which rows are on this replica, and where: others have the place that nobody reads."""
        mine = tf.equal(rows // self.rows_each, tf.cast(collectives.replica_id(), rows.dtype))
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


@tf.function(jit_compile=True)
def _scatter_rows(bank, places, values):
    """Sets rows of a variable, by its handle, in place.

    Compiled by XLA: TensorFlow's own operation has no deterministic kernel for GPUs, and would copy
    the bank to the host and back at every step.
    """
    tf.raw_ops.ResourceScatterUpdate(resource=bank, indices=places, updates=values)
