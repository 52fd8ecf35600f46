"""The twin in PyTorch's faster forms: each still takes the same steps."""

import numpy as np
import pytest
import torch
import torch_twin

NUM_STEPS = 3


def losses(form):
    """Of a few steps in one form, from the same weights and on the same views."""
    state = torch_twin.initial_state("resnet10", "cifar")
    views = np.random.default_rng(0).normal(size=(NUM_STEPS, 2, 16, 3, 16, 16))
    views = torch.from_numpy(views.astype(np.float32))
    loss_of = torch_twin.views_loss
    if form == "channels last":
        state = torch_twin.channels_last(state)
        views = [
            [view.contiguous(memory_format=torch.channels_last) for view in pair] for pair in views
        ]
    if form == "traced":  # all that compiling does but the C++, which takes minutes
        loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    steps = torch_twin.train(state, views, [0.05] * NUM_STEPS, 0.05, loss_of)
    return [loss for loss, _ in steps]


@pytest.mark.parametrize("form", ["channels last", "traced"])
def test_a_faster_form_has_the_losses_of_the_eager_one(form):
    np.testing.assert_allclose(losses(form), losses("eager"), rtol=0, atol=1e-5)
