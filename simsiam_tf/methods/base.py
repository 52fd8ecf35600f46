"""The one training step. A method supplies its loss and nothing else."""

import keras
import tensorflow as tf

from simsiam_tf import distribution, objectives


class SelfSupervisedModel(keras.Model):
    """An encoder and a method's heads, trained on several views of each image.

    A method writes `compute_views_loss`; one with a momentum encoder or a queue also writes
    `learned_variables` and `after_update`.
    """

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder

    def call(self, images, training=False):
        """Normalised images `[B, H, W, 3]` → features `[B, F]`."""
        return self.encoder(images, training=training)

    def compute_views_loss(self, views):
        """The loss of one replica's share of a batch.

        Args:
          views: a list of `[B, H, W, 3]`, normalised, the views of the same B images.

        Returns:
          The loss, a scalar, and more scalars to watch: {name: scalar}.
        """
        raise NotImplementedError

    @property
    def learned_variables(self):
        """The variables that the gradient reaches."""
        return self.trainable_variables

    @property
    def predictor_variables(self):
        """Those of them whose rate `--fix_predictor_learning_rate` holds; none by default."""
        return []

    def after_update(self):
        """What follows the optimizer's step: a momentum update, a queue. Nothing by default."""
        return

    def train_step(self, data):
        """One step on one replica's share, in replica context.

        The optimizer sums gradients over replicas and the loss is a mean, so it is divided by
        their number.

        Args:
          data: {"views": a tuple of `[B, H, W, 3]`}.

        Returns:
          {"loss": scalar, ...}, each the mean over all replicas.
        """
        with tf.GradientTape() as tape:
            loss, scalars = self.compute_views_loss(list(data["views"]))
            scaled_loss = loss / distribution.num_replicas()
        variables = self.learned_variables
        self.optimizer.apply(tape.gradient(scaled_loss, variables), variables)
        self.after_update()
        return {
            name: distribution.mean_over_replicas(value)
            for name, value in ({"loss": loss} | scalars).items()
        }


def feature_std(z):
    """`objectives.feature_std` of the global batch, from this replica's z `[B, D]`."""
    unit = tf.math.l2_normalize(tf.stop_gradient(z), axis=1)
    moments = tf.stack([tf.reduce_mean(unit, axis=0), tf.reduce_mean(tf.square(unit), axis=0)])
    return objectives.feature_std(*tf.unstack(distribution.mean_over_replicas(moments)))
