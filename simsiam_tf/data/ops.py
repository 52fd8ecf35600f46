"""The augmentations' arithmetic: what torchvision and Pillow compute, without anything random.

Images are `[..., H, W, 3]` float in [0, 1] unless said otherwise: one, or a batch, whose other
arguments then have a value for each image. (What is drawn, and when: the reference's recipe,
section 3, in `views.py`; the same on the host, image by image: `kernels.py`.)
"""

import math

import tensorflow as tf

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
# The operations of colour jitter; for each, an image has a factor and a place in the order.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_CROP_TRIES = 10
BOX_DRAWS = 2 * _CROP_TRIES + 2
_SMALLEST_SIGMA = 1e-3  # at which the Gaussian is the pixel itself


def random_boxes(shape, uniform, min_area, max_area=1.0, aspect=(3 / 4, 4 / 3)):
    """The boxes of torchvision's RandomResizedCrop.

    A box's area is uniform in [min_area, max_area] of the image's, its aspect (width / height)
    log-uniform; the first of ten draws that fits is taken, else the largest central box within
    the aspect's bounds.

    Args:
      shape: of the image: height, width, …
      uniform: `[V, BOX_DRAWS]` float32, uniform in [0, 1).
      min_area: share of the image's area, above 0.
      max_area: likewise, at most 1.
      aspect: smallest and largest aspect.

    Returns:
      `[V, 4]` int32: top, left, height, width, in pixels.
    """
    image_height, image_width = shape[0], shape[1]
    full_height = tf.cast(image_height, tf.float32)
    full_width = tf.cast(image_width, tf.float32)
    areas, aspects, positions = tf.split(uniform, [_CROP_TRIES, _CROP_TRIES, 2], axis=1)
    area = between(areas, min_area, max_area) * full_height * full_width
    ratio = tf.exp(between(aspects, math.log(aspect[0]), math.log(aspect[1])))
    widths = tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32)
    fits = (widths > 0) & (widths <= image_width) & (heights > 0) & (heights <= image_height)
    first = tf.argmax(fits, axis=1)  # of equals, the first

    # The fallback: the whole image, its longer side cut where the aspect is out of bounds.
    image_aspect = full_width / full_height
    central_width = tf.where(
        image_aspect > aspect[1], tf.round(full_height * aspect[1]), full_width
    )
    central_height = tf.where(
        image_aspect < aspect[0], tf.round(full_width / aspect[0]), full_height
    )
    found = tf.reduce_any(fits, axis=1)
    height = tf.gather(heights, first, batch_dims=1)
    height = tf.where(found, height, tf.cast(central_height, tf.int32))
    width = tf.gather(widths, first, batch_dims=1)
    width = tf.where(found, width, tf.cast(central_width, tf.int32))

    sizes = tf.stack([height, width], axis=1)
    room = tf.stack([image_height, image_width]) - sizes
    drawn = tf.cast(positions * tf.cast(room + 1, tf.float32), tf.int32)
    offsets = tf.where(found[:, tf.newaxis], tf.minimum(drawn, room), room // 2)
    return tf.concat([offsets, sizes], axis=1)


def between(uniform, low, high):
    """Uniform in [0, 1) → uniform in [low, high)."""
    return low + uniform * (high - low)


def resize(image, height, width):
    """`[height, width, 3]` float32 in the input's range: bilinear, antialiased, as Pillow's."""
    return tf.image.resize(image, [height, width], "bilinear", antialias=True)


def central_crop(image, size, ratio):
    """Evaluation: short side to size / ratio, then the central `[size, size, 3]`.

    Args:
      image: `[H, W, 3]` uint8 in [0, 255].
      size: height and width of the result.
      ratio: `size` over the resized short side, in (0, 1]; 224 of 256 is 0.875.

    Returns:
      `[size, size, 3]` float32 in [0, 1].
    """
    image = tf.image.convert_image_dtype(image, tf.float32)
    shape = tf.shape(image)[:2]
    short = tf.reduce_min(shape)
    target = round(size / ratio)
    resized = tf.cast(tf.cast(shape, tf.int64) * target // tf.cast(short, tf.int64), tf.int32)
    resized = tf.maximum(resized, size)
    image = resize(image, resized[0], resized[1])
    top, left = tf.unstack(tf.cast(tf.round((resized - size) / 2), tf.int32))
    image = image[top : top + size, left : left + size]
    return tf.ensure_shape(tf.clip_by_value(image, 0, 1), [size, size, 3])


def recolor(images, factors, order, gray, sigma, flip):
    """What follows the crop: colour jitter, grey, blur, flip, each image by its own draws.

    Args:
      images: `[B, S, S, 3]` float in [0, 1].
      factors: `[B, 4]`: of brightness, contrast and saturation, and the hue's shift in turns; with
        1, 1, 1 and 0 nothing changes.
      order: `[B, 4]` int32: which of these comes first, second, third and last.
      gray: `[B]` bool.
      sigma: `[B]`: of the blur, in pixels; 0 for none.
      flip: `[B]` bool.
    """

    def each(values):
        return values[:, tf.newaxis, tf.newaxis, tf.newaxis]

    factors = tf.cast(factors, images.dtype)
    for place in range(order.shape[1]):
        # One blend and one shift, whatever each image's operation: no branch divides a batch.
        operation = order[:, place]
        factor = tf.gather(factors, operation, batch_dims=1)
        is_hue = operation == HUE
        luma = _luma(images)
        other = tf.where(each(operation == CONTRAST), _mean(luma), luma)
        other = tf.where(each(operation == BRIGHTNESS), tf.zeros([], images.dtype), other)
        images = blend(images, other, each(tf.where(is_hue, tf.ones_like(factor), factor)))
        images = adjust_hue(images, each(tf.where(is_hue, factor, tf.zeros_like(factor))))
    images = tf.where(each(gray), grayscale(images), images)
    images = gaussian_blur(images, sigma, radius=tf.shape(images)[1] - 1)
    return tf.where(each(flip), tf.reverse(images, axis=[2]), images)


def blend(image, other, factor):
    """factor · image + (1 − factor) · other, clipped."""
    return tf.clip_by_value(factor * image + (1 - factor) * other, 0, 1)


def adjust_brightness(image, factor):
    """factor · image, clipped; tf.image's adds instead."""
    return blend(image, tf.zeros([], image.dtype), factor)


def adjust_contrast(image, factor):
    """Blends with the mean of the grey image, clipped; tf.image's mean is per channel."""
    return blend(image, _mean(_luma(image)), factor)


def adjust_saturation(image, factor):
    """Blends with the grey image, clipped."""
    return blend(image, _luma(image), factor)


def adjust_hue(image, turns):
    """Shifts the hue by a share of the colour wheel, in [−0.5, 0.5]."""
    red, green, blue = tf.split(image, 3, axis=-1)
    value = tf.reduce_max(image, axis=-1, keepdims=True)
    chroma = value - tf.reduce_min(image, axis=-1, keepdims=True)
    scale = tf.math.reciprocal(tf.where(chroma > 0, chroma, tf.ones_like(chroma)))
    hue = tf.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = tf.where(value == red, (green - blue) * scale, hue) + 6 * turns
    # How much of the chroma a channel lacks, by its distance on the colour wheel, in sixths.
    sextant = tf.math.floormod(hue + tf.constant([5, 3, 1], image.dtype), 6)
    return value - chroma * tf.clip_by_value(tf.minimum(sextant, 4 - sextant), 0, 1)


def grayscale(image):
    """Three equal channels of ITU-R 601 luma."""
    return tf.repeat(_luma(image), 3, axis=-1)


def _luma(image):
    return tf.tensordot(image, tf.constant(LUMA, image.dtype), axes=1)[..., tf.newaxis]


def _mean(luma):
    return tf.reduce_mean(luma, axis=(-3, -2, -1), keepdims=True)


def gaussian_blur(image, sigma, radius=None):
    """Gaussian blur as two matrix products, with borders reflected about the edge pixel.

    Args:
      image: `[..., H, W, C]` float.
      sigma: `[...]`, in pixels; at 0 the image stays.
      radius: of the kernel, in pixels; None: no cut, the kernel is as large as the image.
    """
    rows = _blur_matrix(tf.shape(image)[-3], sigma, radius, image.dtype)
    columns = _blur_matrix(tf.shape(image)[-2], sigma, radius, image.dtype)
    image = tf.einsum("...ij,...jwc->...iwc", rows, image)
    return tf.einsum("...ij,...hjc->...hic", columns, image)


def _blur_matrix(size, sigma, radius, dtype):
    """`[..., size, size]`: what each pixel takes from each, reflections included; rows sum to 1."""
    positions = tf.range(size)
    here, there = positions[:, tf.newaxis], positions[tf.newaxis, :]
    last = size - 1
    sigma = tf.maximum(tf.cast(sigma, dtype), _SMALLEST_SIGMA)[..., tf.newaxis, tf.newaxis]

    def weight(distance):
        weight = tf.exp(-tf.cast(distance**2, dtype) / (2 * sigma**2))
        return weight if radius is None else tf.where(distance <= radius, weight, 0)

    matrix = weight(tf.abs(here - there))
    matrix += tf.where(there > 0, weight(here + there), 0)
    matrix += tf.where(there < last, weight(2 * last - here - there), 0)
    return matrix / tf.reduce_sum(matrix, axis=-1, keepdims=True)
