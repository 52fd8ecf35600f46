"""SimSiam: siamese views, a predictor and a stopped gradient (section 3, algorithm 1)."""

import tensorflow as tf

from simsiam_tf.methods.base import SelfSupervisedModel, feature_std
from simsiam_tf.models import heads
from simsiam_tf.objectives import negative_cosine_similarity


class SimSiam(SelfSupervisedModel):
    """L = ½ D(p1, stopgrad(z2)) + ½ D(p2, stopgrad(z1)), with z = f(x) and p = h(z)."""

    def __init__(self, config, encoder, seed):
        """Args:
        config: a `MethodConfig`.
        encoder: normalised images → features, with `feature_dim`.
        seed: of the heads' initial weights.
        """
        super().__init__(encoder, name="simsiam")
        self.stop_gradient = tf.stop_gradient if config.stop_gradient else tf.identity
        self.projector = heads.build_projector(config, encoder.feature_dim, seed)
        self.predictor = heads.build_predictor(config, seed)

    @property
    def predictor_variables(self):
        return self.predictor.trainable_variables

    def compute_views_loss(self, views):
        # Both views in one pass: normalization keeps their statistics apart.
        num_views = len(views)
        features = self.encoder(tf.concat(views, axis=0), training=True, num_views=num_views)
        z = self.projector(features, training=True, num_views=num_views)
        p = self.predictor(z, training=True, num_views=num_views)
        z1, z2 = tf.split(z, num_views)
        p1, p2 = tf.split(p, num_views)
        loss = negative_cosine_similarity(p1, self.stop_gradient(z2)) / 2
        loss += negative_cosine_similarity(p2, self.stop_gradient(z1)) / 2
        return loss, {"feature_std": (feature_std(z1) + feature_std(z2)) / 2}
