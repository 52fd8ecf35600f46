"""A queue of keys of fixed size: MoCo's negatives."""

import keras
import tensorflow as tf


class KeyQueue(keras.layers.Layer):
    """The newest keys, `keys` `[size, dim]`, of length 1; random ones at first."""

    def __init__(self, size, dim, seed, **kwargs):
        super().__init__(**kwargs)
        self.keys = self.add_weight(
            name="keys",
            shape=(size, dim),
            initializer=keras.initializers.RandomNormal(stddev=1.0, seed=seed),
            trainable=False,
            autocast=False,
        )
        self.keys.assign(tf.math.l2_normalize(self.keys, axis=1))
        self.built = True

    def enter(self, keys, skipped):
        """Puts the global batch's keys `[n, dim]` in front; the oldest leave. Not if `skipped`."""
        old = tf.convert_to_tensor(self.keys)
        moved = tf.concat([keys, old], axis=0)[: old.shape[0]]
        self.keys.assign(tf.where(skipped, old, moved))
