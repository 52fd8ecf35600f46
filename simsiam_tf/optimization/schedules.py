"""The learning rate: one for each epoch, as the reference has it."""

import math


def learning_rates(config):
    """The rate of every epoch of an `OptimizationConfig`, a list of floats.

    Linear scaling, base · batch / 256; linear warm-up over the first `warmup_epochs`, which end at
    the full rate; then half a cosine over the remaining epochs. A run that is shorter than its
    warm-up, as a trial of one epoch, is cut off in it.
    """
    initial = initial_learning_rate(config)
    warmup, epochs = config.warmup_epochs, config.epochs
    rates = [initial * (epoch + 1) / warmup for epoch in range(warmup)]
    return (rates + cosine(initial, epochs - warmup))[:epochs]


def predictor_learning_rates(config):
    """The same for the predictor, whose rate may be held at the full one (Table 1c)."""
    if config.fix_predictor_learning_rate:
        return [initial_learning_rate(config)] * config.epochs
    return learning_rates(config)


def initial_learning_rate(config):
    """The full rate: base · global batch / 256."""
    return scaled(config.base_learning_rate, config.batch_size)


def scaled(base, batch_size):
    """Linear scaling: base · global batch / 256."""
    return base * batch_size / 256


def cosine(initial, epochs):
    """initial · ½(1 + cos(π · epoch / epochs)) for each epoch."""
    return [initial * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
