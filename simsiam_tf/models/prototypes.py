"""SwAV's prototypes: unit vectors with which images are compared."""

import keras
import tensorflow as tf

from simsiam_tf.models.initializers import uniform_fan_in


class Prototypes(keras.layers.Layer):
    """K prototypes of length 1, the columns of `vectors` `[D, K]`; they start at random."""

    def __init__(self, count: int, dim: int, seed: int, **kwargs: object) -> None:
        """Draws the prototypes.

        Args:
          count: number of prototypes K.
          dim: dimension of the projections D.
          seed: seed of the initial vectors.
          **kwargs: arguments of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.vectors = self.add_weight(
            name="vectors",
            shape=(dim, count),
            initializer=uniform_fan_in(seed, "prototypes", dim),
            autocast=False,
        )
        self.vectors.assign(tf.math.l2_normalize(self.vectors, axis=0))
        self.built = True

    def normalize(self, skipped: tf.Tensor) -> None:
        """Scales every prototype back to length 1; call it in replica context.

        Args:
          skipped: bool scalar, whether the step is skipped; then no prototype changes.
        """
        vectors = tf.convert_to_tensor(self.vectors)
        unit = tf.math.l2_normalize(vectors, axis=0)
        self.vectors.assign(tf.where(skipped, vectors, unit))
