"""KerasHub's RetinaNet with imported weights: features, boxes, AP and the whole program."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from simsiam_tf.config import EncoderConfig
from simsiam_tf.data.pixels import RGB
from simsiam_tf.detection import digits, precision, retinanet, transfer
from simsiam_tf.export import saved_model
from simsiam_tf.models.resnet import ARCHITECTURES, ResNet
from simsiam_tf.schema import UserError

SIZE = 64


def changed_resnet(**settings):
    """Returns a ResNet in which no two layers have equal weights or statistics."""
    encoder = ResNet(EncoderConfig(**settings), seed=0)
    for number, variable in enumerate(encoder.weights):
        noise = tf.random.stateless_uniform(variable.shape, [1, number], 0.5, 1.5)
        shift = 0.02 if len(variable.shape) == 1 else 0.0
        variable.assign(variable.value * noise + shift)
    return encoder


def maps_of(encoder, images):
    """Returns the feature maps after each of the four stages of a ResNet."""
    x = encoder.pool(encoder.stem(images))
    maps, blocks = [], iter(encoder.blocks)
    for depth in ARCHITECTURES[encoder.config.backbone][1]:
        for _ in range(depth):
            x = next(blocks)(x)
        maps.append(x)
    return maps


def encode(encoder):
    return lambda images: encoder(RGB.normalize(images / 255))


@pytest.fixture
def images():
    return tf.random.stateless_uniform([2, SIZE, SIZE, 3], [0, 0], 0, 255)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_stage_gives_the_encoders_feature_maps(name, images):
    encoder = changed_resnet(backbone=name)
    backbone = retinanet.build_backbone(encoder, SIZE)
    assert retinanet.check_features(backbone, encode(encoder), images) < 1e-5
    pyramid = keras.Model(backbone.inputs, backbone.pyramid_outputs)(images)
    for level, expected in enumerate(maps_of(encoder, images), start=2):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(pyramid[f"P{level}"] / scale, expected / scale, atol=1e-5)


def test_a_statistic_of_a_wrong_layer_is_detected_by_the_features(images):
    encoder = changed_resnet(backbone="resnet18")
    backbone = retinanet.build_backbone(encoder, SIZE)
    one, other = (backbone.get_layer(f"stack3_block{index}_2_bn") for index in (0, 1))
    one.moving_variance.assign(other.moving_variance)
    with pytest.raises(UserError, match="Received: a difference of "):
        retinanet.check_features(backbone, encode(encoder), images)


@pytest.mark.parametrize("settings", [{"width": 32}, {"stem": "cifar"}])
def test_an_encoder_without_a_counterpart_in_kerashub_is_rejected(settings):
    encoder = ResNet(EncoderConfig(backbone="resnet18", **settings), seed=0)
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"Received: .*--{name}={value}"):
        retinanet.build_backbone(encoder, SIZE)


def test_normalization_is_frozen_and_everything_else_is_trained():
    detector = retinanet.build_detector(
        retinanet.build_backbone(ResNet(EncoderConfig(backbone="resnet18"), seed=0), SIZE), 3
    )
    trained = {variable.path for variable in detector.trainable_variables}
    for variable in detector.weights:
        assert (variable.path in trained) == ("_bn/" not in variable.path), variable.path
    biases = detector.classification_head.prediction_layer.bias
    np.testing.assert_allclose(tf.sigmoid(biases), 0.01, rtol=1e-5)
    assert not np.any(detector.box_head.prediction_layer.bias)


def test_decoded_training_targets_reach_full_average_precision():
    detector = retinanet.build_detector(
        retinanet.build_backbone(ResNet(EncoderConfig(backbone="resnet18"), seed=0), 128), 3
    )
    boxes = np.array([[[4, 10, 44, 50], [60, 50, 120, 110]], [[30, 0, 128, 99], [-1] * 4]], "f")
    labels = np.array([[0, 2], [1, -1]])
    images = tf.zeros([2, 128, 128, 3])
    deltas, classes = detector.label_encoder(images, boxes, labels)
    logits = 20 * tf.one_hot(tf.cast(classes, tf.int32), 3) - 10
    found = detector.decode_predictions({"bbox_regression": deltas, "cls_logits": logits}, images)
    found = {name: value.numpy() for name, value in found.items()}
    true = [
        precision.Objects(boxes[0], labels[0], [False, False]),
        precision.Objects(boxes[1, :1], labels[1, :1], [False]),
    ]
    detections = []
    for image in range(2):
        valid = found["labels"][image] >= 0
        detections.append(
            precision.Objects(
                *(found[name][image][valid] for name in ("boxes", "labels", "confidence"))
            )
        )
    assert precision.average_precision(true, detections, ("a", "b", "c"))["AP"] == 100
    assert [len(objects.boxes) for objects in detections] == [2, 1]


def test_average_precision_is_the_fraction_of_iou_thresholds_that_are_met():
    # The detected box lies inside the true box and covers 72 % of it, which meets 5 of the 10 IoU
    # thresholds 0.5, 0.55, …. The detected and the missed difficult object do not count.
    true = precision.Objects(
        np.array([[0, 0, 100, 100], [200, 200, 240, 240], [300, 300, 350, 350]], "f"),
        np.array([1, 1, 1]),
        np.array([False, True, True]),
    )
    found = precision.Objects(
        np.array([[200, 200, 240, 240], [0, 0, 100, 72]], "f"),
        np.array([1, 1]),
        np.array([0.9, 0.3]),
    )
    assert precision.average_precision([true], [found], ("a", "b")) == {
        "AP": 50.0,
        "AP50": 100.0,
        "AP75": 0.0,
        "AP_by_class": {"b": 50.0},
    }
    nothing = precision.Objects(np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    assert precision.average_precision([true], [nothing], ("a", "b"))["AP"] == 0


def config(**settings):
    return transfer.TransferConfig(**{"encoder": "encoder"} | settings)


@pytest.mark.parametrize("package", ["keras_hub", "pycocotools.coco"])
def test_a_missing_package_is_reported_with_the_command_that_installs_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install -r requirements-detection\.txt"):
        transfer.main(config())
    assert (ROOT / "requirements-detection.txt").exists()


def test_an_image_size_that_is_no_multiple_of_32_is_rejected():
    with pytest.raises(UserError, match="Received: 100"):
        config(image_size=100)


def test_the_program_trains_and_measures_a_detector(program, tmp_path, pretrain_config):
    encoder, folder, workdir = (str(tmp_path / name) for name in ("encoder", "voc", "run"))
    settings = pretrain_config(backbone="resnet18")
    saved_model.save(changed_resnet(backbone="resnet18"), settings, encoder, {"step": 0})
    digits.main(digits.DigitsConfig(output=folder, num_train=12, num_test=5, canvas_size=SIZE))
    settings = {
        "encoder": encoder,
        "data_dir": folder,
        "workdir": workdir,
        "image_size": SIZE,
        "batch_size": 4,
        "epochs": 1,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    finished = program("-m", "simsiam_tf.detection.transfer", *flags)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "run/results.json").read_text())
    assert 0 <= result["AP"] <= result["AP50"] <= 100
    assert result["feature_difference"] < 1e-5
    assert (result["num_train"], result["num_test"]) == (12, 5)
    assert (tmp_path / "run/detections.png").read_bytes().startswith(b"\x89PNG")
    detector = keras.saving.load_model(tmp_path / "run/detector.keras", compile=False)
    assert detector.num_classes == len(result["classes"])
    with pytest.raises(UserError, match=f"Received: {workdir}"):
        transfer.main(config(**settings))
