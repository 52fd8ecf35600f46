"""Batch normalization against PyTorch's definition, written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.models.normalization import BatchNormalization

CHANNELS = 3
GAMMA, BETA = np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.2, -0.3])


def views(num_views=2, batch=6, seed=0):
    x = np.random.default_rng(seed).standard_normal((num_views, batch, 4, 4, CHANNELS))
    return x * np.array([1.0, 2.0, 0.1]) + np.arange(num_views).reshape(-1, 1, 1, 1, 1) + 3


def slow_normalize(x):
    """Normalises one view like torch.nn.BatchNorm2d in training mode."""
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * GAMMA + BETA


def slow_running(x):
    """Returns PyTorch's running statistics after all views: unbiased variance, momentum 0.1."""
    mean, variance = np.zeros(CHANNELS), np.ones(CHANNELS)
    for view in x:
        mean = 0.9 * mean + 0.1 * view.mean(axis=(0, 1, 2))
        variance = 0.9 * variance + 0.1 * view.var(axis=(0, 1, 2), ddof=1)
    return mean, variance


def build_layer():
    layer = BatchNormalization()
    layer.build((None, CHANNELS))
    layer.gamma.assign(GAMMA)
    layer.beta.assign(BETA)
    return layer


def concatenate(x):
    return tf.constant(x.reshape(-1, *x.shape[2:]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_each_view_is_normalised_by_its_own_statistics(num_views):
    x = views(num_views)
    y = build_layer()(concatenate(x), training=True, num_views=num_views)
    expected = np.concatenate([slow_normalize(view) for view in x])
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_views", [1, 2])
def test_running_statistics_are_updated_once_per_view_with_the_unbiased_variance(num_views):
    x, layer = views(num_views), build_layer()
    layer(concatenate(x), training=True, num_views=num_views)
    mean, variance = slow_running(x)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_variance.numpy(), variance, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_inference_uses_the_running_statistics_and_does_not_update_them():
    x, layer = views(), build_layer()
    layer.running_mean.assign([1, 2, 3])
    layer.running_variance.assign([4, 5, 6])
    y = layer(concatenate(x), training=False)
    expected = (concatenate(x).numpy() - [1, 2, 3]) / np.sqrt(np.array([4, 5, 6]) + 1e-5)
    np.testing.assert_allclose(y, expected * GAMMA + BETA, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(layer.running_mean.numpy(), [1, 2, 3])


def loss_and_gradients(layer, x, weights, num_views):
    """Returns the gradients of an asymmetric loss, by the layer's own gradient."""
    variables = [layer.gamma.value, layer.beta.value]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, num_views=num_views)
        loss = tf.reduce_sum(weights * tf.sin(y))
    return tape.gradient(loss, [x, *variables])


def derived_gradients(x, weights):
    """Returns the same gradients by automatic differentiation of the definition, per view."""
    gamma, beta = tf.constant(GAMMA), tf.constant(BETA)
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        parts = []
        for view in tf.split(x, 2):
            mean, variance = tf.nn.moments(view, axes=[0, 1, 2])
            parts.append((view - mean) / tf.sqrt(variance + 1e-5) * gamma + beta)
        loss = tf.reduce_sum(weights * tf.sin(tf.concat(parts, axis=0)))
    return tape.gradient(loss, [x, gamma, beta])


@pytest.mark.usefixtures("float64")
def test_the_handwritten_gradient_equals_automatic_differentiation():
    x = concatenate(views())
    weights = tf.constant(np.random.default_rng(1).standard_normal(x.shape))
    got = loss_and_gradients(build_layer(), x, weights, 2)
    for gradient, expected in zip(got, derived_gradients(x, weights), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_two_replicas_normalise_and_differentiate_as_one(two_replicas):
    x = views(batch=6)
    weights = np.random.default_rng(1).standard_normal(x.shape)
    single = build_layer()
    whole = concatenate(x)
    expected = single(whole, training=True, num_views=2)
    gradients = loss_and_gradients(build_layer(), whole, concatenate(weights), 2)

    def halves(array):  # each replica gets half of each view
        return tf.constant(np.stack([array[:, :3], array[:, 3:]]).reshape(2, 6, 4, 4, CHANNELS))

    with two_replicas.scope():
        layer = build_layer()

    @tf.function(autograph=False)
    def run(x_halves, weight_halves):
        def replica():
            replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
            x_half, weight_half = x_halves[replica_id], weight_halves[replica_id]
            with tf.GradientTape() as tape:
                tape.watch(x_half)
                y = layer(x_half, training=True, num_views=2)
                loss = tf.reduce_sum(weight_half * tf.sin(y))
            return y, *tape.gradient(loss, [x_half, layer.gamma.value, layer.beta.value])

        return two_replicas.run(replica)

    y, dx, dgamma, dbeta = (
        [part.numpy() for part in two_replicas.experimental_local_results(value)]
        for value in run(halves(x), halves(weights))
    )

    def whole_of(parts):  # restores the order of the views
        stacked = np.stack(parts).reshape(2, 2, 3, 4, 4, CHANNELS)
        return stacked.transpose(1, 0, 2, 3, 4, 5).reshape(whole.shape)

    np.testing.assert_allclose(whole_of(y), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole_of(dx), gradients[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sum(dgamma), gradients[1], rtol=1e-10)
    np.testing.assert_allclose(sum(dbeta), gradients[2], rtol=1e-10)
    np.testing.assert_allclose(
        layer.running_variance.numpy(), single.running_variance.numpy(), rtol=1e-12
    )


def test_a_large_mean_does_not_cancel_the_variance():
    x = (np.random.default_rng(0).standard_normal((2, 64, 4, 4, CHANNELS)) + 3000).astype("float32")
    y = BatchNormalization(affine=False)(concatenate(x), training=True, num_views=2)
    assert np.abs(np.std(y, axis=(0, 1, 2)) - 1).max() < 1e-3


def test_without_affine_there_is_nothing_to_train():
    layer = BatchNormalization(affine=False)
    layer.build((None, CHANNELS))
    assert layer.trainable_variables == []
    assert len(layer.weights) == 2


def test_there_is_one_collective_forward_and_one_backward_for_both_views(two_replicas):
    with two_replicas.scope():
        layer = build_layer()

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, num_views=2)
            forward.append(num_collectives())
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, [x, *layer.trainable_variables])

    def num_collectives():
        operations = tf.compat.v1.get_default_graph().get_operations()
        return sum("Collective" in operation.type for operation in operations)

    forward, after = [], []

    @tf.function(autograph=False)
    def run(x):
        gradients = two_replicas.run(step, args=(x,))
        after.append(num_collectives())
        return gradients

    run.get_concrete_function(tf.zeros([4, 5, 5, CHANNELS]))
    assert max(forward) == 2  # one on each of two replicas
    assert after == [4]
