"""SwAV's prototypes: unit vectors that images are compared with."""

import keras
import tensorflow as tf

from simsiam_tf import distribution
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

    def normalize(self, void):
        """Gives every prototype length 1 again, in replica context; leaves them if `void`."""
        vectors = tf.convert_to_tensor(self.vectors)
        unit = tf.math.l2_normalize(vectors, axis=0)
        distribution.assign_on_all_replicas([self.vectors], [tf.where(void, vectors, unit)])
