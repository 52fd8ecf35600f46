"""A queue of keys with a fixed size: MoCo's negatives."""

import keras
import tensorflow as tf


class KeyQueue(keras.layers.Layer):
    """The newest keys, `keys` `[size, dim]`, each of length 1; the initial keys are random."""

    def __init__(self, size: int, dim: int, seed: int, **kwargs: object) -> None:
        """Fills the queue with random keys.

        Args:
          size: number of keys in the queue.
          dim: dimension of a key.
          seed: seed of the initial keys.
          **kwargs: arguments of `keras.layers.Layer`.
        """
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

    def enter(self, keys: tf.Tensor, skipped: tf.Tensor) -> None:
        """Puts new keys at the front of the queue; the oldest keys leave it.

        Args:
          keys: keys of the global batch, `[n, dim]`.
          skipped: bool scalar, whether the step is skipped; then the queue does not change.
        """
        old = tf.convert_to_tensor(self.keys)
        moved = tf.concat([keys, old], axis=0)[: old.shape[0]]
        self.keys.assign(tf.where(skipped, old, moved))
