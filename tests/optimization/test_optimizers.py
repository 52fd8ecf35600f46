"""SGD, LARS and AdamW against slow transcriptions in NumPy."""

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


@pytest.mark.usefixtures("float64")
def test_adamw_equals_that_of_its_paper_with_a_changing_learning_rate():
    """Loshchilov & Hutter 2019, algorithm 2: weights decay by rate · λ · w beside Adam's step."""
    rates = optimizers.EpochRates(RATES, STEPS_PER_EPOCH)
    got = train(optimizers.AdamW(rates, DECAY, excluded_variables=[1]), START)
    weights = [value.copy() for value in START]
    first, second = np.zeros((2, 5)), np.zeros((2, 5))
    for step, pair in enumerate(gradients()):
        first = 0.9 * first + 0.1 * pair
        second = 0.999 * second + 0.001 * pair**2
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        for index in range(2):
            decayed = weights[index] * (1 - rate(step) * DECAY * (index == 0))
            adam = unbiased[0][index] / (np.sqrt(unbiased[1][index]) + 1e-8)
            weights[index] = decayed - rate(step) * adam
    # Keras has the betas in float32: 1 − 0.999 is off by 1e-5 of itself.
    np.testing.assert_allclose(got, weights, rtol=2e-4)


def test_adamw_keeps_the_constant_rate_of_the_predictor_and_is_saved_with_its_settings():
    rates = optimizers.EpochRates([0.0], 1)
    options = {"constant_rate": 0.1, "constant_rate_variables": [1], "excluded_variables": [0]}
    optimizer = optimizers.AdamW(rates, DECAY, **options)
    still, moved = train(optimizer, [np.float32(value) for value in START])
    np.testing.assert_array_equal(still, np.float32(START[0]))
    constant = optimizers.AdamW(optimizers.EpochRates([0.1], 1), DECAY)
    np.testing.assert_array_equal(moved, train(constant, np.float32(START))[1])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_skipped_step_changes_neither_weights_nor_the_optimizers_state(optimizer):
    run = Run(optimizer=optimizer, weight_decay=0.1, base_learning_rate=0.1)
    run.step(0)
    variables = [*run.model.weights, *run.optimizer.variables[1:]]
    before = [variable.numpy() for variable in variables]
    batch = run.batch(1)
    poisoned = batch | {"views": (batch["views"][0] * np.nan, batch["views"][1])}
    assert run.step(1, poisoned)["skipped"] == 1
    names = {variable.name for variable in run.optimizer.variables[1:]}
    assert len(names) >= (2 if optimizer == "adamw" else 1)
    for old, new in zip(before, variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy(), err_msg=new.path)
    assert run.step(2)["skipped"] == 0


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
