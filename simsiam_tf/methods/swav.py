"""SwAV with two crops: each view predicts the codes of the other (Caron et al. 2020)."""

import tensorflow as tf

from simsiam_tf import objectives
from simsiam_tf.config import MethodConfig
from simsiam_tf.distribution import collectives
from simsiam_tf.methods.base import Batch, Plan, SelfSupervisedModel, feature_moments
from simsiam_tf.models import heads
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.prototypes import Prototypes


class Swav(SelfSupervisedModel):
    """L = ½ CE(codes2, softmax(p1·C/τ)) + ½ CE(codes1, softmax(p2·C/τ)), codes = Sinkhorn(z·C).

    The codes are computed over the global batch. No gradient flows through them unless
    `--stop_gradient=false`. SwAV itself has no predictor (`--predictor=none`: p = z); Table 6 of
    SimSiam's paper adds one.
    """

    def __init__(self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan) -> None:
        super().__init__(config, encoder, seed, plan)
        self.config = config
        self.num_frozen_steps = config.freeze_prototypes_epochs * plan.steps_per_epoch
        self.stop_gradient = tf.stop_gradient if config.stop_gradient else tf.identity
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.predictor = heads.build_predictor(config, seed)
        self.prototypes = Prototypes(config.num_prototypes, config.projection_dim, seed)

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        config = self.config
        views_z = self.project(batch["views"], self.encoder, self.projector)
        z = tf.concat(views_z, axis=0)
        p = self.predictor(z, training=True, num_views=2)
        codes1, codes2 = (self._codes(scores) for scores in tf.split(self._scores(z), 2))
        predicted1, predicted2 = tf.split(self._scores(p), 2)
        loss = objectives.swapped_prediction(codes2, predicted1, config.temperature) / 2
        loss += objectives.swapped_prediction(codes1, predicted2, config.temperature) / 2
        return loss, {"feature_moments": feature_moments(views_z)}

    def _scores(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the cosine of each z with each prototype: `[V·b, D]` → `[V·b, K]`."""
        vectors = tf.convert_to_tensor(self.prototypes.vectors)
        is_frozen = self.optimizer.iterations < self.num_frozen_steps
        vectors = tf.where(is_frozen, tf.stop_gradient(vectors), vectors)
        return tf.matmul(tf.math.l2_normalize(z, axis=1), vectors)

    def _codes(self, scores: tf.Tensor) -> tf.Tensor:
        """Returns the codes of this replica's images `[b, K]`, computed over the global batch."""
        config = self.config
        all_scores, indices = collectives.gather_batch(scores)
        codes = objectives.sinkhorn(all_scores, config.sinkhorn_epsilon, config.sinkhorn_iterations)
        return self.stop_gradient(tf.gather(codes, indices))

    def after_update(self, batch: Batch, outputs: dict[str, tf.Tensor], skipped: tf.Tensor) -> None:
        self.prototypes.normalize(skipped)
