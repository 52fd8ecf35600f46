"""Each op against Pillow, tensorflow-addons or a slow transcription, eagerly and in `tf.data`."""

import colorsys
import io
import itertools
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from simsiam_tf.data import decoding, ops

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
# Pillow computes in whole levels of 255.
PILLOW_TOLERANCE = 2 / 255


def photograph(height=96, width=128, seed=0):
    """A piece of one of scikit-learn's two photographs: `[height, width, 3]` uint8."""
    image = load_sample_image(("china.jpg", "flower.jpg")[seed % 2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def as_float(image):
    return np.asarray(image, np.float32) / 255


def mean_difference(first, second):
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    assert first.shape == second.shape
    return np.abs(first - second).mean()


def seed_of(number):
    return np.array([17, number], np.int32)


def eagerly(function, *columns):
    """`function` of the first element of each column, of the second …: a list of results."""
    return [np.asarray(function(*map(tf.constant, case))) for case in zip(*columns, strict=True)]


def in_tf_data(function, *columns):
    def call(*case):
        return function(*[of_unknown_size(tensor) for tensor in case])

    columns = [tf.stack([tf.constant(value) for value in column]) for column in columns]
    cases = tf.data.Dataset.from_tensor_slices(tuple(columns))
    return list(cases.map(call).as_numpy_iterator())


def of_unknown_size(tensor):
    """An image is of unknown height and width once it was decoded in a graph."""
    if tensor.shape.rank != 3:
        return tensor
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=[None, None, 3])


@pytest.fixture(params=[eagerly, in_tf_data], ids=["eagerly", "in_tf_data"])
def run(request):
    return request.param


def draw(function, count):
    """`function(seed)` for many seeds, stacked; in `tf.data` for speed."""
    seeds = tf.data.Dataset.range(count, output_type=tf.int32)
    results = seeds.map(lambda number: function(tf.stack([17, number])), num_parallel_calls=2)
    return next(results.batch(count).as_numpy_iterator())


def kolmogorov_smirnov(sample, cdf):
    """The largest distance of the sample's distribution from `cdf`, times √n; 1.95 is p = 0.001."""
    sample = np.sort(sample)
    expected = cdf(sample)
    steps = np.arange(len(sample) + 1) / len(sample)
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    return distance * math.sqrt(len(sample))


def uniform_cdf(low, high):
    return lambda value: np.clip((value - low) / (high - low), 0, 1)


# Colour, against Pillow's ImageEnhance (torchvision's adjust_* are these for PIL images).


@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (ops.adjust_brightness, ImageEnhance.Brightness),
        (ops.adjust_contrast, ImageEnhance.Contrast),
        (ops.adjust_saturation, ImageEnhance.Color),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_adjustment_is_that_of_pillow(run, adjust, enhance):
    image, factors = photograph(), [0.0, 0.6, 1.0, 1.4, 2.0]
    results = run(adjust, [as_float(image)] * len(factors), factors)
    for factor, result in zip(factors, results, strict=True):
        expected = as_float(enhance(Image.fromarray(image)).enhance(factor))
        assert result.dtype == np.float32
        assert mean_difference(result, expected) <= PILLOW_TOLERANCE, factor


@pytest.mark.parametrize(
    "adjust", [ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation]
)
def test_adjustment_stays_within_zero_and_one(run, adjust):
    (result,) = run(adjust, [as_float(photograph())], [2.5])
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.max() - result.min() > 0.5


def test_contrast_keeps_a_flat_gray_image(run):
    image = np.full([6, 5, 3], 0.4, np.float32)
    (result,) = run(ops.adjust_contrast, [image], [1.7])
    np.testing.assert_allclose(result, image, atol=1e-6)


def test_grayscale_is_luma_in_three_equal_channels(run):
    image = photograph()
    (result,) = run(ops.grayscale, [as_float(image)])
    expected = as_float(Image.fromarray(image).convert("L"))  # ITU-R 601
    assert result.shape == image.shape
    np.testing.assert_array_equal(result[..., 0], result[..., 1])
    np.testing.assert_array_equal(result[..., 0], result[..., 2])
    assert mean_difference(result[..., 0], expected) <= PILLOW_TOLERANCE


def test_hue_is_shifted_in_hsv(run):
    # torchvision's adjust_hue, pixel by pixel with Python's colorsys.
    image, shifts = as_float(photograph(24, 32)), [-0.5, -0.1, 0.0, 0.07, 0.1, 0.5]
    results = run(ops.adjust_hue, [image] * len(shifts), shifts)
    for turns, result in zip(shifts, results, strict=True):
        expected = np.empty_like(image)
        for position in np.ndindex(*image.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[position].tolist())
            expected[position] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert mean_difference(result, expected) <= PILLOW_TOLERANCE, turns


def test_hue_is_shifted_as_pillow_does(run):
    # torchvision's adjust_hue for PIL images: the H band of HSV, in steps of 1/256 turn.
    image = photograph()
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    hue = Image.fromarray((np.asarray(hue, np.int32) + round(0.1 * 255)).astype(np.uint8))
    expected = as_float(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))
    (result,) = run(ops.adjust_hue, [as_float(image)], [0.1])
    assert mean_difference(result, expected) <= PILLOW_TOLERANCE


def test_flip_mirrors_left_and_right(run):
    image = photograph(20, 31)
    expected = as_float(ImageOps.mirror(Image.fromarray(image)))
    (result,) = run(ops.flip, [as_float(image)])
    np.testing.assert_array_equal(result, expected)


# Crops.


def pillow_crop(image, box, size):
    top, left, height, width = (int(word) for word in box)
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    return as_float(crop.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", [24, 160], ids=["smaller", "larger"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_random_resized_crop_is_pillows_crop_and_bilinear_resize(run, size, dtype):
    image, seeds = photograph(), [seed_of(number) for number in range(4)]
    results = run(
        lambda image, seed: ops.random_resized_crop(image, seed, size, 0.2),
        [image if dtype == np.uint8 else as_float(image)] * len(seeds),
        seeds,
    )
    for seed, result in zip(seeds, results, strict=True):
        expected = pillow_crop(image, ops.sample_crop(image.shape, seed, 0.2), size)
        assert result.dtype == np.float32
        assert mean_difference(result, expected) <= PILLOW_TOLERANCE


def test_bounds_of_area_and_aspect_are_those_of_the_crop(run):
    image, seed = photograph(), seed_of(5)
    bounds = {"min_area": 0.05, "max_area": 0.1, "aspect": (1.5, 2.5)}
    (result,) = run(
        lambda image, seed: ops.random_resized_crop(image, seed, 16, **bounds), [image], [seed]
    )
    box = ops.sample_crop(image.shape, seed, **bounds)
    assert 0.04 < box[2] * box[3] / image[..., 0].size < 0.11
    assert mean_difference(result, pillow_crop(image, box, 16)) <= PILLOW_TOLERANCE


def test_sampled_box_is_the_same_in_a_graph_as_eagerly():
    boxes = draw(lambda seed: tf.stack(ops.sample_crop([300, 400], seed, 0.08)), 20)
    for number, box in enumerate(boxes):
        expected = [int(word) for word in ops.sample_crop([300, 400], seed_of(number), 0.08)]
        assert box.tolist() == expected


def sampled_boxes(shape, count, *bounds, **named_bounds):
    """Columns top, left, height, width over many seeds."""
    boxes = draw(
        lambda seed: tf.stack(ops.sample_crop(shape, seed, *bounds, **named_bounds)), count
    )
    return boxes.astype(np.int64).T


def torchvision_box(height, width, min_area, rng):
    # torchvision.transforms.RandomResizedCrop.get_params, with the default ratio.
    log_ratio = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        target_area = height * width * rng.uniform(min_area, 1)
        aspect_ratio = math.exp(rng.uniform(*log_ratio))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    in_ratio = width / height
    if in_ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif in_ratio > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def test_area_is_uniform_and_aspect_log_uniform_where_every_box_fits():
    # At most half of this image: the first draw always fits, so nothing bends the distribution.
    height, width = 8000, 6000
    top, left, box_height, box_width = sampled_boxes([height, width], 10_000, 0.2, 0.5)
    area = box_height * box_width / (height * width)
    log_aspect = np.log(box_width / box_height)
    assert kolmogorov_smirnov(area, uniform_cdf(0.2, 0.5)) < 1.95
    assert kolmogorov_smirnov(log_aspect, uniform_cdf(math.log(3 / 4), math.log(4 / 3))) < 1.95
    vertical, horizontal = top / (height - box_height), left / (width - box_width)
    assert kolmogorov_smirnov(vertical, uniform_cdf(0, 1)) < 1.95
    assert kolmogorov_smirnov(horizontal, uniform_cdf(0, 1)) < 1.95
    correlation = np.corrcoef([area, log_aspect, vertical, horizontal])
    assert np.abs(correlation - np.eye(4)).max() < 0.04


@pytest.mark.parametrize("min_area", [0.08, 0.2])
def test_boxes_are_distributed_as_torchvisions(min_area):
    height, width, count = 300, 400, 10_000
    boxes = sampled_boxes([height, width], count, min_area)
    rng = np.random.default_rng(0)
    others = np.array([torchvision_box(height, width, min_area, rng) for _ in range(count)]).T
    for sample, other in zip(
        [*boxes, boxes[2] * boxes[3], boxes[3] / boxes[2]],
        [*others, others[2] * others[3], others[3] / others[2]],
        strict=True,
    ):
        values = np.union1d(sample, other)
        below = [np.searchsorted(np.sort(column), values, "right") for column in (sample, other)]
        # Two-sample Kolmogorov-Smirnov, p = 0.001.
        assert np.abs(below[0] - below[1]).max() / count < 1.95 * math.sqrt(2 / count)


@pytest.mark.parametrize("shape", [(300, 400), (37, 23), (5, 5), (2, 3), (1, 1)])
def test_every_box_lies_within_the_image(shape):
    top, left, height, width = sampled_boxes(list(shape), 1000, 0.08)
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= shape[0]
    assert (left + width).max() <= shape[1]


def test_a_small_image_is_cropped_at_its_last_row_and_column_too():
    top, left, height, width = sampled_boxes([8, 8], 1000, 0.2, 0.3)
    assert set(top) >= {0, 3}
    assert (top + height).max() == 8
    assert (left + width).max() == 8


def test_aspect_is_width_over_height():
    _, _, height, width = sampled_boxes([1000, 1000], 200, 0.1, 0.2, aspect=(1.5, 2))
    assert 1.45 < (width / height).min() < (width / height).max() < 2.05


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1, 400), (0, 199, 1, 1)),
        ((400, 1), (199, 0, 1, 1)),
        ((30, 400), (0, 180, 30, 40)),
        ((400, 30), (180, 0, 40, 30)),
        ((30, 401), (0, 180, 30, 40)),
    ],
)
def test_an_image_that_no_box_fits_is_cropped_in_its_middle(run, shape, box):
    seeds = [seed_of(number) for number in range(3)]
    for result in run(lambda seed: tf.stack(ops.sample_crop(shape, seed, 0.2)), seeds):
        assert tuple(result) == box


def test_the_fallback_is_within_the_bounds_that_are_given(run):
    # Boxes of the whole image's area: those of another aspect fit nowhere.
    def sample(seed):
        narrow = ops.sample_crop((200, 300), seed, 1.0, 1.0, (0.5, 0.6))
        whole = ops.sample_crop((200, 250), seed, 1.0, 1.0)
        return tf.stack([narrow, whole])

    (result,) = run(sample, [seed_of(0)])
    assert result.tolist() == [[0, 90, 200, 120], [0, 0, 200, 250]]


@pytest.mark.parametrize(
    ("height", "width", "size", "ratio"),
    [
        (96, 128, 56, 0.875),
        (131, 77, 56, 0.875),
        (50, 201, 33, 0.6),
        (77, 52, 33, 0.6),
        (96, 101, 32, 1.0),
        (20, 33, 32, 1.0),
    ],
)
def test_central_crop_is_resize_and_center_crop(run, height, width, size, ratio):
    # torchvision's Resize(round(size / ratio)) and CenterCrop(size), for PIL images.
    image = photograph(height, width)
    target, short = round(size / ratio), min(height, width)
    resized_width, resized_height = int(target * width / short), int(target * height / short)
    resized = Image.fromarray(image).resize(
        (resized_width, resized_height), Image.Resampling.BILINEAR
    )
    left, top = round((resized_width - size) / 2), round((resized_height - size) / 2)
    expected = as_float(resized.crop((left, top, left + size, top + size)))
    (result,) = run(lambda image: ops.central_crop(image, size, ratio), [image])
    assert result.dtype == np.float32
    assert mean_difference(result, expected) <= PILLOW_TOLERANCE


# Blur.


def dense_blur(image, sigma):
    """Every weight of the Gaussian by itself, over the image continued by reflection."""
    for _ in range(2):  # along the first axis, then along the second
        size = image.shape[0]
        padded = np.pad(image, ((size - 1, size - 1), (0, 0), (0, 0)), mode="reflect")
        positions = np.arange(-(size - 1), 2 * size - 1)
        blurred = np.empty_like(image)
        for row in range(size):
            weights = np.exp(-((positions - row) ** 2) / (2 * sigma**2))
            blurred[row] = np.tensordot(weights / weights.sum(), padded, axes=1)
        image = blurred.transpose(1, 0, 2)
    return image


def test_blur_without_radius_is_the_dense_gaussian(run):
    image, sigmas = as_float(photograph(24, 31)), [0.1, 0.5, 1.0, 2.0, 6.0]
    results = run(ops.gaussian_blur, [image] * len(sigmas), sigmas)
    for sigma, result in zip(sigmas, results, strict=True):
        np.testing.assert_allclose(result, dense_blur(image.astype(np.float64), sigma), atol=1e-4)


@pytest.mark.parametrize(("kernel", "sigmas"), [(23, [0.1, 0.5, 1.0, 2.0]), (9, [1.3])])
def test_blur_with_radius_is_that_of_tensorflow_addons(run, kernel, sigmas):
    # tensorflow-addons 0.23.0, gaussian_filter2d(padding="REFLECT").
    with np.load(FIXTURES / "tensorflow_addons_image_ops.npz") as fixture:
        image = fixture["image"][0]
        expected = [
            fixture[f"gaussian_filter2d/kernel{kernel}/sigma{sigma}"][0] for sigma in sigmas
        ]
    results = run(
        lambda image, sigma: ops.gaussian_blur(image, sigma, (kernel - 1) // 2),
        [image] * len(sigmas),
        sigmas,
    )
    np.testing.assert_allclose(results, expected, atol=1e-5)


def test_blur_with_a_small_radius_is_cut(run):
    # The weights of a kernel of three taps, by hand.
    image = np.zeros([9, 9, 3], np.float32)
    image[4, 4] = 1
    side = math.exp(-1 / (2 * 3**2))
    taps = np.zeros(9)
    taps[3:6] = np.array([side, 1, side]) / (1 + 2 * side)
    (result,) = run(lambda image: ops.gaussian_blur(image, 3.0, radius=1), [image])
    np.testing.assert_allclose(result[..., 0], np.outer(taps, taps), atol=1e-6)


def test_random_blur_draws_sigma_uniformly():
    impulse = np.zeros([41, 41, 3], np.float32)
    impulse[20, 20] = 1

    def center_and_neighbour(seed):
        blurred = ops.random_gaussian_blur(impulse, seed, 0.5, 2.0)
        return blurred[20, 20:22, 0]

    center, neighbour = draw(center_and_neighbour, 1000).T
    sigma = np.sqrt(-1 / (2 * np.log(neighbour / center)))  # a Gaussian, solved for its sigma
    assert kolmogorov_smirnov(sigma, uniform_cdf(0.5, 2.0)) < 1.95


# Decoding.


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded_by_pillow(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_jpeg_is_decoded_as_pillow_does(run):
    image = Image.fromarray(photograph(61, 45))
    files = [
        encode(image.convert(mode), "JPEG", quality=90, subsampling=subsampling)
        for mode in ("RGB", "L")
        for subsampling in ("4:4:4", "4:2:0")
    ]
    for file, result in zip(files, run(decoding.decode_image, files), strict=True):
        assert result.dtype == np.uint8
        # In levels. The fast inverse transform, TensorFlow's default, is off by one.
        assert mean_difference(result, decoded_by_pillow(file)) <= 0.5


def test_lossless_images_of_any_mode_are_decoded_exactly(run):
    image = Image.fromarray(photograph(21, 34))
    modes = {"PNG": ["RGB", "L", "P", "1", "RGBA", "LA"], "BMP": ["RGB", "L"]}
    files = [
        encode(image.convert(mode), file_format)
        for file_format, some_modes in modes.items()
        for mode in some_modes
    ]
    for file, result in zip(files, run(decoding.decode_image, files), strict=True):
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, decoded_by_pillow(file))


@pytest.mark.parametrize("encoded", [b"", b"not an image", b"\xff\xd8\xff"])
def test_bytes_that_are_no_image_are_an_error(run, encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(decoding.decode_image, [encoded])


# Colour jitter: what it draws shows on images that only one of its four operations changes.

STRENGTHS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}


def brightness_factor(image):
    return image[0, 0, 0] / 0.3


def contrast_factor(image):
    return (image[0, 1, 0] - image[0, 0, 0]) / 0.1


def saturation_factor(image):
    return (tf.reduce_max(image) - tf.reduce_min(image)) / 0.1


def hue_shift(image):
    red, green, blue = tf.unstack(image[0, 0])
    return (green - blue) / (red - tf.minimum(green, blue)) / 6  # HSV, where red is the largest


# Gray pixels keep to gray; two of them have a contrast; a flat coloured image has none, but has a
# saturation and, red, the hue 0. None comes near 0 or 1, where it would be clipped.
FLAT_GRAY = np.full([1, 2, 3], 0.3, np.float32)
GRAY_STEP = np.array([[[0.4] * 3, [0.5] * 3]], np.float32)
FLAT_RED = np.array([[[0.5, 0.4, 0.4]] * 2], np.float32)
PROBES = {
    "brightness": (FLAT_GRAY, brightness_factor),
    "contrast": (GRAY_STEP, contrast_factor),
    "saturation": (FLAT_RED, saturation_factor),
    "hue": (FLAT_RED, hue_shift),
}


def jitter_draws(seed, strengths):
    """What `color_jitter` draws with a seed, each by itself: the others have no strength."""
    draws = []
    for name, (image, measure) in PROBES.items():
        alone = dict.fromkeys(strengths, 0.0) | {name: strengths[name]}
        draws.append(measure(ops.color_jitter(image, seed, **alone)))
    return tf.stack(draws)


def test_jitter_draws_each_amount_uniformly_and_by_itself():
    draws = draw(lambda seed: jitter_draws(seed, STRENGTHS), 1000).T
    for (name, strength), drawn in zip(STRENGTHS.items(), draws, strict=True):
        center = 0 if name == "hue" else 1
        low, high = center - strength, center + strength
        assert low - 1e-4 < drawn.min() < low + 0.02 * strength, name
        assert high - 0.02 * strength < drawn.max() < high + 1e-4, name
        assert kolmogorov_smirnov(drawn, uniform_cdf(low, high)) < 1.95, name
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.1


def test_jitter_without_strength_keeps_the_image(run):
    image = as_float(photograph(24, 32))
    (result,) = run(
        lambda image, seed: ops.color_jitter(image, seed, 0.0, 0.0, 0.0, 0.0), [image], [seed_of(0)]
    )
    np.testing.assert_allclose(result, image, atol=1e-6)


def test_jitter_is_its_four_operations_in_every_order_equally_often():
    # Saturated colours and near black and white: clipping tells the orders apart.
    image = np.random.default_rng(0).uniform(-0.5, 1.5, [6, 6, 3]).clip(0, 1).astype(np.float32)
    strengths = {"brightness": 0.6, "contrast": 0.6, "saturation": 0.6, "hue": 0.1}
    operations = [
        ops.adjust_brightness,
        ops.adjust_contrast,
        ops.adjust_saturation,
        ops.adjust_hue,
    ]
    orders = list(itertools.permutations(range(4)))

    def differences(seed):
        """How far the jittered image is from each order of the four with the same amounts."""
        amounts = tf.unstack(jitter_draws(seed, strengths))
        result = ops.color_jitter(image, seed, **strengths)
        candidates = {(): tf.constant(image)}
        for length in range(1, 5):
            for order in itertools.permutations(range(4), length):
                last = order[-1]
                candidates[order] = operations[last](candidates[order[:-1]], amounts[last])
        return tf.stack([tf.reduce_max(tf.abs(candidates[order] - result)) for order in orders])

    count = 800
    matches = draw(differences, count) < 1e-4
    assert matches.any(axis=1).all()  # every result is one of the 24
    # Where orders commute, several match. Sharing a seed among its matches keeps the mean of each
    # order's share at 1/24; its deviation is below that of a binomial.
    shares = (matches / matches.sum(axis=1, keepdims=True)).mean(axis=0)
    deviation = math.sqrt(1 / 24 / count)
    assert np.abs(shares - 1 / 24).max() < 4 * deviation
    certain = {orders[row.argmax()] for row in matches if row.sum() == 1}
    assert len(certain) == 24


# Randomness.


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.8, 1.0])
def test_maybe_applies_with_its_probability(probability):
    count = 4000
    applied = draw(
        lambda seed: ops.maybe(lambda value: value + 1, tf.constant(0.0), seed, probability), count
    )
    assert set(applied) <= {0.0, 1.0}
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs(applied.mean() - probability) <= 4 * deviation


def test_maybe_gives_the_functions_result_or_the_image(run):
    image, seed = as_float(photograph(8, 9)), seed_of(0)
    (always,) = run(lambda image, seed: ops.maybe(ops.flip, image, seed, 1.0), [image], [seed])
    (never,) = run(lambda image, seed: ops.maybe(ops.flip, image, seed, 0.0), [image], [seed])
    np.testing.assert_array_equal(always, image[:, ::-1])
    np.testing.assert_array_equal(never, image)


RANDOM_OPS = {
    "crop": lambda image, seed: ops.random_resized_crop(image, seed, 16, 0.2),
    "jitter": lambda image, seed: ops.color_jitter(image, seed, 0.4, 0.4, 0.4, 0.1),
    "blur": lambda image, seed: ops.random_gaussian_blur(image, seed, 0.1, 2.0),
}


@pytest.mark.parametrize("name", RANDOM_OPS)
def test_a_seed_gives_one_image_eagerly_and_in_tf_data_and_another_seed_another(name):
    function, image = RANDOM_OPS[name], as_float(photograph(40, 30))
    seeds = [seed_of(number) for number in (0, 0, 1, 2)]
    first, again, other, third = in_tf_data(function, [image] * 4, seeds)
    np.testing.assert_array_equal(first, again)
    for one, two in itertools.combinations([first, other, third], 2):
        assert np.abs(one - two).max() > 0.002
    in_graph = [first, again, other, third]
    np.testing.assert_allclose(eagerly(function, [image] * 4, seeds), in_graph, atol=1e-6)
