"""Supervised training of the same network in the same loop: the first row of each comparison."""

import keras
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.methods.base import Batch, Plan, SelfSupervisedModel, feature_moments
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.initializers import uniform_fan_in
from simsiam_tf.schema import UserError


class Supervised(SelfSupervisedModel):
    """L = the cross-entropy of a linear classifier on the features of one view."""

    num_views = 1

    def __init__(self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan) -> None:
        super().__init__(config, encoder, seed, plan)
        if not plan.num_classes:
            raise UserError(
                "--method=supervised needs a data set with labels. Received: one without labels"
            )
        dim = encoder.feature_dim
        self.classifier = keras.layers.Dense(
            plan.num_classes,
            kernel_initializer=uniform_fan_in(seed, "classifier.kernel", dim),
            bias_initializer=uniform_fan_in(seed, "classifier.bias", dim),
        )
        self.classifier.build((None, dim))

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        features = self.encoder(batch["views"][0], training=True)
        logits = tf.cast(self.classifier(features), features.dtype)
        labels = batch["label"]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        is_correct = tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels)
        return loss, {
            "feature_moments": feature_moments([features]),
            "accuracy": tf.reduce_mean(tf.cast(is_correct, loss.dtype)),
        }
