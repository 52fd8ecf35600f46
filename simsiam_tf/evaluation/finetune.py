"""Fine-tuning: encoder and classifier are trained on a share of the labels (SimCLR, appendix B.5).

Where the share is small this is the semi-supervised protocol of the field.
"""

import math

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import Purpose
from simsiam_tf.data import pipeline, views
from simsiam_tf.distribution import collectives
from simsiam_tf.evaluation import linear
from simsiam_tf.optimization import optimizers, schedules
from simsiam_tf.progress import Progress
from simsiam_tf.schema import UserError

_MOMENTUM = 0.9


def choose_labelled(labels, fraction, seed):
    """The images that are trained on: a share of each class, one or more, drawn from the seed.

    Args:
      labels: of the training split, `[N]` int.
      fraction: above 0, at most 1.
      seed: an int.

    Returns:
      Their indices, int64, ascending.
    """
    draws = np.random.default_rng([seed, Purpose.SUBSET])
    chosen = []
    for label in np.unique(labels):
        of_class = draws.permutation(np.flatnonzero(labels == label))
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return np.sort(np.concatenate(chosen))


def train(strategy, encoder, source, view, config, seed, quarantine):
    """Trains all weights of an encoder, and a fully connected layer on it, by SGD.

    Batch normalization normalises by the batch, over all replicas, and its running statistics move.

    Args:
      strategy: the `tf.distribute.Strategy` that the encoder was built under.
      encoder: a `ResNet`; it is changed.
      source: a labelled `datasets.Source`, all of which is trained on.
      view: (image, seed) → {"views": a tuple of one view, uint8}.
      config: a `FinetuneConfig`; a batch larger than the source becomes the source.
      seed: of the classifier, the order and the crops.
      quarantine: the source's `Quarantine`, which says what an image that cannot be read does.

    Returns:
      images `[b, size, size, 3]` float32 in [0, 255] → logits `[b, classes]`, in inference mode.

    Raises:
      UserError: replicas cannot share a batch, or the loss is not finite.
    """
    batch_size = _batch_size(config, source, strategy.num_replicas_in_sync)
    epochs = config.num_epochs
    steps_per_epoch = source.num_examples // batch_size
    num_steps = steps_per_epoch * epochs
    with strategy.scope():
        classifier = linear.build_classifier(encoder.feature_dim, len(source.class_names), seed)
        variables = encoder.trainable_variables, classifier.trainable_variables
        rate = config.finetune_learning_rate
        sgds = [
            _build_sgd(base, batch_size, epochs, steps_per_epoch, config.finetune_weight_decay)
            for base in (rate, config.finetune_head_learning_rate or rate)
        ]
        for sgd, trained in zip(sgds, variables, strict=True):
            sgd.build(trained)

    def replica_step(batch):
        (images,) = views.prepare(batch)
        with tf.GradientTape() as tape:
            logits = classifier(encoder(images, training=True))
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            )
            # The optimizers sum over replicas.
            share = loss / strategy.num_replicas_in_sync
        for sgd, trained, gradients in zip(
            sgds, variables, tape.gradient(share, variables), strict=True
        ):
            sgd.apply(gradients, trained)
        return collectives.mean_over_replicas(loss)

    @tf.function
    def train_step(batch):
        return strategy.experimental_local_results(strategy.run(replica_step, args=(batch,)))[0]

    @tf.function(reduce_retracing=True)
    def predict(images):
        normalized = views.normalize(tf.cast(images, keras.config.floatx()) / 255)
        return classifier(encoder(normalized, training=False))

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
                _tell(progress, step // steps_per_epoch, float(loss), config)
    return predict


def _batch_size(config, source, num_replicas):
    wanted, count = config.finetune_batch_size, source.num_examples
    if wanted % num_replicas:
        raise UserError(
            f"--finetune_batch_size must be divisible by the {num_replicas} replicas that share it."
            f" Received: {wanted}"
        )
    if count < num_replicas:
        raise UserError(
            f"--label_fraction must leave an image or more to each of {num_replicas} replicas. "
            f"Received: {config.label_fraction}, which leaves {count}"
        )
    batch_size = min(wanted, count - count % num_replicas)
    if batch_size < wanted:
        logging.info("The batch is %d of the %d labelled images", batch_size, count)
    return batch_size


def _build_sgd(base_rate, batch_size, epochs, steps_per_epoch, weight_decay):
    rates = schedules.cosine(schedules.scaled(base_rate, batch_size), epochs)
    return optimizers.SGD(optimizers.EpochRates(rates, steps_per_epoch), _MOMENTUM, weight_decay)


def _tell(progress, epoch, loss, config):
    """Shows an epoch's last loss; ends what has run away."""
    if not math.isfinite(loss):
        raise UserError(
            f"The loss of fine-tuning is not finite in epoch {epoch}; lower "
            f"--finetune_learning_rate. Received: {config.finetune_learning_rate}"
        )
    progress.note(epoch=epoch, loss=loss)
