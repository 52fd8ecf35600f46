"""The recipes: their stages, their draws, and that they depend only on image and seed."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_ops import kolmogorov_smirnov, uniform_cdf

from simsiam_tf.config import ViewsConfig
from simsiam_tf.data import ops, views
from simsiam_tf.data.pixels import RGB

SIZE = 20
# The reference passes these numbers to torchvision's normalize.
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
LEVEL = 1 / 255  # rounding of a view on the host


@pytest.fixture(params=["host", "device"])
def plain(request):
    """Returns a recipe that only resizes: the whole image is the only box of its area that fits."""
    return ViewsConfig(
        image_size=SIZE,
        crop_min_area=1.0,
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
        flip_probability=0.0,
        augment_on=request.param,
    )


def photograph(height=40, width=40, seed=0):
    """Returns soft colours with noise, `[height, width, 3]` uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    image = np.stack([x, 0.6 * (1 - y), 0.2 + 0.6 * x * y], axis=-1)
    image += rng.normal(0, 0.08, image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def changed(config, **settings):
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return ViewsConfig(**values | settings)


def seed_of(number):
    return np.array([23, number], np.int32)


def eagerly(function, images, seeds):
    """Returns the results of `function(image, seed)` for each image with its seed."""
    pairs = zip(images, seeds, strict=True)
    results = [function(tf.constant(image), tf.constant(seed)) for image, seed in pairs]
    return tf.nest.map_structure(np.asarray, results)


def in_tf_data(function, images, seeds):
    pairs = tf.data.Dataset.from_tensor_slices((np.stack(images), np.stack(seeds)))
    return list(pairs.map(function, num_parallel_calls=2).as_numpy_iterator())


@pytest.fixture(params=[eagerly, in_tf_data], ids=["eagerly", "in_tf_data"])
def run(request):
    return request.param


def recipe(config):
    """Returns a function (image, seed) → the views of the image as inputs of the network."""
    build = views.build_views(config, 2)

    def make(image, seed):
        batch = tf.nest.map_structure(lambda value: value[tf.newaxis], build(image, seed))
        return tuple(view[0] for view in views.prepare(batch))

    return make


def many_views(config, count, image=None):
    """Returns the first view of an image for many seeds: `[count, size, size, 3]`, denormalized."""
    image = tf.constant(photograph() if image is None else image)
    seeds = tf.data.Dataset.range(count, output_type=tf.int32)
    data = seeds.map(
        lambda number: recipe(config)(image, tf.stack([23, number]))[0], num_parallel_calls=2
    )
    return next(data.batch(count).as_numpy_iterator()) * STD + MEAN


def whole_image_resized(image, size=SIZE):
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64) / 255


def test_two_different_views_depend_only_on_image_and_seed(run):
    build = recipe(ViewsConfig(image_size=SIZE))
    image, other_image = photograph(seed=0), photograph(seed=1)
    first, again, other_draws, of_other_image = run(
        build, [image, image, image, other_image], [seed_of(number) for number in (0, 0, 1, 0)]
    )
    assert len(first) == 2
    for view in first:
        assert view.shape == (SIZE, SIZE, 3)
        assert view.dtype == np.float32
    assert np.abs(first[0] - first[1]).mean() > 0.05
    np.testing.assert_array_equal(again, first)
    assert np.abs(np.subtract(other_draws, first)).mean() > 0.05
    assert np.abs(np.subtract(of_other_image, first)).mean() > 0.01


def test_views_of_host_and_device_agree_within_two_levels():
    images, seeds = [photograph(50, 41)] * 40, [seed_of(number) for number in range(40)]
    results = [
        in_tf_data(recipe(ViewsConfig(image_size=SIZE, augment_on=augment_on)), images, seeds)
        for augment_on in ("host", "device")
    ]
    host, device = (np.stack(views) * STD + MEAN for views in results)
    assert np.abs(host - device).max() <= 2 * LEVEL


@pytest.mark.parametrize("augment_on", ["host", "device"])
def test_views_in_tf_data_equal_eager_views_bit_for_bit(augment_on):
    build = views.build_views(ViewsConfig(image_size=SIZE, augment_on=augment_on), 2)
    images, seeds = [photograph(50, 41)] * 20, [seed_of(number) for number in range(20)]
    in_graph = in_tf_data(build, images, seeds)
    tf.nest.map_structure(np.testing.assert_array_equal, in_graph, eagerly(build, images, seeds))
    every_view = np.reshape([example["views"] for example in in_graph], [40, -1])
    assert len(np.unique(every_view, axis=0)) == 40  # all draws differ


@pytest.mark.parametrize("shape", [(40, 40), (17, 13), (60, 48)])
def test_a_recipe_without_augmentation_only_resizes_and_normalizes(run, plain, shape):
    image = photograph(*shape)
    expected = (whole_image_resized(image) - MEAN) / STD
    for view in run(recipe(plain), [image], [seed_of(0)])[0]:
        assert np.abs(view - expected).mean() * STD.mean() <= 2 / 255


def test_normalize_uses_the_mean_and_std_of_imagenet(run):
    image = photograph().astype(np.float32) / 255
    (result,) = run(lambda image, _: RGB.normalize(image), [image], [seed_of(0)])
    np.testing.assert_allclose(result, (image - MEAN) / STD, atol=1e-5)


def test_denormalize_is_the_inverse_of_normalize(run):
    image = photograph().astype(np.float32) / 255
    (result,) = run(lambda image, _: RGB.denormalize(RGB.normalize(image)), [image], [seed_of(0)])
    np.testing.assert_allclose(result, image, atol=1e-6)


def test_denormalized_values_are_clipped(run):
    image = np.array([[[-9, 0, 9]]], np.float32)
    (result,) = run(lambda image, _: RGB.denormalize(image), [image], [seed_of(0)])
    np.testing.assert_allclose(result, [[[0, 0.456, 1]]], atol=1e-6)


# Each stage by itself, on the whole image: it equals the op with the settings of the config.


def test_flip_probability_is_the_share_of_mirrored_views(plain):
    resized = whole_image_resized(photograph())
    for probability, mirrored in [(0.0, 0), (0.3, 0.3), (1.0, 1)]:
        result = many_views(changed(plain, flip_probability=probability), 300)
        distance = np.abs(result[:, None] - np.stack([resized, resized[:, ::-1]])).mean((2, 3, 4))
        assert (distance.min(axis=1) <= 2 / 255).all()
        assert abs(distance.argmin(axis=1).mean() - mirrored) <= 0.11  # 4 deviations


def test_grayscale_probability_is_the_share_of_views_with_equal_channels(plain):
    for probability in (0.0, 0.2, 1.0):
        result = many_views(changed(plain, grayscale_probability=probability), 400)
        gray = np.ptp(result, axis=-1).max(axis=(1, 2)) < 1e-5
        assert abs(gray.mean() - probability) <= 0.08  # 4 deviations


def test_jitter_probability_is_the_share_of_views_with_changed_colours(plain):
    resized = whole_image_resized(photograph())
    for probability in (0.0, 0.8):
        config = changed(plain, jitter_probability=probability, brightness=1.0)
        distance = np.abs(many_views(config, 300) - resized).mean(axis=(1, 2, 3))
        assert abs((distance > 2 / 255).mean() - probability) <= 0.1


def test_blur_has_the_probability_and_sigma_of_the_config(plain):
    resized = RGB.denormalize(recipe(plain)(photograph(), seed_of(0))[0])
    settings = {"blur_sigma_min": 1.3, "blur_sigma_max": 1.3}
    blurred = np.asarray(ops.gaussian_blur(resized, 1.3))
    for probability in (0.0, 0.4, 1.0):
        config = changed(plain, blur_probability=probability, **settings)
        result = many_views(config, 200)
        is_blurred = np.abs(result - blurred).max(axis=(1, 2, 3)) < LEVEL
        is_plain = np.abs(result - resized).max(axis=(1, 2, 3)) < LEVEL
        assert (is_blurred ^ is_plain).all()
        assert abs(is_blurred.mean() - probability) <= 0.15


def test_blur_sigma_is_drawn_between_its_bounds(plain):
    resized = RGB.denormalize(recipe(plain)(photograph(), seed_of(0))[0])
    config = changed(plain, blur_probability=1.0, blur_sigma_min=0.6, blur_sigma_max=1.8)
    sharpness = np.abs(np.diff(many_views(config, 100), axis=1)).mean(axis=(1, 2, 3))
    bounds = [
        np.abs(np.diff(ops.gaussian_blur(resized, sigma), axis=0)).mean() for sigma in (1.8, 0.6)
    ]
    assert bounds[0] - LEVEL <= sharpness.min() < sharpness.max() <= bounds[1] + LEVEL
    assert np.ptp(sharpness) > 0.8 * (bounds[1] - bounds[0])


def luma(image):
    return image @ [0.299, 0.587, 0.114]


def luma_steps(image):
    return np.abs(np.diff(luma(image), axis=0)).mean()


# Statistics of an image. Without clipping, each of brightness, contrast and saturation changes only
# the one of its own name.
STATISTICS = {
    "brightness": lambda image: luma(image).mean(),
    "contrast": lambda image: luma_steps(image) / luma(image).mean(),
    "saturation": lambda image: np.ptp(image, axis=-1).mean() / luma_steps(image),
    "hue": lambda image: (image[..., 0] > image[..., 1]).mean(),
}


def test_each_strength_of_the_jitter_has_its_own_setting(plain):
    image = photograph() // 2 + 50
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    for strength in STATISTICS:
        config = changed(plain, jitter_probability=1.0, **none | {strength: 0.3})
        result = many_views(config, 40, image)
        for name, statistic in STATISTICS.items():
            values = [statistic(view) for view in result]
            spread = np.std(values) / np.mean(values)
            if name == strength:
                assert spread > 0.1, strength
            elif strength != "hue":  # the hue changes every statistic
                assert spread < 0.01, (strength, name)


def test_crop_area_respects_the_config(plain):
    # On a ramp, the range of a crop's values is its width. The area of a crop is at least a half.
    ramp = np.round(np.linspace(0, 255, 256)).astype(np.uint8)
    image = np.repeat(np.broadcast_to(ramp, (256, 256))[..., None], 3, axis=-1)
    down = many_views(changed(plain, crop_min_area=0.5), 200, np.ascontiguousarray(image))
    width = np.ptp(down.mean(axis=(1, 3)), axis=1) / (1 - 1 / SIZE)
    assert width.min() > 0.95 * np.sqrt(0.5 * 3 / 4)
    assert width.min() < 0.7
    assert width.max() <= 1.01


def test_jitter_comes_before_gray_and_blur(plain):
    # Jitter commutes with neither: a shifted hue has another luma, and clipping is not linear.
    config = changed(
        plain,
        jitter_probability=1.0,
        grayscale_probability=1.0,
        blur_probability=1.0,
        blur_sigma_min=1.0,
        blur_sigma_max=1.0,
    )
    colour = changed(config, grayscale_probability=0.0, blur_probability=0.0)
    for jittered, result in zip(many_views(colour, 10), many_views(config, 10), strict=True):
        expected = ops.gaussian_blur(ops.grayscale(jittered), 1.0)
        np.testing.assert_allclose(result, expected, atol=1.5 * LEVEL)


# Draws.


def drawn(config, count=2000):
    """Returns the draws of the first view for many seeds: boxes and columns."""
    seeds = tf.data.Dataset.range(count, output_type=tf.int32)
    draws = seeds.map(lambda number: views.draw(tf.stack([17, number]), [300, 400], config, 2))
    boxes, columns = next(draws.batch(count).as_numpy_iterator())
    return boxes[:, 0], {name: column[:, 0] for name, column in columns.items()}


ALWAYS = {
    "jitter_probability": 1.0,
    "grayscale_probability": 1.0,
    "blur_probability": 1.0,
    "flip_probability": 1.0,
}


def test_amounts_are_uniform_and_independent():
    config = ViewsConfig(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, **ALWAYS)
    boxes, columns = drawn(config)
    strengths = [0.4, 0.3, 0.2, 0.1]
    uniform = (columns["factors"] - [1, 1, 1, 0]) / strengths
    columns = [*uniform.T, (columns["sigma"] - 0.1) / (2.0 - 0.1) * 2 - 1]
    for column in columns:
        assert -1 <= column.min() < -0.99
        assert 0.99 < column.max() <= 1
        assert kolmogorov_smirnov(column, uniform_cdf(-1, 1)) < 1.95
    correlation = np.corrcoef([*columns, *boxes.T])[: len(columns)]
    assert np.abs(correlation - np.eye(*correlation.shape)).max() < 0.1


def test_every_order_of_the_jitter_is_equally_likely():
    _, columns = drawn(ViewsConfig())
    orders, counts = np.unique(columns["order"], axis=0, return_counts=True)
    assert [*map(tuple, orders)] == [*itertools.permutations(range(4))]
    deviation = math.sqrt(2000 / 24)
    assert np.abs(counts - 2000 / 24).max() < 4 * deviation


def test_chances_are_independent_and_have_their_probabilities():
    probabilities = [0.8, 0.2, 0.5, 0.5]  # the defaults
    boxes, columns = drawn(ViewsConfig())
    jittered = (columns["factors"] != [1, 1, 1, 0]).any(axis=1)
    chances = np.stack([jittered, columns["gray"], columns["sigma"] > 0, columns["flip"]])
    for chance, probability in zip(chances, probabilities, strict=True):
        deviation = math.sqrt(probability * (1 - probability) / 2000)
        assert abs(chance.mean() - probability) <= 4 * deviation
    assert np.abs(np.corrcoef([*chances, *boxes.T])[:4] - np.eye(4, 8)).max() < 0.1


# The other recipes.


def test_evaluation_view_is_the_central_crop_in_0_to_255(run):
    # The oracle is torchvision's Resize(20) and CenterCrop(16) for PIL images.
    image = photograph(30, 45)
    resized = Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((7, 2, 23, 18)), np.float64)
    build = views.build_evaluation_view(16, 0.8)
    (result,) = run(lambda image, _: build(image), [image], [seed_of(0)])
    assert result.shape == (16, 16, 3)
    assert result.dtype == np.float32
    assert np.abs(result - expected).mean() <= 2


def test_evaluation_view_is_within_zero_and_255(run):
    image = np.random.default_rng(0).choice([0, 255], [37, 50, 3]).astype(np.uint8)
    build = views.build_evaluation_view(64, 0.875)
    (result,) = run(lambda image, _: build(image), [image], [seed_of(0)])
    assert result.min() >= 0
    assert 250 < result.max() <= 255


def test_linear_view_is_a_uint8_crop_flipped_with_its_probability(run):
    image = photograph()
    resized = 255 * whole_image_resized(image)
    for probability, expected in [(0.0, resized), (1.0, resized[:, ::-1])]:
        build = views.build_linear_view(SIZE, 1.0, probability)
        (result,) = run(build, [image], [seed_of(0)])
        (view,) = result["views"]
        assert view.dtype == np.uint8
        assert np.abs(view - expected).mean() <= 2


def test_linear_view_crops_and_depends_on_the_seed():
    build = views.build_linear_view(SIZE, 0.08, 0.5)
    image = photograph()
    seeds = [seed_of(number) for number in (0, 0, 1)]
    results = eagerly(build, [image] * 3, seeds)
    (first,), (again,), (other,) = [result["views"] for result in results]
    first, again, other = (view.astype(np.float32) for view in (first, again, other))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 2
    assert np.abs(first - 255 * whole_image_resized(image)).mean() > 2
