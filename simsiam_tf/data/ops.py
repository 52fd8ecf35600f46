"""One stateless function per augmentation: the same image and seed, the same result.

Images are `[H, W, 3]` float32 in [0, 1] unless said otherwise; seeds are int32 `[2]`. What is drawn
and what is computed are those of torchvision and Pillow (the reference's recipe, section 3).
"""

import math

import tensorflow as tf

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_CROP_TRIES = 10


def random_resized_crop(image, seed, size, min_area, max_area=1.0, aspect=(3 / 4, 4 / 3)):
    """Crops a random box and resizes it to `[size, size, 3]`, bilinear with antialiasing.

    The box's area is uniform in [min_area, max_area] of the image's, its aspect (width / height)
    log-uniform; the first of ten draws that fits is taken, else the largest central box within
    the aspect's bounds.

    Args:
      image: `[H, W, 3]` uint8 in [0, 255], or float in [0, 1].
      seed: int32 `[2]`.
      size: height and width of the result.
      min_area: share of the image's area, above 0.
      max_area: likewise, at most 1.
      aspect: smallest and largest aspect.

    Returns:
      `[size, size, 3]` float32 in [0, 1].
    """
    top, left, height, width = sample_crop(tf.shape(image), seed, min_area, max_area, aspect)
    crop = tf.image.convert_image_dtype(image[top : top + height, left : left + width], tf.float32)
    return resize(crop, size, size)


def sample_crop(shape, seed, min_area, max_area=1.0, aspect=(3 / 4, 4 / 3)):
    """The box of `random_resized_crop`: (top, left, height, width), int32 scalars in pixels."""
    image_height, image_width = shape[0], shape[1]
    full_height = tf.cast(image_height, tf.float32)
    full_width = tf.cast(image_width, tf.float32)
    seeds = tf.random.experimental.stateless_split(seed, 3)
    area = tf.random.stateless_uniform([_CROP_TRIES], seeds[0], min_area, max_area)
    area *= full_height * full_width
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = tf.exp(tf.random.stateless_uniform([_CROP_TRIES], seeds[1], low, high))
    widths = tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32)
    fits = (widths > 0) & (widths <= image_width) & (heights > 0) & (heights <= image_height)
    first = tf.argmax(fits)  # of equals, the first

    # The fallback: the whole image, its longer side cut where the aspect is out of bounds.
    image_aspect = full_width / full_height
    central_width = tf.where(
        image_aspect > aspect[1], tf.round(full_height * aspect[1]), full_width
    )
    central_height = tf.where(
        image_aspect < aspect[0], tf.round(full_width / aspect[0]), full_height
    )
    found = tf.reduce_any(fits)
    height = tf.where(found, heights[first], tf.cast(central_height, tf.int32))
    width = tf.where(found, widths[first], tf.cast(central_width, tf.int32))

    position = tf.random.stateless_uniform([2], seeds[2])
    room = tf.stack([image_height - height, image_width - width])
    drawn = tf.cast(position * tf.cast(room + 1, tf.float32), tf.int32)
    offset = tf.where(found, tf.minimum(drawn, room), room // 2)
    return offset[0], offset[1], height, width


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


def color_jitter(image, seed, brightness, contrast, saturation, hue):
    """Brightness, contrast, saturation and hue in a random order, each by a random amount.

    Factors are uniform in [1 − x, 1 + x]; the hue's shift is uniform in [−hue, hue] turns.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    uniform = tf.random.stateless_uniform
    operations = [
        lambda image: adjust_brightness(
            image, uniform([], seeds[0], 1 - brightness, 1 + brightness)
        ),
        lambda image: adjust_contrast(image, uniform([], seeds[1], 1 - contrast, 1 + contrast)),
        lambda image: adjust_saturation(
            image, uniform([], seeds[2], 1 - saturation, 1 + saturation)
        ),
        lambda image: adjust_hue(image, uniform([], seeds[3], -hue, hue)),
    ]
    order = tf.argsort(uniform([len(operations)], seeds[4]))
    for position in range(len(operations)):
        image = tf.switch_case(
            order[position], [lambda op=op, image=image: op(image) for op in operations]
        )
    return image


def adjust_brightness(image, factor):
    """factor · image, clipped; tf.image's adds instead."""
    return tf.clip_by_value(image * factor, 0, 1)


def adjust_contrast(image, factor):
    """Blends with the mean of the grey image, clipped; tf.image's mean is per channel."""
    mean = tf.reduce_mean(_luma(image))
    return tf.clip_by_value(factor * image + (1 - factor) * mean, 0, 1)


def adjust_saturation(image, factor):
    """Blends with the grey image, clipped."""
    return tf.clip_by_value(factor * image + (1 - factor) * _luma(image), 0, 1)


def adjust_hue(image, turns):
    """Shifts the hue by a share of the colour wheel, in [−0.5, 0.5]."""
    return tf.image.adjust_hue(image, turns)


def grayscale(image):
    """Three equal channels of ITU-R 601 luma."""
    return tf.repeat(_luma(image), 3, axis=-1)


def _luma(image):
    return tf.tensordot(image, tf.constant(_LUMA, image.dtype), axes=1)[..., tf.newaxis]


def random_gaussian_blur(image, seed, sigma_min, sigma_max):
    """Gaussian blur with sigma uniform in [sigma_min, sigma_max] pixels."""
    return gaussian_blur(image, tf.random.stateless_uniform([], seed, sigma_min, sigma_max))


def gaussian_blur(image, sigma, radius=None):
    """Gaussian blur as two matrix products, with borders reflected about the edge pixel.

    Args:
      image: `[H, W, C]` float.
      sigma: a scalar, in pixels.
      radius: of the kernel, in pixels; None: no cut, the kernel is as large as the image.
    """
    rows = _blur_matrix(tf.shape(image)[0], sigma, radius, image.dtype)
    columns = _blur_matrix(tf.shape(image)[1], sigma, radius, image.dtype)
    image = tf.einsum("ij,jwc->iwc", rows, image)
    return tf.einsum("ij,hjc->hic", columns, image)


def _blur_matrix(size, sigma, radius, dtype):
    """`[size, size]`: what each pixel takes from each, its reflections included; rows sum to 1."""
    positions = tf.range(size)
    here, there = positions[:, tf.newaxis], positions[tf.newaxis, :]
    last = size - 1

    def weight(distance):
        weight = tf.exp(-tf.cast(distance**2, dtype) / (2 * tf.cast(sigma, dtype) ** 2))
        return weight if radius is None else tf.where(distance <= radius, weight, 0)

    matrix = weight(tf.abs(here - there))
    matrix += tf.where(there > 0, weight(here + there), 0)
    matrix += tf.where(there < last, weight(2 * last - here - there), 0)
    return matrix / tf.reduce_sum(matrix, axis=1, keepdims=True)


def flip(image):
    """Left to right."""
    return tf.reverse(image, axis=[1])


def maybe(function, image, seed, probability):
    """`function(image)` with a probability, else the image; the function is not run in vain."""
    drawn = tf.random.stateless_uniform([], seed) < probability
    return tf.cond(drawn, lambda: function(image), lambda: image)
