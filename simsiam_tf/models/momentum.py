"""The momentum encoder: a moving average of the learned weights (BYOL, MoCo)."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.models import heads
from simsiam_tf.models.backbone import Backbone


class MomentumEncoder(keras.layers.Layer):
    """f': an encoder and a projector that start with the weights of f and average them over steps.

    Their batch normalization uses the statistics of their own activations.
    """

    def __init__(
        self,
        encoder: Backbone,
        config: MethodConfig,
        seed: int,
        num_steps: int,
        **kwargs: object,
    ) -> None:
        """Builds f' with the weights that f has now.

        Args:
          encoder: the encoder of f.
          config: the method's settings.
          seed: seed of f's projector; the same seed gives the same weights.
          num_steps: number of steps in the whole run.
          **kwargs: arguments of `keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self.encoder = encoder.copy()
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.momentum = config.target_momentum
        self.schedule = config.target_momentum_schedule
        self.num_steps = num_steps
        self.built = True

    def restart(self, encoder: Backbone, projector: heads.Mlp) -> None:
        """Takes the weights of f, after `--init_from` has changed them.

        Args:
          encoder: the encoder of f.
          projector: the projector of f.
        """
        self.encoder.set_weights(encoder.get_weights())
        self.projector.set_weights(projector.get_weights())

    def follow(
        self, variables: Sequence[keras.Variable], step: tf.Tensor, skipped: tf.Tensor
    ) -> None:
        """Updates each weight by w' ← m·w' + (1−m)·w; call it in replica context.

        Args:
          variables: trained variables of f's encoder and projector.
          step: index of the step, an integer scalar that starts at 0.
          skipped: bool scalar, whether the step is skipped; then no weight changes.
        """
        share = new_share(self.momentum, self.schedule, step, self.num_steps)
        share = tf.where(skipped, tf.zeros_like(share), share)
        averages = [*self.encoder.trainable_variables, *self.projector.trainable_variables]
        for average, variable in zip(averages, variables, strict=True):
            change = tf.cast(share, variable.dtype) * (variable - average)
            average.assign_add(change)


def new_share(start: float, schedule: str, step: tf.Tensor | int, num_steps: int) -> tf.Tensor:
    """Returns 1 − m, the share of the new weights in a step's average, a float scalar.

    Args:
      start: m at the first step, in [0, 1].
      schedule: "constant", or "cosine": m rises to 1 along half a cosine (BYOL, section 3.2).
      step: index of the step, starting at 0.
      num_steps: number of steps in the whole run.
    """
    # The dtype is that of the weights, because TPUs have no float64. The formula is
    # (1 + cos πx) / 2 = cos² πx/2, which has no cancellation.
    share = tf.constant(1 - start, keras.config.floatx())
    if schedule == "constant":
        return share
    progress = tf.cast(step, share.dtype) / num_steps
    return share * tf.square(tf.cos(math.pi / 2 * progress))
