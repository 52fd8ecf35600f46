"""Fixtures from the authors' PyTorch code: the formula of weights and views, and the results."""

import json
import zlib
from pathlib import Path

import numpy as np

from simsiam_tf.interop import naming

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


class Reference:
    """The results in one `official_simsiam_*.npz`, and the inputs that they were computed from."""

    def __init__(self, backbone):
        self.numbers = np.load(FIXTURES / f"official_simsiam_{backbone}.npz")
        self.settings = json.loads(str(self.numbers["settings"]))

    def weight(self, name, shape):
        """Returns the float64 tensor with this name and shape in the PyTorch state dict."""
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
        """Returns the views of all steps, `[steps, 2, batch, size, size, 3] float64`."""
        size, batch = self.settings["size"], self.settings["batch"]
        rng = np.random.default_rng([20201120, self.settings["seed"]])
        shape = (len(self.settings["learning_rates"]), 2, batch, size, size, 3)
        return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def load_weights(model, reference):
    """Sets a model's weights to those of the reference's formula."""
    for name, variable in naming.model_variables(model).items():
        shape = naming.to_torch(np.empty(variable.shape)).shape
        variable.assign(naming.to_keras(reference.weight(name, shape)))
