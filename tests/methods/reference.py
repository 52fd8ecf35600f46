"""The fixtures of the authors' PyTorch code: their formula of weights and views, their numbers."""

import json
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


class Reference:
    """One `official_simsiam_*.npz`, and the inputs that its numbers were computed from."""

    def __init__(self, backbone):
        self.numbers = np.load(FIXTURES / f"official_simsiam_{backbone}.npz")
        self.settings = json.loads(str(self.numbers["settings"]))

    def weight(self, name, shape):
        """The tensor of a PyTorch state dict's name and shape, float64."""
        rng = np.random.default_rng([zlib.crc32(name.encode()), self.settings["seed"]])
        x = rng.standard_normal(shape)
        if name.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif name.endswith("running_mean"):
            x = 0.05 * x
        elif len(shape) > 1:
            x = x / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        return x.astype(np.float32).astype(np.float64)

    def views(self):
        """`[steps, 2, batch, size, size, 3]` float64."""
        size, batch = self.settings["size"], self.settings["batch"]
        rng = np.random.default_rng([20201120, self.settings["seed"]])
        shape = (len(self.settings["learning_rates"]), 2, batch, size, size, 3)
        return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def named_weights(model):
    """Our variables by the names of the reference's state dict."""
    named = {}

    def add_norm(name, norm):
        if norm.affine:
            named[f"{name}.weight"], named[f"{name}.bias"] = norm.gamma, norm.beta
        named[f"{name}.running_mean"] = norm.running_mean
        named[f"{name}.running_var"] = norm.running_variance

    def add_conv_norm(conv_name, norm_name, conv_norm):
        named[f"{conv_name}.weight"] = conv_norm.conv.kernel
        add_norm(norm_name, conv_norm.norm)

    encoder = model.encoder
    add_conv_norm("encoder.conv1", "encoder.bn1", encoder.stem)
    for block in encoder.blocks:
        name = f"encoder.{block.name.replace('_', '.')}"
        for index, conv_norm in enumerate(block.conv_norms, start=1):
            add_conv_norm(f"{name}.conv{index}", f"{name}.bn{index}", conv_norm)
        if block.downsample:
            add_conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", block.downsample)
    # torch.nn.Sequential numbers the ReLUs too.
    for head, name in ((model.projector, "encoder.fc"), (model.predictor, "predictor")):
        for index, linear in enumerate(head.linears):
            named[f"{name}.{3 * index}.weight"] = linear.kernel
            if linear.use_bias:
                named[f"{name}.{3 * index}.bias"] = linear.bias
        for index, norm in enumerate(head.norms):
            add_norm(f"{name}.{3 * index + 1}", norm)
    return named


def to_keras(tensor):
    """PyTorch's layout to Keras': OIHW → HWIO, OI → IO."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_torch(tensor):
    """The inverse of `to_keras`."""
    return tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T


def load_weights(model, reference):
    """Gives a model the weights of the reference's formula."""
    for name, variable in named_weights(model).items():
        shape = to_torch(np.empty(variable.shape)).shape
        variable.assign(to_keras(reference.weight(name, shape)))
