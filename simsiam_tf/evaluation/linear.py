"""The linear protocol: a classifier on frozen features (section 3, "Experimental setup")."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from simsiam_tf.config import Purpose
from simsiam_tf.data import pipeline
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation.config import LinearConfig
from simsiam_tf.optimization import optimizers, schedules
from simsiam_tf.terminal import Progress

_FEW_STEPS = 1000


def build_classifier(feature_dim: int, num_classes: int, seed: int) -> keras.layers.Dense:
    """Returns a fully connected layer: features `[b, feature_dim]` → logits `[b, num_classes]`.

    The initial weights are normal with mean 0 and standard deviation 0.01; the bias is zero.

    Args:
      feature_dim: number of features, F.
      num_classes: number of classes.
      seed: seed of the initial weights.
    """
    classifier = keras.layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.RandomNormal(
            stddev=0.01, seed=seed * len(Purpose) + Purpose.WEIGHTS
        ),
        bias_initializer="zeros",
        dtype=keras.config.floatx(),
    )
    classifier.build((None, feature_dim))
    return classifier


def train_classifier(
    encode: Callable[[tf.Tensor], tf.Tensor],
    feature_dim: int,
    source: Source,
    views: Callable[[tf.Tensor, tf.Tensor], dict[str, Any]],
    config: LinearConfig,
    seed: int,
    quarantine: Quarantine,
) -> keras.layers.Dense:
    """Trains a fully connected layer on the frozen encoder, by SGD with LARS.

    No gradient reaches the encoder.

    Args:
      encode: images `[b, size, size, 3]` uint8 in [0, 255] → features `[b, feature_dim]`, in
        inference mode; it receives whole batches.
      feature_dim: number of features.
      source: labelled images to train on.
      views: (image, seed) → {"views": a tuple of one view for `encode`}.
      config: settings; if the batch is larger than the source, the batch is the whole source.
      seed: seed of the weights, the order and the crops.
      quarantine: says how to treat an image of the source that cannot be read.

    Returns:
      The classifier: features `[b, feature_dim]` → logits `[b, classes]`.

    Raises:
      UserError: an image cannot be read, or with `--on_bad_image=skip`, too many cannot be read.
    """
    batch_size = min(config.batch_size, source.num_examples)
    if batch_size < config.batch_size:
        logging.info("The batch is the whole training split, %d images", batch_size)
    steps_per_epoch = source.num_examples // batch_size
    num_steps = steps_per_epoch * config.epochs
    if num_steps < _FEW_STEPS:
        logging.warning(
            "Only %d steps: LARS hardly moves the classifier in so few. The protocol's defaults "
            "are for ImageNet; a smaller --batch_size gives more steps",
            num_steps,
        )
    classifier = build_classifier(feature_dim, len(source.class_names), seed)
    learning_rate = schedules.scaled(config.base_learning_rate, batch_size)
    optimizer = optimizers.LARS(
        optimizers.EpochRates(schedules.cosine(learning_rate, config.epochs), steps_per_epoch),
        config.momentum,
        config.weight_decay,
        config.lars_trust_coefficient,
    )
    optimizer.build(classifier.trainable_variables)

    @tf.function(reduce_retracing=True, autograph=False)
    def train_step(features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, classifier(features))
            )
        variables = classifier.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    batches = pipeline.first_steps(
        views, batch_size=batch_size, seed=seed, num_steps=num_steps, quarantine=quarantine
    )
    with Progress(num_steps, "linear classifier", "step") as progress:
        for step, batch in enumerate(batches):
            (images,) = batch["views"]
            loss = train_step(encode(images), batch["label"])
            progress.update()
            if (step + 1) % steps_per_epoch == 0:
                epoch = (step + 1) // steps_per_epoch
                progress.note(epoch=epoch, loss=float(loss))
    return classifier
