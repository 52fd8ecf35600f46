"""Folders of small images, and what a test reads from a source."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simsiam_tf.data import datasets, decoding
from simsiam_tf.schema import UserError


def write_images(root, *names, level=0):
    """Writes a flat image per name, with levels from `level` on. Returns {path: level}."""
    levels = {}
    for number, name in enumerate(names, start=level):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file_format = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP"}
        image = Image.fromarray(np.full([9, 7, 3], number, np.uint8))
        image.save(path, file_format[path.suffix.lower()])
        levels[str(path)] = number
    return levels


def read_all(source, start=0, stop=None):
    """Returns the decoded images and the labels of a source, by index."""
    stop = source.num_examples if stop is None else stop
    encoded, labels = source.read(tf.range(start, stop, dtype=tf.int64))
    return [decoding.decode_image(image).numpy() for image in encoded], labels.numpy().tolist()


def levels_of(source):
    return [int(np.median(image)) for image in read_all(source)[0]]


def described(source, root):
    """Returns the paths of the images relative to the folder."""
    paths = [source.describe(index) for index in range(source.num_examples)]
    return [pathlib.Path(path).relative_to(root).as_posix() for path in paths]


def error_of(name, data_dir, split):
    """Returns the message of the `UserError` that loading raises; it must be one line."""
    with pytest.raises(UserError) as raised:
        datasets.load(name, str(data_dir), split)
    assert "\n" not in str(raised.value)
    return str(raised.value)
