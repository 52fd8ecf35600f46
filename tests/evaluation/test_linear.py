import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import DataConfig
from simsiam_tf.data import views
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import linear
from simsiam_tf.evaluation.config import CropsConfig, LinearConfig


@pytest.fixture
def colours(red_and_blue):
    return red_and_blue(noise=100, tint=120)


def mean_colour(images):
    return tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2)) / 255


def train(source, **settings):
    config = LinearConfig(**({"epochs": 20, "base_learning_rate": 500.0} | settings))
    view = views.build_linear_view(8, CropsConfig.crop_min_area, CropsConfig.flip_probability)
    quarantine = Quarantine(source, DataConfig())
    return linear.train_classifier(mean_colour, 3, source, view, config, 0, quarantine)


def test_a_separable_problem_is_learned(colours):
    classifier = train(colours, batch_size=8)
    red_and_blue = tf.constant([[0.7, 0.2, 0.2], [0.2, 0.2, 0.7]])
    assert np.argmax(classifier(red_and_blue), axis=1).tolist() == [1, 0]


def test_a_batch_larger_than_the_split_is_the_split_and_is_logged(colours, caplog):
    caplog.set_level("INFO", logger="absl")
    classifier = train(colours, batch_size=4096, epochs=2)
    assert classifier.kernel.shape == (3, 2)
    assert "whole training split, 40 images" in caplog.text


def test_the_classifier_starts_with_small_weights_and_no_bias(colours):
    # One step with a learning rate too small to change the weights visibly.
    classifier = train(colours, epochs=1, base_learning_rate=1e-12)
    assert 0 < np.abs(classifier.kernel.numpy()).max() < 0.05
    np.testing.assert_allclose(classifier.bias.numpy(), 0, atol=1e-9)


def test_the_same_seed_trains_the_same_classifier(colours):
    first, second = (train(colours, batch_size=8, epochs=2).kernel.numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
