import math

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image

from simsiam_tf.config import DataConfig
from simsiam_tf.data import datasets, views
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


class Recorder:
    """An encoder with random features for each image, which keeps those that it gave."""

    def __init__(self, num_images, num_features):
        rng = np.random.default_rng(1)
        self.features = rng.standard_normal((num_images, num_features))
        self.indices = []

    def __call__(self, images):
        indices = images[:, 0, 0, 0].numpy() // 5  # an image is of one colour, which tells it
        self.indices.append(indices)
        return tf.constant(self.features[indices])


def of_one_colour(folder, num_images):
    for number in range(num_images):
        path = folder / "train" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (5 * number, 0, 0)).save(path)
    return datasets.load("folder", str(folder), "train")


class Larc:
    """LARC(trust_coefficient=0.001, clip=False) of the authors' script, around SGD of PyTorch.

    The local learning rate is trust · ‖w‖ / (‖g‖ + λ‖w‖ + 1e-8), and scales g + λw; a tensor whose
    weight or gradient is zero stays unscaled.
    """

    def __init__(self, optimizer, trust=0.001):
        self.optimizer, self.trust = optimizer, trust

    def step(self):
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                norm, gradient_norm = weight.data.norm(), weight.grad.data.norm()
                if norm != 0 and gradient_norm != 0:
                    weight.grad.data *= self.trust * norm / (gradient_norm + 1e-8)
        self.optimizer.step()


@pytest.mark.usefixtures("float64")
def test_ten_steps_are_those_of_the_authors_script_in_pytorch(tmp_path):
    # main_lincls.py: learning rate base * batch / 256, a half cosine by epoch, momentum 0.9, no
    # weight decay, LARS without clipping, a linear layer that starts at N(0, 0.01) and bias 0.
    source = of_one_colour(tmp_path, num_images=40)
    encode = Recorder(40, num_features=6)
    config = LinearConfig(batch_size=8, epochs=2, base_learning_rate=1600.0)
    view = views.build_linear_view(8, 0.08, 0.5)
    quarantine = Quarantine(source, DataConfig())
    classifier = linear.train_classifier(encode, 6, source, view, config, 0, quarantine)

    start = linear.build_classifier(6, 3, seed=0)
    reference = torch.nn.Linear(6, 3, dtype=torch.float64)
    reference.weight.data = torch.tensor(start.kernel.numpy().T)
    reference.bias.data = torch.tensor(start.bias.numpy())
    optimizer = torch.optim.SGD(
        reference.parameters(), 1600.0 * 8 / 256, momentum=0.9, weight_decay=0
    )
    larc = Larc(optimizer)
    for step, indices in enumerate(encode.indices):
        epoch = step // 5
        for group in optimizer.param_groups:
            group["lr"] = 1600.0 * 8 / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 2))
        loss = torch.nn.functional.cross_entropy(
            reference(torch.tensor(encode.features[indices])), torch.tensor(indices % 3).long()
        )
        optimizer.zero_grad()
        loss.backward()
        larc.step()

    assert len(encode.indices) == 10
    assert np.abs(classifier.kernel.numpy() - start.kernel.numpy()).max() > 1e-3
    np.testing.assert_allclose(
        classifier.kernel.numpy(), reference.weight.detach().numpy().T, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(classifier.bias.numpy(), reference.bias.detach().numpy(), atol=1e-6)


def test_the_defaults_are_those_of_the_authors_script():
    config = LinearConfig()
    assert (config.batch_size, config.epochs, config.base_learning_rate) == (4096, 90, 0.1)
    assert (config.momentum, config.weight_decay, config.lars_trust_coefficient) == (0.9, 0, 0.001)
    assert (CropsConfig.crop_min_area, CropsConfig.flip_probability) == (0.08, 0.5)
