"""Writes a small detection data set in Pascal VOC's format: digits on coloured canvases.

    python -m simsiam_tf.detection.digits --output=runs/digits_voc

The data set shows in minutes that detection works; it is not meant for the comparison of encoders.
The digits are scikit-learn's, so no download is needed.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from simsiam_tf import flags, schema
from simsiam_tf.schema import UserError, setting

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MAX_DIGITS = 3  # most digits on a canvas
_SIDES = (0.35, 0.6)  # range of a digit's side, as a fraction of the canvas
_MIN_CONTRAST = 0.4  # least difference between the colours of a digit and its canvas, in [0, 1]

_Box = tuple[int, int, int, int, int]  # label, left, top, right, bottom


@dataclasses.dataclass(frozen=True)
class DigitsConfig(schema.Config):
    """Digits with boxes"""

    output: str = setting("runs/digits_voc", "New folder for the data set.", filled=True)
    num_train: int = setting(400, "Number of images in the split trainval.", at_least=1)
    num_test: int = setting(100, "Number of images in the split test.", at_least=1)
    num_classes: int = setting(
        2, "Number of classes: the digits from zero on.", at_least=1, at_most=10
    )
    canvas_size: int = setting(96, "Height and width of an image in pixels.", at_least=64)
    seed: int = setting(0, "Seed of all random draws.", at_least=0, at_most=2**31 - 1)


def main(config: DigitsConfig) -> None:
    # scikit-learn is imported here, so that a wrong flag is reported without waiting for it.
    from sklearn import datasets

    if os.path.exists(config.output):
        raise UserError(f"--output must be a folder that does not exist. Received: {config.output}")
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


def _draw(
    images: np.ndarray, labels: np.ndarray, size: int, draws: np.random.Generator
) -> tuple[np.ndarray, list[_Box]]:
    """Returns a canvas `[size, size, 3]` uint8, and (label, left, top, right, bottom) by digit."""
    import tensorflow as tf

    paper = draws.random(3)
    canvas = paper + draws.normal(0, 0.05, (size, size, 3))
    objects: list[_Box] = []
    for _ in range(draws.integers(1, _MAX_DIGITS + 1)):
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
        # The box encloses the ink, not the 8x8 image of the digit.
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


def _write_image(folder: str, name: str, canvas: np.ndarray) -> None:
    import tensorflow as tf

    encoded = tf.io.encode_jpeg(canvas, quality=95).numpy()
    _write(folder, "JPEGImages", f"{name}.jpg", encoded)


def _annotation(name: str, size: int, objects: Iterable[_Box]) -> bytes:
    """Returns an annotation of Pascal VOC as XML."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    _values(ElementTree.SubElement(root, "size"), {"width": size, "height": size, "depth": 3})
    for label, left, top, right, bottom in objects:
        thing = ElementTree.SubElement(root, "object")
        _values(thing, {"name": _NAMES[label], "difficult": 0})
        # Pascal VOC counts pixels from one and includes the last row and column in a box.
        box = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        _values(ElementTree.SubElement(thing, "bndbox"), box)
    return ElementTree.tostring(root)


def _values(element: ElementTree.Element, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        ElementTree.SubElement(element, name).text = str(value)


def _write(folder: str, subfolder: str, name: str, content: bytes) -> None:
    path = os.path.join(folder, subfolder)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, name), "wb") as file:
        file.write(content)


if __name__ == "__main__":
    flags.run(main, DigitsConfig)
