"""SimCLR: contrasts the images of a batch (Chen et al. 2020; section 6 of SimSiam's paper)."""

import tensorflow as tf

from simsiam_tf import objectives
from simsiam_tf.config import MethodConfig
from simsiam_tf.distribution import collectives
from simsiam_tf.methods.base import Batch, Plan, SelfSupervisedModel, feature_moments
from simsiam_tf.models import heads
from simsiam_tf.models.backbone import Backbone


class SimClr(SelfSupervisedModel):
    """L = NT-Xent of p1, p2 among all z of the global batch, with z = f(x) and p = h(z).

    SimCLR itself has neither predictor nor stop-gradient: h is the identity (`--predictor=none
    --stop_gradient=false`). Table 6 of SimSiam's paper adds both.
    """

    def __init__(
        self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan | None = None
    ) -> None:
        super().__init__(config, encoder, seed, plan)
        self.temperature = config.temperature
        self.stop_gradient = tf.stop_gradient if config.stop_gradient else tf.identity
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.predictor = heads.build_predictor(config, seed)

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        views_z = self.project(batch["views"], self.encoder, self.projector)
        p = self.predictor(tf.concat(views_z, axis=0), training=True, num_views=self.num_views)
        z, indices = collectives.gather_batch(tf.stack(views_z, axis=1))
        loss = objectives.nt_xent(
            tf.stack(tf.split(p, self.num_views)),
            self.stop_gradient(tf.transpose(z, [1, 0, 2])),
            indices,
            self.temperature,
        )
        return loss, {"feature_moments": feature_moments(views_z)}
