"""PyTorch's faster forms of the network copy take the same steps as the eager form."""

import numpy as np
import pytest
import torch
import torch_copy

NUM_STEPS = 3


def losses(form):
    """Returns the losses of a few steps in one form, from fixed weights and on fixed views."""
    state = torch_copy.initial_state("resnet10", "cifar")
    views = np.random.default_rng(0).normal(size=(NUM_STEPS, 2, 16, 3, 16, 16))
    views = torch.from_numpy(views.astype(np.float32))
    loss_of = torch_copy.views_loss
    if form == "channels last":
        state = torch_copy.channels_last(state)
        views = [
            [view.contiguous(memory_format=torch.channels_last) for view in pair] for pair in views
        ]
    if form == "traced":  # compiles without the C++ stage, which takes minutes
        loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    steps = torch_copy.train(state, views, [0.05] * NUM_STEPS, 0.05, loss_of)
    return [loss for loss, _ in steps]


@pytest.mark.parametrize("form", ["channels last", "traced"])
def test_a_faster_form_gives_the_losses_of_the_eager_form(form):
    np.testing.assert_allclose(losses(form), losses("eager"), rtol=0, atol=1e-5)
