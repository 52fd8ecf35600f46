"""Every kind of file is decoded as Pillow's `convert("RGB")` does, or rejected with a reason."""

import io
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
import tifffile
from conftest import ROOT
from image_files import COLOUR, FILES, HEIGHT, PIXELS, ROWS, WIDTH, bmp_with_masks, encode
from PIL import Image, ImageOps

from simsiam_tf.data import image_files
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.image_files import read_facts
from simsiam_tf.data.pixels import Pixels
from simsiam_tf.data.quarantine import reason_of

JPEG, PNG, BMP = (FILES[kind] for kind in ("jpeg", "png", "bmp_24"))


def jpeg_of_size(height, width):
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def png_of_size(height, width):
    return PNG[:16] + struct.pack(">II", width, height) + PNG[24:]


def bmp_of_size(height, width):
    return BMP[:18] + struct.pack("<ii", width, height) + BMP[26:]


def gif_of_size(height, width):
    return FILES["gif"][:6] + struct.pack("<HH", width, height) + FILES["gif"][10:]


def tiff_of_size(height, width):
    file = FILES["tiff"]
    for tag, old, new in ((256, WIDTH, width), (257, HEIGHT, height)):
        at = next(at for at in range(len(file)) if file[at:].startswith(struct.pack("<H", tag)))
        assert old in struct.unpack("<II", file[at + 4 : at + 12])
        file = file[:at] + struct.pack("<HHII", tag, 4, 1, new) + file[at + 12 :]
    return file


def npy_of(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(*shape):
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def zip_of(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


LIMIT = "an image must have 1 to --max_image_pixels=120000000 pixels; width and height are] ["
BOMB = "an image must have 1 to --max_image_pixels=120000000 pixels; Image size"
TOO_LARGE = f"{LIMIT}60000 60000]"
NO_IMAGE = "no image of a kind that is read: JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF, HEIC, NumPy"
REJECTED = {
    "empty": (b"", "an empty file"),
    "text": (b"A list of images.\n", NO_IMAGE),
    "gif_half": (FILES["gif"][:1200], "image file is truncated"),
    "tiff_half": (FILES["tiff"][:3000], "image file is truncated"),
    "webp_half": (FILES["webp"][:200], ""),
    "avif_half": (FILES["avif"][:200], ""),
    "heic_damaged": (b"\0\0\0\x18ftypheic" + bytes(40), ""),
    "gif_large": (gif_of_size(60000, 60000), BOMB),
    "tiff_large": (tiff_of_size(60000, 60000), BOMB),
    "array_ends_early": (npy_of(PIXELS)[:-1], "an array that ends early"),
    "array_large": (npy_header(60000, 60000), TOO_LARGE),
    "array_of_text": (npy_of(np.array([["a"]])), "an array must hold numbers; its dtype is <U1"),
    "array_of_one_axis": (npy_of(np.arange(3)), "an array must have the axes H, W or H, W, C"),
    "array_of_objects": (npy_of(np.array([[None]])), "an array must hold numbers"),
    "archive_without_array": (zip_of("a.txt", b"1"), "a zip file without an array"),
    "jpeg_start": (JPEG[:3], "Invalid JPEG data"),
    "jpeg_half": (JPEG[: len(JPEG) // 2], "Invalid JPEG data"),
    "jpeg_large": (jpeg_of_size(60000, 60000), TOO_LARGE),
    "png_start": (PNG[:8], f"{LIMIT}0 0]"),
    "png_half": (PNG[: len(PNG) // 2], "Invalid PNG"),
    "png_large": (png_of_size(60000, 60000), TOO_LARGE),
    "png_beyond_64_bits": (png_of_size(2**32 - 1, 2**32 - 1), f"{LIMIT}4294967295 4294967295]"),
    "bmp_start": (BMP[:2], ""),
    "bmp_half": (BMP[: len(BMP) // 2], ""),
    "bmp_other_masks": (bmp_with_masks(0xFF, 0xFF00, 0xFF0000), "Unsupported BMP bitfields"),
    "bmp_large": (bmp_of_size(60000, 60000), TOO_LARGE),
    "bmp_large_from_the_top": (bmp_of_size(-60000, 60000), TOO_LARGE),
    "bmp_negative_width": (bmp_of_size(5, -5), ""),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_decoded_as_pillow_does(kind):
    expected = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    result = decode_image(FILES[kind]).numpy()
    assert result.dtype == np.uint8
    assert result.shape == (HEIGHT, WIDTH, 3)  # as stored, without EXIF's orientation
    # The JPEG libraries of TensorFlow and Pillow may differ by one level.
    np.testing.assert_allclose(result.astype(int), expected, atol=1 if "jpeg" in kind else 0)


def test_16_bit_gray_keeps_its_upper_8_bits():
    # Pillow clips these levels at 255 instead, so all but the darkest become white.
    levels = (ROWS * 1700).astype(np.uint16)
    result = decode_image(encode(Image.fromarray(levels), "PNG")).numpy()
    np.testing.assert_array_equal(result, np.repeat((levels >> 8)[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", REJECTED)
def test_a_bad_file_is_rejected_with_a_reason(kind):
    file, reason = REJECTED[kind]
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        decode_image(file)
    assert reason.replace("] [", " ").rstrip("]") in reason_of(raised.value)


def test_files_do_not_affect_each_other_in_tf_data():
    files = [*FILES.values(), *(file for file, _ in REJECTED.values())]
    images = tf.data.Dataset.from_tensor_slices(files).map(decode_image, num_parallel_calls=4)
    images = list(images.ignore_errors().as_numpy_iterator())
    assert len(images) == len(FILES)
    for image, file in zip(images, FILES.values(), strict=True):
        np.testing.assert_array_equal(image, decode_image(file))


def test_an_image_may_have_as_many_pixels_as_the_limit_but_no_more():
    for file in (JPEG, PNG, BMP, *(FILES[kind] for kind in ("gif", "tiff", "webp", "avif"))):
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


def test_heic_is_decoded_by_the_optional_package():
    pillow_heif.register_heif_opener()
    file = encode(COLOUR, "HEIF", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(file).numpy(), expected)
    assert np.abs(expected.astype(int) - PIXELS).mean() < 4
    assert read_facts(file).kind == "HEIF"


def test_heic_without_the_optional_package_is_rejected_with_its_name(monkeypatch):
    monkeypatch.setattr(image_files, "_reads_heif", lambda: False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"requirements-formats\.txt"):
        decode_image(encode(COLOUR, "HEIF"))


# Orientation.

UPRIGHT = Pixels(exif_orientation="apply")


def with_orientation(kind, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(COLOUR, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "by_python"),
    [
        ("JPEG", True), ("JPEG", False), ("PNG", True), ("PNG", False),
        ("WEBP", True), ("TIFF", True), ("AVIF", True),
    ],
)  # fmt: skip
def test_an_image_is_turned_as_exif_says_or_left_as_it_is_stored(kind, orientation, by_python):
    file = with_orientation(kind, orientation)
    options = {"by_python": by_python}
    as_stored = np.asarray(Image.open(io.BytesIO(with_orientation(kind, 1))).convert("RGB"))
    np.testing.assert_allclose(decode_image(file, **options).numpy().astype(int), as_stored, atol=1)
    with Image.open(io.BytesIO(file)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = decode_image(file, pixels=UPRIGHT, **options).numpy()
    np.testing.assert_allclose(found.astype(int), expected, atol=1)
    assert read_facts(file).orientation == orientation


def test_exif_is_found_behind_other_segments():
    file = with_orientation("JPEG", 6)
    comment = b"\xff\xfe\0\x06Exif"
    profile = b"\xff\xe2" + struct.pack(">H", 3000) + bytes(2998)
    file = file[:2] + comment + profile + file[2:]
    assert decode_image(file, pixels=UPRIGHT).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
        bytes(60000),
    ],
)
def test_a_damaged_exif_block_leaves_the_image_as_it_is_stored(exif):
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    file = JPEG[:2] + segment + JPEG[2:]
    assert decode_image(file, pixels=UPRIGHT).shape == (HEIGHT, WIDTH, 3)


def test_exif_says_the_orientation_in_either_order_of_bytes():
    for order, start in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = [(0x0100, 3, 5), (0x0112, 3, 8), (0x0128, 3, 2)]
        directory = struct.pack(f"{order}H", len(entries)) + b"".join(
            struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries
        )
        exif = start + struct.pack(f"{order}I", 8) + directory + bytes(4)
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
        file = JPEG[:2] + segment + JPEG[2:]
        expected = np.asarray(Image.open(io.BytesIO(JPEG)).transpose(Image.Transpose.ROTATE_90))
        found = decode_image(file, pixels=UPRIGHT).numpy()
        np.testing.assert_allclose(found.astype(int), expected, atol=1)


# Depth and channels.


def numbers(file, **settings):
    found = decode_image(file, pixels=Pixels(depth="float32", **settings)).numpy()
    assert found.dtype == np.float32
    return found


def tiff_of(levels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, levels, **options)
    return file.getvalue()


LEVELS = (np.arange(HEIGHT * WIDTH * 13).reshape(HEIGHT, WIDTH, 13) * 7 % 4096).astype(np.uint16)


@pytest.mark.parametrize(
    "file",
    [
        tiff_of(LEVELS, photometric="minisblack", planarconfig="contig"),
        tiff_of(np.moveaxis(LEVELS, -1, 0), photometric="minisblack", planarconfig="separate"),
        tiff_of(LEVELS, photometric="minisblack", planarconfig="contig", compression="zlib"),
        npy_of(LEVELS),
        npy_of(np.asfortranarray(LEVELS)),
        npy_of(LEVELS.astype(">u2")),
    ],
    ids=["tiff", "tiff_planes", "tiff_zlib", "npy", "npy_fortran", "npy_big_endian"],
)
def test_thirteen_bands_of_12_bits_keep_their_levels(file):
    found = numbers(file, channels=13, high=4095.0, mean=(0,) * 13, std=(1,) * 13)
    np.testing.assert_allclose(found, LEVELS / 4095, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_their_depth(channels):
    gray = LEVELS[..., 0]
    png, tiff = encode(Image.fromarray(gray), "PNG"), tiff_of(gray)
    for file in (png, tiff, npy_of(gray)):
        found = numbers(file, channels=channels, high=4095.0)
        expected = np.repeat(gray[..., None], channels, axis=-1) / 4095
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    colour = tf.io.encode_png(LEVELS[..., :3]).numpy()
    if channels == 3:
        for file in (colour, tiff_of(LEVELS[..., :3], photometric="rgb")):
            found = numbers(file, channels=3, high=4095.0)
            np.testing.assert_allclose(found, LEVELS[..., :3] / 4095, rtol=1e-6)


@pytest.mark.parametrize("kind", ["jpeg", "png", "png_alpha", "png_palette", "webp", "bmp_1_bit"])
def test_8_bits_among_deeper_images_have_their_own_range(kind):
    image = Image.open(io.BytesIO(FILES[kind]))
    for channels, mode in ((1, "L"), (3, "RGB")):
        expected = np.asarray(image.convert("RGB").convert(mode)).reshape(HEIGHT, WIDTH, channels)
        found = numbers(FILES[kind], channels=channels, high=4095.0)
        np.testing.assert_allclose(found * 255, expected, atol=1.01 if kind == "jpeg" else 1e-4)


def test_floats_are_scaled_by_the_range_and_clipped():
    levels = np.array([[[-2.0], [-1.0], [0.5], [2.0], [np.nan]]], np.float32)
    for file in (npy_of(levels), tiff_of(levels[..., 0])):
        found = numbers(file, channels=1, low=-1.0, high=2.0)
        np.testing.assert_allclose(found[0, :, 0], [0, 0, 0.5, 1, 0], atol=1e-6)


def test_an_image_of_other_channels_is_rejected_with_both_numbers():
    pixels = Pixels(13, "float32", mean=(0,) * 13, std=(1,) * 13)
    for file in (JPEG, PNG, npy_of(LEVELS[..., :5])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="channels; --channels is 13"):
            decode_image(file, pixels=pixels)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("jpeg", ("JPEG", 3, "uint8")),
        ("jpeg_gray", ("JPEG", 1, "uint8")),
        ("png_alpha", ("PNG", 3, "uint8")),
        ("png_gray_alpha", ("PNG", 1, "uint8")),
        ("bmp_gray", ("BMP", 1, "uint8")),
        ("webp", ("WEBP", 3, "uint8")),
        ("gif", ("GIF", 3, "uint8")),
        ("avif", ("AVIF", 3, "uint8")),
        ("tiff_lzw", ("TIFF", 3, "uint8")),
    ],
)
def test_the_header_says_what_a_file_contains(kind, expected):
    facts = read_facts(FILES[kind])
    assert (facts.kind, facts.channels, facts.dtype) == expected
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)
    assert facts.has_more == (kind == "gif")


def test_the_header_says_the_bands_and_bits_of_arrays_and_tiffs():
    for file, kind in (
        (npy_of(LEVELS), "NPY"),
        (tiff_of(LEVELS, photometric="minisblack", planarconfig="contig"), "TIFF"),
    ):
        facts = read_facts(file)
        found = (facts.kind, facts.width, facts.height, facts.channels, facts.dtype)
        assert found == (kind, WIDTH, HEIGHT, 13, "uint16")
