"""The EM view: targets that are held, targets that are averaged."""

import numpy as np
import pytest
import tensorflow as tf
from method_runs import BATCH, Run

from simsiam_tf.schema import UserError


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("float64")
def test_one_inner_step_is_simsiam_step_for_step():
    simsiam, alternation = Run(), Run(method="alternation", inner_steps="1")
    for step in range(5):
        expected, metrics = simsiam.step(step), alternation.step(step)
        assert float(metrics["loss"]) == float(expected["loss"])
        assert_same(alternation.model.get_weights(), simsiam.model.get_weights())


def projections(model, views):
    """z of each view by the network as it is, whose statistics stay."""
    before = model.get_weights()
    z = model.project(views, model.encoder, model.projector)
    model.set_weights(before)
    return [one.numpy() for one in z]


def similarity(p, z):
    p, z = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, z))
    return -(p * z).sum(axis=1).mean()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("inner_steps", "starts"), [("2", (0, 0, 2, 3)), ("epoch", (0, 0, 0, 3))])
def test_targets_are_those_of_the_network_at_the_start_of_the_inner_steps(inner_steps, starts):
    run = Run(method="alternation", inner_steps=inner_steps)
    model, held = run.model, {}
    for step, start in enumerate(starts):  # an epoch is three steps
        if step == start:
            for ahead in range(step, 6):
                held[ahead] = projections(model, run.batch(ahead)["views"])
        # The loss by hand: predictions of now, targets of then.
        before = model.get_weights()
        z = model.project(run.batch(step)["views"], model.encoder, model.projector)
        p = model.predictor(tf.concat(z, 0), training=True, num_views=2).numpy()
        model.set_weights(before)
        eta1, eta2 = held[step]
        expected = (similarity(p[:BATCH], eta2) + similarity(p[BATCH:], eta1)) / 2
        assert float(run.step(step)["loss"]) == pytest.approx(expected, rel=1e-9), step


@pytest.mark.usefixtures("float64")
def test_the_average_moves_by_a_fifth_of_the_newest_views_and_begins_with_the_first():
    run = Run(method="alternation", eta_momentum=0.8, predictor="none")
    model, bank = run.model, np.zeros([24, 16])
    for step in range(5):  # each image is seen in every third step
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
def test_a_step_that_xla_compiles_whole_leaves_the_same_targets_and_weights(settings):
    plain, compiled = (Run(method="alternation", **settings) for _ in range(2))
    step_of = compiled.model.train_step
    compiled.model.train_step = tf.function(step_of, jit_compile=True)
    for step in range(5):
        expected, found = plain.step(step), compiled.step(step)
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-7)
    for one, other in zip(compiled.state(), plain.state(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("value", ["0", "-1", "often", "1.5"])
def test_inner_steps_are_a_number_or_an_epoch(value):
    with pytest.raises(UserError, match="--inner_steps must be"):
        Run(method="alternation", inner_steps=value)


def test_an_average_with_held_targets_is_refused():
    with pytest.raises(UserError, match="--inner_steps must be 1"):
        Run(method="alternation", inner_steps="3", eta_momentum=0.8)
