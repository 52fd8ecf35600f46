"""The arithmetic of the augmentations, as torchvision and Pillow compute it. Nothing is random.

Unless stated otherwise, images are `[..., H, W, 3]` float in [0, 1]: a single image, or a batch
whose other arguments have one value per image. Brightness, contrast, blur, crop and flip take any
number of channels C; the grey image is then the mean of the channels. `views` draws the random
numbers (the recipe of section 3); `kernels` computes the same image by image on the host.
"""

import math

import tensorflow as tf

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
# The operations of colour jitter. Each image has a factor for each, and an order of the four.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_CROP_TRIES = 10
BOX_DRAWS = 2 * _CROP_TRIES + 2
_SMALLEST_SIGMA = 1e-3  # small enough for the Gaussian to leave each pixel unchanged


def random_boxes(
    shape: tf.Tensor,
    uniform: tf.Tensor,
    min_area: float,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Returns the boxes of torchvision's RandomResizedCrop, `[V, 4]` int32.

    The area of a box is uniform in [min_area, max_area] of the image's area, and its aspect
    (width / height) is log-uniform. The first of ten draws that fits is taken. If none fits, the
    box is the largest central one within the bounds of the aspect.

    Args:
      shape: of the image: height, width, …, in pixels.
      uniform: `[V, BOX_DRAWS]` float32, uniform in [0, 1).
      min_area: smallest area as a share of the image's, above 0.
      max_area: largest area as a share of the image's, at most 1.
      aspect: smallest and largest aspect.

    Returns:
      Top, left, height and width of each box, in pixels.
    """
    image_height, image_width = shape[0], shape[1]
    full_height = tf.cast(image_height, tf.float32)
    full_width = tf.cast(image_width, tf.float32)
    areas, aspects, corners = tf.split(uniform, [_CROP_TRIES, _CROP_TRIES, 2], axis=1)
    area = between(areas, min_area, max_area) * full_height * full_width
    ratio = tf.exp(between(aspects, math.log(aspect[0]), math.log(aspect[1])))
    widths = tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32)
    fits = (widths > 0) & (widths <= image_width) & (heights > 0) & (heights <= image_height)
    first = tf.argmax(fits, axis=1)  # the first of equal values

    # The fallback is the whole image, with its longer side cut if the aspect is out of bounds.
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
    margins = tf.stack([image_height, image_width]) - sizes
    drawn = tf.cast(corners * tf.cast(margins + 1, tf.float32), tf.int32)
    offsets = tf.where(found[:, tf.newaxis], tf.minimum(drawn, margins), margins // 2)
    return tf.concat([offsets, sizes], axis=1)


def between(uniform: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Returns numbers in [low, high) for numbers in [0, 1), by a linear map.

    Args:
      uniform: float, of any shape.
      low: image of 0.
      high: image of 1.
    """
    return low + uniform * (high - low)


def resize(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Returns the image resized bilinearly with antialiasing, as Pillow does.

    Args:
      image: `[H, W, C]`.
      height: of the result, in pixels.
      width: of the result, in pixels.

    Returns:
      `[height, width, C]` float32 in the range of the input.
    """
    return tf.image.resize(image, [height, width], "bilinear", antialias=True)


def central_crop(image: tf.Tensor, size: int, ratio: float) -> tf.Tensor:
    """Returns the view of evaluation: the short side is resized to size / ratio, then cropped.

    Args:
      image: `[H, W, C]` uint8 in [0, 255], or float32 in [0, 1].
      size: height and width of the central crop, in pixels.
      ratio: `size` divided by the resized short side, in (0, 1]; 224 of 256 is 0.875.

    Returns:
      `[size, size, C]` float32 in [0, 1].
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
    return tf.ensure_shape(tf.clip_by_value(image, 0, 1), [size, size, image.shape[-1]])


def recolor(
    images: tf.Tensor,
    factors: tf.Tensor,
    order: tf.Tensor,
    gray: tf.Tensor,
    sigma: tf.Tensor,
    flip: tf.Tensor,
) -> tf.Tensor:
    """Returns the images after colour jitter, grey, blur and flip, each by draws of its own.

    Args:
      images: `[B, S, S, C]` float in [0, 1].
      factors: `[B, 4]` float: factors of brightness, contrast and saturation, and the shift of the
        hue in turns. The factors 1, 1, 1 and 0 change nothing. Only RGB has a hue.
      order: `[B, 4]` int32: the indices of these operations, from the first to the last.
      gray: `[B]` bool: whether the image becomes grey.
      sigma: `[B]` float: of the blur, in pixels; 0 for no blur.
      flip: `[B]` bool: whether the image is flipped left to right.
    """

    def each(values):
        return values[:, tf.newaxis, tf.newaxis, tf.newaxis]

    factors = tf.cast(factors, images.dtype)
    for step in range(order.shape[1]):
        # Every operation is one blend and one shift of the hue, so the batch needs no branches.
        operation = order[:, step]
        factor = tf.gather(factors, operation, batch_dims=1)
        is_hue = operation == HUE
        luma = _luma(images)
        other = tf.where(each(operation == CONTRAST), _mean(luma), luma)
        other = tf.where(each(operation == BRIGHTNESS), tf.zeros([], images.dtype), other)
        images = blend(images, other, each(tf.where(is_hue, tf.ones_like(factor), factor)))
        if images.shape[-1] == 3:
            images = adjust_hue(images, each(tf.where(is_hue, factor, tf.zeros_like(factor))))
    images = tf.where(each(gray), grayscale(images), images)
    images = gaussian_blur(images, sigma, radius=tf.shape(images)[1] - 1)
    return tf.where(each(flip), tf.reverse(images, axis=[2]), images)


def blend(image: tf.Tensor, other: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Returns factor · image + (1 − factor) · other, clipped to [0, 1].

    Args:
      image: `[..., H, W, 3]` float in [0, 1].
      other: of a shape that broadcasts to the image.
      factor: a number, or `[B, 1, 1, 1]` for a batch.
    """
    return tf.clip_by_value(factor * image + (1 - factor) * other, 0, 1)


def adjust_brightness(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Returns factor · image, clipped to [0, 1]. tf.image's function adds instead.

    Args:
      image: `[..., H, W, 3]` float in [0, 1].
      factor: a number, or `[B, 1, 1, 1]` for a batch.
    """
    return blend(image, tf.zeros([], image.dtype), factor)


def adjust_contrast(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Returns a blend with the mean of the grey image. tf.image takes the mean of each channel.

    Args:
      image: `[..., H, W, 3]` float in [0, 1].
      factor: a number, or `[B, 1, 1, 1]` for a batch.
    """
    return blend(image, _mean(_luma(image)), factor)


def adjust_saturation(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Returns a blend with the grey image, clipped to [0, 1].

    Args:
      image: `[..., H, W, 3]` float in [0, 1].
      factor: a number, or `[B, 1, 1, 1]` for a batch.
    """
    return blend(image, _luma(image), factor)


def adjust_hue(image: tf.Tensor, turns: float | tf.Tensor) -> tf.Tensor:
    """Returns the image with its hue shifted.

    Args:
      image: `[..., H, W, 3]` float in [0, 1].
      turns: shift in turns of the colour wheel, in [−0.5, 0.5]; a number, or `[B, 1, 1, 1]` for a
        batch.
    """
    red, green, blue = tf.split(image, 3, axis=-1)
    value = tf.reduce_max(image, axis=-1, keepdims=True)
    chroma = value - tf.reduce_min(image, axis=-1, keepdims=True)
    scale = tf.math.reciprocal(tf.where(chroma > 0, chroma, tf.ones_like(chroma)))
    hue = tf.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = tf.where(value == red, (green - blue) * scale, hue) + 6 * turns
    # The share of the chroma that a channel lacks depends on its distance from the hue on the
    # colour wheel, here in sixths of a turn.
    sextant = tf.math.floormod(hue + tf.constant([5, 3, 1], image.dtype), 6)
    return value - chroma * tf.clip_by_value(tf.minimum(sextant, 4 - sextant), 0, 1)


def grayscale(image: tf.Tensor) -> tf.Tensor:
    """Returns the grey image in equal channels: the ITU-R 601 luma of RGB.

    Args:
      image: `[..., H, W, C]` float in [0, 1].
    """
    return tf.repeat(_luma(image), image.shape[-1], axis=-1)


def _luma(image: tf.Tensor) -> tf.Tensor:
    if image.shape[-1] != 3:
        return tf.reduce_mean(image, axis=-1, keepdims=True)
    return tf.tensordot(image, tf.constant(LUMA, image.dtype), axes=1)[..., tf.newaxis]


def _mean(luma: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(luma, axis=(-3, -2, -1), keepdims=True)


def gaussian_blur(
    image: tf.Tensor, sigma: float | tf.Tensor, radius: int | tf.Tensor | None = None
) -> tf.Tensor:
    """Returns the image after a Gaussian blur, computed as two matrix products.

    Borders are reflected about the edge pixel.

    Args:
      image: `[..., H, W, C]` float.
      sigma: `[...]` float, in pixels; 0 leaves the image unchanged.
      radius: of the kernel, in pixels; None: the kernel is as large as the image.
    """
    rows = _blur_matrix(tf.shape(image)[-3], sigma, radius, image.dtype)
    columns = _blur_matrix(tf.shape(image)[-2], sigma, radius, image.dtype)
    image = tf.einsum("...ij,...jwc->...iwc", rows, image)
    return tf.einsum("...ij,...hjc->...hic", columns, image)


def _blur_matrix(
    size: tf.Tensor, sigma: float | tf.Tensor, radius: int | tf.Tensor | None, dtype: tf.DType
) -> tf.Tensor:
    """Returns the weights `[..., size, size]` of all input pixels (columns) in each output pixel.

    Reflections are included, and each row sums to 1.
    """
    coordinates = tf.range(size)
    here, there = coordinates[:, tf.newaxis], coordinates[tf.newaxis, :]
    last = size - 1
    sigma = tf.maximum(tf.cast(sigma, dtype), _SMALLEST_SIGMA)[..., tf.newaxis, tf.newaxis]

    def weight(distance):
        weight = tf.exp(-tf.cast(distance**2, dtype) / (2 * sigma**2))
        return weight if radius is None else tf.where(distance <= radius, weight, 0)

    matrix = weight(tf.abs(here - there))
    matrix += tf.where(there > 0, weight(here + there), 0)
    matrix += tf.where(there < last, weight(2 * last - here - there), 0)
    return matrix / tf.reduce_sum(matrix, axis=-1, keepdims=True)
