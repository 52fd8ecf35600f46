"""Networks of Keras as backbones, against the same networks without this project."""

import keras
import numpy as np
import own_networks
import pytest
import tensorflow as tf
from method_runs import Run
from own_networks import EFFICIENT_NET, VIT

from simsiam_tf.config import EncoderConfig
from simsiam_tf.data.pixels import RGB
from simsiam_tf.models import backbones, keras_backbone, keras_normalization, precision
from simsiam_tf.models.backbone import random_states
from simsiam_tf.schema import UserError

SUBCLASSED = "own_networks:subclassed(dropout={dropout})"
KINDS = [EFFICIENT_NET, VIT, "keras:ConvNeXtTiny", "own_networks:maps", SUBCLASSED]


def build(backbone, channels=3, image_size=32, seed=0, **settings):
    config = EncoderConfig(backbone=backbone.format(dropout=0.2), **settings)
    return backbones.build(config, seed, channels, image_size)


def images_of(size=32, channels=3):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (4, size, size, channels)).astype(np.float32)


def train_a_little(layer):
    """Changes all weights and statistics."""
    for variable in layer.weights:
        if variable.dtype != "float32":
            continue
        noise = tf.random.stateless_uniform(variable.shape, [1, 1], 0.5, 1.5, variable.dtype)
        variable.assign(variable.value * noise + 0.01)


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "ResNet50", "ConvNeXtTiny"])
def test_an_application_sees_images_as_its_own_preprocessing_gives_them(name):
    backbone = build(f"keras:{name}")
    network = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_shape=(None, None, 3)
    )
    train_a_little(backbone)
    network.set_weights(backbone.get_weights())
    module = __import__(network_module(name), fromlist=["_"])
    expected = network(module.preprocess_input(images_of().copy()), training=False)
    got = backbone(RGB.normalize(tf.constant(images_of()) / 255))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=2e-5 * scale)


def network_module(name):
    return getattr(keras.applications, name).__module__


def test_batch_normalization_of_keras_takes_the_statistics_of_each_view():
    backbone, network = build("own_networks:maps"), own_networks.maps()
    network.set_weights(backbone.get_weights())
    for layer in network.layers:
        layer.momentum = 0.9  # instead of Keras' 0.99
    images = np.random.default_rng(0).standard_normal((6, 16, 16, 3)).astype(np.float32)
    got = backbone(images, training=True, num_views=2)
    views = [network(view, training=True) for view in np.split(images, 2)]  # one after the other
    expected = np.concatenate([np.mean(view, axis=(1, 2)) for view in views])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    first = backbone.network.layers[2], network.layers[2]
    means = [layer.moving_mean.numpy() for layer in first]
    np.testing.assert_allclose(*means, atol=1e-6)
    # Keras' variance is biased: that of 3 · 8 · 8 numbers.
    ours, theirs = [layer.moving_variance.numpy() - 0.9**2 for layer in first]
    np.testing.assert_allclose(ours, theirs * 192 / 191, rtol=1e-3)


@pytest.mark.parametrize(
    "kind",
    [
        # A ViT has its layer normalization at a tenth of the size.
        pytest.param(kind, marks=[pytest.mark.long] if "ConvNeXt" in kind else [])
        for kind in KINDS
    ],
)
def test_two_replicas_train_the_weights_of_one(kind, two_replicas):
    settings = {"backbone": kind.format(dropout=0.0), "base_learning_rate": 0.1}
    settings["image_size"] = 32 if "ConvNeXt" in kind else 8
    one, two = Run(**settings), Run(strategy=two_replicas, **settings)
    for step in range(2):
        losses = [float(run.step(step)["loss"]) for run in (one, two)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    for ours, theirs in zip(one.model.encoder.weights, two.model.encoder.weights, strict=True):
        value = ours.numpy()
        tolerance = 1e-3 * max(np.abs(value).max(), 1e-2)
        np.testing.assert_allclose(value, theirs.numpy(), atol=tolerance, err_msg=ours.path)


@pytest.mark.parametrize("kind", [VIT, "own_networks:subclassed"])
def test_a_resumed_run_draws_the_dropout_of_an_uninterrupted_one(kind, tmp_path):
    settings = {"backbone": kind.format(dropout=0.3), "image_size": 8}
    run, resumed = Run(**settings), Run(**settings, seed=1)
    assert random_states(run.model)
    run.step(0)
    run.checkpoints(tmp_path).save(1)
    resumed.step(2)  # its generators are somewhere else
    resumed.checkpoints(tmp_path).restore()
    for step in (1, 2):
        expected, got = run.step(step), resumed.step(step)
        np.testing.assert_array_equal(got["loss"], expected["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_a_function_of_the_seed_and_a_copy_has_them(kind):
    first, _, again, other = (build(kind, seed=seed) for seed in (3, 5, 3, 4))
    for ours, same in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, same)
    differs = [
        np.any(ours != theirs)
        for ours, theirs in zip(first.get_weights(), other.get_weights(), strict=True)
    ]
    assert any(differs)
    assert list(first.named_weights()) == list(again.named_weights())
    assert len(first.named_weights()) == len(first.weights)
    train_a_little(first)
    for ours, copied in zip(first.get_weights(), first.copy().get_weights(), strict=True):
        np.testing.assert_array_equal(ours, copied)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("kind", [EFFICIENT_NET, VIT, "keras:MobileNetV2"])
def test_the_first_convolution_fits_the_channels(kind, channels):
    backbone = build(kind, channels)
    assert backbone(images_of(channels=channels)).shape == (4, backbone.feature_dim)


def test_stages_are_the_last_maps_of_each_resolution():
    maps = build("keras:MobileNetV2", image_size=64).feature_maps(images_of(64))
    assert [tuple(x.shape[1:]) for x in maps.values()] == [
        (32, 32, 96),
        (16, 16, 144),
        (8, 8, 192),
        (4, 4, 576),
        (2, 2, 1280),
    ]
    vit = build(VIT, image_size=8)
    (tokens,) = vit.feature_maps(images_of(8)).values()
    assert tokens.shape == (4, 4, 4, 8)
    np.testing.assert_allclose(tf.reduce_mean(tokens, axis=(1, 2)), vit(images_of(8)), atol=1e-5)
    assert build("own_networks:subclassed").feature_maps(images_of()) == {}


@pytest.mark.parametrize(
    ("backbone", "frozen"), [("own_networks:maps", 2), (VIT, 1), ("resnet10", 2)]
)
def test_frozen_stages_keep_weights_and_statistics(backbone, frozen):
    settings = {"backbone": backbone.format(dropout=0), "image_size": 8}
    run = Run(**settings, freeze_stages=frozen)
    variables = run.model.encoder.weights
    before = [variable.numpy() for variable in variables]
    run.step(0)
    is_changed = [
        not np.array_equal(old, new.numpy()) for old, new in zip(before, variables, strict=True)
    ]
    expected = {
        "own_networks:maps": lambda name: name.split("/")[0].endswith("_2"),
        "resnet10": lambda name: name.startswith(("layer3", "layer4")),
    }.get(backbone, lambda name: "encoder" in name)
    named = run.model.encoder.named_weights()
    name_of = {id(variable): name for name, variable in named.items()}
    changed = {
        name_of[id(variable)]
        for variable, moved in zip(variables, is_changed, strict=True)
        if moved
    }
    trained = {name for name in named if expected(name)}
    assert changed
    assert changed <= trained
    assert len(changed) > len(trained) / 2  # a gamma of zero stops some gradients of a first step


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("keras:NoNet", "network of keras.applications.*Received: NoNet"),
        ("keras:MobileNetV2(width=3)", "cannot be built: TypeError.*width"),
        ("own_networks:absent", "cannot be built: AttributeError"),
        ("no_module:net", "cannot be built: ModuleNotFoundError"),
        ("own_networks:no_network", "must return a keras.Model or a layer. Received: str"),
        ("own_networks:wrong", "cannot be built: RuntimeError: no such layer"),
        ("own_networks:channels_first", "normalise the last axis.*axis=1"),
        ("absent.keras", "file that exists"),
        (VIT.replace("patch_size=2", "patch_size=5"), "cannot be built.*divisible"),
    ],
)
def test_a_network_that_cannot_be_used_says_why(backbone, message):
    with pytest.raises(UserError, match=message):
        build(backbone)


def test_more_frozen_stages_than_the_network_has_are_refused():
    with pytest.raises(UserError, match=r"at most 3.*Received: 4"):
        build("own_networks:maps", freeze_stages=4)
    with pytest.raises(UserError, match=r"at most 4.*Received: 5"):
        build("resnet10", freeze_stages=5)


def test_a_preset_on_the_disk_gives_architecture_and_weights(tmp_path):
    import keras_hub

    network = keras_hub.models.ViTBackbone((8, 8, 3), 2, 1, 2, 8, 16)
    network.save_to_preset(str(tmp_path / "vit"))
    backbone = build(f"keras_hub:{tmp_path}/vit", image_size=8)
    published = keras_backbone.published_weights(backbone)
    kernels = [name for name in published if name.endswith("kernel")]
    assert kernels
    named = keras_backbone.named_weights(network)
    for name, array in published.items():
        np.testing.assert_array_equal(array, named[name].numpy())
    assert any(np.any(backbone.named_weights()[name].numpy() != named[name]) for name in kernels)


@pytest.mark.parametrize("kind", [EFFICIENT_NET, VIT, "own_networks:subclassed"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_step_in_mixed_precision_is_finite_and_changes_float32_weights(kind, policy):
    with precision.of_new_layers(policy):
        run = Run(backbone=kind.format(dropout=0.1), image_size=8)
        before = run.model.encoder.get_weights()
        assert np.isfinite(run.step(0)["loss"])
        assert run.step(1)["skipped"] == 0
    after = run.model.encoder.get_weights()
    kernels = [pair for pair in zip(before, after, strict=True) if pair[0].ndim > 1]
    assert all(np.any(old != new) for old, new in kernels)
    assert {array.dtype for array in after} <= {np.dtype("float32"), np.dtype("int64")}


def test_mixed_precision_keeps_statistics_in_float32():
    with precision.of_new_layers("mixed_bfloat16"):
        backbone = build("own_networks:maps")
    features = backbone(images_of(), training=True)
    assert features.dtype == tf.float32
    norm = backbone.network.layers[2]
    assert isinstance(norm, keras_normalization.BatchNormalization)
    float32 = build("own_networks:maps")
    float32(images_of(), training=True)
    expected = float32.network.layers[2].moving_variance.numpy()
    np.testing.assert_allclose(norm.moving_variance.numpy(), expected, rtol=2e-2)
