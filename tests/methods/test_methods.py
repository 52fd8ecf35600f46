"""Tests that every method passes: replicas, resuming, skipped steps."""

import numpy as np
import pytest
from method_runs import BATCH, PLAN, Run

from simsiam_tf.config import OptimizationConfig
from simsiam_tf.methods import METHODS
from simsiam_tf.optimization import schedules

SETTINGS = {
    "simsiam": {},
    "simclr": {"predictor": "none", "stop_gradient": False},
    "mocov2": {"projection_bn": "none", "queue_size": 20},
    "byol": {"projection_bn": "hidden"},
    "swav": {"predictor": "none", "num_prototypes": 6},
    "alternation": {"inner_steps": "3"},
    "alternation, average": {"eta_momentum": 0.8, "predictor": "none"},
    "supervised": {},
}
assert {name.split(",")[0] for name in SETTINGS} == METHODS.keys()


def build_run(name, strategy=None):
    return Run(strategy, method=name.split(",")[0], **SETTINGS[name])


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_the_optimizer_has_the_learning_rates_that_the_run_logs(schedule):
    settings = {"schedule": schedule, "warmup_epochs": 1, "base_learning_rate": 0.5}
    rates = Run(**settings).optimizer.schedule
    config = OptimizationConfig(batch_size=BATCH, epochs=PLAN.epochs, **settings)
    for step in range(PLAN.num_steps):
        logged = schedules.learning_rate(config, PLAN.steps_per_epoch, step)
        assert float(rates(step)) == pytest.approx(logged, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SETTINGS)
def test_two_replicas_train_like_one_and_a_resumed_run_like_an_uninterrupted_one(
    name, two_replicas, tmp_path
):
    one, two = build_run(name), build_run(name, two_replicas)
    for step in range(4):
        expected, metrics = one.step(step), two.step(step)
        for key, value in expected.items():
            assert float(metrics[key]) == pytest.approx(float(value), rel=1e-7), (step, key)
        assert 0 < float(expected["feature_std"]) < 1.3
        if step == 1:
            one.checkpoints(tmp_path).save(2)
    for value, expected_value in zip(two.state(), one.state(), strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=1e-7, atol=1e-9)

    end = one.state()
    assert one.checkpoints(tmp_path).restore() == 2
    for step in (2, 3):
        metrics = one.step(step)
    assert float(metrics["loss"]) == float(expected["loss"])
    for value, expected_value in zip(one.state(), end, strict=True):
        np.testing.assert_array_equal(value, expected_value)

    with_nan = one.batch(0)
    with_nan["views"] = tuple(view + float("nan") for view in with_nan["views"])
    before = one.state()
    assert float(one._step(with_nan)["skipped"]) == 1
    for value, expected_value in zip(one.state(), before, strict=True):
        np.testing.assert_array_equal(value, expected_value)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_encoders_weights_come_first(name):
    # `train.py --export` restores only these weights of a checkpoint.
    model = build_run(name).model
    encoder = model.encoder.weights
    assert [id(weight) for weight in model.weights[: len(encoder)]] == [*map(id, encoder)]
