"""Names and shapes match a list transcribed from torchvision's and the authors' code."""

import pytest
import torch_copy

from simsiam_tf.config import EncoderConfig
from simsiam_tf.interop import naming
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError

ARCHITECTURES = sorted(torch_copy.DEPTHS)


@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_an_encoder_has_torchvisions_names_shapes_and_order(backbone):
    encoder = ResNet(EncoderConfig(backbone=backbone, width=4), seed=0)
    got = {
        name: naming.to_torch(variable.numpy()).shape
        for name, variable in encoder.named_weights().items()
    }
    assert list(got.items()) == list(torch_copy.encoder_shapes(backbone, width=4).items())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_settings_are_inferred_from_a_simsiam_state_dict(backbone, pretrain_config):
    shapes = torch_copy.simsiam_shapes(backbone, dim=64, prediction_hidden_dim=16)
    settings = naming.infer_settings(shapes)
    assert settings == {
        "backbone": backbone,
        "width": 64,
        "stem": "imagenet",
        "projection_layers": 3,
        "projection_hidden_dim": 512 if backbone == "resnet18" else 2048,
        "projection_dim": 64,
        "prediction_hidden_dim": 16,
    }
    assert naming.check(shapes, pretrain_config(**settings)) is None


def test_stem_and_width_are_inferred_from_the_first_convolution():
    settings = naming.infer_settings(torch_copy.encoder_shapes("resnet34", 16, kernel_size=3))
    assert settings == {"backbone": "resnet34", "width": 16, "stem": "cifar"}


def test_block_counts_of_no_known_resnet_are_rejected():
    shapes = torch_copy.encoder_shapes("resnet34")
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("layer2.3")}
    with pytest.raises(UserError, match=r"Received: \(3, 3, 6, 3\) basic blocks"):
        naming.infer_settings(shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.0.conv2.weight": None}, r"must contain the tensor layer3.0.conv2.weight of "
         r"shape \[256, 256, 3, 3\], as in a resnet18. Received: no tensor"),
        ({"layer3.0.conv2.weight": (256, 256, 1, 1)}, r"tensor layer3.0.conv2.weight must have the "
         r"shape \[256, 256, 3, 3\], as in a resnet18. Received: \[256, 256, 1, 1\]"),
        ({"queue": (128, 65536)},
         r"only the tensors of a resnet18. Received: 1 more tensor\(s\).* queue"),
        # A width that exceeds any memory is reported as a wrong shape, before an allocation.
        ({"conv1.weight": (10**7, 3, 7, 7)}, r"bn1.weight must have the shape \[10000000\]"),
    ],
)  # fmt: skip
def test_a_missing_unknown_or_misshapen_tensor_is_named(change, message, pretrain_config):
    shapes = torch_copy.encoder_shapes("resnet18") | change
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    config = pretrain_config(**naming.infer_settings(shapes))
    with pytest.raises(UserError, match=message):
        naming.check(shapes, config)
