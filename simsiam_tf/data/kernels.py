"""Views on the host: loops over pixels, compiled by Numba. Each image is processed by one thread.

`crops` and `views` take RGB of 8 bits. Their crop equals Pillow's bilinear resize, rows first, to
the last bit. The operations after the crop are computed in float32 and rounded once, at the end.
`deep_crops` and `deep_views` compute the same in float32 for images of any number of channels.
`ops.recolor` computes the same for batches on an accelerator. The channels are stored as planes and
sums run along rows, so that the inner loops become vector instructions. The results depend neither
on the width of these nor on the number of threads.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from simsiam_tf.data.ops import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION

_FRACTION_BITS = 22  # of Pillow's fixed-point weights
_BLUR_SIGMAS = 4  # radius of the Gaussian; 1e-4 of its mass is beyond
_RED, _GREEN, _BLUE = map(np.float32, LUMA)
_ZERO, _HALF, _ONE, _SIX = map(np.float32, (0, 0.5, 1, 6))
_LEVELS, _LEVEL = np.float32(255), np.float32(1 / 255)


def _compiled(function: Callable) -> Callable:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder is writable for the cache of the machine code
        return numba.njit(function, **options)


@_compiled
def crops(image: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Returns boxes of an image, resized bilinearly with antialiasing: `[V, size, size, 3]` uint8.

    Args:
      image: `[H, W, 3]` uint8.
      boxes: `[V, 4]` int32: top, left, height, width, in pixels.
      size: height and width of the results, in pixels.
    """
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    for view in range(len(boxes)):
        _crop(image, boxes[view], out[view])
    return out


@_compiled
def views(
    image: np.ndarray,
    boxes: np.ndarray,
    size: int,
    factors: np.ndarray,
    order: np.ndarray,
    gray: np.ndarray,
    sigma: np.ndarray,
    flip: np.ndarray,
) -> np.ndarray:
    """Returns `crops` after the operations of `ops.recolor`: `[V, size, size, 3]` uint8.

    Args:
      image: `[H, W, 3]` uint8.
      boxes: `[V, 4]` int32: top, left, height, width, in pixels.
      size: height and width of the results, in pixels.
      factors: `[V, 4]` float32, as `ops.recolor` takes it, like all that follow.
      order: `[V, 4]` int32.
      gray: `[V]` bool.
      sigma: `[V]` float32, in pixels.
      flip: `[V]` bool.
    """
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    planes = np.empty((3, size, size), np.float32)
    for view in range(len(boxes)):
        _crop(image, boxes[view], out[view])
        _load(out[view], planes)
        _recolor(planes, factors[view], order[view], gray[view], sigma[view])
        _store(planes, flip[view], out[view])
    return out


@_compiled
def deep_crops(image: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Returns boxes of an image, resized bilinearly with antialiasing.

    The result is `[V, size, size, C]` float32 in [0, 1].

    Args:
      image: `[H, W, C]` float32 in [0, 1].
      boxes: `[V, 4]` int32: top, left, height, width, in pixels.
      size: height and width of the results, in pixels.
    """
    out = np.empty((len(boxes), size, size, image.shape[2]), np.float32)
    planes = np.empty((image.shape[2], size, size), np.float32)
    for view in range(len(boxes)):
        _deep_crop(image, boxes[view], planes)
        _deep_store(planes, False, out[view])
    return out


@_compiled
def deep_views(
    image: np.ndarray,
    boxes: np.ndarray,
    size: int,
    factors: np.ndarray,
    order: np.ndarray,
    gray: np.ndarray,
    sigma: np.ndarray,
    flip: np.ndarray,
) -> np.ndarray:
    """Returns `deep_crops` after the operations of `ops.recolor`: `[V, size, size, C]` float32.

    Args:
      image: `[H, W, C]` float32 in [0, 1].
      boxes: `[V, 4]` int32: top, left, height, width, in pixels.
      size: height and width of the results, in pixels.
      factors: `[V, 4]` float32, as `ops.recolor` takes it, like all that follow.
      order: `[V, 4]` int32.
      gray: `[V]` bool.
      sigma: `[V]` float32, in pixels.
      flip: `[V]` bool.
    """
    out = np.empty((len(boxes), size, size, image.shape[2]), np.float32)
    planes = np.empty((image.shape[2], size, size), np.float32)
    for view in range(len(boxes)):
        _deep_crop(image, boxes[view], planes)
        _recolor(planes, factors[view], order[view], gray[view], sigma[view])
        _deep_store(planes, flip[view], out[view])
    return out


@_compiled
def _crop(image, box, out):
    top, left, height, width = box
    size = len(out)
    starts, counts, weights = _taps(width, size)
    half = 1 << (_FRACTION_BITS - 1)
    narrow = np.empty((height, 3 * size), np.uint8)
    for y in range(height):
        row = image[top + y, left : left + width]
        for x in range(size):
            red = green = blue = np.int32(half)
            for tap in range(counts[x]):
                weight, pixel = weights[x, tap], row[starts[x] + tap]
                red += pixel[0] * weight
                green += pixel[1] * weight
                blue += pixel[2] * weight
            narrow[y, 3 * x] = red >> _FRACTION_BITS
            narrow[y, 3 * x + 1] = green >> _FRACTION_BITS
            narrow[y, 3 * x + 2] = blue >> _FRACTION_BITS
    starts, counts, weights = _taps(height, size)
    total = np.empty(3 * size, np.int32)
    for y in range(size):
        total[:] = half
        for tap in range(counts[y]):
            weight, row = weights[y, tap], narrow[starts[y] + tap]
            for x in range(3 * size):
                total[x] += np.int32(row[x]) * weight
        line = out[y].reshape(3 * size)
        for x in range(3 * size):
            line[x] = total[x] >> _FRACTION_BITS


@_compiled
def _deep_crop(image, box, planes):
    top, left, height, width = box
    num_channels, size = len(planes), planes.shape[1]
    starts, counts, shares = _shares(width, size)
    narrow = np.zeros((height, size, num_channels), np.float32)
    for y in range(height):
        row = image[top + y, left : left + width]
        for x in range(size):
            for tap in range(counts[x]):
                share, pixel = np.float32(shares[x, tap]), row[starts[x] + tap]
                for channel in range(num_channels):
                    narrow[y, x, channel] += share * pixel[channel]
    starts, counts, shares = _shares(height, size)
    planes[:] = 0
    for y in range(size):
        for tap in range(counts[y]):
            share, line = np.float32(shares[y, tap]), narrow[starts[y] + tap]
            for channel in range(num_channels):
                for x in range(size):
                    planes[channel, y, x] += share * line[x, channel]
    values = planes.reshape(planes.size)
    for i in range(len(values)):
        values[i] = _clip(values[i])  # rounding may leave [0, 1]


@_compiled
def _taps(length, size):
    """Returns `_shares` in Pillow's fixed-point numbers, `[size, most]` int32."""
    starts, counts, shares = _shares(length, size)
    weights = np.zeros(shares.shape, np.int32)
    for x in range(size):
        for tap in range(counts[x]):
            weights[x, tap] = int(0.5 + shares[x, tap] * (1 << _FRACTION_BITS))
    return starts, counts, weights


@_compiled
def _shares(length, size):
    """Returns Pillow's weights of `length` input pixels in each of `size` output pixels.

    Returns:
      For each output pixel: the first input pixel, `[size]` int32; the number of input pixels,
      `[size]` int32; and their weights, whose sum is 1, `[size, most]` float64.
    """
    scale = length / size
    support = max(scale, 1.0)  # an output pixel has at least two input pixels
    starts, counts = np.empty(size, np.int32), np.empty(size, np.int32)
    shares = np.zeros((size, 2 * math.ceil(support) + 1))
    for x in range(size):
        center = (x + 0.5) * scale
        start = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), length) - start
        total = 0.0
        for tap in range(count):
            shares[x, tap] = max(1 - abs((start + tap - center + 0.5) / support), 0.0)
            total += shares[x, tap]
        for tap in range(count):
            shares[x, tap] /= total
        starts[x], counts[x] = start, count
    return starts, counts, shares


@_compiled
def _channels(planes):
    """Returns each plane as a vector. Numba would regard planes from an iteration as strided."""
    flat = planes.reshape(3, planes[0].size)
    return flat[0], flat[1], flat[2]


@_compiled
def _load(image, planes):
    red, green, blue = _channels(planes)
    pixels = image.reshape(len(red), 3)
    for i in range(len(red)):
        red[i] = pixels[i, 0] * _LEVEL
        green[i] = pixels[i, 1] * _LEVEL
        blue[i] = pixels[i, 2] * _LEVEL


@_compiled
def _store(planes, flip, image):
    for y in range(len(image)):
        row = image[y, ::-1] if flip else image[y]
        for x in range(len(row)):
            for channel in range(3):
                row[x, channel] = np.uint8(planes[channel, y, x] * _LEVELS + _HALF)


@_compiled
def _deep_store(planes, flip, image):
    last = len(image) - 1
    for y in range(len(image)):
        for x in range(len(image)):
            for channel in range(len(planes)):
                image[y, last - x if flip else x, channel] = planes[channel, y, x]


@_compiled
def _recolor(planes, factors, order, gray, sigma):
    for operation in order:
        _adjust(planes, operation, factors[operation])
    if gray:
        _blend_with_luma(planes, _ZERO)
    if sigma > 0:
        _blur(planes, sigma)


@_compiled
def _adjust(planes, operation, factor):
    if operation == BRIGHTNESS and factor != 1:
        _blend(planes, factor, _ZERO)
    elif operation == CONTRAST and factor != 1:
        _blend(planes, factor, _mean_luma(planes) if len(planes) == 3 else _mean(planes))
    elif operation == SATURATION and factor != 1:
        _blend_with_luma(planes, factor)
    elif operation == HUE and factor != 0:
        _shift_hue(planes, factor)


@_compiled
def _clip(value):
    return min(max(value, _ZERO), _ONE)


@_compiled
def _blend(planes, factor, other):
    offset = (_ONE - factor) * other
    values = planes.reshape(planes.size)
    for i in range(len(values)):
        values[i] = _clip(factor * values[i] + offset)


@_compiled
def _blend_with_luma(planes, factor):
    red, green, blue = _channels(planes)
    for i in range(len(red)):
        offset = (_ONE - factor) * (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i])
        red[i] = _clip(factor * red[i] + offset)
        green[i] = _clip(factor * green[i] + offset)
        blue[i] = _clip(factor * blue[i] + offset)


@_compiled
def _mean_luma(planes):
    size = len(planes[0])
    total = np.zeros(size, np.float32)
    for y in range(size):
        for x in range(size):
            total[x] += _RED * planes[0, y, x] + _GREEN * planes[1, y, x] + _BLUE * planes[2, y, x]
    mean = 0.0
    for x in range(size):
        mean += total[x]
    return np.float32(mean / size**2)


@_compiled
def _mean(planes):
    total = 0.0
    for plane in planes:
        for y in range(len(plane)):
            for x in range(len(plane)):
                total += plane[y, x]
    return np.float32(total / planes.size)


@_compiled
def _shift_hue(planes, turns):
    reds, greens, blues = _channels(planes)
    shift = _SIX * turns
    for i in range(len(reds)):
        red, green, blue = reds[i], greens[i], blues[i]
        value = max(red, max(green, blue))
        chroma = value - min(red, min(green, blue))
        scale = _ONE / (chroma if chroma > 0 else _ONE)
        hue = (red - green) * scale + np.float32(4)
        hue = (blue - red) * scale + np.float32(2) if value == green else hue
        hue = (green - blue) * scale if value == red else hue
        hue += shift
        reds[i] = value - chroma * _share(hue + np.float32(5))
        greens[i] = value - chroma * _share(hue + np.float32(3))
        blues[i] = value - chroma * _share(hue + _ONE)


@_compiled
def _share(sextant):
    """Returns the share of the chroma that a channel lacks, in [0, 1].

    Args:
      sextant: distance of the channel from the hue on the colour wheel, in sixths of a turn.
    """
    sextant -= _SIX * math.floor(sextant * (_ONE / _SIX))
    return _clip(min(sextant, np.float32(4) - sextant))


@_compiled
def _blur(planes, sigma):
    size = len(planes[0])
    radius = min(math.ceil(_BLUR_SIGMAS * sigma), size - 1)
    weights = np.empty(radius + 1, np.float32)
    total = 0.0
    for i in range(radius + 1):
        weights[i] = math.exp(-(i**2) / (2.0 * sigma**2))
        total += weights[i] if i == 0 else 2 * weights[i]
    for i in range(radius + 1):
        weights[i] /= total
    padded = np.empty(size + 2 * radius, np.float32)
    across = np.empty((size, size), np.float32)
    for channel in range(len(planes)):
        plane = planes[channel]
        for y in range(size):
            padded[radius : radius + size] = plane[y]
            for i in range(1, radius + 1):
                padded[radius - i] = plane[y, i]
                padded[radius + size - 1 + i] = plane[y, size - 1 - i]
            _scale(plane[y], weights[0], across[y])
            for i in range(1, radius + 1):
                before, after = padded[radius - i :], padded[radius + i :]
                _add(before[:size], after[:size], weights[i], across[y])
        for y in range(size):
            _scale(across[y], weights[0], plane[y])
            for i in range(1, radius + 1):
                below = y + i if y + i < size else 2 * (size - 1) - y - i
                _add(across[abs(y - i)], across[below], weights[i], plane[y])


@_compiled
def _scale(row, weight, out):
    for x in range(len(out)):
        out[x] = weight * row[x]


@_compiled
def _add(first, second, weight, out):
    for x in range(len(out)):
        out[x] += weight * (first[x] + second[x])
