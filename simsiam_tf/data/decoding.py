"""From a file's bytes to pixels: JPEG, PNG and BMP, refused by their header where they must be.

Pixels are those of Pillow's `Image.open(file).convert("RGB")`, as the reference loads images: alpha
is dropped, 16 bits keep their upper 8, and EXIF's orientation is not applied.
"""

import tensorflow as tf

from simsiam_tf.config import DataConfig

_HEADER_BYTES = 26 + 40  # as far as the fields below reach
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The channels of BMP's usual 32 bits, where a header names them.
_BMP_MASKS = (0x00FF0000, 0x0000FF00, 0x000000FF)
# Of an 8-bit BMP: blue, green, red and a filler for each of 256 levels.
_GRAY_PALETTE = b"".join(bytes([level, level, level, 0]) for level in range(256))


def decode_image(encoded, max_pixels=DataConfig.max_image_pixels):
    """A JPEG, PNG or BMP file's bytes, a scalar string → `[H, W, 3]` uint8.

    JPEG is decoded with the accurate inverse transform, as Pillow does. An image of more than
    `max_pixels` is an `InvalidArgumentError` before memory is taken for it; so is any other kind
    of file, GIF and BMP with a palette among them: TensorFlow gets canvas and colours wrong.
    """
    header = tf.strings.substr(encoded, 0, _HEADER_BYTES)
    header = tf.io.decode_raw(header, tf.uint8, fixed_length=_HEADER_BYTES + 2)  # filled with zeros

    def decode_jpeg():
        height, width, _ = tf.unstack(tf.cast(tf.image.extract_jpeg_shape(encoded), tf.int64))
        checked = _limited(encoded, height, width, max_pixels)
        return tf.io.decode_jpeg(checked, channels=3, dct_method="INTEGER_ACCURATE")

    def decode_png():
        width, height = (_number(header, at, 4, big_endian=True) for at in (16, 20))
        return tf.io.decode_png(_limited(encoded, height, width, max_pixels), channels=3)

    def decode_bmp():
        width, height = (_signed(_number(header, at, 4)) for at in (18, 22))
        checked = _limited(_plain_bmp(encoded, header), tf.abs(height), width, max_pixels)
        return tf.io.decode_image(checked, channels=3, expand_animations=False)

    def refuse():
        is_empty = tf.equal(encoded, "")
        message = tf.where(is_empty, "an empty file", "neither a JPEG nor a PNG nor a BMP file")
        with tf.control_dependencies([_fail(message)]):
            return tf.zeros([0, 0, 3], tf.uint8)

    image = tf.case(
        [
            (_starts_with(encoded, b"\xff\xd8\xff"), decode_jpeg),
            (_starts_with(encoded, _PNG_SIGNATURE), decode_png),
            (_starts_with(encoded, b"BM"), decode_bmp),
        ],
        default=refuse,
    )
    return tf.ensure_shape(image, [None, None, 3])


def _starts_with(encoded, prefix):
    return tf.equal(tf.strings.substr(encoded, 0, len(prefix)), prefix)


def _number(header, at, length, big_endian=False):
    """The unsigned number in some bytes of a header, int64."""
    places = range(length - 1, -1, -1) if big_endian else range(length)
    weights = tf.constant([256**place for place in places], tf.int64)
    return tf.reduce_sum(tf.cast(header[at : at + length], tf.int64) * weights)


def _signed(number):
    """The two's complement of 32 bits."""
    return tf.where(number < 2**31, number, number - 2**32)


def _limited(encoded, height, width, max_pixels):
    """The file as it is, once its size is found to be one that can be decoded."""
    with tf.control_dependencies(
        [
            _require((height > 0) & (width > 0), "{} x {} pixels", width, height),
            _require(
                # Either alone is checked too: a product could exceed 64 bits.
                (height <= max_pixels) & (width <= max_pixels) & (height * width <= max_pixels),
                "{} x {} pixels are more than --max_image_pixels={}",
                width,
                height,
                max_pixels,
            ),
        ]
    ):
        return tf.identity(encoded)


def _plain_bmp(encoded, header):
    """The file as it is, once it is found to be of the BMPs that TensorFlow decodes rightly."""
    pixels_at, header_size, bits, compression = (
        _number(header, at, length) for at, length in ((10, 4), (14, 4), (28, 2), (30, 4))
    )
    masks = [_number(header, at, 4) for at in (54, 58, 62)]
    usual_masks = tf.reduce_all(tf.equal(masks, tf.constant(_BMP_MASKS, tf.int64)))
    palette_at = 14 + header_size
    is_gray = (
        (bits == 8)
        & (pixels_at == palette_at + len(_GRAY_PALETTE))
        & (tf.cast(tf.strings.length(encoded), tf.int64) >= pixels_at)
    )
    is_gray = tf.cond(
        is_gray,
        lambda: tf.equal(tf.strings.substr(encoded, palette_at, len(_GRAY_PALETTE)), _GRAY_PALETTE),
        lambda: False,
    )
    is_plain = ((bits == 24) | (bits == 32) | is_gray) & (compression == 0)
    is_plain |= (bits == 32) & (compression == 3) & usual_masks
    message = "a BMP of {} bits a pixel and compression {}; 24 and 32 bits and grey are read"
    with tf.control_dependencies(
        [_require((header_size >= 40) & is_plain, message, bits, compression)]
    ):
        return tf.identity(encoded)


def _require(condition, message, *values):
    """An operation that raises `InvalidArgumentError` with the values in the message."""
    return tf.cond(condition, lambda: True, lambda: _fail(tf.strings.format(message, values)))


def _fail(message):
    with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
        return tf.identity(False)
