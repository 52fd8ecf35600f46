import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf import objectives


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def test_negative_cosine_similarity_is_the_papers_equation_1():
    p, z = random(5, 7), random(5, 7) + 1
    # Equation 1, row by row.
    slow = [-(a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)) for a, b in zip(p, z, strict=True)]
    assert float(objectives.negative_cosine_similarity(p, z)) == pytest.approx(np.mean(slow), 1e-12)


def test_negative_cosine_similarity_is_minus_one_for_parallel_vectors():
    z = random(4, 6)
    assert float(objectives.negative_cosine_similarity(3 * z, z)) == pytest.approx(-1, 1e-12)


def test_negative_cosine_similarity_itself_stops_no_gradient():
    p, z = tf.constant(random(3, 4)), tf.constant(random(3, 4) - 1)
    with tf.GradientTape() as tape:
        tape.watch([p, z])
        loss = objectives.negative_cosine_similarity(p, z)
    for gradient in tape.gradient(loss, [p, z]):
        assert np.abs(gradient).max() > 1e-3


def moments(z):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return unit.mean(axis=0), (unit**2).mean(axis=0), unit


def test_feature_std_is_the_mean_channel_std_of_unit_vectors_times_root_d():
    mean, mean_square, unit = moments(random(64, 10) + 0.5)
    expected = unit.std(axis=0).mean() * np.sqrt(10)
    assert float(objectives.feature_std(mean, mean_square)) == pytest.approx(expected, 1e-9)


def test_feature_std_is_about_one_for_gaussian_features_and_zero_for_a_point():
    spread = float(objectives.feature_std(*moments(random(4096, 128))[:2]))
    collapsed = float(objectives.feature_std(*moments(np.ones((16, 128)))[:2]))
    assert spread == pytest.approx(1, abs=0.01)
    assert collapsed == pytest.approx(0, abs=1e-6)
