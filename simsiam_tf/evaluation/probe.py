"""The probe: a linear classifier on features that are extracted once, with nothing to tune.

The linear protocol passes augmented images through the encoder in every epoch, for one learning
rate and weight decay. The probe trains many heads at once, one for each pair of a wide grid, on the
features of the central crops. A held-out part of the training split chooses the best head.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import Purpose
from simsiam_tf.data.order import epoch_order
from simsiam_tf.evaluation import knn
from simsiam_tf.evaluation.config import ProbeConfig
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

LEARNING_RATES = tuple(10.0**power for power in (-3, -2.5, -2, -1.5, -1, -0.5, 0))
WEIGHT_DECAYS = (0.0, 1e-3, 1e-2)
_MOMENTUM = 0.9
_STEPS_AT_ONCE = 64  # steps whose features are in memory
_ROWS_JUDGED_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A linear classifier of features, and how it was chosen."""

    kernel: np.ndarray  # [F, classes]
    bias: np.ndarray  # [classes]
    learning_rate: float
    weight_decay: float
    held_out_top1: float  # top-1 accuracy in percent on the held-out part, when it was chosen

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns the scores of features: `[N, F]` → `[N, classes]`."""
        return features @ self.kernel + self.bias


def train_classifier(
    features: np.ndarray, labels: np.ndarray, num_classes: int, config: ProbeConfig, seed: int
) -> Classifier:
    """Trains a head for each pair of learning rate and weight decay; returns the best one.

    The head with the lowest cross-entropy on the held-out part is trained again, on all images.

    Args:
      features: features of the training split, `[N, F]` float32; may be memory-mapped.
      labels: class indices, `[N]` int.
      num_classes: number of classes.
      config: settings.
      seed: seed of the held-out part and the order.

    Raises:
      UserError: there are fewer than two images.
    """
    count = len(features)
    if count < 2:
        raise UserError(f"--protocol=probe needs two training images or more. Received: {count}")
    order = epoch_order(count, seed, 0, tf.range(count, dtype=tf.int64), Purpose.HELD_OUT).numpy()
    num_held_out = max(1, int(config.probe_held_out * count))
    held_out, rest = np.sort(order[:num_held_out]), order[num_held_out:]
    grid = list(itertools.product(LEARNING_RATES, WEIGHT_DECAYS))

    def train(
        indices: np.ndarray, pairs: list[tuple[float, float]]
    ) -> tuple[np.ndarray, np.ndarray]:
        return train_heads(features, labels, indices, num_classes, pairs, config, seed)

    cross_entropies, top1s = judge_heads(features, labels, held_out, *train(rest, grid))
    # Accuracy does not decide: many heads classify the same few hundred images correctly.
    best = int(np.argmin(cross_entropies))
    learning_rate, weight_decay = grid[best]
    logging.info(
        "Probe: the best of %d heads has learning rate %g, weight decay %g and top-1 accuracy "
        "%.2f %% on %d held-out images; it is trained again on all %d images",
        len(grid),
        learning_rate,
        weight_decay,
        top1s[best],
        num_held_out,
        count,
    )
    (kernel,), (bias,) = train(order, [grid[best]])
    return Classifier(kernel, bias, learning_rate, weight_decay, float(top1s[best]))


def judge_heads(
    features: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    kernels: np.ndarray,
    biases: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cross-entropy and the top-1 accuracy of each head on some of the images.

    Memory holds the scores of one head on one block of images at a time.

    Args:
      features: `[N, F]` float32; may be memory-mapped.
      labels: class indices, `[N]` int.
      indices: indices of the images to judge by, `[n]` int.
      kernels: `[heads, F, classes]` float32.
      biases: `[heads, classes]` float32.

    Returns:
      Mean cross-entropies, infinite for a head that has diverged, and top-1 accuracies in percent;
      both `[heads]` float64.
    """
    cross_entropies, top1s = np.zeros((2, len(kernels)))
    for start in range(0, len(indices), _ROWS_JUDGED_AT_ONCE):
        block = indices[start : start + _ROWS_JUDGED_AT_ONCE]
        block_features, block_labels = features[block], labels[block]
        share = len(block) / len(indices)
        for head, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            scores = block_features @ kernel + bias
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(block_labels, scores)
            cross_entropies[head] += share * float(tf.reduce_mean(each))
            top1s[head] += share * knn.top_k_accuracy(scores, block_labels, 1)
    return np.where(np.isfinite(cross_entropies), cross_entropies, np.inf), top1s


def train_heads(
    features: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    num_classes: int,
    pairs: Sequence[tuple[float, float]],
    config: ProbeConfig,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains softmax regressions, all at once, by SGD with momentum and a half-cosine schedule.

    Weights start at zero, and the bias has no weight decay. Features are standardised, so that
    learning rates and weight decays mean the same for every encoder.

    Args:
      features: `[N, F]` float32.
      labels: class indices, `[N]` int.
      indices: indices of the images to train on, `[n]` int.
      num_classes: number of classes.
      pairs: (learning rate, weight decay) of each head.
      config: settings.
      seed: seed of the order.

    Returns:
      Kernels `[heads, F, classes]` and biases `[heads, classes]`, for features that are not
      standardised.
    """
    mean, scale = _standardization(features)
    num_heads, dimension = len(pairs), features.shape[1]
    # The heads are side by side, so one matrix product serves them all. Each of their outputs is a
    # column, with a learning rate and a weight decay.
    columns = np.repeat(np.array(pairs, np.float32), num_classes, axis=0)
    learning_rate, weight_decay = columns[:, 0], columns[:, 1]
    # The bias is the last row of the kernel, for an input of ones; it has no weight decay.
    shape = [dimension + 1, len(columns)]
    kernel, velocity = tf.Variable(tf.zeros(shape)), tf.Variable(tf.zeros(shape))
    weight_decay = tf.pad(tf.tile(weight_decay[tf.newaxis], [dimension, 1]), [[0, 1], [0, 0]])

    @tf.function(reduce_retracing=True)
    def train_steps(features: tf.Tensor, labels: tf.Tensor, factors: tf.Tensor) -> None:
        """Runs one step for each factor of the learning rate; the steps share the images evenly."""
        inputs = tf.pad((features - mean) * scale, [[0, 0], [0, 1]], constant_values=1)
        # The gradient of the mean cross-entropy to the logits is (softmax - target) / batch.
        target = tf.one_hot(labels, num_classes)[:, tf.newaxis]
        learning_rates = factors[:, tf.newaxis] * learning_rate
        for step in tf.range(tf.size(factors)):
            part = slice(step * batch_size, (step + 1) * batch_size)
            logits = tf.reshape(inputs[part] @ kernel, [batch_size, num_heads, num_classes])
            error = (tf.nn.softmax(logits) - target[part]) / batch_size
            error = tf.reshape(error, [batch_size, -1])
            gradient = tf.matmul(inputs[part], error, transpose_a=True) + weight_decay * kernel
            velocity.assign(_MOMENTUM * velocity + gradient)
            kernel.assign_sub(learning_rates[step] * velocity)

    @tf.function(autograph=False)
    def order_of(epoch: tf.Tensor) -> tf.Tensor:
        whole_epoch = tf.range(len(indices), dtype=tf.int64)
        return epoch_order(len(indices), seed, epoch, whole_epoch)

    batch_size = min(config.probe_batch_size, len(indices))
    steps_per_epoch = len(indices) // batch_size
    num_steps = steps_per_epoch * config.probe_epochs
    half_cosine = (1 + np.cos(np.pi * np.arange(num_steps) / num_steps)) / 2
    factors = half_cosine.astype(np.float32).reshape(config.probe_epochs, steps_per_epoch)
    with Progress(num_steps, f"{num_heads} linear classifier(s)", "step") as progress:
        for epoch, epoch_factors in enumerate(factors):
            order = indices[order_of(tf.constant(epoch))]
            for start in range(0, steps_per_epoch, _STEPS_AT_ONCE):
                step_factors = epoch_factors[start : start + _STEPS_AT_ONCE]
                taken = order[start * batch_size : (start + len(step_factors)) * batch_size]
                train_steps(features[taken], labels[taken], step_factors)
                progress.update(len(step_factors))
    # The standardisation is folded into the weights, so the classifier takes raw features.
    kernels, bias = kernel.numpy()[:-1] * scale[:, np.newaxis], kernel.numpy()[-1]
    biases = (bias - mean @ kernels).reshape(num_heads, num_classes)
    return kernels.reshape(dimension, num_heads, num_classes).swapaxes(0, 1), biases


def _standardization(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and 1 / standard deviation of each feature, float32; 0 for a constant feature."""
    # Sums are float64, and features are not copied: they may be larger than the memory.
    mean = features.mean(axis=0, dtype=np.float64)
    square = np.einsum("nf,nf->f", features, features, dtype=np.float64) / len(features)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    # A float32 feature that differs only by rounding counts as constant.
    varies = deviation > 1e-6 * np.sqrt(square)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
    return mean.astype(np.float32), scale.astype(np.float32)
