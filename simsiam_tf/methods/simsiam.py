"""SimSiam: siamese views, a predictor and a stopped gradient (section 3, algorithm 1)."""

import tensorflow as tf

from simsiam_tf.methods.base import SelfSupervisedModel, feature_moments
from simsiam_tf.models import heads
from simsiam_tf.objectives import SIMILARITIES

# Which view predicts which (section 4.6).
_PAIRS = {
    "symmetric": ((0, 1), (1, 0)),
    "asymmetric": ((0, 1),),
    "asymmetric_2x": ((0, 1), (2, 3)),
}


class SimSiam(SelfSupervisedModel):
    """L = ½ D(p1, stopgrad(z2)) + ½ D(p2, stopgrad(z1)), with z = f(x) and p = h(z)."""

    def __init__(self, config, encoder, seed, plan=None):
        super().__init__(encoder, name=config.method)
        self.similarity = SIMILARITIES[config.similarity]
        self.pairs = _PAIRS[config.loss_symmetry]
        self.num_views = 1 + max(map(max, self.pairs))
        self.stop_gradient = tf.stop_gradient if config.stop_gradient else tf.identity
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.predictor = heads.build_predictor(config, seed)

    @property
    def predictor_variables(self):
        return self.predictor.trainable_variables

    def compute_views_loss(self, batch):
        z = self.project(batch["views"], self.encoder, self.projector)
        return self.loss_against(z, z), {"feature_moments": feature_moments(z)}

    def loss_against(self, z, targets):
        """The loss of projections z with targets of every view, lists of `[B, D]`."""
        p = tf.split(self.predictor(tf.concat(z, 0), training=True, num_views=len(z)), len(z))
        losses = [
            self.similarity(p[predicting], self.stop_gradient(targets[predicted])) / len(self.pairs)
            for predicting, predicted in self.pairs
        ]
        return tf.add_n(losses)
