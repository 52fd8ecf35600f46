"""A PyTorch copy of the reference network for tests, as functions of a state dict.

The copy transcribes section 3 of the paper with torchvision's tensor names. It uses PyTorch's own
convolution, batch normalization and SGD. Tests compare the TensorFlow results of this project with
it.
"""

import torch
from torch.nn import functional

DEPTHS = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def encoder_shapes(arch, width=64, kernel_size=7):
    """Returns {name: shape} of the tensors of a torchvision ResNet, without `fc`."""
    shapes = {"conv1.weight": (width, 3, kernel_size, kernel_size)} | _norm_shapes("bn1", width)
    channels = width
    for stage, depth in enumerate(DEPTHS[arch]):
        inner = width * 2**stage
        outer = inner if arch in ("resnet10", "resnet18", "resnet34") else 4 * inner
        for index in range(depth):
            block = f"layer{stage + 1}.{index}"
            if outer == inner:
                kernels = [(inner, channels, 3, 3), (inner, inner, 3, 3)]
            else:
                kernels = [(inner, channels, 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1)]
            for number, kernel in enumerate(kernels, start=1):
                shapes[f"{block}.conv{number}.weight"] = kernel
                shapes |= _norm_shapes(f"{block}.bn{number}", kernel[0])
            if index == 0 and (stage > 0 or channels != outer):
                shapes[f"{block}.downsample.0.weight"] = (outer, channels, 1, 1)
                shapes |= _norm_shapes(f"{block}.downsample.1", outer)
            channels = outer
    return shapes


def simsiam_shapes(arch, dim=2048, prediction_hidden_dim=512):
    """Returns {name: shape} of a SimSiam state dict, in which the projector is `encoder.fc`."""
    shapes = {f"encoder.{name}": shape for name, shape in encoder_shapes(arch).items()}
    feature_dim = next(reversed(encoder_shapes(arch).values()))[0]
    for index, output in ((0, feature_dim), (3, feature_dim), (6, dim)):
        shapes[f"encoder.fc.{index}.weight"] = (output, feature_dim)
        norm = _norm_shapes(f"encoder.fc.{index + 1}", output)
        if index == 6:
            shapes["encoder.fc.6.bias"] = (dim,)
            norm = {n: shape for n, shape in norm.items() if "running" in n}
        shapes |= norm
    shapes["predictor.0.weight"] = (prediction_hidden_dim, dim)
    shapes |= _norm_shapes("predictor.1", prediction_hidden_dim)
    shapes["predictor.3.weight"] = (dim, prediction_hidden_dim)
    shapes["predictor.3.bias"] = (dim,)
    return shapes


def _norm_shapes(name, channels):
    return {
        f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")
    }


def features(state, images, training=False, prefix=""):
    """Returns pool features `[N, F]` of NCHW images; training updates statistics in place."""

    def conv_norm(x, conv, norm, stride=1):
        kernel = state[f"{prefix}{conv}.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return batch_norm(state, x, prefix + norm, training)

    imagenet = state[f"{prefix}conv1.weight"].shape[-1] == 7
    x = torch.relu(conv_norm(images, "conv1", "bn1", 2 if imagenet else 1))
    if imagenet:
        x = functional.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        index = 0
        while f"{prefix}layer{stage}.{index}.conv1.weight" in state:
            block = f"layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            convs = 3 if f"{prefix}{block}.conv3.weight" in state else 2
            y = x
            for number in range(1, convs + 1):
                # The 3x3 convolution has the stride: the first of two, or the second of three.
                y = conv_norm(
                    y,
                    f"{block}.conv{number}",
                    f"{block}.bn{number}",
                    stride if number == convs - 1 else 1,
                )
                y = torch.relu(y) if number < convs else y
            if f"{prefix}{block}.downsample.0.weight" in state:
                x = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = torch.relu(x + y)
            index += 1
    return x.mean((2, 3))


def batch_norm(state, x, name, training):
    return functional.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state.get(f"{name}.weight"),
        state.get(f"{name}.bias"),
        training,
        0.1,
        1e-5,
    )


def project_and_predict(state, images):
    """Returns z and p of one view, in training mode."""
    x = features(state, images, training=True, prefix="encoder.")
    for index in (0, 3):
        x = functional.linear(x, state[f"encoder.fc.{index}.weight"])
        x = torch.relu(batch_norm(state, x, f"encoder.fc.{index + 1}", True))
    x = functional.linear(x, state["encoder.fc.6.weight"], state["encoder.fc.6.bias"])
    z = batch_norm(state, x, "encoder.fc.7", True)
    hidden = functional.linear(z, state["predictor.0.weight"])
    hidden = torch.relu(batch_norm(state, hidden, "predictor.1", True))
    return z, functional.linear(hidden, state["predictor.3.weight"], state["predictor.3.bias"])


def initial_state(arch, stem="imagenet", seed=0):
    """Returns a SimSiam state dict of random weights and the statistics of a new network."""
    shapes = simsiam_shapes(arch)
    if stem == "cifar":
        shapes["encoder.conv1.weight"] = (*shapes["encoder.conv1.weight"][:2], 3, 3)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            state[name] = torch.nn.init.kaiming_normal_(
                torch.empty(shape), mode="fan_out", generator=generator
            )
        else:
            is_one = name.endswith(("running_var", "weight"))
            state[name] = torch.full(shape, float(is_one))
    return state


def channels_last(state):
    """Returns the same tensors with those of rank 4 as NHWC in memory.

    On most devices this is PyTorch's fastest layout.
    """
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in state.items()
    }


def views_loss(state, first, second):
    """Returns SimSiam's symmetric loss of two NCHW views; updates running statistics in place."""
    (z1, p1), (z2, p2) = project_and_predict(state, first), project_and_predict(state, second)
    loss = -functional.cosine_similarity(p1, z2.detach()).mean() / 2
    return loss - functional.cosine_similarity(p2, z1.detach()).mean() / 2


def train(state, views, learning_rates, predictor_learning_rate, loss_of=views_loss):
    """Trains with SimSiam's loss and PyTorch's SGD; yields each step's loss and {name: momentum}.

    Args:
      state: a state dict, which is changed in place. The projector's last bias is frozen, as in the
        reference.
      views: `[steps, 2, B, C, H, W]`.
      learning_rates: for each step, the learning rate of all weights except the predictor's.
      predictor_learning_rate: the constant learning rate of the predictor.
      loss_of: `views_loss`, also in compiled form or under autocast.
    """
    frozen = [name for name in state if "running" in name or name == "encoder.fc.6.bias"]
    learned = {name: value for name, value in state.items() if name not in frozen}
    groups = [
        [value for name, value in learned.items() if name.startswith("predictor") == is_predictor]
        for is_predictor in (False, True)
    ]
    optimizer = torch.optim.SGD(
        [{"params": group} for group in groups], lr=0.1, momentum=0.9, weight_decay=1e-4
    )
    for (first, second), learning_rate in zip(views, learning_rates, strict=True):
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.param_groups[1]["lr"] = predictor_learning_rate
        for value in learned.values():
            value.requires_grad_()
        loss = loss_of(state, first, second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for value in learned.values():
            value.requires_grad_(False)
        momenta = {
            name: optimizer.state[value]["momentum_buffer"] for name, value in learned.items()
        }
        yield loss.item(), momenta
