import json

import numpy as np
import pytest
import tensorflow as tf
from own_networks import VIT

from simsiam_tf.data import decoding, views
from simsiam_tf.data.pixels import RGB
from simsiam_tf.export import formats, saved_model
from simsiam_tf.models import backbones
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError

SETTINGS = {"width": 4, "stem": "cifar", "backbone": "resnet10", "image_size": 16}


@pytest.fixture
def images():
    return tf.random.stateless_uniform([3, 16, 16, 3], [0, 0], 0, 255)


def train_a_little(encoder):
    """Changes all weights and statistics, and returns the encoder."""
    for variable in encoder.weights:
        noise = tf.random.stateless_uniform(variable.shape, [1, 1], 0.5, 1.5, variable.dtype)
        variable.assign(variable.value * noise + 0.1)
    return encoder


def save(config, directory):
    encoder = train_a_little(ResNet(config.encoder, seed=0))
    saved_model.save(encoder, config, str(directory), {"step": 7})
    return encoder


def test_the_loaded_encoder_gives_the_features_of_the_saved_one(tmp_path, pretrain_config, images):
    encoder = save(pretrain_config(**SETTINGS), tmp_path / "encoder")
    encode, description = saved_model.load(str(tmp_path / "encoder"))
    expected = encoder(RGB.normalize(images / 255), training=False)
    np.testing.assert_allclose(encode(images), expected, rtol=1e-5, atol=1e-6)
    assert encode(images).shape == (3, description["features"])
    assert description["step"] == 7
    assert description["image_size"] == 16


def test_the_input_may_have_any_size(tmp_path, pretrain_config):
    save(pretrain_config(**SETTINGS), tmp_path / "encoder")
    encode, _ = saved_model.load(str(tmp_path / "encoder"))
    assert encode(tf.zeros([2, 24, 20, 3])).shape == (2, 32)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_feature_maps_are_those_of_the_four_stages(tmp_path, pretrain_config, images, stem):
    encoder = save(pretrain_config(**SETTINGS | {"stem": stem}), tmp_path / "encoder")
    loaded = tf.saved_model.load(str(tmp_path / "encoder"))
    maps = loaded.signatures["feature_maps"](images=images)
    strides = {"cifar": (1, 2, 4, 8), "imagenet": (4, 8, 16, 32)}[stem]
    for stage, stride in enumerate(strides):
        side = -(-16 // stride)
        assert maps[f"stage{stage + 1}"].shape == (3, side, side, 4 * 2**stage)
    features = encoder(RGB.normalize(images / 255), training=False)
    np.testing.assert_allclose(
        tf.reduce_mean(maps["stage4"], axis=(1, 2)), features, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("backbone", [VIT, "own_networks:grouped"])
def test_networks_of_keras_are_exported_in_every_format(tmp_path, pretrain_config, name, backbone):
    config = pretrain_config(backbone=backbone.format(dropout=0.1), image_size=16)
    encoder = train_a_little(backbones.build(config.encoder, seed=0, image_size=16))
    parity = formats.export(encoder, config, name, str(tmp_path / "encoder"), {})
    assert parity.relative < 1e-5


def test_encoded_files_are_resized_and_cropped_as_evaluation_does(tmp_path, pretrain_config):
    save(pretrain_config(**SETTINGS), tmp_path / "encoder")
    encode, _ = saved_model.load(str(tmp_path / "encoder"))
    image = tf.cast(tf.random.stateless_uniform([40, 30, 3], [0, 0], 0, 256, tf.int32), tf.uint8)
    files = tf.stack([tf.io.encode_png(image), tf.io.encode_jpeg(image)])
    served = tf.saved_model.load(str(tmp_path / "encoder")).signatures["serve_encoded"]
    view = views.build_evaluation_view(16, 0.875)
    expected = encode(tf.stack([view(decoding.decode_image(file)) for file in files]))
    np.testing.assert_allclose(served(encoded=files)["features"], expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_loaded_features_reaches_every_weight(
    tmp_path, pretrain_config, images
):
    save(pretrain_config(**SETTINGS), tmp_path / "encoder")
    loaded = tf.saved_model.load(str(tmp_path / "encoder"))
    signature = loaded.signatures["serving_default"]
    assert len(signature.trainable_variables) == 36  # 12 convolutions with BN: kernel, gamma, beta
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(signature(images=images)["features"] ** 2)
    for gradient in tape.gradient(loss, signature.trainable_variables):
        assert float(tf.reduce_max(tf.abs(gradient))) > 0


@pytest.mark.usefixtures("float64")
def test_a_float64_encoder_serves_float32(tmp_path, pretrain_config, images):
    encoder = save(pretrain_config(**SETTINGS, precision="float64"), tmp_path / "encoder")
    features = saved_model.load(str(tmp_path / "encoder"))[0](images)
    assert features.dtype == tf.float32
    expected = encoder(RGB.normalize(tf.cast(images, tf.float64) / 255), training=False)
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_an_encoder_trained_on_two_replicas_is_exported_as_one(
    tmp_path, pretrain_config, two_replicas, images
):
    config = pretrain_config(**SETTINGS)
    with two_replicas.scope():
        encoder = train_a_little(ResNet(config.encoder, seed=0))
    saved_model.save(encoder, config, str(tmp_path / "encoder"), {})
    expected = train_a_little(ResNet(config.encoder, seed=0))(RGB.normalize(images / 255))
    encode, _ = saved_model.load(str(tmp_path / "encoder"))
    np.testing.assert_allclose(encode(images), expected, rtol=1e-5, atol=1e-6)


def test_exporting_again_replaces_the_earlier_export(tmp_path, pretrain_config):
    config = pretrain_config(**SETTINGS)
    (tmp_path / "encoder.partial").mkdir()  # left by a killed process
    encoder = ResNet(config.encoder, 0)
    for step in (1, 2):
        saved_model.save(encoder, config, str(tmp_path / "encoder"), {"step": step})
    assert json.loads((tmp_path / "encoder" / "encoder.json").read_text())["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="--encoder must be a folder that exists"):
        saved_model.load(str(tmp_path / "none"))


def test_a_folder_without_a_saved_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"saved_model\.pb"):
        saved_model.load(str(tmp_path))


def test_a_damaged_saved_model_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"not a protocol buffer")
    with pytest.raises(UserError, match="--encoder cannot be loaded"):
        saved_model.load(str(tmp_path))


def test_a_saved_model_of_another_signature_is_refused(tmp_path):
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, [tf.TensorSpec([], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.double})
    with pytest.raises(
        UserError, match=r"must take images and return features\. Received: x and y"
    ):
        saved_model.load(str(tmp_path))
