"""Which of our variables is which tensor of a PyTorch state dict, and in which layout.

torchvision names the backbone's tensors; the authors put them under `encoder.`, the projector in
the place of the classifier (`encoder.fc`), and the predictor beside (`predictor`).
"""

import keras
import numpy as np

from simsiam_tf.methods import build_method
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError


def encoder_variables(encoder):
    """{torchvision's name: variable} of a `ResNet`, in the order of its state dict."""
    named = _conv_norm("conv1", "bn1", encoder.stem)
    for block in encoder.blocks:
        name = block.name.replace("_", ".")
        for index, conv_norm in enumerate(block.conv_norms, start=1):
            named |= _conv_norm(f"{name}.conv{index}", f"{name}.bn{index}", conv_norm)
        if block.downsample:
            named |= _conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", block.downsample)
    return named


def model_variables(model):
    """{the authors' name: variable} of a `SimSiam` model, in the order of its state dict."""
    named = {f"encoder.{name}": value for name, value in encoder_variables(model.encoder).items()}
    return named | _mlp("encoder.fc", model.projector) | _mlp("predictor", model.predictor)


def encoder_prefix(names):
    """What stands before torchvision's names: `encoder.` in a SimSiam model, else nothing."""
    return "encoder." if any(name.startswith("encoder.") for name in names) else ""


def is_statistic(name):
    """Whether a tensor is a running statistic, which PyTorch does not count as a parameter."""
    return name.endswith(("running_mean", "running_var"))


def _conv_norm(conv_name, norm_name, conv_norm):
    return {f"{conv_name}.weight": conv_norm.conv.kernel} | _norm(norm_name, conv_norm.norm)


def _norm(name, norm):
    affine = {"weight": norm.gamma, "bias": norm.beta} if norm.affine else {}
    statistics = {"running_mean": norm.running_mean, "running_var": norm.running_variance}
    return {f"{name}.{key}": value for key, value in (affine | statistics).items()}


def _mlp(name, mlp):
    # torch.nn.Sequential counts [linear, norm, ReLU] for each layer.
    named = {}
    for index, linear in enumerate(mlp.linears):
        named[f"{name}.{3 * index}.weight"] = linear.kernel
        if linear.use_bias:
            named[f"{name}.{3 * index}.bias"] = linear.bias
        if index < len(mlp.norms):
            named |= _norm(f"{name}.{3 * index + 1}", mlp.norms[index])
    return named


def to_torch(array):
    """Keras' layout to PyTorch's: HWIO → OIHW, IO → OI; vectors stay."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def to_keras(array):
    """The inverse of `to_torch`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def infer_settings(shapes):
    """The settings that describe a state dict, from its tensors' shapes.

    Args:
      shapes: {name: shape}, a SimSiam model's or an encoder's alone.

    Returns:
      {flag name: value}: of the encoder, and of the method where there are heads.

    Raises:
      UserError: no ResNet of 10 to 152 layers has these names.
    """
    prefix = encoder_prefix(shapes)
    depths = tuple(
        _count(shapes, f"{prefix}layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4)
    )
    bottleneck = f"{prefix}layer1.0.conv3.weight" in shapes
    found = [
        name
        for name, architecture in resnet.ARCHITECTURES.items()
        if architecture == (bottleneck, depths)
    ]
    stem = shapes.get(f"{prefix}conv1.weight", ())
    if not found or len(stem) != 4:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            "The checkpoint must hold a ResNet of 18, 34, 50, 101 or 152 layers. Received: "
            f"{depths} {kind} blocks in its four stages, conv1.weight of shape {list(stem)}"
        )
    settings = {
        "backbone": found[0],
        "width": stem[0],
        "stem": "imagenet" if stem[2] == 7 else "cifar",
    }
    if prefix:
        layers = _count(shapes, "encoder.fc.{}.weight", step=3)
        hidden, last = "encoder.fc.0.weight", f"encoder.fc.{3 * (layers - 1)}.weight"
        settings |= {
            "projection_layers": layers,
            "projection_hidden_dim": _rows(shapes, hidden) if layers > 1 else 0,
            "projection_dim": _rows(shapes, last),
            "prediction_hidden_dim": _rows(shapes, "predictor.0.weight"),
        }
    return settings


def _count(shapes, pattern, step=1):
    count = 0
    while pattern.format(step * count) in shapes:
        count += 1
    return count


def _rows(shapes, name):
    if not shapes.get(name):
        raise UserError(f"The checkpoint must hold the tensor {name}. Received: none")
    return shapes[name][0]


def check(shapes, config):
    """Holds the names and shapes of a state dict against those of the model that it should be.

    Args:
      shapes: {name: shape}, all that the file holds.
      config: the `PretrainConfig` of the model.

    Raises:
      UserError: a tensor is missing, unknown, or of another shape.
    """
    # Variables that are declared and never filled: a hostile width costs no memory.
    with keras.StatelessScope(initialize_variables=False):
        encoder = resnet.ResNet(config.encoder, config.system.seed)
        variables = encoder_variables(encoder)
        if encoder_prefix(shapes):
            model = build_method(config.method, encoder, config.system.seed)
            variables = model_variables(model)
        expected = {name: _torch_shape(variable.shape) for name, variable in variables.items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise UserError(
                f"The checkpoint must hold the tensor {name} of shape {list(shape)}, as a "
                f"{config.encoder.backbone} does. Received: none of that name"
            )
        if shapes[name] != shape:
            raise UserError(
                f"The checkpoint's tensor {name} must have the shape {list(shape)}, as in a "
                f"{config.encoder.backbone}. Received: {list(shapes[name])}"
            )
    unknown = sorted(shapes.keys() - expected.keys())
    if unknown:
        raise UserError(
            f"The checkpoint must hold nothing but a {config.encoder.backbone}. Received: "
            f"{len(unknown)} more tensor(s), for example {unknown[0]}"
        )


def _torch_shape(shape):
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(reversed(shape))
