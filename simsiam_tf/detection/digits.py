"""Writes a small data set in Pascal VOC's format: scikit-learn's digits on coloured canvases.

    python -m simsiam_tf.detection.digits --output=runs/digits_voc

It needs no download and is learned in minutes: to see detection work, not to compare encoders by.
"""

import dataclasses
import os
from xml.etree import ElementTree

import numpy as np

from simsiam_tf import flags, schema
from simsiam_tf.schema import UserError, setting

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MOST_DIGITS = 3  # of a canvas
_SIDES = (0.35, 0.6)  # of a digit, as a share of the canvas
_MIN_CONTRAST = 0.4  # between a digit's colour and the canvas'


@dataclasses.dataclass(frozen=True)
class DigitsConfig(schema.Config):
    """Digits with boxes"""

    output: str = setting("runs/digits_voc", "Folder to write; a new one.", filled=True)
    num_train: int = setting(400, "Images of the split trainval.", at_least=1)
    num_test: int = setting(100, "Images of the split test.", at_least=1)
    num_classes: int = setting(
        2, "Digits that are drawn: zero, one, and so on.", at_least=1, at_most=10
    )
    canvas_size: int = setting(96, "Height and width of an image, in pixels.", at_least=64)
    seed: int = setting(0, "Seed of all that is random.", at_least=0, at_most=2**31 - 1)


def main(config):
    # TensorFlow loads only now, after the flags are checked.
    from sklearn import datasets

    if os.path.exists(config.output):
        raise UserError(f"--output must be a folder that is not there. Received: {config.output}")
    digits = datasets.load_digits()
    every_fifth = np.arange(len(digits.target)) % 5 == 0
    drawn = digits.target < config.num_classes
    draws = np.random.default_rng(config.seed)
    for split, count, chosen in (
        ("trainval", config.num_train, drawn & ~every_fifth),
        ("test", config.num_test, drawn & every_fifth),
    ):
        images, labels = digits.images[chosen] / 16, digits.target[chosen]
        names = [f"{split}_{number:05d}" for number in range(count)]
        _write(config.output, "ImageSets/Main", f"{split}.txt", "\n".join([*names, ""]).encode())
        for name in names:
            canvas, objects = _draw(images, labels, config.canvas_size, draws)
            _write_image(config.output, name, canvas)
            annotation = _annotation(name, config.canvas_size, objects)
            _write(config.output, "Annotations", f"{name}.xml", annotation)


def _draw(images, labels, size, draws):
    """A canvas `[size, size, 3]` uint8, and (label, left, top, right, bottom) of its digits."""
    import tensorflow as tf

    paper = draws.random(3)
    canvas = paper + draws.normal(0, 0.05, (size, size, 3))
    objects = []
    for _ in range(draws.integers(1, _MOST_DIGITS + 1)):
        chosen = draws.integers(len(labels))
        side = int(size * draws.uniform(*_SIDES))
        left, top = draws.integers(0, size - side, 2)
        if any(
            left < right_ and left_ < left + side and top < bottom_ and top_ < top + side
            for _, left_, top_, right_, bottom_ in objects
        ):
            continue  # digits do not overlap
        ink = draws.random(3)
        while np.abs(ink - paper).max() < _MIN_CONTRAST:
            ink = draws.random(3)
        strength = tf.image.resize(images[chosen][..., np.newaxis], (side, side)).numpy()
        part = canvas[top : top + side, left : left + side]
        part += strength * (ink - part)
        # The box is that of the ink, not of the 8x8 pixels around it.
        rows, columns = (np.flatnonzero((strength > 0.3).any(axis=(axis, 2))) for axis in (1, 0))
        objects.append(
            (
                labels[chosen],
                left + columns[0],
                top + rows[0],
                left + columns[-1] + 1,
                top + rows[-1] + 1,
            )
        )
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), objects


def _write_image(folder, name, canvas):
    import tensorflow as tf

    encoded = tf.io.encode_jpeg(canvas, quality=95).numpy()
    _write(folder, "JPEGImages", f"{name}.jpg", encoded)


def _annotation(name, size, objects):
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    _values(ElementTree.SubElement(root, "size"), {"width": size, "height": size, "depth": 3})
    for label, left, top, right, bottom in objects:
        thing = ElementTree.SubElement(root, "object")
        _values(thing, {"name": _NAMES[label], "difficult": 0})
        # VOC counts pixels from one, and a box has its last ones too.
        box = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        _values(ElementTree.SubElement(thing, "bndbox"), box)
    return ElementTree.tostring(root)


def _values(element, values):
    for name, value in values.items():
        ElementTree.SubElement(element, name).text = str(value)


def _write(folder, subfolder, name, content):
    path = os.path.join(folder, subfolder)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, name), "wb") as file:
        file.write(content)


if __name__ == "__main__":
    flags.run(main, DigitsConfig)
