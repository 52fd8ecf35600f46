"""Learning-rate schedules: one learning rate for each epoch, as in the reference, or each step."""

import math

from simsiam_tf.config import OptimizationConfig


def learning_rates(config: OptimizationConfig) -> list[float]:
    """Returns the learning rate of every epoch.

    Linear scaling gives the full learning rate base · batch / 256. Over the first `warmup_epochs`
    the learning rate rises linearly to it. It then falls along half a cosine over the remaining
    epochs. A run that is shorter than its warm-up, such as a trial of one epoch, ends in it.
    """
    initial = initial_learning_rate(config)
    warmup, epochs = config.warmup_epochs, config.epochs
    warmup_rates = [initial * (epoch + 1) / warmup for epoch in range(warmup)]
    return (warmup_rates + cosine(initial, epochs - warmup))[:epochs]


def learning_rate(config: OptimizationConfig, steps_per_epoch: int, step: int) -> float:
    """Returns the learning rate of a step; the first step is 0.

    With `--schedule=step` it rises from zero at every step of the warm-up, and then falls along
    half a cosine at every step.
    """
    if config.schedule == "epoch":
        return learning_rates(config)[step // steps_per_epoch]
    initial = initial_learning_rate(config)
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return initial * step / warmup
    return initial * _half_cosine((step - warmup) / (config.epochs * steps_per_epoch - warmup))


def initial_learning_rate(config: OptimizationConfig) -> float:
    """Returns the full learning rate: base · global batch / 256."""
    return scaled(config.base_learning_rate, config.batch_size)


def scaled(base: float, batch_size: int) -> float:
    """Returns a linearly scaled learning rate: base · global batch / 256."""
    return base * batch_size / 256


def cosine(initial: float, epochs: int) -> list[float]:
    """Returns initial · ½(1 + cos(π · epoch / epochs)) for each epoch, which starts at 0."""
    return [initial * _half_cosine(epoch / epochs) for epoch in range(epochs)]


def _half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
