"""The same network and loop with labels: the upper row of every comparison."""

import keras
import tensorflow as tf

from simsiam_tf.methods.base import SelfSupervisedModel, feature_moments
from simsiam_tf.models.initializers import uniform_fan_in
from simsiam_tf.schema import UserError


class Supervised(SelfSupervisedModel):
    """L = cross-entropy of a linear classifier on the features of one view."""

    num_views = 1

    def __init__(self, config, encoder, seed, plan):
        super().__init__(encoder, name="supervised")
        if not plan.num_classes:
            raise UserError(
                "--method=supervised needs a data set with labels. Received: one without"
            )
        dim = encoder.feature_dim
        self.classifier = keras.layers.Dense(
            plan.num_classes,
            kernel_initializer=uniform_fan_in(seed, "classifier.kernel", dim),
            bias_initializer=uniform_fan_in(seed, "classifier.bias", dim),
        )
        self.classifier.build((None, dim))

    def compute_views_loss(self, batch):
        features = self.encoder(batch["views"][0], training=True)
        logits = tf.cast(self.classifier(features), features.dtype)
        labels = batch["label"]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        hits = tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels)
        return loss, {
            "feature_moments": feature_moments([features]),
            "accuracy": tf.reduce_mean(tf.cast(hits, loss.dtype)),
        }
