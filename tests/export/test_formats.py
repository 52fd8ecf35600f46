import json

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from simsiam_tf.data.pixels import RGB
from simsiam_tf.export import formats
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError

# These settings use every kind of layer: padded and strided convolutions, pooling, slices.
SETTINGS = {"width": 4, "stem": "imagenet", "backbone": "resnet18", "image_size": 32}


def encoder_of(config):
    """An encoder whose weights and statistics differ from their initial values."""
    encoder = ResNet(config.encoder, seed=0)
    for variable in encoder.weights:
        noise = tf.random.stateless_uniform(variable.shape, [1, 1], 0.5, 1.5, variable.dtype)
        variable.assign(variable.value * noise + 0.01)
    return encoder


def run_savedmodel(path, images):
    return tf.saved_model.load(path).signatures["serving_default"](images=images)["features"]


def run_onnx(path, images):
    return onnxruntime.InferenceSession(path).run(["features"], {"images": images})[0]


def run_litert(path, images):
    # The older interface of the runtime, with the shape set explicitly.
    interpreter = Interpreter(path)
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(given["index"])


RUN = {"savedmodel": run_savedmodel, "onnx": run_onnx, "litert": run_litert}


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_reproduces_the_encoders_features(tmp_path, pretrain_config, name):
    config = pretrain_config(**SETTINGS)
    encoder, output = encoder_of(config), tmp_path / "encoder"
    parity = formats.export(encoder, config, name, str(output), {"step": 7})
    assert 0 <= parity.relative < 1e-5
    images = np.random.default_rng(0).uniform(0, 255, (5, 40, 48, 3)).astype(np.float32)
    expected = encoder(RGB.normalize(tf.constant(images) / 255), training=False).numpy()
    got = RUN[name](str(output), images)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    beside = {"savedmodel": output / "encoder.json"}.get(name, tmp_path / "encoder.json")
    assert json.loads(beside.read_text())["step"] == 7
    assert {path.name for path in tmp_path.iterdir()} <= {"encoder", "encoder.json"}


def test_parity_is_the_largest_difference_of_any_feature(pretrain_config):
    config = pretrain_config(**SETTINGS)
    encoder = encoder_of(config)

    def shifted(images):
        """Features with an error of 0.25 in the last image of the batch of three."""
        features = encoder(RGB.normalize(tf.constant(images) / 255), training=False).numpy()
        features[-1, 3] -= 0.25 * (len(images) == 3)
        return features

    parity = formats.compare(encoder, config, shifted)
    assert parity.absolute == pytest.approx(0.25, abs=1e-4)
    assert 0 < parity.relative < 0.25 / 0.01


def test_an_export_with_other_features_is_not_written(tmp_path, pretrain_config):
    config = pretrain_config(**SETTINGS)
    encoder, output = encoder_of(config), tmp_path / "encoder.onnx"
    output.write_bytes(b"an earlier one")
    encoder.weights[0].assign(encoder.weights[0].value * np.nan)
    with pytest.raises(UserError, match="--format=onnx does not reproduce the encoder's features"):
        formats.export(encoder, config, "onnx", str(output), {})
    assert output.read_bytes() == b"an earlier one"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.usefixtures("float64")
def test_a_float64_encoder_becomes_float32_in_onnx(tmp_path, pretrain_config):
    config = pretrain_config(**SETTINGS, precision="float64")
    parity = formats.export(encoder_of(config), config, "onnx", str(tmp_path / "e.onnx"), {})
    assert 0 < parity.relative < 1e-5
