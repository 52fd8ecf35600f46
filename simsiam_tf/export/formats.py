"""Export of the encoder to several formats; each is run by its own runtime and compared.

All formats have one contract: `images` float32 `[N, H, W, C]`, in [0, 255] or in the run's range of
values, → `features` float32 `[N, F]`, with N free; H and W are free too, unless the network takes
one size only. Normalisation is inside. Only the SavedModel also takes encoded files.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.export import saved_model
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.schema import UserError

MOST_RELATIVE_DIFFERENCE = 1e-4


class Format(NamedTuple):
    """How a format is written, and loaded by its own runtime."""

    write: Callable[[saved_model.ServedEncoder, str], None]  # writes a file or folder
    load: Callable[[str], Callable[[np.ndarray], np.ndarray]]  # path → (images → features)
    dtype: str | None = None  # dtype of weights and arithmetic; None: as trained


class Parity(NamedTuple):
    """The difference between the features of two encoders."""

    absolute: float  # the largest difference
    relative: float  # the largest difference, as a share of the largest feature


def export(
    encoder: Backbone,
    config: PretrainConfig,
    name: str,
    output: str,
    facts: dict[str, Any],
    pixels: Pixels = RGB,
) -> Parity:
    """Writes an encoder in a format, if the written file reproduces the encoder's features.

    An earlier export at `output` is replaced only then.

    Args:
      encoder: the encoder, whose arithmetic is as precise as its weights.
      config: settings of the encoder's run.
      name: name of the format, a key of `FORMATS`.
      output: the file, described by `<output>.json` beside it; for savedmodel the folder, described
        by `encoder.json` in it.
      facts: more entries of the description.
      pixels: what the pixels of the run's images are.

    Returns:
      The `Parity` of the written file with `encoder`.

    Raises:
      UserError: the relative difference is above `MOST_RELATIVE_DIFFERENCE`.
    """
    format_ = FORMATS[name]
    served = saved_model.serve(encoder, config, format_.dtype or encoder.variable_dtype, pixels)
    with files.written_whole(output) as staging:
        format_.write(served, staging)
        # Compared with the encoder, not with the copy in `served`, so that an error of the copying
        # shows as well.
        parity = compare(encoder, config, format_.load(staging), pixels)
        if not parity.relative <= MOST_RELATIVE_DIFFERENCE:  # or NaN
            raise UserError(
                f"--format={name} does not reproduce the encoder's features, and was not written. "
                f"Received: a largest difference of {parity.absolute:.1e}, "
                f"{parity.relative:.1e} of the largest feature, where at most "
                f"{MOST_RELATIVE_DIFFERENCE:.0e} is allowed as rounding"
            )
        is_folder = os.path.isdir(staging)
        description = os.path.join(staging, saved_model.DESCRIPTION)
        saved_model.write_description(
            description if is_folder else f"{output}.json", served, config, facts
        )
    return parity


def compare(
    encoder: Backbone,
    config: PretrainConfig,
    encode: Callable[[np.ndarray], np.ndarray],
    pixels: Pixels = RGB,
) -> Parity:
    """Returns the `Parity` of a loaded format with an encoder; the images are always the same.

    The two batches differ in number and size of images, to detect a dimension that is not free. A
    network that takes one size only sees images of that size.

    Args:
      encoder: the encoder.
      config: settings of the encoder's run.
      encode: the loaded format: images `[N, H, W, C]` float32 → features `[N, F]`.
      pixels: what the pixels of the run's images are.
    """
    size, fixed = config.views.image_size, encoder.image_size
    reference = saved_model.ServedEncoder(encoder, size, config.views.eval_crop_ratio, pixels)
    differences, features = [], []
    for seed, shape in enumerate([(1, size, size), (3, fixed or size + 8, fixed or size + 5)]):
        whole = [*shape, pixels.channels]
        images = tf.random.stateless_uniform(whole, [seed, 0], pixels.low, pixels.high)
        expected = reference.features(images)["features"].numpy()
        differences.append(np.abs(encode(images.numpy()) - expected).max())
        features.append(np.abs(expected).max())
    absolute, largest = float(np.max(differences)), float(np.max(features))
    return Parity(absolute, absolute / largest if absolute else 0.0)


def _load_savedmodel(path: str) -> Callable[[np.ndarray], np.ndarray]:
    encode, _ = saved_model.load(path)
    return lambda images: encode(tf.constant(images)).numpy()


def _write_onnx(served: saved_model.ServedEncoder, path: str) -> None:
    import tf2onnx

    _register_erfc()
    model, _ = tf2onnx.convert.from_graph_def(
        _frozen_graph(served.features),
        input_names=["images:0"],
        output_names=["Identity:0"],
        tensors_to_rename={"images:0": "images", "Identity:0": "features"},
    )
    # The converter gives the free dimensions numbers, so they are named here.
    for tensor, names in ((model.graph.input[0], "NHW"), (model.graph.output[0], "N")):
        for dimension, name in zip(tensor.type.tensor_type.shape.dim, names, strict=False):
            if not dimension.dim_value:
                dimension.dim_param = name
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def _frozen_graph(features: Any) -> Any:
    """Returns the graph of a `tf.function`, in which weights and other tensors are constants.

    The converter's own `from_function` takes tensors that a layer keeps, such as the indices of
    positions, for inputs. It does not know functions that XLA compiles, such as Keras' grouped
    convolution, so functions are traced as part of their caller.
    """
    from tf2onnx import tf_loader

    were_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        function = features.get_concrete_function()
    finally:
        tf.config.run_functions_eagerly(were_eager)
    frozen = tf_loader.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    graph = frozen.graph.as_graph_def(add_shapes=True)
    kept = {inner.op.name: outer for outer, inner in function.graph.captures}
    for node in graph.node:
        if node.op == "Placeholder" and node.name in kept:
            value = tf.make_tensor_proto(kept[node.name])
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
    return graph


def _register_erfc() -> None:
    """Teaches the converter the complementary error function, of the activation GELU."""
    from tf2onnx import handler, utils

    class Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", node.input)
            one = ctx.make_const(
                utils.make_name("one"), np.ones([], utils.map_onnx_to_numpy_type(dtype))
            )
            ctx.make_node(
                "Sub",
                [one.output[0], erf.output[0]],
                outputs=node.output,
                shapes=[shape],
                dtypes=[dtype],
            )

    handler.tf_op("Erfc")(Erfc)


def _load_onnx(path: str) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["features"], {"images": images})[0]


def _write_litert(served: saved_model.ServedEncoder, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved_model.write(served, folder)
        # The other signature needs an image decoder, which LiteRT does not have.
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        model = converter.convert()
    with open(path, "wb") as file:
        file.write(model)


def _load_litert(path: str) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    encode = Interpreter(path).get_signature_runner("serving_default")
    return lambda images: encode(images=images)["features"]


FORMATS = {
    "savedmodel": Format(saved_model.write, _load_savedmodel),
    # The runtimes of these formats compute in float32, whatever the precision of the run.
    "onnx": Format(_write_onnx, _load_onnx, "float32"),
    "litert": Format(_write_litert, _load_litert, "float32"),
}
