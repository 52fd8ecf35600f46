"""The encoder in the formats of several runtimes, each run by its own and compared.

One contract for all: `images` float32 `[N, H, W, 3]` in [0, 255] → `features` float32 `[N, F]`,
with N, H and W free; normalisation is inside. The SavedModel alone also takes encoded files.
"""

import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError

MOST_RELATIVE_DIFFERENCE = 1e-4


class Format(NamedTuple):
    """How a format is written, and run by what it is made for."""

    write: Callable  # (ServedEncoder, path) writes a file or folder
    load: Callable  # path → (images, NumPy → features, NumPy)
    dtype: str | None = None  # of weights and arithmetic; None: as trained


class Parity(NamedTuple):
    """How far the features of two encoders are apart."""

    absolute: float  # the largest difference
    relative: float  # that, as a share of the largest feature


def export(encoder, config, name, output, facts):
    """Writes an encoder in a format, once it gives the encoder's features; replaces what is there.

    Args:
      encoder: a `ResNet`, whose arithmetic is as precise as its weights.
      config: the run's `PretrainConfig`.
      name: of the format.
      output: the file, beside which `<output>.json` says what `encoder.json` does; of savedmodel
        the folder.
      facts: more entries of that, a dict.

    Returns:
      The `Parity` of what was written with `encoder`.

    Raises:
      UserError: they are further apart than `MOST_RELATIVE_DIFFERENCE`.
    """
    form = FORMATS[name]
    served = saved_model.serve(encoder, config, form.dtype or encoder.variable_dtype)
    with files.written_whole(output) as staging:
        form.write(served, staging)
        # Not of the copy that is served: what the copying gets wrong shall be seen as well.
        parity = compare(encoder, config, form.load(staging))
        if not parity.relative <= MOST_RELATIVE_DIFFERENCE:  # or NaN
            raise UserError(
                f"--format={name} does not give the encoder's features, and was not written. "
                f"Received: a largest difference of {parity.absolute:.1e}, "
                f"{parity.relative:.1e} of the largest feature, where at most "
                f"{MOST_RELATIVE_DIFFERENCE:.0e} is rounding"
            )
        is_folder = os.path.isdir(staging)
        description = os.path.join(staging, saved_model.DESCRIPTION)
        saved_model.write_description(
            description if is_folder else f"{output}.json", served, config, facts
        )
    return parity


def compare(encoder, config, encode):
    """The `Parity` of `encode`, a loaded format, with an encoder, on the same images at any time.

    Two batches, unlike in number and size, so that a dimension that is not free is found.
    """
    size = config.views.image_size
    reference = saved_model.ServedEncoder(encoder, size, config.views.eval_crop_ratio)
    differences, features = [], []
    for seed, shape in enumerate([(1, size, size, 3), (3, size + 8, size + 5, 3)]):
        images = tf.random.stateless_uniform(shape, [seed, 0], 0, 255)
        expected = reference.features(images)["features"].numpy()
        differences.append(np.abs(encode(images.numpy()) - expected).max())
        features.append(np.abs(expected).max())
    absolute, largest = float(np.max(differences)), float(np.max(features))
    return Parity(absolute, absolute / largest if absolute else 0.0)


def _load_savedmodel(path):
    encode, _ = saved_model.load(path)
    return lambda images: encode(tf.constant(images)).numpy()


def _write_onnx(served, path):
    import tf2onnx

    (images,) = served.features.input_signature
    model, _ = tf2onnx.convert.from_function(served.features, [images])
    # The converter numbers the free dimensions.
    for tensor, names in ((model.graph.input[0], "NHW"), (model.graph.output[0], "N")):
        for dimension, name in zip(tensor.type.tensor_type.shape.dim, names, strict=False):
            dimension.dim_param = name
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def _load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["features"], {"images": images})[0]


def _write_litert(served, path):
    with tempfile.TemporaryDirectory() as folder:
        saved_model.write(served, folder)
        # Of the signatures the one that needs no decoder, which LiteRT does not have.
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        model = converter.convert()
    with open(path, "wb") as file:
        file.write(model)


def _load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    encode = Interpreter(path).get_signature_runner("serving_default")
    return lambda images: encode(images=images)["features"]


FORMATS = {
    "savedmodel": Format(saved_model.write, _load_savedmodel),
    # Their runtimes compute in float32 whatever a run was trained in.
    "onnx": Format(_write_onnx, _load_onnx, "float32"),
    "litert": Format(_write_litert, _load_litert, "float32"),
}
