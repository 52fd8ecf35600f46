"""Decoding of image files to pixels, inside of a graph.

TensorFlow decodes JPEG, PNG and the usual BMP files: it is faster than Pillow and gives the same
pixels. `image_files` decodes everything else. The content of a file decides its kind; the header
decides whether it is rejected. Pixels are those of Pillow's `Image.open(file).convert("RGB")`, as
the reference loads images: alpha is dropped, and 16-bit levels of 8-bit RGB keep their upper 8
bits.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from simsiam_tf.config import DataConfig
from simsiam_tf.data import image_files
from simsiam_tf.data.pixels import RGB, Pixels

_HEADER_BYTES = 66  # long enough for all fields that are read below
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24  # bits of a level
_PNG_EXIF = b"eXIf"
_JFIF, _TABLES = b"\xff\xe0\x00\x10", b"\xff\xdb"  # a marker and its length; a marker
_MOST_SEGMENTS = 64  # in which EXIF is looked for
# (bits per pixel, compression, 0) of the BMP files that TensorFlow decodes correctly. The third
# kind must have the masks below. The last kind must have the palette below: blue, green, red and a
# filler byte for each level.
_BMP_KINDS = ((24, 0, 0), (32, 0, 0), (32, 3, 0), (8, 0, 0))
_BMP_MASKS = (0, 0xFF, 0xFF00, 0, 0xFF, 0)
_GRAY_PIXELS_AT = 14 + 40 + 1024
_GRAY_PALETTE = b"".join(bytes([level, level, level, 0]) for level in range(256))


def decode_image(
    encoded: tf.Tensor,
    max_pixels: int = DataConfig.max_image_pixels,
    pixels: Pixels = RGB,
    *,
    by_python: bool = True,
) -> tf.Tensor:
    """Returns the pixels of an image file: RGB of 8 bits, or numbers in [0, 1].

    JPEG is decoded with the accurate inverse transform, as Pillow does.

    Args:
      encoded: the bytes of the file, a scalar string.
      max_pixels: largest number of pixels of an image.
      pixels: what the pixels of the data set are.
      by_python: decode what TensorFlow does not decode by Python's libraries. A SavedModel has
        none; it is False there, and such files are rejected.

    Returns:
      `[H, W, 3]` uint8 in RGB for `pixels` of this depth, otherwise `[H, W, C]` float32 in [0, 1].

    Raises:
      tf.errors.InvalidArgumentError: the image has more than `max_pixels`, which is found before
        memory is allocated for it; or the file is damaged, or of another kind, or has other
        channels.
    """
    return _build_decoder(max_pixels, pixels, by_python)(encoded)


@functools.lru_cache(maxsize=16)  # a program traces it once, however many data sets it makes
def _build_decoder(
    max_pixels: int, pixels: Pixels, by_python: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(
        lambda encoded: _decode(encoded, max_pixels, pixels, by_python),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )


def _decode(encoded: tf.Tensor, max_pixels: int, pixels: Pixels, by_python: bool) -> tf.Tensor:
    # Decoding a small image takes as long as a dozen operations. So the header is checked with few
    # operations, and the kinds are tested in turn: tf.switch_case takes as long as all the rest.
    is_rgb = pixels.depth == "uint8"

    def finish(levels):
        """Returns the result for RGB of 8 bits."""
        return levels if is_rgb else _to_float(levels, pixels)

    def upright(image, is_plain, turned):
        """Returns the image turned as EXIF says; a plain file is not searched for EXIF."""
        if not pixels.upright:
            return image
        return tf.cond(is_plain, lambda: image, lambda: turned(image, encoded))

    def decode_jpeg():
        width_and_height = tf.image.extract_jpeg_shape(encoded)[1::-1]
        checked = _limited(encoded, width_and_height, max_pixels)
        image = finish(tf.io.decode_jpeg(checked, channels=3, dct_method="INTEGER_ACCURATE"))
        # Most files start with JFIF's 20 bytes or without them, and then the tables of the image.
        marker = _two_bytes(encoded, 2)
        segment = marker + _two_bytes(encoded, 4) + _two_bytes(encoded, 20)
        is_plain = tf.equal(marker, _TABLES) | tf.equal(segment, _JFIF + _TABLES)
        return upright(image, is_plain, _turned_as_jpeg_says)

    def decode_png():
        words = _words(encoded, little_endian=False)
        width_and_height = 65536 * words[8:12:2] + words[9:12:2]
        checked = _limited(encoded, width_and_height, max_pixels)

        def decode_deep():
            return pixels.scale(tf.io.decode_png(checked, channels=pixels.channels, dtype="uint16"))

        def decode_8_bits():
            return finish(tf.io.decode_png(checked, channels=3))

        if is_rgb:
            image = decode_8_bits()
        else:
            is_deep = tf.equal(tf.strings.substr(encoded, _PNG_DEPTH_AT, 1), b"\x10")
            image = tf.cond(is_deep, decode_deep, decode_8_bits)
        # In most files the image follows the header of 33 bytes.
        is_plain = tf.equal(_two_bytes(encoded, 37) + _two_bytes(encoded, 39), b"IDAT")
        return upright(image, is_plain, _turned_as_png_says)

    def decode_bmp():
        words = _words(encoded, little_endian=True)
        width_and_height = words[9:13:2] + 65536 * words[10:13:2]
        # A negative height (here 2³¹ or more) means that the first row is the top one.
        width_and_height = tf.minimum(width_and_height, 2**32 - width_and_height)
        checked = _limited(encoded, width_and_height, max_pixels)
        return finish(tf.io.decode_image(checked, channels=3, expand_animations=False))

    def decode_by_python():
        return _decode_by_python(encoded, max_pixels, pixels)

    def reject():
        is_empty = tf.equal(encoded, "")
        reason = tf.where(
            is_empty, "an empty file", "neither a JPEG nor a PNG nor a usual BMP file"
        )
        return tf.cast(_require(tf.constant(False), [reason], tf.zeros([1, 1, 3])), dtype)

    dtype = tf.uint8 if is_rgb else tf.float32
    decode_others = decode_by_python if by_python else reject
    if pixels.channels not in (1, 3):
        image = decode_others()
    else:
        starts_like_png = tf.equal(
            tf.strings.substr(encoded, 0, len(_PNG_SIGNATURE)), _PNG_SIGNATURE
        )
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            decode_jpeg,
            lambda: tf.cond(
                starts_like_png,
                decode_png,
                lambda: tf.cond(_is_usual_bmp(encoded), decode_bmp, decode_others),
            ),
        )
    return tf.ensure_shape(image, [None, None, pixels.channels])


def _decode_by_python(encoded: tf.Tensor, max_pixels: int, pixels: Pixels) -> tf.Tensor:
    dtype = np.uint8 if pixels.depth == "uint8" else np.float32

    def decode(encoded):
        levels, reason = image_files.decode(encoded, max_pixels, upright=pixels.upright)
        try:
            if reason:
                pass
            elif dtype == np.uint8:
                levels = image_files.to_rgb(levels)
            else:
                levels = image_files.to_float(levels, pixels.channels, pixels.low, pixels.high)
        except image_files.UnreadableError as error:
            reason = str(error)
        if reason:
            levels = np.zeros((0, 0, pixels.channels), dtype)
        return levels, reason.encode()

    # A stateful function would make `enable_op_determinism` run the pipeline sequentially.
    image, reason = tf.numpy_function(decode, [encoded], (dtype, tf.string), stateful=False)
    reason = tf.ensure_shape(reason, [])
    return _require(tf.equal(reason, ""), [reason], image)


def _to_float(levels: tf.Tensor, pixels: Pixels) -> tf.Tensor:
    """Returns RGB of 8 bits as numbers in [0, 1], grey where the data set is: as `image_files`."""
    if pixels.channels == 1:
        weights = tf.constant(image_files.LUMA)
        luma = tf.reduce_sum(tf.cast(levels, tf.int32) * weights, axis=-1, keepdims=True)
        levels = tf.cast((luma + 32768) // 65536, tf.uint8)
    return pixels.scale(levels)


def _exif_of_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Returns EXIF's block of a JPEG file from the TIFF header on, a scalar string, or ""."""
    # Segments start with FF, a marker and two bytes of length. APP1 has EXIF, mostly as the first.
    # The walk ends at the first segment that is neither for an application nor a comment.
    size = tf.strings.length(encoded)

    def start_of(at):
        return tf.cast(
            tf.io.decode_raw(
                tf.strings.substr(encoded, tf.minimum(at, size), 10), tf.uint8, fixed_length=10
            ),
            tf.int32,
        )

    def is_exif(start):
        return tf.reduce_all(start[4:10] == [0x45, 0x78, 0x69, 0x66, 0, 0]) & (start[1] == 0xE1)

    def is_before(at, start):
        is_optional = ((start[1] >= 0xE0) & (start[1] <= 0xEF)) | (start[1] == 0xFE)
        return (start[0] == 0xFF) & is_optional & ~is_exif(start)

    def next_segment(at, start):
        at += 2 + 256 * start[2] + start[3]
        return at, start_of(at)

    first = tf.constant(2)
    at, start = tf.while_loop(
        is_before, next_segment, (first, start_of(first)), maximum_iterations=_MOST_SEGMENTS
    )
    length = tf.where(is_exif(start), 256 * start[2] + start[3] - 8, 0)
    return tf.strings.substr(encoded, tf.minimum(at + 10, size), tf.maximum(length, 0))


def _exif_of_png(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the content of a PNG file's eXIf chunk, a scalar string, or ""."""
    size = tf.strings.length(encoded)

    def start_of(at):
        start = tf.strings.substr(encoded, tf.minimum(at, size), 8)
        length = tf.io.decode_raw(start, tf.uint8, fixed_length=8)[:4]
        return tf.cast(
            tf.reduce_sum(tf.cast(length, tf.int64) * [1 << 24, 1 << 16, 256, 1]), tf.int64
        )

    def kind_of(at):
        return tf.strings.substr(encoded, tf.minimum(tf.cast(at, tf.int32) + 4, size), 4)

    def is_before(at, kind):
        return (kind != _PNG_EXIF) & (kind != b"IDAT") & (at < tf.cast(size, tf.int64))

    def next_chunk(at, kind):
        at = tf.minimum(at + 12 + start_of(tf.cast(at, tf.int32)), tf.cast(size, tf.int64))
        return at, kind_of(at)

    first = tf.constant(len(_PNG_SIGNATURE), tf.int64)
    at, kind = tf.while_loop(
        is_before, next_chunk, (first, kind_of(first)), maximum_iterations=_MOST_SEGMENTS
    )
    at = tf.minimum(tf.cast(at, tf.int32) + 8, size)
    length = tf.where(tf.equal(kind, _PNG_EXIF), 65536, 0)
    return tf.strings.substr(encoded, at, length)


def _turned(image: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
    """Returns an image turned upright, as EXIF says.

    Args:
      image: `[H, W, C]`.
      exif: a scalar string that starts with the TIFF header, or "".
    """
    orientation = tf.cond(tf.equal(exif, ""), lambda: tf.constant(1), lambda: _orientation(exif))

    def turn():
        def is_one_of(*numbers):
            return tf.reduce_any(orientation == numbers)

        across = tf.where(is_one_of(5, 6, 7, 8), [1, 0, 2], [0, 1, 2])
        reversed_axes = tf.boolean_mask([0, 1], [is_one_of(3, 4, 7, 8), is_one_of(2, 3, 6, 7)])
        return tf.reverse(tf.transpose(image, across), reversed_axes)

    return tf.cond(orientation == 1, lambda: image, turn)


# Few files need these functions. Inlined, they would be optimized with every data set that is made.
_rare = tf.function(autograph=False, experimental_attributes={"_noinline": True})


@_rare
def _turned_as_jpeg_says(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Returns the image of a JPEG file turned upright, as its EXIF says."""
    return _turned(image, _exif_of_jpeg(encoded))


@_rare
def _turned_as_png_says(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Returns the image of a PNG file turned upright, as its EXIF says."""
    return _turned(image, _exif_of_png(encoded))


def _orientation(exif: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in a block of EXIF, 1 to 8; 1 where the block has none.

    Args:
      exif: a scalar string that starts with the TIFF header.
    """
    # Zeros follow the end, and offsets are bounded, so that a damaged block is only not understood.
    size = 1 << 17
    levels = tf.cast(tf.io.decode_raw(exif, tf.uint8, fixed_length=size), tf.int32)
    is_little = levels[0] == 0x49

    def word(at):
        first, second = tf.gather(levels, at), tf.gather(levels, at + 1)
        return tf.where(is_little, first + 256 * second, 256 * first + second)

    directory = tf.where(is_little, word(4), word(6))  # the low word of its offset
    entries = directory + 2 + 12 * tf.range(word(directory))
    entries = tf.minimum(entries, size - 16)
    is_long = word(entries + 2) == 4
    values = word(entries + 8 + tf.where(is_long & ~is_little, 2, 0))
    found = tf.boolean_mask(values, word(entries) == 0x0112)
    orientation = tf.concat([found, [1]], axis=0)[0]
    return tf.where((orientation >= 1) & (orientation <= 8), orientation, 1)


def _words(encoded: tf.Tensor, *, little_endian: bool) -> tf.Tensor:
    """Returns the header as numbers of two bytes, int64; zeros where the file ends early."""
    words = tf.io.decode_raw(
        tf.strings.substr(encoded, 0, _HEADER_BYTES),
        tf.uint16,
        little_endian=little_endian,
        fixed_length=_HEADER_BYTES,
    )
    return tf.cast(words, tf.int64)


def _two_bytes(encoded: tf.Tensor, at: int) -> tf.Tensor:
    """Returns two bytes of a file; "" beyond its end."""
    return tf.strings.substr(encoded, tf.minimum(at, tf.strings.length(encoded)), 2)


def _limited(encoded: tf.Tensor, width_and_height: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Returns the file after checking the size of its image."""
    pixels = tf.reduce_prod(tf.cast(width_and_height, tf.float64))  # may exceed 64 bits
    message = (
        f"an image must have 1 to --max_image_pixels={max_pixels} pixels; width and height are"
    )
    return _require((pixels > 0) & (pixels <= max_pixels), [message, width_and_height], encoded)


def _is_usual_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file is a BMP that TensorFlow decodes correctly."""
    words = _words(encoded, little_endian=True)
    start = tf.strings.substr(encoded, 0, _GRAY_PIXELS_AT) + bytes(_GRAY_PIXELS_AT)
    has_gray_palette = tf.equal(
        tf.strings.substr(start, _GRAY_PIXELS_AT - len(_GRAY_PALETTE), len(_GRAY_PALETTE)),
        _GRAY_PALETTE,
    ) & _all_equal(words[5:9], (_GRAY_PIXELS_AT, 0, 40, 0))
    has_usual_masks = _all_equal(words[27:33], _BMP_MASKS)
    is_kind = _all_equal(words[14:17], _BMP_KINDS) & [True, True, has_usual_masks, has_gray_palette]
    starts_like_bmp = tf.equal(tf.strings.substr(encoded, 0, 2), "BM")
    return starts_like_bmp & tf.reduce_any(is_kind) & (words[7] >= 40)


def _all_equal(words: tf.Tensor, expected: Sequence) -> tf.Tensor:
    return tf.reduce_all(tf.equal(words, tf.constant(expected, tf.int64)), axis=-1)


def _require(condition: tf.Tensor, reason: list, value: tf.Tensor) -> tf.Tensor:
    """Returns the value if the condition is true, else raises `InvalidArgumentError`.

    Args:
      condition: scalar bool.
      reason: the texts and tensors of the error message.
      value: the result.
    """
    check = tf.raw_ops.Assert(condition=condition, data=reason)
    with tf.control_dependencies([] if tf.executing_eagerly() else [check]):
        return tf.identity(value)
