"""--init_from: what a new run takes from runs, encoders and files."""

import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from method_runs import Run

from simsiam_tf.data.pixels import RGB
from simsiam_tf.export import saved_model
from simsiam_tf.export.keras_encoder import Encoder, load_encoder
from simsiam_tf.interop import convert, naming
from simsiam_tf.interop.settings import ImportConfig
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError
from simsiam_tf.training import initial_weights

NETWORK = {"backbone": "resnet18", "width": 4, "stem": "imagenet"}


def changed(backbone):
    """Changes all weights and statistics, and returns the network."""
    for variable in backbone.weights:
        noise = tf.random.stateless_uniform(variable.shape, [1, 1], 0.5, 1.5, variable.dtype)
        variable.assign(variable.value * noise + 0.01)
    return backbone


def state_dict_of(backbone):
    """The network as torchvision would have saved it, with a classifier and batch counters."""
    state = {
        name: torch.from_numpy(naming.to_torch(variable.numpy()))
        for name, variable in backbone.named_weights().items()
    }
    counters = {"bn1.num_batches_tracked": torch.tensor(7)}
    return state | counters | {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}


def assert_same_weights(got, expected):
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.fixture
def there(pretrain_config):
    """Another encoder's network, and the folder of its export."""
    return changed(ResNet(pretrain_config(**NETWORK).encoder, seed=7))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_torchvision_file_gives_the_features_of_its_import(there, suffix, tmp_path, caplog):
    from safetensors.torch import save_file

    path = str(tmp_path / f"in{suffix}")
    state = state_dict_of(there)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    imported = tmp_path / "encoder"
    convert.import_torch(ImportConfig(checkpoint=path, output=str(imported)))
    run = Run(**NETWORK)
    caplog.set_level("INFO", logger="absl")
    initial_weights.load(run.model, path)
    images = np.random.default_rng(0).uniform(0, 255, (3, 40, 40, 3)).astype(np.float32)
    expected = saved_model.load(str(imported))[0](images)
    got = run.model.encoder(RGB.normalize(images / 255))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert "encoder      100    0         0" in caplog.text
    assert "projector      0   " in caplog.text


def test_the_authors_checkpoint_gives_the_heads_too(there, tmp_path):
    other = Run(**NETWORK, seed=5)
    changed(other.model.projector)
    named = naming.model_variables(other.model)
    state = {
        f"module.{name}": torch.from_numpy(naming.to_torch(variable.numpy()))
        for name, variable in named.items()
    }
    optimizer = torch.optim.Adam([torch.zeros(3)]).state_dict()  # of no use here, and not read
    torch.save({"epoch": 3, "state_dict": state, "optimizer": optimizer}, tmp_path / "a.pth")
    run = Run(**NETWORK)
    initial_weights.load(run.model, str(tmp_path / "a.pth"))
    assert_same_weights(run.model.weights, other.model.weights)


def test_another_run_gives_the_heads_whose_shapes_agree(tiny_run, caplog):
    caplog.set_level("INFO", logger="absl")
    settings = {"backbone": "resnet10", "width": 16, "stem": "cifar"}
    dims = {"projection_dim": 128, "projection_hidden_dim": 128, "prediction_hidden_dim": 32}
    run = Run(**settings, **dims)
    before = [variable.numpy() for variable in run.model.predictor.weights]
    initial_weights.load(run.model, str(tiny_run))
    encoder, _ = saved_model.load_backbone(str(tiny_run / "encoder"))
    assert_same_weights(run.model.encoder.weights, encoder.weights)
    assert "projector     14    0         0" in caplog.text
    # The predictor's hidden layer has another width, so only its last bias agrees.
    assert "predictor      1    6         6" in caplog.text
    same = [
        np.array_equal(old, new.numpy())
        for old, new in zip(before, run.model.predictor.weights, strict=True)
    ]
    assert sum(same) == len(same) - 1
    assert int(run.optimizer.iterations) == 0
    assert not any(np.any(velocity.numpy()) for velocity in run.optimizer.velocities)


@pytest.mark.parametrize("kind", ["folder", "keras", "weights.h5"])
@pytest.mark.parametrize("network", [NETWORK, {"backbone": "own_networks:maps"}])
def test_an_encoder_is_taken_from_a_folder_and_from_files_of_keras(
    kind, network, tmp_path, pretrain_config
):
    there = changed(Run(**network, seed=3).model.encoder)
    path = tmp_path / ("encoder" if kind == "folder" else f"encoder.{kind}")
    if kind == "folder":
        saved_model.save(there, pretrain_config(**network, image_size=8), str(path), {})
    else:
        model = Encoder(there, 8, 1.0)
        (model.save if kind == "keras" else model.save_weights)(path)
    run = Run(**network)
    initial_weights.load(run.model, str(path))
    assert_same_weights(run.model.encoder.weights, there.weights)


def test_the_weights_of_the_plain_network_are_taken_from_files_of_keras(tmp_path):
    network = {"backbone": "keras:MobileNetV2(alpha=0.35)", "image_size": 32}
    plain = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, input_shape=(None, None, 3)
    )
    changed(plain)
    for name, save in (("a.keras", plain.save), ("a.weights.h5", plain.save_weights)):
        save(tmp_path / name)
        run = Run(**network)
        initial_weights.load(run.model, str(tmp_path / name))
        assert_same_weights(run.model.encoder.weights, plain.weights)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_first_convolution_for_other_images_keeps_the_sum_over_channels(
    there, channels, tmp_path, pretrain_config, caplog
):
    saved_model.save(there, pretrain_config(**NETWORK, image_size=8), str(tmp_path / "e"), {})
    caplog.set_level("INFO", logger="absl")
    run = Run(**NETWORK, channels=channels)
    initial_weights.load(run.model, str(tmp_path / "e"))
    ours, theirs = (backbone.stem.conv.kernel.numpy() for backbone in (run.model.encoder, there))
    assert ours.shape[2] == channels
    np.testing.assert_allclose(ours.sum(axis=2), theirs.sum(axis=2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours[:, :, :1], ours[:, :, -1:])
    assert f"Adapted encoder.conv1.weight from 3 to {channels} channels" in caplog.text
    assert_same_weights(run.model.encoder.weights[1:], there.weights[1:])


@pytest.mark.parametrize("method", ["byol", "mocov2"])
def test_the_momentum_encoder_starts_with_the_weights_taken(
    method, there, tmp_path, pretrain_config
):
    saved_model.save(there, pretrain_config(**NETWORK, image_size=8), str(tmp_path / "e"), {})
    run = (
        Run(**NETWORK, method=method, queue_size=16)
        if method == "mocov2"
        else Run(**NETWORK, method=method)
    )
    initial_weights.load(run.model, str(tmp_path / "e"))
    assert_same_weights(run.model.target.encoder.weights, there.weights)
    assert_same_weights(run.model.target.projector.weights, run.model.projector.weights)


def test_nothing_taken_is_an_error_that_shows_both_kinds_of_names(there, tmp_path):
    torch.save(state_dict_of(there), tmp_path / "in.pth")
    run = Run(backbone="own_networks:maps")
    with pytest.raises(UserError, match=r"Received: encoder.bn1.bias.*where this run has"):
        initial_weights.load(run.model, str(tmp_path / "in.pth"))


def test_a_run_without_a_list_of_its_images_is_taken_too(tiny_run, tmp_path):
    for name in ("flags.cfg", "checkpoints"):  # as an import leaves it
        os.symlink(tiny_run / name, tmp_path / name)
    run = Run(backbone="resnet10", width=16, stem="cifar")
    initial_weights.load(run.model, str(tmp_path))
    encoder, _ = saved_model.load_backbone(str(tiny_run / "encoder"))
    assert_same_weights(run.model.encoder.weights, encoder.weights)


def test_a_folder_without_weights_is_named_by_the_flag(tmp_path):
    with pytest.raises(UserError, match=r"^--init_from must be the folder of a SavedModel"):
        initial_weights.load(Run(**NETWORK).model, str(tmp_path))


def test_a_path_that_does_not_exist_is_named_before_training(train_here, tmp_path):
    with pytest.raises(UserError, match=r"no_such.pth, which does not exist"):
        train_here(tmp_path / "run", f"--init_from={tmp_path}/no_such.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.keras", "a.weights.h5"])
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"--init_from cannot be read.*{name}|--init_from must"):
        initial_weights.load(Run(backbone="own_networks:maps").model, str(tmp_path / name))


@pytest.mark.parametrize("channels", [3, 1])
def test_imagenets_weights_are_those_of_keras_applications(channels, tmp_path, monkeypatch):
    plain = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, input_shape=(None, None, 3)
    )
    changed(plain)
    plain.save_weights(tmp_path / "published.weights.h5")
    module = sys.modules[keras.applications.MobileNetV2.__module__]  # instead of a download
    published = lambda *_, **__: str(tmp_path / "published.weights.h5")  # noqa: E731
    monkeypatch.setattr(module.file_utils, "get_file", published)
    run = Run(backbone="keras:MobileNetV2(alpha=0.35)", image_size=32, channels=channels)
    initial_weights.load(run.model, "imagenet")
    first, *others = run.model.encoder.weights
    assert_same_weights(others, plain.weights[1:])
    sums = [kernel.numpy().sum(axis=2) for kernel in (first, plain.weights[0])]
    np.testing.assert_allclose(*sums, rtol=1e-5, atol=1e-6)


def test_weights_that_nobody_publishes_or_that_cannot_be_downloaded_are_an_error(monkeypatch):
    with pytest.raises(UserError, match="--init_from=imagenet needs --backbone=keras:NAME"):
        initial_weights.load(Run(**NETWORK).model, "imagenet")
    with pytest.raises(UserError, match="needs --backbone=keras:NAME, or keras_hub:"):
        initial_weights.load(Run(backbone="own_networks:maps").model, "imagenet")
    module = sys.modules[keras.applications.MobileNetV2.__module__]

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(module.file_utils, "get_file", fail)
    with pytest.raises(UserError, match="cannot be built: OSError: no network"):
        initial_weights.load(Run(backbone="keras:MobileNetV2(alpha=0.35)").model, "imagenet")


def test_a_run_from_a_torchvision_file_with_two_frozen_stages_adapts_the_rest(
    there, train_here, tmp_path
):
    torch.save(state_dict_of(there), tmp_path / "in.pth")
    flags = ["--image_size=16", "--backbone=resnet18", "--width=4", "--batch_size=64"]
    flags += ["--epochs=1", "--projection_dim=16", "--projection_hidden_dim=16"]
    flags += ["--knn_every_epochs=0", "--histogram_every_epochs=0", "--prediction_hidden_dim=8"]
    start = [f"--init_from={tmp_path}/in.pth", "--freeze_stages=2"]
    train_here(tmp_path / "run", *flags, *start)
    encoder = load_encoder(tmp_path / "run").backbone
    for name, variable in encoder.named_weights().items():
        is_frozen = name.startswith(("conv1", "bn1", "layer1", "layer2"))
        is_same = np.array_equal(variable.numpy(), there.named_weights()[name].numpy())
        assert is_same == is_frozen, name
    with pytest.raises(UserError, match="another configuration: --init_from"):
        train_here(tmp_path / "run", *flags, "--freeze_stages=2")
