"""Decoding of JPEG, PNG and BMP files to pixels. The header decides whether a file is rejected.

Pixels are those of Pillow's `Image.open(file).convert("RGB")`, as the reference loads images: alpha
is dropped, 16-bit levels keep their upper 8 bits, and EXIF's orientation is not applied.
"""

from collections.abc import Sequence

import tensorflow as tf

from simsiam_tf.config import DataConfig

_HEADER_BYTES = 66  # long enough for all fields that are read below
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# (bits per pixel, compression, 0) of the BMP files that TensorFlow decodes correctly. The third
# kind must have the masks below. The last kind must have the palette below: blue, green, red and a
# filler byte for each level.
_BMP_KINDS = ((24, 0, 0), (32, 0, 0), (32, 3, 0), (8, 0, 0))
_BMP_MASKS = (0, 0xFF, 0xFF00, 0, 0xFF, 0)
_GRAY_PIXELS_AT = 14 + 40 + 1024
_GRAY_PALETTE = b"".join(bytes([level, level, level, 0]) for level in range(256))


def decode_image(encoded: tf.Tensor, max_pixels: int = DataConfig.max_image_pixels) -> tf.Tensor:
    """Returns the pixels of a JPEG, PNG or BMP file, `[H, W, 3]` uint8 in RGB.

    JPEG is decoded with the accurate inverse transform, as Pillow does.

    Args:
      encoded: the bytes of the file, a scalar string.
      max_pixels: largest number of pixels of an image.

    Raises:
      tf.errors.InvalidArgumentError: the image has more than `max_pixels`, which is found before
        memory is allocated for it; or the file is damaged or of another kind. GIF and BMP with a
        palette are rejected too, because TensorFlow decodes their canvas or colours incorrectly.
    """
    # Decoding a small image takes as long as a dozen operations. So the header is checked with few
    # operations, and the kinds are tested in turn: tf.switch_case takes as long as all the rest.

    def decode_jpeg():
        width_and_height = tf.image.extract_jpeg_shape(encoded)[1::-1]
        checked = _limited(encoded, width_and_height, max_pixels)
        return tf.io.decode_jpeg(checked, channels=3, dct_method="INTEGER_ACCURATE")

    def decode_png():
        words = _words(encoded, little_endian=False)
        width_and_height = 65536 * words[8:12:2] + words[9:12:2]
        return tf.io.decode_png(_limited(encoded, width_and_height, max_pixels), channels=3)

    def decode_bmp():
        checked = _plain_bmp(encoded)
        words = _words(checked, little_endian=True)
        width_and_height = words[9:13:2] + 65536 * words[10:13:2]
        # A negative height (here 2³¹ or more) means that the first row is the top one.
        width_and_height = tf.minimum(width_and_height, 2**32 - width_and_height)
        checked = _limited(checked, width_and_height, max_pixels)
        return tf.io.decode_image(checked, channels=3, expand_animations=False)

    def decode_others():
        is_png = tf.equal(tf.strings.substr(encoded, 0, len(_PNG_SIGNATURE)), _PNG_SIGNATURE)
        return tf.cond(is_png, decode_png, decode_bmp)

    image = tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_others)
    return tf.ensure_shape(image, [None, None, 3])


def _words(encoded: tf.Tensor, *, little_endian: bool) -> tf.Tensor:
    """Returns the header as numbers of two bytes, int64; zeros where the file ends early."""
    words = tf.io.decode_raw(
        tf.strings.substr(encoded, 0, _HEADER_BYTES),
        tf.uint16,
        little_endian=little_endian,
        fixed_length=_HEADER_BYTES,
    )
    return tf.cast(words, tf.int64)


def _limited(encoded: tf.Tensor, width_and_height: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Returns the file after checking the size of its image."""
    pixels = tf.reduce_prod(tf.cast(width_and_height, tf.float64))  # may exceed 64 bits
    message = (
        f"an image must have 1 to --max_image_pixels={max_pixels} pixels; width and height are"
    )
    return _require((pixels > 0) & (pixels <= max_pixels), [message, width_and_height], encoded)


def _plain_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the file after checking that it is a BMP that TensorFlow decodes correctly."""
    is_empty = tf.equal(encoded, "")
    reason = tf.where(is_empty, "an empty file", "neither a JPEG nor a PNG nor a BMP file")
    encoded = _require(tf.equal(tf.strings.substr(encoded, 0, 2), "BM"), [reason], encoded)
    words = _words(encoded, little_endian=True)
    start = tf.strings.substr(encoded, 0, _GRAY_PIXELS_AT) + bytes(_GRAY_PIXELS_AT)
    has_gray_palette = tf.equal(
        tf.strings.substr(start, _GRAY_PIXELS_AT - len(_GRAY_PALETTE), len(_GRAY_PALETTE)),
        _GRAY_PALETTE,
    ) & _all_equal(words[5:9], (_GRAY_PIXELS_AT, 0, 40, 0))
    has_usual_masks = _all_equal(words[27:33], _BMP_MASKS)
    is_kind = _all_equal(words[14:17], _BMP_KINDS) & [True, True, has_usual_masks, has_gray_palette]
    message = "a BMP must have 24 or 32 bits or be grey; bits per pixel and compression are"
    is_plain = tf.reduce_any(is_kind) & (words[7] >= 40)
    return _require(is_plain, [message, words[14:16]], encoded)


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
