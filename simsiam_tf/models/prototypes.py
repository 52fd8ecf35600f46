"""SwAV's prototypes: unit vectors that images are compared with."""

import keras
import tensorflow as tf

from simsiam_tf.models.initializers import uniform_fan_in


class Prototypes(keras.layers.Layer):
    """`vectors` `[D, K]`, K prototypes of length 1, random at first."""

    def __init__(self, count, dim, seed, **kwargs):
        super().__init__(**kwargs)
        self.vectors = self.add_weight(
            name="vectors",
            shape=(dim, count),
            initializer=uniform_fan_in(seed, "prototypes", dim),
            autocast=False,
        )
        self.vectors.assign(tf.math.l2_normalize(self.vectors, axis=0))
        self.built = True

    def normalize(self, skipped):
        """Gives every prototype length 1 again, in replica context; leaves them if `skipped`."""
        vectors = tf.convert_to_tensor(self.vectors)
        unit = tf.math.l2_normalize(vectors, axis=0)
        self.vectors.assign(tf.where(skipped, vectors, unit))
