"""SimSiam: two views, a predictor and a stopped gradient (section 3, algorithm 1)."""

import keras
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.methods.base import Batch, Plan, SelfSupervisedModel, feature_moments
from simsiam_tf.models import heads
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.objectives import SIMILARITIES

# The pairs (predicting view, predicted view) of each symmetry (section 4.6).
_PAIRS = {
    "symmetric": ((0, 1), (1, 0)),
    "asymmetric": ((0, 1),),
    "asymmetric_2x": ((0, 1), (2, 3)),
}


class SimSiam(SelfSupervisedModel):
    """L = ½ D(p1, stopgrad(z2)) + ½ D(p2, stopgrad(z1)), with z = f(x) and p = h(z)."""

    def __init__(
        self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan | None = None
    ) -> None:
        super().__init__(config, encoder, seed, plan)
        self.similarity = SIMILARITIES[config.similarity]
        self.pairs = _PAIRS[config.loss_symmetry]
        self.num_views = 1 + max(map(max, self.pairs))
        self.stop_gradient = tf.stop_gradient if config.stop_gradient else tf.identity
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.predictor = heads.build_predictor(config, seed)

    @property
    def predictor_variables(self) -> list[keras.Variable]:
        return self.predictor.trainable_variables

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        z = self.project(batch["views"], self.encoder, self.projector)
        return self.loss_against(z, z), {"feature_moments": feature_moments(z)}

    def loss_against(self, z: list[tf.Tensor], targets: list[tf.Tensor]) -> tf.Tensor:
        """Returns the loss of the projections z against the targets, a scalar.

        Args:
          z: the projections of every view, `[B, D]` each.
          targets: the target of every view, `[B, D]` each; `stop_gradient` applies to them.
        """
        p = tf.split(self.predictor(tf.concat(z, 0), training=True, num_views=len(z)), len(z))
        losses = [
            self.similarity(p[predicting], self.stop_gradient(targets[predicted])) / len(self.pairs)
            for predicting, predicted in self.pairs
        ]
        return tf.add_n(losses)
