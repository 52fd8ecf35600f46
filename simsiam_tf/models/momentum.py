"""The momentum encoder: a moving average of the weights that are learned (BYOL, MoCo)."""

import math

import keras
import tensorflow as tf

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

    def follow(self, variables, step, skipped):
        """w' ← m·w' + (1−m)·w for each weight, in replica context; nothing if `skipped`.

        Args:
          variables: of f's encoder and projector, those that are trained.
          step: int tensor, 0 for the first.
          skipped: bool tensor.
        """
        share = new_share(self.momentum, self.schedule, step, self.num_steps)
        share = tf.where(skipped, tf.zeros_like(share), share)
        averages = [*self.encoder.trainable_variables, *self.projector.trainable_variables]
        for average, variable in zip(averages, variables, strict=True):
            change = tf.cast(share, variable.dtype) * (variable - average)
            average.assign_add(change)


def new_share(start, schedule, step, num_steps):
    """The share 1 − m of the new weights that a step takes, a float tensor.

    Args:
      start: m of the first step.
      schedule: "constant", or "cosine": m goes up to 1 by half a cosine (BYOL, section 3.2).
      step: int tensor, 0 for the first.
      num_steps: of the whole run.
    """
    # In the weights' precision: TPUs have no float64. (1 + cos πx) / 2 = cos² πx/2 cancels nothing.
    share = tf.constant(1 - start, keras.config.floatx())
    if schedule == "constant":
        return share
    progress = tf.cast(step, share.dtype) / num_steps
    return share * tf.square(tf.cos(math.pi / 2 * progress))
