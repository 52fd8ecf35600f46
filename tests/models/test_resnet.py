import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import EncoderConfig
from simsiam_tf.models.resnet import ConvNorm, ResNet

# Numbers of parameters in torchvision 0.20, without the last layer (fc).
TORCHVISION_PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}


@pytest.mark.parametrize("backbone", TORCHVISION_PARAMETERS)
def test_the_number_of_parameters_equals_torchvisions(backbone):
    encoder = ResNet(EncoderConfig(backbone=backbone), seed=0)
    count = sum(np.prod(variable.shape) for variable in encoder.trainable_variables)
    assert count == TORCHVISION_PARAMETERS[backbone]


@pytest.mark.parametrize(
    ("backbone", "stem", "size", "feature_dim", "last_size"),
    [
        ("resnet18", "imagenet", 64, 64, 2),
        ("resnet18", "cifar", 32, 64, 4),
        ("resnet50", "imagenet", 65, 256, 3),
        ("resnet50", "cifar", 33, 256, 5),
    ],
)
def test_features_have_the_stated_size_and_the_strides_of_the_stem(
    backbone, stem, size, feature_dim, last_size
):
    encoder = ResNet(EncoderConfig(backbone=backbone, width=8, stem=stem), seed=0)
    images = tf.random.stateless_uniform([2, size, size, 3], [0, 0])
    x = encoder.stem(images)
    for layer in [*([encoder.pool] if encoder.pool else []), *encoder.blocks]:
        x = layer(x)
    assert x.shape == (2, last_size, last_size, feature_dim)
    assert encoder.feature_dim == feature_dim
    np.testing.assert_allclose(encoder(images), tf.reduce_mean(x, axis=(1, 2)), rtol=1e-6)


def test_stride_two_pads_symmetrically():
    # The padding "same" of Keras pads only right and below, so it would not commute with a flip.
    encoder = ResNet(EncoderConfig(backbone="resnet18", width=4), seed=0)
    kernel = encoder.stem.conv.kernel
    kernel.assign((kernel.value + kernel.value[:, ::-1]) / 2)
    images = tf.random.stateless_uniform([1, 33, 33, 3], [1, 1])
    flipped = encoder.stem(images[:, :, ::-1])
    np.testing.assert_allclose(flipped, encoder.stem(images)[:, :, ::-1], atol=1e-5)


def test_convolutions_start_he_normal_by_fan_out_and_untruncated():
    kernels = [
        block.conv_norms[0].conv.kernel.numpy()
        for block in ResNet(EncoderConfig(backbone="resnet18"), seed=3).blocks
    ]
    for kernel in kernels:
        height, width, _, channels = kernel.shape
        expected = np.sqrt(2 / (height * width * channels))
        assert kernel.std() == pytest.approx(expected, rel=0.02)
        assert abs(kernel.mean()) < 0.02 * expected
    # A normal distribution has 4.55 % of its mass beyond two standard deviations. The truncated
    # one of Keras has none there.
    largest = kernels[-1] / kernels[-1].std()
    assert np.mean(np.abs(largest) > 2) == pytest.approx(0.0455, abs=0.002)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_last_gamma_of_each_block_starts_at_zero_and_all_others_at_one(backbone):
    encoder = ResNet(EncoderConfig(backbone=backbone, width=4), seed=0)
    for block in encoder.blocks:
        *others, last = block.conv_norms
        assert not last.norm.gamma.numpy().any()
        for other in [*others, *([block.downsample] if block.downsample else [])]:
            assert (other.norm.gamma.numpy() == 1).all()


def test_weights_are_a_function_of_the_seed_and_differ_between_layers():
    def kernels(seed):
        encoder = ResNet(EncoderConfig(backbone="resnet18", width=4), seed=seed)
        return [block.conv_norms[1].conv.kernel.numpy() for block in encoder.blocks[:2]]

    np.testing.assert_array_equal(kernels(1), kernels(1))
    assert not np.array_equal(kernels(1)[0], kernels(2)[0])
    assert not np.array_equal(*kernels(1))


@pytest.mark.parametrize(("channels", "size"), [(2, 8), (4, 8), (7, 16), (15, 16)])
def test_the_gradient_of_a_narrow_strided_1x1_convolution_is_right_and_repeatable(channels, size):
    # oneDNN's gradient is neither (github.com/uxlfoundation/oneDNN/issues/6035).
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((128, size, size, channels)), tf.float32)
    layer = ConvNorm(channels, 2 * channels, 1, 2, seed=0, name="downsample", relu=False)
    dy = tf.constant(rng.standard_normal((128, size // 2, size // 2, 2 * channels)), tf.float32)

    @tf.function(autograph=False)
    def gradient():
        with tf.GradientTape() as tape:
            # In inference mode, the normalization only divides by √(1 + epsilon).
            loss = tf.reduce_sum(layer(x) * dy)
        return tape.gradient(loss, layer.conv.kernel)

    got = [gradient().numpy() for _ in range(20)]
    for again in got[1:]:
        np.testing.assert_array_equal(again, got[0])
    strided = np.float64(x)[:, ::2, ::2]
    expected = np.einsum("nhwi,nhwo->io", strided, np.float64(dy)) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(got[0][0, 0], expected, rtol=1e-4, atol=1e-4)
