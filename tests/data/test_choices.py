"""The flags that are chosen by the images, and the network's by their number."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from simsiam_tf.data import choices, datasets
from simsiam_tf.data.census import take_census


@pytest.fixture
def census_of(tmp_path):
    """(size of the images, number of them) → the census of a folder of as many images."""

    def take(size, count=12, gray=False):
        rng = np.random.default_rng(0)
        for number in range(min(count, 12)):
            levels = rng.integers(0, 256, (size, size + 4, 1 if gray else 3), dtype=np.uint8)
            image = Image.fromarray(np.repeat(levels, 3, axis=2) if gray else levels)
            image.save(tmp_path / f"{number}.png")
        source = datasets.load("folder", str(tmp_path), "train")
        census = take_census(source, 10**6, upright=True)
        return dataclasses.replace(census, source=dataclasses.replace(source, num_examples=count))

    return take


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (8, {"image_size": 16, "stem": "cifar", "crop_min_area": 0.6, "blur_probability": 0.0}),
        (28, {"image_size": 28, "stem": "cifar", "blur_probability": 0.0, "eval_crop_ratio": 1.0}),
        (70, {"image_size": 64, "stem": "cifar", "blur_sigma_max": 0.57}),
        (300, {"image_size": 224, "stem": "imagenet"}),
    ],
)
def test_views_follow_the_short_side_of_the_images(census_of, pretrain_config, size, expected):
    found = choices.values_of(choices.for_images(census_of(size), pretrain_config()))
    names = {"image_size", "stem", "crop_min_area", "blur_probability", "eval_crop_ratio"}
    assert {name: found.get(name) for name in expected} == expected
    assert ("blur_sigma_max" in found) == (size == 70)
    if size == 300:
        assert not found.keys() & (names - expected.keys())


@pytest.mark.parametrize(
    ("count", "batch_size"), [(2, 2), (9, 4), (71, 16), (1437, 128), (5000, 256), (10**6, 256)]
)
def test_an_epoch_has_eight_steps_where_the_images_allow_it(
    census_of, pretrain_config, count, batch_size
):
    found = choices.for_images(census_of(16, count), pretrain_config())
    assert found["batch_size"].value == batch_size


def test_grey_images_stored_as_rgb_have_one_channel(census_of, pretrain_config):
    choice = choices.for_images(census_of(16, gray=True), pretrain_config())["channels"]
    assert (choice.value, choice.reason) == (1, "all images are grey, though stored as RGB")


@pytest.mark.parametrize(("tint", "is_colorful"), [(0, False), (8, False), (40, True)])
def test_images_without_colours_have_no_jitter_of_hue(tmp_path, pretrain_config, tint, is_colorful):
    rng = np.random.default_rng(0)
    for number in range(6):
        levels = np.repeat(rng.integers(60, 200, (16, 16, 1)), 3, axis=2)
        levels[..., 0] += tint
        Image.fromarray(levels.astype(np.uint8)).save(tmp_path / f"{number}.png")
    source = datasets.load("folder", str(tmp_path), "train")
    found = choices.for_images(take_census(source, 10**6, upright=True), pretrain_config())
    values = choices.values_of(found)
    for name in ("hue", "saturation", "grayscale_probability"):
        assert values.get(name) == (None if is_colorful else 0)


@pytest.mark.parametrize(
    ("count", "backbone", "width", "dim", "epochs"),
    [
        (200, "resnet18", 16, 128, 800),
        (2_000, "resnet18", 32, 256, 800),
        (50_000, "resnet18", 64, 512, 506),
        (1_280_000, "resnet50", 64, 2048, 100),
    ],
)
def test_network_and_epochs_follow_the_number_of_images(
    census_of, count, backbone, width, dim, epochs
):
    found = choices.values_of(choices.for_training(census_of(16, count)))
    assert (found["backbone"], found["width"], found["epochs"]) == (backbone, width, epochs)
    assert (found["projection_dim"], found["prediction_hidden_dim"]) == (dim, dim // 4)
    assert found["warmup_epochs"] == 10
    assert found["health_every_epochs"] == max(1, epochs // 100)


def test_given_epochs_decide_what_follows_from_them(census_of):
    found = choices.values_of(choices.for_training(census_of(16, 200), epochs=30))
    assert (found["epochs"], found["warmup_epochs"], found["knn_every_epochs"]) == (30, 3, 1)


def test_every_choice_but_a_given_one_has_a_reason(census_of, pretrain_config):
    census = census_of(16)
    found = choices.for_images(census, pretrain_config(data_dir="here"))
    found |= choices.for_training(census)
    assert found.keys() - choices.reasons_of(found).keys() == {"dataset", "data_dir"}
