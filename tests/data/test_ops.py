"""Each op against Pillow, tensorflow-addons or a slow transcription, eagerly and in `tf.data`."""

import colorsys
import io
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from simsiam_tf.data import decoding, ops

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
# Pillow computes in whole levels of 255.
PILLOW_TOLERANCE = 2 / 255


def photograph(height=96, width=128, seed=0):
    """Returns a crop of one of scikit-learn's two photographs, `[height, width, 3]` uint8."""
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
    """Returns the results of `function` for the first element of each column, the second, …."""
    return [np.asarray(function(*map(tf.constant, case))) for case in zip(*columns, strict=True)]


def in_tf_data(function, *columns):
    def call(*case):
        return function(*[of_unknown_size(tensor) for tensor in case])

    columns = [tf.stack([tf.constant(value) for value in column]) for column in columns]
    cases = tf.data.Dataset.from_tensor_slices(tuple(columns))
    return list(cases.map(call).as_numpy_iterator())


def of_unknown_size(tensor):
    """Returns the image with unknown height and width, as after decoding in a graph."""
    if tensor.shape.rank != 3:
        return tensor
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=[None, None, 3])


@pytest.fixture(params=[eagerly, in_tf_data], ids=["eagerly", "in_tf_data"])
def run(request):
    return request.param


def draw(function, count):
    """Returns `function(seed)` for many seeds, stacked. It runs in `tf.data` for speed."""
    seeds = tf.data.Dataset.range(count, output_type=tf.int32)
    results = seeds.map(lambda number: function(tf.stack([17, number])), num_parallel_calls=2)
    return next(results.batch(count).as_numpy_iterator())


def kolmogorov_smirnov(sample, cdf):
    """Returns the largest distance of a sample from `cdf`, times √n; 1.95 is p = 0.001."""
    sample = np.sort(sample)
    expected = cdf(sample)
    steps = np.arange(len(sample) + 1) / len(sample)
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    return distance * math.sqrt(len(sample))


def uniform_cdf(low, high):
    return lambda value: np.clip((value - low) / (high - low), 0, 1)


# Colour, against Pillow's ImageEnhance, which torchvision's adjust_* call for PIL images.


@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (ops.adjust_brightness, ImageEnhance.Brightness),
        (ops.adjust_contrast, ImageEnhance.Contrast),
        (ops.adjust_saturation, ImageEnhance.Color),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_adjustment_equals_pillows(run, adjust, enhance):
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


def test_hue_shift_equals_the_shift_in_hsv(run):
    # The oracle is torchvision's adjust_hue, pixel by pixel with Python's colorsys.
    image, shifts = as_float(photograph(24, 32)), [-0.5, -0.1, 0.0, 0.07, 0.1, 0.5]
    results = run(ops.adjust_hue, [image] * len(shifts), shifts)
    for turns, result in zip(shifts, results, strict=True):
        expected = np.empty_like(image)
        for pixel in np.ndindex(*image.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[pixel].tolist())
            expected[pixel] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert mean_difference(result, expected) <= PILLOW_TOLERANCE, turns


def test_hue_shift_equals_pillows(run):
    # The oracle is torchvision's adjust_hue for PIL images: it shifts the H band of HSV, in steps
    # of 1/256 turn.
    image = photograph()
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    hue = Image.fromarray((np.asarray(hue, np.int32) + round(0.1 * 255)).astype(np.uint8))
    expected = as_float(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))
    (result,) = run(ops.adjust_hue, [as_float(image)], [0.1])
    assert mean_difference(result, expected) <= PILLOW_TOLERANCE


# Batches, in which each image has its own arguments.


def test_an_operation_on_a_batch_equals_the_operation_on_each_image():
    images = np.stack([as_float(photograph(24, 32, seed)) for seed in range(2)])
    for operation, values in [
        (ops.adjust_brightness, [0.7, 1.3]),
        (ops.adjust_contrast, [0.7, 1.3]),
        (ops.adjust_saturation, [0.7, 1.3]),
        (ops.adjust_hue, [-0.1, 0.07]),
    ]:
        columns = tf.reshape(tf.constant(values), [2, 1, 1, 1])
        alone = [operation(image, value) for image, value in zip(images, values, strict=True)]
        np.testing.assert_allclose(operation(images, columns), alone, atol=1e-6)
    sigmas = [0.0, 1.7]
    alone = [ops.gaussian_blur(image, sigma) for image, sigma in zip(images, sigmas, strict=True)]
    np.testing.assert_allclose(ops.gaussian_blur(images, sigmas), alone, atol=1e-6)
    np.testing.assert_array_equal(alone[0], images[0])  # a sigma of 0


# Crops.


def random_box(shape, seed, *bounds, **named_bounds):
    """Returns top, left, height and width of the box drawn with a seed, `[4]` int32."""
    uniform = tf.random.stateless_uniform([1, ops.BOX_DRAWS], seed)
    return ops.random_boxes(shape, uniform, *bounds, **named_bounds)[0]


def test_a_box_is_the_same_in_a_graph_as_eagerly():
    boxes = draw(lambda seed: random_box([300, 400], seed, 0.08), 20)
    for number, box in enumerate(boxes):
        assert box.tolist() == random_box([300, 400], seed_of(number), 0.08).numpy().tolist()


def test_boxes_of_several_views_equal_those_of_single_views():
    uniform = tf.random.stateless_uniform([6, ops.BOX_DRAWS], seed_of(3))
    boxes = ops.random_boxes([30, 400], uniform, 0.02)  # some boxes are the fallback
    alone = [ops.random_boxes([30, 400], row[tf.newaxis], 0.02)[0] for row in uniform]
    np.testing.assert_array_equal(boxes, alone)
    assert len(np.unique(boxes, axis=0)) > 1


def sampled_boxes(shape, count, *bounds, **named_bounds):
    """Returns the columns top, left, height and width over many seeds."""
    boxes = draw(lambda seed: random_box(shape, seed, *bounds, **named_bounds), count)
    return boxes.astype(np.int64).T


def torchvision_box(height, width, min_area, rng):
    # Transcribed from torchvision.transforms.RandomResizedCrop.get_params, with its default ratio.
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
    # Boxes have at most half the area of this image. So the first draw always fits, and the
    # fallback does not distort the distribution.
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
def test_boxes_have_the_distribution_of_torchvisions(min_area):
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
def test_every_box_is_within_the_image(shape):
    top, left, height, width = sampled_boxes(list(shape), 1000, 0.08)
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= shape[0]
    assert (left + width).max() <= shape[1]


def test_crops_of_a_small_image_reach_its_last_row_and_column():
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
def test_an_image_into_which_no_box_fits_is_cropped_centrally(run, shape, box):
    seeds = [seed_of(number) for number in range(3)]
    for result in run(lambda seed: random_box(shape, seed, 0.2), seeds):
        assert tuple(result) == box


def test_the_fallback_respects_the_given_bounds_of_the_aspect(run):
    # Boxes have the area of the whole image, so a box of another aspect does not fit.
    def sample(seed):
        narrow = random_box((200, 300), seed, 1.0, 1.0, (0.5, 0.6))
        whole = random_box((200, 250), seed, 1.0, 1.0)
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
def test_central_crop_equals_resize_and_center_crop(run, height, width, size, ratio):
    # The oracle is torchvision's Resize(round(size / ratio)) and CenterCrop(size) for PIL images.
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
    """Returns a blur that sums every weight of the Gaussian, over the image and its reflections."""
    for _ in range(2):  # along the first axis, then along the second
        size = image.shape[0]
        padded = np.pad(image, ((size - 1, size - 1), (0, 0), (0, 0)), mode="reflect")
        coordinates = np.arange(-(size - 1), 2 * size - 1)
        blurred = np.empty_like(image)
        for row in range(size):
            weights = np.exp(-((coordinates - row) ** 2) / (2 * sigma**2))
            blurred[row] = np.tensordot(weights / weights.sum(), padded, axes=1)
        image = blurred.transpose(1, 0, 2)
    return image


def test_blur_without_radius_equals_the_dense_gaussian(run):
    image, sigmas = as_float(photograph(24, 31)), [0.1, 0.5, 1.0, 2.0, 6.0]
    results = run(ops.gaussian_blur, [image] * len(sigmas), sigmas)
    for sigma, result in zip(sigmas, results, strict=True):
        np.testing.assert_allclose(result, dense_blur(image.astype(np.float64), sigma), atol=1e-4)


@pytest.mark.parametrize(("kernel", "sigmas"), [(23, [0.1, 0.5, 1.0, 2.0]), (9, [1.3])])
def test_blur_with_radius_equals_that_of_tensorflow_addons(run, kernel, sigmas):
    # The fixture was computed by tensorflow-addons 0.23.0, gaussian_filter2d(padding="REFLECT").
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


def test_blur_with_a_small_radius_has_a_truncated_kernel(run):
    # The oracle is a kernel of three taps, computed by hand.
    image = np.zeros([9, 9, 3], np.float32)
    image[4, 4] = 1
    side = math.exp(-1 / (2 * 3**2))
    taps = np.zeros(9)
    taps[3:6] = np.array([side, 1, side]) / (1 + 2 * side)
    (result,) = run(lambda image: ops.gaussian_blur(image, 3.0, radius=1), [image])
    np.testing.assert_allclose(result[..., 0], np.outer(taps, taps), atol=1e-6)


# Decoding.


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded_by_pillow(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_decoded_jpeg_equals_pillows(run):
    image = Image.fromarray(photograph(61, 45))
    files = [
        encode(image.convert(mode), "JPEG", quality=90, subsampling=subsampling)
        for mode in ("RGB", "L")
        for subsampling in ("4:4:4", "4:2:0")
    ]
    for file, result in zip(files, run(decoding.decode_image, files), strict=True):
        assert result.dtype == np.uint8
        # The tolerance is in levels. The fast inverse transform, TensorFlow's default, is off by
        # one.
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
def test_bytes_without_an_image_are_an_error(run, encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(decoding.decode_image, [encoded])
