"""MoCo v2: InfoNCE with a queue of negatives (He et al. 2020, Chen et al. 2020)."""

import keras
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.distribution import collectives
from simsiam_tf.methods.base import Batch, Plan, SelfSupervisedModel, feature_moments
from simsiam_tf.models import heads
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.momentum import MomentumEncoder
from simsiam_tf.models.queue import KeyQueue
from simsiam_tf.objectives import info_nce


class MocoV2(SelfSupervisedModel):
    """L = ½ InfoNCE(q1, k2) + ½ InfoNCE(q2, k1), with q = f(x), k = f'(x) of the momentum encoder.

    Each view is both a query and a key, and the keys of both views enter the queue, as in section
    6.1 of SimSiam's paper. Batch normalization is synchronised, instead of MoCo's shuffling between
    GPUs.
    """

    def __init__(self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan) -> None:
        super().__init__(config, encoder, seed, plan)
        self.temperature = config.temperature
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.target = MomentumEncoder(encoder, config, seed, plan.num_steps, name="target")
        self.queue = KeyQueue(config.queue_size, config.projection_dim, seed, name="queue")

    @property
    def learned_variables(self) -> list[keras.Variable]:
        return [*self.encoder.trainable_variables, *self.projector.trainable_variables]

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        q1, q2 = self.project(batch["views"], self.encoder, self.projector)
        keys = self.project(batch["views"], self.target.encoder, self.target.projector)
        k1, k2 = (tf.math.l2_normalize(tf.stop_gradient(k), axis=1) for k in keys)
        negatives = tf.convert_to_tensor(self.queue.keys)
        loss = info_nce(q1, k2, negatives, self.temperature) / 2
        loss += info_nce(q2, k1, negatives, self.temperature) / 2
        return loss, {
            "feature_moments": feature_moments([q1, q2]),
            "keys": tf.stack([k1, k2], axis=1),
        }

    def restart_targets(self) -> None:
        self.target.restart(self.encoder, self.projector)

    def after_update(self, batch: Batch, outputs: dict[str, tf.Tensor], skipped: tf.Tensor) -> None:
        keys, _ = collectives.gather_batch(outputs["keys"])
        self.queue.enter(tf.concat(tf.unstack(keys, axis=1), axis=0), skipped)
        self.target.follow(self.learned_variables, self.optimizer.iterations - 1, skipped)
