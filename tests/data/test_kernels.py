"""The compiled loops of the host, against Pillow and against the operations on batches."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from PIL import Image, ImageOps
from test_ops import photograph

from simsiam_tf.data import kernels, ops

LEVEL = 1 / 255


def pillow_crop(image, box, size):
    top, left, height, width = map(int, box)
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    # Rows first. Recent versions of Pillow start with the cheaper direction instead.
    rows = crop.resize((size, height), Image.Resampling.BILINEAR)
    return np.asarray(rows.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", [8, 24, 97, 160])
def test_a_crop_equals_pillows_to_the_last_bit(size):
    image = photograph(211, 167)
    whole, inner = [0, 0, 211, 167], [13, 31, 150, 97]
    narrow, corner, pixel = [0, 60, 211, 5], [200, 160, 11, 7], [5, 5, 1, 1]
    boxes = np.array([whole, inner, narrow, corner, pixel], np.int32)
    for box, crop in zip(boxes, kernels.crops(image, boxes, size), strict=True):
        np.testing.assert_array_equal(crop, pillow_crop(image, box, size), err_msg=str(box))


def test_the_extremes_of_a_crop_do_not_wrap():
    image = np.random.default_rng(0).choice([0, 255], [61, 47, 3]).astype(np.uint8)
    for values in (image, np.full_like(image, 255)):
        (crop,) = kernels.crops(values, np.array([[0, 0, 61, 47]], np.int32), 33)
        np.testing.assert_array_equal(crop, pillow_crop(values, (0, 0, 61, 47), 33))


def draws(count, **changed):
    """Returns arguments of `ops.recolor` that change nothing, except for the given ones."""
    columns = {
        "factors": np.tile(np.float32([1, 1, 1, 0]), (count, 1)),
        "order": np.tile(np.arange(4, dtype=np.int32), (count, 1)),
        "gray": np.zeros(count, bool),
        "sigma": np.zeros(count, np.float32),
        "flip": np.zeros(count, bool),
    }
    return columns | {
        name: np.asarray(value, columns[name].dtype) for name, value in changed.items()
    }


def on_host(image, columns, size=32):
    """Returns views of the whole image, one per row of draws: `[V, size, size, 3]` in [0, 1]."""
    boxes = np.tile(np.int32([0, 0, *image.shape[:2]]), (len(columns["flip"]), 1))
    result = kernels.views(image, boxes, size, **columns)
    assert result.dtype == np.uint8
    return result / np.float32(255)


def on_device(image, columns, size=32):
    boxes = np.tile(np.int32([0, 0, *image.shape[:2]]), (len(columns["flip"]), 1))
    crops = kernels.crops(image, boxes, size) / np.float32(255)
    recolor = tf.function(ops.recolor, jit_compile=True, autograph=False)
    return recolor(crops, **columns).numpy()


@pytest.fixture(params=[on_host, on_device])
def make(request):
    return request.param


def test_a_view_with_neutral_draws_is_its_crop(make):
    image = photograph()
    (view,) = make(image, draws(1))
    expected = pillow_crop(image, (0, 0, *image.shape[:2]), 32) * LEVEL
    np.testing.assert_allclose(view, expected, atol=1e-6)


def test_jitter_applies_its_four_operations_in_the_drawn_order(make):
    # The amounts are strong enough to clip, so different orders give different results.
    image = photograph()
    operations = [
        ops.adjust_brightness,
        ops.adjust_contrast,
        ops.adjust_saturation,
        ops.adjust_hue,
    ]
    amounts = np.float32([1.5, 1.6, 1.7, 0.1])
    orders = list(itertools.permutations(range(4)))
    views = make(image, draws(24, factors=np.tile(amounts, (24, 1)), order=orders))
    (crop,) = make(image, draws(1))
    results = []
    for order, view in zip(orders, views, strict=True):
        expected = tf.constant(crop)
        for operation in order:
            expected = operations[operation](expected, amounts[operation])
        results.append(expected)
        np.testing.assert_allclose(view, expected, atol=0.51 * LEVEL, err_msg=str(order))
    apart = np.abs(np.subtract.outer(range(24), range(24))) > 0
    distances = np.abs(np.stack(results)[:, None] - np.stack(results)).max(axis=(2, 3, 4))
    assert (distances[apart] > 2 * LEVEL).mean() > 0.9


def test_gray_is_the_luma_of_the_jittered_image(make):
    image, factors = photograph(), [[1.2, 1, 1, 0.1]]
    (gray,) = make(image, draws(1, factors=factors, gray=[True]))
    (colour,) = make(image, draws(1, factors=factors))
    np.testing.assert_allclose(gray, ops.grayscale(colour), atol=1.01 * LEVEL)
    assert np.ptp(gray, axis=-1).max() == 0


def test_blur_is_the_gaussian_of_the_gray_image(make):
    image, sigmas = photograph(), [0.1, 0.5, 1.0, 2.0, 20.0]
    views = make(image, draws(5, sigma=sigmas, gray=[True] * 5))
    (gray,) = make(image, draws(1, gray=[True]))
    for sigma, view in zip(sigmas, views, strict=True):
        expected = ops.gaussian_blur(tf.constant(gray, tf.float64), sigma, radius=31)
        np.testing.assert_allclose(view, expected, atol=1.01 * LEVEL, err_msg=str(sigma))


def test_flip_mirrors_left_and_right(make):
    image = photograph()
    plain, flipped = make(image, draws(2, flip=[False, True]))
    levels = np.round(plain * 255).astype(np.uint8)
    expected = np.asarray(ImageOps.mirror(Image.fromarray(levels))) * LEVEL
    np.testing.assert_allclose(flipped, expected, atol=1e-6)


def test_draws_of_one_view_do_not_affect_the_others(make):
    image = photograph()
    columns = draws(
        3,
        factors=[[1, 1, 1, 0], [1.4, 0.7, 1.3, 0.1], [1, 1, 1, 0]],
        order=[[0, 1, 2, 3], [3, 1, 0, 2], [0, 1, 2, 3]],
        sigma=[0, 1.5, 0],
        flip=[False, True, False],
    )
    first, second, third = make(image, columns)
    (plain,) = make(image, draws(1))
    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(third, plain)
    assert np.abs(second - plain).mean() > 5 * LEVEL


def test_kernels_work_without_a_writable_cache(tmp_path):
    program = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from simsiam_tf.data import kernels\n"
        "image = np.full((9, 9, 3), 7, np.uint8)\n"
        "print(kernels.crops(image, np.array([[1, 1, 5, 5]], np.int32), 4).mean())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "7.0", ran.stderr
