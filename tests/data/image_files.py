"""Small files of every kind of image that is decoded. All show one picture of 53x37 pixels."""

import io
import struct
import zlib

import numpy as np
import tensorflow as tf
from PIL import Image

HEIGHT, WIDTH = 37, 53
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([ROWS * 6, COLUMNS * 4, (ROWS + COLUMNS) * 2], axis=-1).astype(np.uint8)
COLOUR = Image.fromarray(PIXELS)
GRAY = COLOUR.convert("L")
ALPHA = Image.fromarray((ROWS * 5).astype(np.uint8))


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def with_alpha(image):
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def rotated_by_exif():
    return encode(COLOUR, "JPEG", exif=orientation(6))  # "turn by 90 degrees"


def ycck():
    """Returns a CMYK JPEG whose marker declares its first three channels as luma and chroma."""
    file = bytearray(encode(COLOUR.convert("CMYK"), "JPEG"))
    file[file.index(b"Adobe") + 11] = 2
    return bytes(file)


def interlaced_png(pixels):
    """Returns a PNG of seven passes, as in chapter 8.2 of the PNG specification."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in [*passes, (1, 0, 2, 1)]
        for row in pixels[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    )


def upside_down_bmp():
    """Returns a BMP whose first row is the top one, which a negative height declares."""
    file = encode(COLOUR.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP")
    return file[:22] + struct.pack("<i", -HEIGHT) + file[26:]


def bmp_with_masks(*masks):
    file = encode(with_alpha(COLOUR), "BMP")
    header = file[:10] + struct.pack("<I", 66) + file[14:30] + struct.pack("<I", 3) + file[34:54]
    return header + struct.pack("<III", *masks) + file[54:]


def png16(pixels):
    return tf.io.encode_png(pixels.astype(np.uint16) * 256 + 13).numpy()


FILES = {
    "jpeg": encode(COLOUR, "JPEG"),
    "jpeg_444": encode(COLOUR, "JPEG", subsampling="4:4:4"),
    "jpeg_progressive": encode(COLOUR, "JPEG", progressive=True),
    "jpeg_gray": encode(GRAY, "JPEG"),
    "jpeg_cmyk": encode(COLOUR.convert("CMYK"), "JPEG"),
    "jpeg_ycck": ycck(),
    "jpeg_rotated_by_exif": rotated_by_exif(),
    "png": encode(COLOUR, "PNG"),
    "png_gray": encode(GRAY, "PNG"),
    "png_gray_alpha": encode(with_alpha(GRAY), "PNG"),
    "png_alpha": encode(with_alpha(COLOUR), "PNG"),
    "png_palette": encode(COLOUR.convert("P"), "PNG"),
    "png_palette_transparent": encode(COLOUR.convert("P"), "PNG", transparency=3),
    "png_1_bit": encode(COLOUR.convert("1"), "PNG"),
    "png_16_bit": png16(PIXELS),
    "png_16_bit_alpha": png16(np.asarray(with_alpha(COLOUR))),
    "png_interlaced": interlaced_png(PIXELS),
    "bmp_24": encode(COLOUR, "BMP"),
    "bmp_24_from_the_top": upside_down_bmp(),
    "bmp_32": encode(with_alpha(COLOUR), "BMP"),
    "bmp_32_with_masks": bmp_with_masks(0xFF0000, 0xFF00, 0xFF),
    "bmp_gray": encode(GRAY, "BMP"),
    "bmp_palette": encode(COLOUR.convert("P"), "BMP"),
    "bmp_1_bit": encode(COLOUR.convert("1"), "BMP"),
    "gif": encode(COLOUR, "GIF", save_all=True, append_images=[GRAY.convert("RGB")]),
    "tiff": encode(COLOUR, "TIFF"),
    "tiff_lzw": encode(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff_gray": encode(GRAY, "TIFF"),
    "webp": encode(COLOUR, "WEBP"),
    "webp_alpha": encode(with_alpha(COLOUR), "WEBP", lossless=True),
    "avif": encode(COLOUR, "AVIF"),
}
