"""The probe: a linear classifier on features that are extracted once, with nothing to tune.

The linear protocol passes augmented images through the encoder in every epoch, for one learning
rate and weight decay. Here many heads, one for each pair of a wide grid, are trained at once on the
features of the central crops; a part of the training split that is held out chooses among them.
"""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import Purpose
from simsiam_tf.data import pipeline
from simsiam_tf.evaluation import knn
from simsiam_tf.progress import Progress
from simsiam_tf.schema import UserError

LEARNING_RATES = tuple(10.0**power for power in (-3, -2.5, -2, -1.5, -1, -0.5, 0))
WEIGHT_DECAYS = (0.0, 1e-3, 1e-2)
_MOMENTUM = 0.9
_STEPS_AT_ONCE = 64  # whose features are in memory
_ROWS_JUDGED_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A linear classifier of features, and how it was chosen."""

    kernel: np.ndarray  # [F, classes]
    bias: np.ndarray  # [classes]
    learning_rate: float
    weight_decay: float
    held_out_top1: float  # percent of the held-out part that it had right when it was chosen

    def __call__(self, features):
        """The scores of features `[N, F]`, `[N, classes]`."""
        return features @ self.kernel + self.bias


def train_classifier(features, labels, num_classes, config, seed):
    """Trains a head for each pair of learning rate and weight decay, and the best on everything.

    Args:
      features: of the training split, `[N, F]` float32; a memory-mapped array too.
      labels: `[N]` int.
      num_classes: an int.
      config: a `ProbeConfig`.
      seed: of the held-out part and the order.

    Returns:
      A `Classifier`.

    Raises:
      UserError: there are fewer than two images.
    """
    count = len(features)
    if count < 2:
        raise UserError(f"--protocol=probe needs two training images or more. Received: {count}")
    order = pipeline.epoch_order(
        count, seed, 0, tf.range(count, dtype=tf.int64), Purpose.HELD_OUT
    ).numpy()
    num_held_out = max(1, int(config.probe_held_out * count))
    held_out, rest = np.sort(order[:num_held_out]), order[num_held_out:]
    grid = list(itertools.product(LEARNING_RATES, WEIGHT_DECAYS))

    def train(rows, pairs):
        return train_heads(features, labels, rows, num_classes, pairs, config, seed)

    cross_entropies, top1s = judge_heads(features, labels, held_out, *train(rest, grid))
    # By cross-entropy: many heads have the same few hundred images right.
    best = int(np.argmin(cross_entropies))
    rate, decay = grid[best]
    logging.info(
        "Probe: of %d heads, learning rate %g with weight decay %g is the best, %.2f %% of %d "
        "held-out images; trained anew on all %d",
        len(grid),
        rate,
        decay,
        top1s[best],
        num_held_out,
        count,
    )
    (kernel,), (bias,) = train(order, [grid[best]])
    return Classifier(kernel, bias, rate, decay, float(top1s[best]))


def judge_heads(features, labels, rows, kernels, biases):
    """The cross-entropy and the top-1 accuracy of each head on some rows.

    The scores of one head on one block of the rows are in memory at a time.

    Args:
      features: `[N, F]` float32; a memory-mapped array too.
      labels: `[N]` int.
      rows: indices of the rows to judge by, int `[n]`.
      kernels: `[heads, F, classes]` float32.
      biases: `[heads, classes]` float32.

    Returns:
      Mean cross-entropies, infinite for a head that has diverged, and accuracies in percent, both
      float64 `[heads]`.
    """
    cross_entropies, top1s = np.zeros((2, len(kernels)))
    for start in range(0, len(rows), _ROWS_JUDGED_AT_ONCE):
        block = rows[start : start + _ROWS_JUDGED_AT_ONCE]
        block_features, block_labels = features[block], labels[block]
        share = len(block) / len(rows)
        for head, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            scores = block_features @ kernel + bias
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(block_labels, scores)
            cross_entropies[head] += share * float(tf.reduce_mean(each))
            top1s[head] += share * knn.top_k_accuracy(scores, block_labels, 1)
    return np.where(np.isfinite(cross_entropies), cross_entropies, np.inf), top1s


def train_heads(features, labels, rows, num_classes, pairs, config, seed):
    """Softmax regressions, all at once, by SGD with momentum and half a cosine of rates.

    They start at zero, the bias has no weight decay, and they see standardised features, so that
    rates and decays mean the same for every encoder.

    Args:
      features: `[N, F]` float32.
      labels: `[N]` int.
      rows: indices of what is trained on, int `[n]`.
      num_classes: an int.
      pairs: (learning rate, weight decay) of each head.
      config: a `ProbeConfig`.
      seed: of the order.

    Returns:
      kernel `[heads, F, classes]` and bias `[heads, classes]`, for features as they are given.
    """
    mean, scale = _standardization(features)
    num_heads, dimension = len(pairs), features.shape[1]
    # Side by side: one product of matrices for all heads, and a column of rates and decays for each
    # of their outputs.
    columns = np.repeat(np.array(pairs, np.float32), num_classes, axis=0)
    learning_rate, weight_decay = columns[:, 0], columns[:, 1]
    # The bias is the kernel's last row, of inputs that are all one; it has no weight decay.
    shape = [dimension + 1, len(columns)]
    kernel, velocity = tf.Variable(tf.zeros(shape)), tf.Variable(tf.zeros(shape))
    weight_decay = tf.pad(tf.tile(weight_decay[tf.newaxis], [dimension, 1]), [[0, 1], [0, 0]])

    @tf.function(reduce_retracing=True)
    def train_steps(features, labels, factors):
        """A step for each factor of the rates, on as many equal parts of the rows."""
        inputs = tf.pad((features - mean) * scale, [[0, 0], [0, 1]], constant_values=1)
        # The gradient of the mean cross-entropy to the logits is (softmax - target) / batch.
        target = tf.one_hot(labels, num_classes)[:, tf.newaxis]
        rates = factors[:, tf.newaxis] * learning_rate
        for step in tf.range(tf.size(factors)):
            part = slice(step * batch_size, (step + 1) * batch_size)
            logits = tf.reshape(inputs[part] @ kernel, [batch_size, num_heads, num_classes])
            error = (tf.nn.softmax(logits) - target[part]) / batch_size
            error = tf.reshape(error, [batch_size, -1])
            gradient = tf.matmul(inputs[part], error, transpose_a=True) + weight_decay * kernel
            velocity.assign(_MOMENTUM * velocity + gradient)
            kernel.assign_sub(rates[step] * velocity)

    @tf.function
    def order_of(epoch):
        every_row = tf.range(len(rows), dtype=tf.int64)
        return pipeline.epoch_order(len(rows), seed, epoch, every_row)

    batch_size = min(config.probe_batch_size, len(rows))
    steps_per_epoch = len(rows) // batch_size
    num_steps = steps_per_epoch * config.probe_epochs
    factors = (1 + np.cos(np.pi * np.arange(num_steps) / num_steps)) / 2
    factors = factors.astype(np.float32).reshape(config.probe_epochs, steps_per_epoch)
    with Progress(num_steps, f"{num_heads} linear classifier(s)", "step") as progress:
        for epoch, of_epoch in enumerate(factors):
            order = rows[order_of(tf.constant(epoch))]
            for start in range(0, steps_per_epoch, _STEPS_AT_ONCE):
                some = of_epoch[start : start + _STEPS_AT_ONCE]
                taken = order[start * batch_size : (start + len(some)) * batch_size]
                train_steps(features[taken], labels[taken], some)
                progress.update(len(some))
    # Folded in, so that the classifier takes features as they are.
    kernel, bias = kernel.numpy()[:-1] * scale[:, np.newaxis], kernel.numpy()[-1]
    bias = bias - mean @ kernel
    shape = (num_heads, num_classes)
    return kernel.reshape(dimension, *shape).swapaxes(0, 1), bias.reshape(shape)


def _standardization(features):
    """Mean and 1 / standard deviation of each feature, float32; 0 for one that is constant."""
    # In float64, and without a copy of the features, which may be larger than the memory.
    mean = np.mean(features, axis=0, dtype=np.float64)
    square = np.einsum("nf,nf->f", features, features, dtype=np.float64) / len(features)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    # A float32 that differs by no more than its rounding does not vary.
    varies = deviation > 1e-6 * np.sqrt(square)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
    return mean.astype(np.float32), scale.astype(np.float32)
