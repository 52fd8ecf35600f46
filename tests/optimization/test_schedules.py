import dataclasses

import numpy as np
import pytest

from simsiam_tf import flags
from simsiam_tf.config import OptimizationConfig, PretrainConfig
from simsiam_tf.optimization import optimizers, schedules


def test_learning_rates_follow_the_references_cosine_of_the_epoch():
    # init * 0.5 * (1 + cos(pi * epoch / epochs)), init = base * batch / 256
    config = OptimizationConfig(base_learning_rate=0.05, batch_size=512, epochs=100)
    epochs = np.arange(100)
    expected = 0.05 * 512 / 256 * 0.5 * (1 + np.cos(np.pi * epochs / 100))
    np.testing.assert_allclose(schedules.learning_rates(config), expected, rtol=1e-12)


def test_warm_up_rises_by_equal_steps_to_the_full_rate_and_the_cosine_follows():
    config = OptimizationConfig(
        base_learning_rate=0.05, batch_size=1024, epochs=14, warmup_epochs=4
    )
    rates = schedules.learning_rates(config)
    assert len(rates) == 14
    np.testing.assert_allclose(rates[:4], [0.05, 0.1, 0.15, 0.2])
    np.testing.assert_allclose(rates[4:], 0.1 * (1 + np.cos(np.pi * np.arange(10) / 10)))


def test_a_run_shorter_than_its_warm_up_ends_in_it():
    short, long = (OptimizationConfig(warmup_epochs=4, epochs=epochs) for epochs in (1, 40))
    assert schedules.learning_rates(short) == schedules.learning_rates(long)[:1]


def test_the_learning_rate_of_a_step_is_that_of_its_epoch():
    config = OptimizationConfig(epochs=5, warmup_epochs=2)
    found = [schedules.learning_rate(config, 3, step) for step in range(15)]
    np.testing.assert_array_equal(found, np.repeat(schedules.learning_rates(config), 3))


def test_by_step_the_rate_is_that_of_simclrs_and_byols_code():
    # warm-up: rate * step / warmup_steps; after it a cosine decay over the other steps
    config = OptimizationConfig(
        base_learning_rate=0.3, batch_size=4096, epochs=100, warmup_epochs=10, schedule="step"
    )
    steps = np.arange(100 * 7)
    rising = 4.8 * steps / 70
    falling = 4.8 * 0.5 * (1 + np.cos(np.pi * (steps - 70) / 630))
    expected = np.where(steps < 70, rising, falling)
    found = [schedules.learning_rate(config, 7, int(step)) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    rates = optimizers.StepRates(4.8, 70, 700)
    np.testing.assert_allclose(rates(steps), expected, rtol=1e-6)
    assert rates(700) == 0
    for short in ({"epochs": 1}, {"epochs": 10}):  # it ends in its warm-up
        config = dataclasses.replace(config, **short)
        assert schedules.learning_rate(config, 7, 6) == pytest.approx(4.8 * 6 / 70)
        np.testing.assert_allclose(optimizers.StepRates(4.8, 70, 7)(6), 4.8 * 6 / 70, rtol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "schedule"),
    [
        ("r50", "epoch"), ("mocov2_r50", "epoch"),
        ("simclr_r50", "step"), ("byol_r50", "step"), ("swav_r50", "step"),
    ],
)  # fmt: skip
def test_the_recipes_change_the_rate_as_often_as_their_authors_code(recipe, schedule):
    assert flags.read([f"--recipe={recipe}"], PretrainConfig).optimization.schedule == schedule


@pytest.mark.parametrize(("batch_size", "expected"), [(64, 0.0125), (256, 0.05), (4096, 0.8)])
def test_the_learning_rate_is_proportional_to_the_batch_size(batch_size, expected):
    config = OptimizationConfig(base_learning_rate=0.05, batch_size=batch_size)
    assert schedules.initial_learning_rate(config) == pytest.approx(expected)
