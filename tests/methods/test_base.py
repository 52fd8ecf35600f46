"""The training step that all methods share: skipped steps, accumulation, mixed precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_simsiam import add_optimizer, build_model, random_views

from simsiam_tf.config import MethodConfig
from simsiam_tf.methods.base import LossScale, SelfSupervisedModel, feature_moments


def state_of(model):
    """Returns every weight, statistic and velocity, but not the step counter."""
    count, *velocities = model.optimizer.variables
    assert count.name == "iteration"
    return [variable.numpy() for variable in [*model.weights, *velocities]]


def assert_same_state(before, after):
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def share_of(views, count):
    """Returns this replica's share of views of the global batch."""
    replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tuple(tf.stack(tf.split(view, count))[replica_id] for view in views)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_step_with_nan_on_one_replica_changes_nothing_and_the_next_one_trains(
    num_replicas, two_replicas
):
    strategy = two_replicas if num_replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = build_model()
        add_optimizer(model, rates=(0.1,))

    @tf.function(autograph=False)
    def step(x1, x2):
        def replica():
            return model.train_step({"views": share_of((x1, x2), num_replicas)})

        metrics = strategy.run(replica)
        return {
            name: strategy.experimental_local_results(value)[0] for name, value in metrics.items()
        }

    x1, x2 = random_views()
    assert step(x1, x2)["skipped"] == 0
    before = state_of(model)
    with_nan = tf.tensor_scatter_nd_update(x2, [[7, 0, 0, 0]], [float("nan")])  # the last image
    metrics = step(x1, with_nan)
    assert metrics["skipped"] > 0
    assert np.isnan(metrics["loss"])
    assert_same_state(before, state_of(model))
    assert int(model.optimizer.iterations.numpy()) == 2
    metrics = step(x1, x2)
    assert metrics["skipped"] == 0
    changed = [(old != new).any() for old, new in zip(before, state_of(model), strict=True)]
    assert sum(changed) > 0.9 * len(changed)


class InfiniteGradient(SelfSupervisedModel):
    """A finite loss with an infinite gradient: a square root at zero."""

    def __init__(self):
        super().__init__(MethodConfig(), encoder=None, seed=0)
        self.w = self.add_weight(shape=(2,), initializer="ones")

    def compute_views_loss(self, batch):
        loss = tf.sqrt(0 * tf.reduce_sum(self.w)) + 0 * tf.reduce_mean(batch["views"][0])
        return loss, {"feature_moments": feature_moments([tf.ones([2, 2])])}


def test_a_gradient_that_is_not_finite_is_enough_to_skip_the_step():
    model = InfiniteGradient()
    add_optimizer(model)
    metrics = model.train_step({"views": random_views()})
    assert metrics["loss"] == 0
    assert metrics["skipped"] == 1
    np.testing.assert_array_equal(model.w, [1, 1])


@pytest.mark.usefixtures("float64")
def test_accumulation_takes_the_mean_gradient_of_the_parts_and_the_statistics_of_each():
    views = [tf.cast(view, tf.float64) for view in random_views(batch=12)]
    whole = build_model()
    whole.accumulate_steps = 3
    add_optimizer(whole)
    metrics = tf.function(whole.train_step, autograph=False)({"views": tuple(views)})

    # The expected weights come from three passes, three gradients and one update.
    parts = build_model()
    add_optimizer(parts)
    gradients, losses = [], []
    for start in (0, 4, 8):
        with tf.GradientTape() as tape:
            loss, _ = parts.compute_views_loss(
                {"views": [view[start : start + 4] for view in views]}
            )
        gradients.append(tape.gradient(loss, parts.learned_variables))
        losses.append(loss)
    means = [sum(of_parts) / 3 for of_parts in zip(*gradients, strict=True)]
    parts.optimizer.apply(means, parts.learned_variables)
    assert float(metrics["loss"]) == pytest.approx(float(sum(losses) / 3), rel=1e-12)
    for value, expected in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture
def mixed(request):
    """Sets the dtype policy of the parameter for all layers that a test builds."""
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("mixed", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_mixed_precision_convolves_in_16_bits_and_keeps_weights_heads_and_loss_in_float32(mixed):
    model = build_model()
    add_optimizer(model, rates=(0.1,))
    views = random_views(batch=16)
    assert {variable.dtype for variable in model.weights} == {"float32"}
    convolution = model.encoder.stem.conv(views[0])
    assert convolution.dtype in (tf.bfloat16, tf.float16)
    features = model.encoder(views[0], training=True)
    assert features.dtype == tf.float32  # the mean over positions is computed in float32
    assert model.projector(features, training=True).dtype == tf.float32
    loss, _ = model.compute_views_loss({"views": views})
    assert loss.dtype == tf.float32

    keras.config.set_dtype_policy("float32")
    full = build_model()
    add_optimizer(full, rates=(0.1,))
    # Rounding grows with every step, differently on each processor: the second step is enough.
    for tolerance in (0.002, 0.02):
        for _ in range(10):  # the first steps of float16 may be skipped until the scale fits
            metrics = model.train_step({"views": views})
            if metrics["skipped"] == 0:
                break
        mixed_loss = float(metrics["loss"])
        full_loss = float(full.train_step({"views": views})["loss"])
        assert mixed_loss == pytest.approx(full_loss, abs=tolerance)
        assert mixed_loss != full_loss


@pytest.mark.parametrize("mixed", ["mixed_float16"], indirect=True)
def test_float16_divides_gradients_by_the_factor_that_scales_the_loss(mixed):
    model, views = build_model(), random_views(batch=16)
    gradients = {}
    for scale in (2.0**3, 2.0**15):
        model.loss_scale.value.assign(scale)
        gradients[scale], _ = model.compute_gradients({"views": tuple(views)})
    norms = {scale: float(tf.linalg.global_norm(value)) for scale, value in gradients.items()}
    assert norms[2.0**15] == pytest.approx(norms[2.0**3], rel=0.05)


def test_the_loss_scale_halves_with_a_skipped_step_and_doubles_after_2000_others():
    scale = LossScale()
    assert float(scale.value) == 2**15
    scale.update(tf.constant(True))
    assert float(scale.value) == 2**14
    for _ in range(1999):
        scale.update(tf.constant(False))
    assert float(scale.value) == 2**14
    scale.update(tf.constant(False))
    assert float(scale.value) == 2**15
    scale.good_steps.assign(1999)
    scale.update(tf.constant(True))  # the count starts again at 0
    scale.update(tf.constant(False))
    assert float(scale.value) == 2**14
