"""Fine-tuning: encoder and classifier are trained on a share of the labels (SimCLR, appendix B.5).

With a small share this is the field's semi-supervised protocol.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import Purpose
from simsiam_tf.data import pipeline, views
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.distribution import collectives
from simsiam_tf.evaluation import linear
from simsiam_tf.evaluation.config import FinetuneConfig
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.optimization import optimizers, schedules
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

_MOMENTUM = 0.9


def choose_labelled(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns the images to train on: a random share of each class, at least one image of each.

    Args:
      labels: class indices of the training split, `[N]` int.
      fraction: share of each class, in (0, 1].
      seed: seed of the draw.

    Returns:
      Indices of the chosen images, int64, ascending.
    """
    draws = np.random.default_rng([seed, Purpose.SUBSET])
    chosen = []
    for label in np.unique(labels):
        of_class = draws.permutation(np.flatnonzero(labels == label))
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return np.sort(np.concatenate(chosen))


def train(
    strategy: tf.distribute.Strategy,
    encoder: Backbone,
    source: Source,
    view: Callable[[tf.Tensor, tf.Tensor], dict[str, Any]],
    config: FinetuneConfig,
    seed: int,
    quarantine: Quarantine,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Trains all weights of an encoder and a fully connected classifier on it, by SGD.

    Batch normalization uses the statistics of the batch, over all replicas, and updates its running
    statistics.

    Args:
      strategy: the strategy in whose scope the encoder was built.
      encoder: the encoder; its weights are changed.
      source: labelled images; all of them are trained on.
      view: (image, seed) → {"views": a tuple of one view}, of `views.build_linear_view`.
      config: settings; if the batch is larger than the source, the batch is the whole source.
      seed: seed of the classifier, the order and the crops.
      quarantine: says how to treat an image of the source that cannot be read.

    Returns:
      A function: images `[b, size, size, C]` float32 as the encoder takes them → logits
      `[b, classes]`, in inference mode.

    Raises:
      UserError: replicas cannot share a batch evenly, an image cannot be read, or the loss is not
        finite.
    """
    pixels = source.pixels
    batch_size = _batch_size(config, source, strategy.num_replicas_in_sync)
    epochs = config.num_epochs
    steps_per_epoch = source.num_examples // batch_size
    num_steps = steps_per_epoch * epochs
    with strategy.scope():
        classifier = linear.build_classifier(encoder.feature_dim, len(source.class_names), seed)
        variables = encoder.trainable_variables, classifier.trainable_variables
        encoder_base = config.finetune_learning_rate
        sgds = [
            _build_sgd(base, batch_size, epochs, steps_per_epoch, config.finetune_weight_decay)
            for base in (encoder_base, config.finetune_head_learning_rate or encoder_base)
        ]
        for sgd, trained in zip(sgds, variables, strict=True):
            sgd.build(trained)

    def replica_step(batch: dict[str, Any]) -> tf.Tensor:
        (images,) = views.prepare(batch, pixels)
        with tf.GradientTape() as tape:
            logits = classifier(encoder(images, training=True))
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            )
            # The optimizers sum gradients over replicas.
            share = loss / strategy.num_replicas_in_sync
        for sgd, trained, gradients in zip(
            sgds, variables, tape.gradient(share, variables), strict=True
        ):
            sgd.apply(gradients, trained)
        return collectives.mean_over_replicas(loss)

    @tf.function(autograph=False)
    def train_step(batch: dict[str, Any]) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(replica_step, args=(batch,)))[0]

    @tf.function(reduce_retracing=True, autograph=False)
    def predict(images: tf.Tensor) -> tf.Tensor:
        numbers = pixels.from_values(tf.cast(images, keras.config.floatx()))
        return classifier(encoder(pixels.normalize(numbers), training=False))

    batches = pipeline.first_steps(
        view,
        batch_size=batch_size,
        seed=seed,
        num_steps=num_steps,
        quarantine=quarantine,
        strategy=strategy,
    )
    with Progress(num_steps, "fine-tuning", "step") as progress:
        for step, batch in enumerate(batches, start=1):
            loss = train_step(batch)
            progress.update()
            if step % steps_per_epoch == 0:
                _report(progress, step // steps_per_epoch, float(loss), config)
    return predict


def _batch_size(config: FinetuneConfig, source: Source, num_replicas: int) -> int:
    wanted, count = config.finetune_batch_size, source.num_examples
    if wanted % num_replicas:
        raise UserError(
            f"--finetune_batch_size must be divisible by the {num_replicas} replicas that share it."
            f" Received: {wanted}"
        )
    if count < num_replicas:
        raise UserError(
            f"--label_fraction must leave an image or more for each of {num_replicas} replicas. "
            f"Received: {config.label_fraction}, which leaves {count}"
        )
    batch_size = min(wanted, count - count % num_replicas)
    if batch_size < wanted:
        logging.info("The batch is %d of the %d labelled images", batch_size, count)
    return batch_size


def _build_sgd(
    base_learning_rate: float,
    batch_size: int,
    epochs: int,
    steps_per_epoch: int,
    weight_decay: float,
) -> optimizers.SGD:
    rates = schedules.cosine(schedules.scaled(base_learning_rate, batch_size), epochs)
    return optimizers.SGD(optimizers.EpochRates(rates, steps_per_epoch), _MOMENTUM, weight_decay)


def _report(progress: Progress, epoch: int, loss: float, config: FinetuneConfig) -> None:
    """Shows the last loss of an epoch; raises `UserError` if it is not finite."""
    if not math.isfinite(loss):
        raise UserError(
            f"The loss of fine-tuning is not finite in epoch {epoch}; lower "
            f"--finetune_learning_rate. Received: {config.finetune_learning_rate}"
        )
    progress.note(epoch=epoch, loss=loss)
