"""Max-pooling against PyTorch."""

import numpy as np
import pytest
import tensorflow as tf
import torch

from simsiam_tf.models.pooling import MaxPool


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3), (1, 1, 5, 2), (2, 16, 15, 4)])
def test_values_and_gradient_equal_pytorchs_even_with_tied_maxima(shape):
    # The inputs are small integers, half of them zero, so most windows have tied maxima.
    x = np.maximum(np.random.default_rng(0).integers(-3, 4, shape), 0).astype(np.float32)
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = MaxPool()(inputs, training=True)
        weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        loss = tf.reduce_sum(y * weights)
    torch_inputs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(torch_inputs, 3, 2, 1)
    (expected * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    np.testing.assert_array_equal(y, expected.detach().numpy().transpose(0, 2, 3, 1))
    expected_gradient = torch_inputs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(tape.gradient(loss, inputs), expected_gradient)
    np.testing.assert_array_equal(MaxPool()(inputs), y)
