"""Every kind of file is decoded as Pillow's `convert("RGB")` does, or rejected with a reason."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from image_files import COLOUR, FILES, HEIGHT, ROWS, WIDTH, bmp_with_masks, encode
from PIL import Image

from simsiam_tf.data.decoding import decode_image

JPEG, PNG, BMP = (FILES[kind] for kind in ("jpeg", "png", "bmp_24"))


def jpeg_of_size(height, width):
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def png_of_size(height, width):
    return PNG[:16] + struct.pack(">II", width, height) + PNG[24:]


def bmp_of_size(height, width):
    return BMP[:18] + struct.pack("<ii", width, height) + BMP[26:]


LIMIT = "an image must have 1 to --max_image_pixels=120000000 pixels; width and height are] ["
TOO_LARGE = f"{LIMIT}60000 60000]"
BITS = "a BMP must have 24 or 32 bits or be grey; bits per pixel and compression are] ["
NO_IMAGE = "neither a JPEG nor a PNG nor a BMP file"
REJECTED = {
    "empty": (b"", "an empty file"),
    "text": (b"A list of images.\n", NO_IMAGE),
    "gif": (encode(COLOUR, "GIF"), NO_IMAGE),
    "tiff": (encode(COLOUR, "TIFF"), NO_IMAGE),
    "webp": (encode(COLOUR, "WEBP"), NO_IMAGE),
    "jpeg_start": (JPEG[:3], "Invalid JPEG data"),
    "jpeg_half": (JPEG[: len(JPEG) // 2], "Invalid JPEG data"),
    "jpeg_large": (jpeg_of_size(60000, 60000), TOO_LARGE),
    "png_start": (PNG[:8], f"{LIMIT}0 0]"),
    "png_half": (PNG[: len(PNG) // 2], "Invalid PNG"),
    "png_large": (png_of_size(60000, 60000), TOO_LARGE),
    "png_beyond_64_bits": (png_of_size(2**32 - 1, 2**32 - 1), f"{LIMIT}4294967295 4294967295]"),
    "bmp_start": (BMP[:2], f"{BITS}0 0]"),
    "bmp_half": (BMP[: len(BMP) // 2], ""),
    "bmp_large": (bmp_of_size(60000, 60000), TOO_LARGE),
    "bmp_large_from_the_top": (bmp_of_size(-60000, 60000), TOO_LARGE),
    "bmp_negative_width": (bmp_of_size(5, -5), ""),
    "bmp_palette": (encode(COLOUR.convert("P"), "BMP"), f"{BITS}8 0]"),
    "bmp_1_bit": (encode(COLOUR.convert("1"), "BMP"), f"{BITS}1 0]"),
    "bmp_other_masks": (bmp_with_masks(0xFF, 0xFF00, 0xFF0000), f"{BITS}32 3]"),
}


@pytest.fixture(params=["eager", "graph"])
def decode(request):
    if request.param == "eager":
        return decode_image
    return tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)])


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_decoded_as_pillow_does(decode, kind):
    expected = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    result = decode(FILES[kind]).numpy()
    assert result.dtype == np.uint8
    assert result.shape == (HEIGHT, WIDTH, 3)  # as stored, without EXIF's orientation
    # The JPEG libraries of TensorFlow and Pillow may differ by one level.
    np.testing.assert_allclose(result.astype(int), expected, atol=1 if "jpeg" in kind else 0)


def test_16_bit_gray_keeps_its_upper_8_bits(decode):
    # Pillow clips these levels at 255 instead, so all but the darkest become white.
    levels = (ROWS * 1700).astype(np.uint16)
    result = decode(encode(Image.fromarray(levels), "PNG")).numpy()
    np.testing.assert_array_equal(result, np.repeat((levels >> 8)[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", REJECTED)
def test_a_bad_file_is_rejected_with_a_reason(decode, kind):
    file, reason = REJECTED[kind]
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        decode(file)
    assert reason in raised.value.message


def test_files_do_not_affect_each_other_in_tf_data():
    files = [*FILES.values(), *(file for file, _ in REJECTED.values())]
    images = tf.data.Dataset.from_tensor_slices(files).map(decode_image, num_parallel_calls=4)
    images = list(images.ignore_errors().as_numpy_iterator())
    assert len(images) == len(FILES)
    for image, file in zip(images, FILES.values(), strict=True):
        np.testing.assert_array_equal(image, decode_image(file))


def test_an_image_may_have_as_many_pixels_as_the_limit_but_no_more():
    for file in (JPEG, PNG, BMP):
        assert decode_image(file, HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(tf.errors.InvalidArgumentError, match="--max_image_pixels=1960"):
            decode_image(file, HEIGHT * WIDTH - 1)


def test_a_large_size_in_the_header_allocates_no_memory():
    """Measures in a child process, because the peak memory of a process never falls."""
    program = (
        "import resource, sys, tensorflow as tf\n"
        "from simsiam_tf.data.decoding import decode_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"decode_image({PNG!r})\n"
        "before = peak()\n"
        f"for file in {[REJECTED[kind][0] for kind in REJECTED if 'large' in kind]!r}:\n"
        "    try: decode_image(file)\n"
        "    except tf.errors.InvalidArgumentError: pass\n"
        "print(peak() - before)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(finished.stdout) * unit < 50e6 < 3 * 60000**2
