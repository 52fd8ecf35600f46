"""The momentum encoder: a moving average of the weights that are learned (BYOL, MoCo)."""

import math

import keras
import tensorflow as tf

from simsiam_tf import distribution
from simsiam_tf.models import heads


class MomentumEncoder(keras.layers.Layer):
    """f': an encoder and a projector that begin as f's and follow them.

    Their normalization takes the statistics of what passes through them.
    """

    def __init__(self, encoder, config, seed, num_steps, **kwargs):
        """Args:
        encoder: f's `ResNet`.
        config: a `MethodConfig`.
        seed: of f's projector; the same seed gives the same weights.
        num_steps: of the whole run.
        """
        super().__init__(**kwargs)
        self.encoder = encoder.twin()
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.momentum = config.target_momentum
        self.schedule = config.target_momentum_schedule
        self.num_steps = num_steps
        self.built = True

    def follow(self, variables, step, void):
        """w' ← m·w' + (1−m)·w for each weight, in replica context; nothing if `void`.

        Args:
          variables: of f's encoder and projector, those that are trained.
          step: int tensor, 0 for the first.
          void: bool tensor.
        """
        share = 1 - momentum_of_step(self.momentum, self.schedule, step, self.num_steps)
        share = tf.where(void, tf.zeros_like(share), share)
        averages = [*self.encoder.trainable_variables, *self.projector.trainable_variables]
        values = []
        for average, variable in zip(averages, variables, strict=True):
            old = tf.convert_to_tensor(average)
            values.append(old + tf.cast(share, old.dtype) * (variable - old))
        distribution.assign_on_all_replicas(averages, values)


def momentum_of_step(start, schedule, step, num_steps):
    """The share m of the old weights that a step keeps, a float64 tensor.

    Args:
      start: of the first step.
      schedule: "constant", or "cosine": up to 1 by half a cosine (BYOL, section 3.2).
      step: int tensor, 0 for the first.
      num_steps: of the whole run.
    """
    if schedule == "constant":
        return tf.constant(start, tf.float64)
    progress = tf.cast(step, tf.float64) / num_steps
    return 1 - (1 - start) * (tf.cos(math.pi * progress) + 1) / 2
