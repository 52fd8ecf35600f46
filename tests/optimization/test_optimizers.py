"""SGD and LARS against slow transcriptions in NumPy."""

import keras
import numpy as np
import pytest
from method_runs import Run

from simsiam_tf.optimization import optimizers

RATES = [0.5, 0.2, 0.05]
STEPS_PER_EPOCH = 4
MOMENTUM, DECAY, TRUST = 0.9, 0.01, 0.001


def gradients():
    return np.random.default_rng(0).standard_normal((len(RATES) * STEPS_PER_EPOCH, 2, 5))


def train(optimizer, start):
    variables = [keras.Variable(value) for value in start]
    optimizer.build(variables)
    for pair in gradients():
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in pair], variables)
    return [variable.numpy() for variable in variables]


def slow_sgd(start, rates_of, direction=lambda gradient, weight: gradient + DECAY * weight):
    """Returns the weights after torch.optim.SGD: v = momentum * v + d; w = w - rate * v."""
    weights = [value.copy() for value in start]
    velocities = [np.zeros(5), np.zeros(5)]
    for step, pair in enumerate(gradients()):
        for index in range(2):
            velocities[index] *= MOMENTUM
            velocities[index] += direction(pair[index], weights[index])
            weights[index] -= rates_of(index, step) * velocities[index]
    return weights


def rate(step):
    return RATES[step // STEPS_PER_EPOCH]


START = [np.linspace(-1, 1, 5), np.linspace(2, 3, 5)]


@pytest.mark.usefixtures("float64")
def test_sgd_equals_pytorchs_with_a_changing_learning_rate():
    rates = optimizers.EpochRates(RATES, STEPS_PER_EPOCH)
    got = train(optimizers.SGD(rates, MOMENTUM, DECAY), START)
    expected = slow_sgd(START, lambda index, step: rate(step))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_variables_with_a_constant_learning_rate_keep_it_and_have_weight_decay():
    rates = optimizers.EpochRates(RATES, STEPS_PER_EPOCH)
    variables = [keras.Variable(value) for value in START]
    optimizer = optimizers.SGD(
        rates, MOMENTUM, DECAY, constant_rate_variables=[1], constant_rate=0.3
    )
    optimizer.build(variables)
    for pair in gradients():
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in pair], variables)
    expected = slow_sgd(START, lambda index, step: (rate(step), 0.3)[index])
    np.testing.assert_allclose([v.numpy() for v in variables], expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_lars_scales_each_tensor_except_one_that_is_all_zero():
    # Apex's LARC with clip=False: trust * |w| / (|g| + decay * |w| + eps).
    def direction(gradient, weight):
        weight_norm, gradient_norm = np.linalg.norm(weight), np.linalg.norm(gradient)
        ratio = 1.0
        if weight_norm > 0 and gradient_norm > 0:
            ratio = TRUST * weight_norm / (gradient_norm + DECAY * weight_norm + 1e-8)
        return ratio * (gradient + DECAY * weight)

    start = [START[0], np.zeros(5)]
    rates = optimizers.EpochRates(RATES, STEPS_PER_EPOCH)
    got = train(optimizers.LARS(rates, MOMENTUM, DECAY, TRUST), start)
    np.testing.assert_allclose(
        got, slow_sgd(start, lambda index, step: rate(step), direction), rtol=1e-10
    )


def test_the_learning_rate_depends_on_the_epoch_and_stays_at_the_last_one():
    rates = optimizers.EpochRates(RATES, STEPS_PER_EPOCH)
    got = [float(rates(step)) for step in (0, 3, 4, 11, 12, 99)]
    np.testing.assert_allclose(got, [0.5, 0.5, 0.2, 0.05, 0.05, 0.05])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_excluded_variables_have_neither_l2_penalty_nor_lars_scaling(kind):
    rates = optimizers.EpochRates(RATES, STEPS_PER_EPOCH)
    variables = [keras.Variable(value) for value in START]
    excluded = {"excluded_variables": [1]}
    if kind == "sgd":
        optimizer = optimizers.SGD(rates, MOMENTUM, DECAY, **excluded)
    else:
        optimizer = optimizers.LARS(rates, MOMENTUM, DECAY, TRUST, **excluded)
    optimizer.build(variables)
    for pair in gradients():
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in pair], variables)
    plain = slow_sgd(START, lambda index, step: rate(step), lambda gradient, weight: gradient)
    np.testing.assert_allclose(variables[1].numpy(), plain[1], rtol=1e-12)
    assert np.abs(variables[0].numpy() - plain[0]).max() > 1e-3


@pytest.mark.parametrize("exclude", [False, True])
def test_biases_and_normalization_can_be_excluded_from_l2(exclude):
    run = Run(exclude_norm_and_bias=exclude, weight_decay=0.1)
    variables = run.model.learned_variables
    before = [variable.numpy() for variable in variables]
    run.optimizer.apply([np.zeros_like(value) for value in before], variables)
    is_unchanged = [(old == new.numpy()).all() for old, new in zip(before, variables, strict=True)]
    # A variable that is all zero at the start does not change, even if it is not excluded.
    is_excluded = [(exclude and value.ndim == 1) or not value.any() for value in before]
    assert is_unchanged == is_excluded
    assert any(value.ndim == 1 and value.any() for value in before)
