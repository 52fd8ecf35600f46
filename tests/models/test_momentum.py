import keras
import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import EncoderConfig, MethodConfig
from simsiam_tf.models.momentum import MomentumEncoder, new_share
from simsiam_tf.models.resnet import ResNet

CONFIG = MethodConfig(
    projection_dim=8, projection_hidden_dim=8, target_momentum=0.9,
    target_momentum_schedule="constant", method="byol",
)  # fmt: skip


@pytest.fixture
def followed():
    encoder = ResNet(EncoderConfig(backbone="resnet10", width=4, stem="cifar"), seed=3)
    return encoder, MomentumEncoder(encoder, CONFIG, seed=3, num_steps=10)


def test_a_momentum_encoder_starts_with_the_weights_that_it_follows(followed):
    encoder, target = followed
    for value, expected in zip(target.encoder.get_weights(), encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert target.encoder.weights[0] is not encoder.weights[0]


@pytest.mark.parametrize("skipped", [False, True])
def test_weights_move_by_one_minus_the_momentum_unless_the_step_is_skipped(followed, skipped):
    _, target = followed
    averages = [*target.encoder.trainable_variables, *target.projector.trainable_variables]
    goals = [keras.Variable(average + 1.0) for average in averages]
    before = [average.numpy() for average in averages]
    target.follow(goals, tf.constant(0), tf.constant(skipped))
    for average, old in zip(averages, before, strict=True):
        np.testing.assert_allclose(average, old + (0 if skipped else 0.1), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_cosine_schedule_is_byols():
    # Section 3.2: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2.
    got = [float(new_share(0.99, "cosine", step, 100)) for step in (0, 25, 50, 100)]
    expected = [0.01 * (np.cos(np.pi * k / 100) + 1) / 2 for k in (0, 25, 50, 100)]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-30)
    assert float(new_share(0.99, "constant", 70, 100)) == pytest.approx(0.01, rel=1e-12)


def test_the_schedule_keeps_its_precision_in_float32():
    # Near the end of a run, 1 - m is far below the resolution of m in float32.
    got = float(new_share(0.996, "cosine", 499_000, 500_000))
    assert got == pytest.approx(0.004 * np.cos(np.pi / 2 * 0.998) ** 2, rel=1e-4)
