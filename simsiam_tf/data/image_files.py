"""Image files by Pillow, tifffile and NumPy: what a file contains, and the levels in it.

`decoding` uses this module for the kinds that TensorFlow does not decode. A file's content decides
its kind, never its name.
"""

import dataclasses
import functools
import io
import math
import warnings
import zipfile
from typing import IO

import numpy as np
import tifffile
from absl import logging
from PIL import Image, UnidentifiedImageError

# Further formats of Pillow have no user here, and each is a decoder that a damaged file can reach.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "AVIF")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_NPY, _NPZ = b"\x93NUMPY", b"PK\x03\x04"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112  # EXIF's tag
LUMA = (19595, 38470, 7471)  # ITU-R 601 in 1/65536, as Pillow converts RGB to grey

# Pillow would load the formats at the first file, which several threads may open at once.
Image.init()
# The size of an image is checked below, by --max_image_pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableError(ValueError):
    """A file whose image cannot be read; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts in the header of an image file.

    Attributes:
      kind: "JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "HEIF" or "NPY".
      width: in pixels, as stored.
      height: in pixels, as stored.
      channels: number of channels without alpha.
      dtype: of a level, such as "uint8" or "uint16".
      has_more: whether there are more frames or pages than the first, the only one that is read.
      orientation: EXIF's, 1 to 8; 1 is upright.
    """

    kind: str
    width: int
    height: int
    channels: int
    dtype: str
    has_more: bool = False
    orientation: int = 1


def decode(encoded: bytes, max_pixels: int, *, upright: bool) -> tuple[np.ndarray, str]:
    """Returns the levels of an image file, `[H, W, C]` in the file's own dtype, and "".

    Alpha is dropped; palettes, CMYK and other colours become RGB. Of several frames or pages, the
    first is read.

    Args:
      encoded: the bytes of the file.
      max_pixels: largest number of pixels, checked before memory is allocated for them.
      upright: turn the image as EXIF says.

    Returns:
      The levels and an empty reason; or, of a file that cannot be read, no levels and the reason.
    """
    try:
        return np.ascontiguousarray(_levels(encoded, max_pixels, upright)), ""
    except UnreadableError as error:
        return np.zeros((0, 0, 3), np.uint8), str(error)
    except Image.DecompressionBombError as error:
        reason = f"an image must have 1 to --max_image_pixels={max_pixels} pixels; {error}"
        return np.zeros((0, 0, 3), np.uint8), reason
    # A decoder raises nearly any exception at a damaged file.
    except Exception as error:
        reason = " ".join(str(error).split()) or "damaged"
        return np.zeros((0, 0, 3), np.uint8), f"{type(error).__name__}: {reason}"


def read_facts(encoded: bytes) -> Facts:
    """Returns what the header of an image file says, without decoding its pixels.

    Args:
      encoded: the bytes of the file.

    Raises:
      UnreadableError: the file is damaged, or of a kind that is not read.
    """
    try:
        if _is_array(encoded):
            with _array_file(encoded) as file:
                shape, dtype, _ = _array_header(file)
            return Facts("NPY", shape[1], shape[0], shape[2], str(dtype))
        if _is_deep_tiff(encoded):
            with tifffile.TiffFile(io.BytesIO(encoded)) as file:
                page = _first_page(file)
                height, width, channels = _shape_of(page)
                has_more, orientation = len(file.pages) > 1, _tiff_orientation(page)
                return Facts(
                    "TIFF", width, height, channels, str(page.dtype), has_more, orientation
                )
        with _open(encoded) as image:
            channels, dtype_name = _channels_and_dtype(image)
            kind = {"MPO": "JPEG", "DIB": "BMP"}.get(image.format or "", image.format or "")
            orientation = _orientation(image)
            return Facts(kind, *image.size, channels, dtype_name, _has_more(image), orientation)
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def to_float(levels: np.ndarray, channels: int, low: float, high: float) -> np.ndarray:
    """Returns levels as numbers in [0, 1], `[H, W, channels]` float32.

    Args:
      levels: `[H, W, C]` uint8, of which 255 becomes 1; or of another dtype.
      channels: number of channels; grey becomes RGB and RGB becomes grey where they differ.
      low: value that becomes 0, in levels that are not uint8.
      high: value that becomes 1, in levels that are not uint8.

    Raises:
      UnreadableError: the levels have another number of channels.
    """
    if levels.shape[-1] == 3 and channels == 1:
        levels = to_gray(levels)
    elif levels.shape[-1] == 1 and channels == 3:
        levels = np.repeat(levels, 3, axis=-1)
    if levels.shape[-1] != channels:
        raise UnreadableError(f"an image of {levels.shape[-1]} channels; --channels is {channels}")
    if levels.dtype == np.uint8:
        return levels.astype(np.float32) * np.float32(1 / 255)
    numbers = (levels.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(np.nan_to_num(numbers), 0, 1)


def to_gray(levels: np.ndarray) -> np.ndarray:
    """Returns the ITU-R 601 luma of RGB, `[H, W, 1]` in the dtype of the levels, as Pillow does.

    Args:
      levels: `[H, W, 3]`.
    """
    if levels.dtype == np.uint8:
        return ((levels.astype(np.int64) @ np.array(LUMA) + 32768) >> 16)[..., None].astype("uint8")
    weights = np.array(LUMA) / 65536
    return (levels @ weights)[..., None].astype(levels.dtype)


def to_rgb(levels: np.ndarray) -> np.ndarray:
    """Returns levels as RGB of 8 bits, `[H, W, 3]` uint8; more bits keep their upper 8.

    Args:
      levels: `[H, W, 1]` or `[H, W, 3]`, of an unsigned type.

    Raises:
      UnreadableError: the levels have other channels, or are not unsigned integers.
    """
    if levels.dtype == np.uint16:
        levels = (levels >> 8).astype(np.uint8)
    if levels.dtype != np.uint8:
        raise UnreadableError(f"an image of {levels.dtype}, which needs --value_range=LOW,HIGH")
    if levels.shape[-1] not in (1, 3):
        raise UnreadableError(f"an image of {levels.shape[-1]} channels; --channels is 3")
    return np.repeat(levels, 3, axis=-1) if levels.shape[-1] == 1 else levels


def _levels(encoded: bytes, max_pixels: int, upright: bool) -> np.ndarray:
    if _is_array(encoded):
        return _array(encoded, max_pixels)
    if _is_deep_tiff(encoded):
        return _tiff(encoded, max_pixels, upright)
    with _open(encoded) as image:
        _check_size(*image.size, max_pixels)
        _say_if_more(_has_more(image))
        channels, dtype = _channels_and_dtype(image)
        orientation = _orientation(image)
        if image.format == "TIFF":  # which Pillow turns upright when it loads the levels
            orientation = 1 if upright else {6: 8, 8: 6}.get(orientation, orientation)
        elif not upright:
            orientation = 1
        if dtype == "uint8":
            image = image.convert("RGB" if channels == 3 else "L")
        levels = np.asarray(image)
    levels = levels[..., np.newaxis] if levels.ndim == 2 else levels
    return turned(levels, orientation)


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise UnreadableError("an empty file")
    formats: tuple[str, ...] = _FORMATS
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS:
        if not _reads_heif():
            raise UnreadableError(
                "a HEIC file, which needs: pip install -r requirements-formats.txt, or "
                "simsiam-tf[formats]"
            )
        formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(encoded), formats=formats)
    except UnidentifiedImageError as error:
        raise UnreadableError(
            "no image of a kind that is read: JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF, HEIC, NumPy"
        ) from error


@functools.cache
def _reads_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _channels_and_dtype(image: Image.Image) -> tuple[int, str]:
    """Returns the number of channels without alpha, and the dtype of the levels."""
    if image.mode.startswith("I;16"):
        return 1, "uint16"
    if image.mode in ("I", "F"):
        return 1, {"I": "int32", "F": "float32"}[image.mode]
    return (1 if image.mode in ("1", "L", "LA", "La") else 3), "uint8"


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise UnreadableError(
            f"an image must have 1 to --max_image_pixels={max_pixels} pixels; width and height are "
            f"{width} {height}"
        )


def _has_more(image: Image.Image) -> bool:
    """Whether a Pillow image has more than one frame or page."""
    # A JPEG's further pictures are previews. Pillow counts a GIF's frames by decoding them all.
    return image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)


def _say_if_more(has_more: bool) -> None:
    if has_more:
        text = "Some images have several frames or pages; the first of each is read"
        logging.log_first_n(logging.INFO, text, 1)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block leaves the picture readable
        return 1


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag else 1


def _is_array(encoded: bytes) -> bool:
    return encoded[:6] == _NPY or encoded[:4] == _NPZ


def _array_file(encoded: bytes) -> IO[bytes]:
    """Returns an .npy file, or the first one in an .npz file, open for reading."""
    file = io.BytesIO(encoded)
    if encoded[:6] == _NPY:
        return file
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if not names:
        raise UnreadableError("a zip file without an array (.npy)")
    return archive.open(names[0])


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Returns shape [H, W, C], dtype and whether the order is Fortran's, of an open .npy file."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read_header:
        raise UnreadableError(f"an .npy file of version {version}")
    shape, is_fortran, dtype = read_header[version](file)
    if dtype.kind not in "uif":
        raise UnreadableError(f"an array must hold numbers; its dtype is {dtype}")
    if len(shape) not in (2, 3):
        raise UnreadableError(f"an array must have the axes H, W or H, W, C; its shape is {shape}")
    return shape if len(shape) == 3 else (*shape, 1), dtype, is_fortran


def _array(encoded: bytes, max_pixels: int) -> np.ndarray:
    with _array_file(encoded) as file:
        shape, dtype, is_fortran = _array_header(file)
        _check_size(shape[1], shape[0], max_pixels)
        count = math.prod(shape)
        content = file.read(count * dtype.itemsize)
    if not count or len(content) < count * dtype.itemsize:
        raise UnreadableError("an array that ends early")
    levels = np.frombuffer(content, dtype)
    levels = levels.reshape(shape[::-1]).T if is_fortran else levels.reshape(shape)
    return levels.astype(dtype.newbyteorder("="))


def _is_deep_tiff(encoded: bytes) -> bool:
    """Whether a file is a TIFF that Pillow would not read with all of its channels and bits."""
    if encoded[:4] not in _TIFF:
        return False
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        page = _first_page(file)
        return page.bitspersample > 8 or page.samplesperpixel not in (1, 3, 4)


def _first_page(file: tifffile.TiffFile) -> tifffile.TiffPage:
    if not len(file.pages):
        raise UnreadableError("a TIFF file without a page")
    page = file.pages[0]
    if not isinstance(page, tifffile.TiffPage):
        raise UnreadableError("a TIFF file without a whole page")
    return page


def _shape_of(page: tifffile.TiffPage) -> tuple[int, int, int]:
    return page.imagelength, page.imagewidth, page.samplesperpixel


def _tiff(encoded: bytes, max_pixels: int, upright: bool) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        page = _first_page(file)
        height, width, channels = _shape_of(page)
        _check_size(width, height, max_pixels)
        _say_if_more(len(file.pages) > 1)
        levels = page.asarray()
        orientation = _tiff_orientation(page)
    if levels.ndim == 3 and channels > 1 and levels.shape[0] == channels != levels.shape[-1]:
        levels = np.moveaxis(levels, 0, -1)  # planes one after another
    levels = levels.reshape(height, width, channels)
    if levels.dtype.kind not in "uif":
        raise UnreadableError(f"a TIFF of {levels.dtype}")
    return turned(levels, orientation) if upright else levels


def turned(levels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an image turned upright by EXIF's orientation.

    Args:
      levels: `[H, W, C]`.
      orientation: 1 to 8; other numbers change nothing.
    """
    if orientation in (5, 6, 7, 8):
        levels = levels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        levels = levels[::-1]
    if orientation in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    return levels
