"""BYOL: the predictor predicts the momentum encoder's projection (Grill et al. 2020)."""

import keras
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.methods.base import Batch, Plan, SelfSupervisedModel, feature_moments
from simsiam_tf.models import heads
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.momentum import MomentumEncoder
from simsiam_tf.objectives import negative_cosine_similarity


class Byol(SelfSupervisedModel):
    """L = ‖p1 − z2'‖² + ‖p2 − z1'‖² of unit vectors, with p = h(f(x)) and z' = f'(x).

    f' is the momentum encoder; no gradient reaches it.
    """

    def __init__(self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan) -> None:
        super().__init__(config, encoder, seed, plan)
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.predictor = heads.build_predictor(config, seed)
        self.target = MomentumEncoder(encoder, config, seed, plan.num_steps, name="target")

    @property
    def _followed_variables(self) -> list[keras.Variable]:
        return [*self.encoder.trainable_variables, *self.projector.trainable_variables]

    @property
    def learned_variables(self) -> list[keras.Variable]:
        return [*self._followed_variables, *self.predictor.trainable_variables]

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        z = self.project(batch["views"], self.encoder, self.projector)
        p1, p2 = tf.split(self.predictor(tf.concat(z, axis=0), training=True, num_views=2), 2)
        targets = self.project(batch["views"], self.target.encoder, self.target.projector)
        target1, target2 = (tf.stop_gradient(target) for target in targets)
        # ‖a − b‖² = 2 − 2 cos(a, b)
        loss = 2 + 2 * negative_cosine_similarity(p1, target2)
        loss += 2 + 2 * negative_cosine_similarity(p2, target1)
        return loss, {"feature_moments": feature_moments(z)}

    def restart_targets(self) -> None:
        self.target.restart(self.encoder, self.projector)

    def after_update(self, batch: Batch, outputs: dict[str, tf.Tensor], skipped: tf.Tensor) -> None:
        self.target.follow(self._followed_variables, self.optimizer.iterations - 1, skipped)
