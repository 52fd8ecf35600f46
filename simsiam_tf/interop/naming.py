"""The mapping between this project's variables and the tensors of a PyTorch state dict.

torchvision's names are the names of the backbone's tensors. The authors' code puts them under
`encoder.`, the projector in place of the classifier (`encoder.fc`), and the predictor beside the
encoder (`predictor`).
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from simsiam_tf.config import PretrainConfig
from simsiam_tf.methods import build_method
from simsiam_tf.methods.simsiam import SimSiam
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError

Shape = tuple[int, ...]


def model_variables(model: SimSiam) -> dict[str, keras.Variable]:
    """Returns the variables of a SimSiam model by the authors' names, in state-dict order."""
    parts: dict[str, Any] = {
        "encoder": model.encoder,
        "encoder.fc": model.projector,
        "predictor": model.predictor,
    }
    return {
        f"{part}.{name}": variable
        for part, layer in parts.items()
        for name, variable in layer.named_weights().items()
    }


def encoder_prefix(names: Iterable[str]) -> str:
    """Returns the prefix of torchvision's names: `encoder.` in a SimSiam state dict, else empty."""
    return "encoder." if any(name.startswith("encoder.") for name in names) else ""


def is_statistic(name: str) -> bool:
    """Returns whether a tensor is a running statistic, which is not a parameter in PyTorch."""
    return name.endswith(("running_mean", "running_var"))


def to_torch(array: np.ndarray) -> np.ndarray:
    """Returns the array in PyTorch's layout: HWIO → OIHW, IO → OI; vectors do not change."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def to_keras(array: np.ndarray) -> np.ndarray:
    """Returns the array in Keras' layout, the inverse of `to_torch`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def infer_settings(shapes: Mapping[str, Shape]) -> dict[str, str | int]:
    """Returns the settings of the network that a state dict belongs to, from its tensor shapes.

    Args:
      shapes: {name: shape} of a SimSiam model, or of an encoder alone.

    Returns:
      {flag name: value}: the settings of the encoder and, if the state dict has heads, of the
      method.

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
            "The checkpoint must contain a ResNet of 18, 34, 50, 101 or 152 layers. Received: "
            f"{depths} {kind} blocks in its four stages and conv1.weight of shape {list(stem)}"
        )
    settings: dict[str, str | int] = {
        "backbone": found[0],
        "width": stem[0],
        "stem": "imagenet" if stem[2] == 7 else "cifar",
    }
    if prefix:
        layers = _count(shapes, "encoder.fc.{}.weight", step=3)
        hidden, last = "encoder.fc.0.weight", f"encoder.fc.{3 * (layers - 1)}.weight"
        settings |= {
            "projection_layers": layers,
            "projection_hidden_dim": _output_dim(shapes, hidden) if layers > 1 else 0,
            "projection_dim": _output_dim(shapes, last),
            "prediction_hidden_dim": _output_dim(shapes, "predictor.0.weight"),
        }
    return settings


def _count(names: Collection[str], pattern: str, step: int = 1) -> int:
    """Returns how many names of a numbered pattern exist, without a gap from 0 on."""
    count = 0
    while pattern.format(step * count) in names:
        count += 1
    return count


def _output_dim(shapes: Mapping[str, Shape], name: str) -> int:
    if not shapes.get(name):
        raise UserError(f"The checkpoint must contain the tensor {name}. Received: none")
    return shapes[name][0]


def check(shapes: Mapping[str, Shape], config: PretrainConfig) -> None:
    """Checks the names and shapes of a state dict against the model of a config.

    Args:
      shapes: {name: shape} of all tensors in the file.
      config: the settings of the model.

    Raises:
      UserError: a tensor is missing, is unknown or has a wrong shape.
    """
    # The variables are declared but not filled, so a hostile width allocates no memory.
    with keras.StatelessScope(initialize_variables=False):
        encoder = resnet.ResNet(config.encoder, config.system.seed)
        variables = encoder.named_weights()
        if encoder_prefix(shapes):
            model = build_method(config.method, encoder, config.system.seed)
            variables = model_variables(model)
        expected = {name: _torch_shape(variable.shape) for name, variable in variables.items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise UserError(
                f"The checkpoint must contain the tensor {name} of shape {list(shape)}, as in a "
                f"{config.encoder.backbone}. Received: no tensor of that name"
            )
        if shapes[name] != shape:
            raise UserError(
                f"The checkpoint's tensor {name} must have the shape {list(shape)}, as in a "
                f"{config.encoder.backbone}. Received: {list(shapes[name])}"
            )
    unknown = sorted(shapes.keys() - expected.keys())
    if unknown:
        raise UserError(
            f"The checkpoint must contain only the tensors of a {config.encoder.backbone}. "
            f"Received: {len(unknown)} more tensor(s), for example {unknown[0]}"
        )


def _torch_shape(shape: Shape) -> Shape:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(reversed(shape))
