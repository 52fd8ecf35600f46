"""Alternating optimization (section 5): frozen targets, and averaged targets."""

import numpy as np
import pytest
import tensorflow as tf
from method_runs import BATCH, Run

from simsiam_tf.schema import UserError


def assert_same(actual, expected):
    for value, expected_value in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(value, expected_value)


@pytest.mark.usefixtures("float64")
def test_one_inner_step_equals_simsiam_in_every_step():
    simsiam, alternation = Run(), Run(method="alternation", inner_steps="1")
    for step in range(5):
        expected, metrics = simsiam.step(step), alternation.step(step)
        assert float(metrics["loss"]) == float(expected["loss"])
        assert_same(alternation.model.get_weights(), simsiam.model.get_weights())


def projections(model, views):
    """Returns z of each view by the current network, and leaves its statistics unchanged."""
    before = model.get_weights()
    z = model.project(views, model.encoder, model.projector)
    model.set_weights(before)
    return [view_z.numpy() for view_z in z]


def similarity(p, z):
    p, z = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, z))
    return -(p * z).sum(axis=1).mean()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("inner_steps", "starts"), [("2", (0, 0, 2, 3)), ("epoch", (0, 0, 0, 3))])
def test_targets_are_those_of_the_network_at_the_start_of_the_inner_steps(inner_steps, starts):
    run = Run(method="alternation", inner_steps=inner_steps)
    model, frozen = run.model, {}
    for step, start in enumerate(starts):  # an epoch has three steps
        if step == start:
            for ahead in range(step, 6):
                frozen[ahead] = projections(model, run.batch(ahead)["views"])
        # The expected loss has the current predictions and the frozen targets.
        before = model.get_weights()
        z = model.project(run.batch(step)["views"], model.encoder, model.projector)
        p = model.predictor(tf.concat(z, 0), training=True, num_views=2).numpy()
        model.set_weights(before)
        eta1, eta2 = frozen[step]
        expected = (similarity(p[:BATCH], eta2) + similarity(p[BATCH:], eta1)) / 2
        assert float(run.step(step)["loss"]) == pytest.approx(expected, rel=1e-9), step


@pytest.mark.usefixtures("float64")
def test_the_average_starts_with_the_first_views_and_takes_a_fifth_of_each_later_one():
    run = Run(method="alternation", eta_momentum=0.8, predictor="none")
    model, bank = run.model, np.zeros([24, 16])
    for step in range(5):  # each image occurs in every third step
        batch = run.batch(step)
        index = batch["index"].numpy()
        z1, z2 = projections(model, batch["views"])
        unit1, unit2 = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
        share = 0.8 if step >= 3 else 0.0
        eta1, eta2 = (share * bank[index] + (1 - share) * unit for unit in (unit1, unit2))
        expected = (similarity(z1, eta2) + similarity(z2, eta1)) / 2
        assert float(run.step(step)["loss"]) == pytest.approx(expected, rel=1e-9), step
        bank[index] = (eta1 + eta2) / 2
        np.testing.assert_allclose(np.concatenate(list(model.bank.parts())), bank, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("settings", [{"eta_momentum": 0.8}, {"inner_steps": "2"}])
def test_a_step_compiled_whole_by_xla_gives_the_same_targets_and_weights(settings):
    plain, compiled = (Run(method="alternation", **settings) for _ in range(2))
    step_of = compiled.model.train_step
    compiled.model.train_step = tf.function(step_of, jit_compile=True, autograph=False)
    for step in range(5):
        expected, metrics = plain.step(step), compiled.step(step)
        assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-7)
    for value, expected_value in zip(compiled.state(), plain.state(), strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("value", ["0", "-1", "often", "1.5"])
def test_inner_steps_other_than_a_positive_number_or_epoch_are_rejected(value):
    with pytest.raises(UserError, match="--inner_steps must be"):
        Run(method="alternation", inner_steps=value)


def test_averaged_targets_reject_more_than_one_inner_step():
    with pytest.raises(UserError, match="--inner_steps must be 1"):
        Run(method="alternation", inner_steps="3", eta_momentum=0.8)
