"""Detection data sets: a folder in Pascal VOC's format, or TFDS's `voc`."""

import dataclasses
import os
import typing
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from simsiam_tf.data import datasets, decoding
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

_SHUFFLE_BUFFER = 10_000  # encoded images; VOC 2007 fits whole, in 450 MB


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a detection data set, with the function that reads it."""

    name: str  # for messages
    num_images: int
    describe: typing.Callable[[int], str]  # index of an image → its location, for error messages
    class_names: tuple[str, ...]  # the same for all splits of a data set
    # Seed → data set of dicts; None keeps the order on disk.
    #   image: `[H, W, 3]` uint8
    #   boxes: `[n, 4]` float32, left, top, right, bottom in pixels
    #   labels: `[n]` int32
    #   difficult: `[n]` bool, objects that the evaluation of VOC ignores
    examples: typing.Callable[[int | None], tf.data.Dataset]


class _Annotation(typing.NamedTuple):
    boxes: list[list[float]]
    names: list[str]
    difficult: list[bool]


def load(name: str, data_dir: str, splits: Sequence[str]) -> list[Split]:
    """Returns the splits of a detection data set.

    Args:
      name: "voc_folder", or TFDS's "voc" with an optional "/config".
      data_dir: the path of the folder, or the data folder of TFDS. Empty: TFDS's default folder.
      splits: the names of the splits.

    Raises:
      UserError: the data set is not available or has no boxes, or an annotation is wrong.
    """
    load_all = _load_folder if name == "voc_folder" else _load_tfds
    found = load_all(name, data_dir, splits)
    for split in found:
        logging.info(
            "%s: %d images, %d classes", split.name, split.num_images, len(split.class_names)
        )
    return found


def check(split: Split) -> None:
    """Reads a whole split, so that a damaged image is reported before the training starts.

    Raises:
      UserError: an image cannot be read, or the split has no object that is not difficult.
    """
    examples = iter(split.examples(None))
    found = False
    with Progress(split.num_images, f"checking {split.name}", "image") as progress:
        for index in range(split.num_images):
            try:
                found |= not np.all(next(examples)["difficult"])
            except tf.errors.InvalidArgumentError as error:
                raise UserError(
                    f"Every image must be readable ({error.message.splitlines()[0]}). "
                    f"Received: {split.describe(index)}"
                ) from error
            progress.update()
    if not found:
        raise UserError(
            f"A split must have at least one object that is not difficult. Received: {split.name}"
        )


def _load_folder(_: str, data_dir: str, splits: Sequence[str]) -> list[Split]:
    lists = [_read_list(data_dir, split) for split in splits]
    annotations = [[_read_annotation(data_dir, image) for image in images] for images in lists]
    names = {name for found in annotations for annotation in found for name in annotation.names}
    if not names:
        raise UserError(
            f"--data_dir must have annotations with objects. Received: {data_dir}, which has none"
        )
    class_names = tuple(sorted(names))
    paths = [[_find_image(data_dir, image) for image in images] for images in lists]
    return [
        Split(
            f"{split} of {data_dir}",
            len(paths_of_split),
            paths_of_split.__getitem__,
            class_names,
            _folder_reader(paths_of_split, found, class_names),
        )
        for split, paths_of_split, found in zip(splits, paths, annotations, strict=True)
    ]


def _read_list(data_dir: str, split: str) -> list[str]:
    """Returns the names of a split's images: the first word of each line of its list."""
    path = os.path.join(os.path.expanduser(data_dir), "ImageSets", "Main", f"{split}.txt")
    try:
        with open(path, encoding="utf-8") as file:
            images = [line.split()[0] for line in file if line.strip()]
    except OSError as error:
        raise UserError(
            "--data_dir must be a folder in Pascal VOC's format, with a list for each split "
            f"({error.strerror}). Received: {path}"
        ) from error
    if not images:
        raise UserError(f"A split must have at least one image. Received: {path}, which is empty")
    return images


def _find_image(data_dir: str, image: str) -> str:
    stem = os.path.join(os.path.expanduser(data_dir), "JPEGImages", image)
    for suffix in datasets.IMAGE_SUFFIXES:
        if os.path.isfile(stem + suffix):
            return stem + suffix
    raise UserError(
        f"Every image of a split must be in JPEGImages ({', '.join(datasets.IMAGE_SUFFIXES)}). "
        f"Received: no file {stem} with such a suffix"
    )


def _read_annotation(data_dir: str, image: str) -> _Annotation:
    path = os.path.join(os.path.expanduser(data_dir), "Annotations", f"{image}.xml")
    annotation = _Annotation([], [], [])
    try:
        for thing in ElementTree.parse(path).getroot().findall("object"):
            # A missing element is None, which raises one of the errors that are handled below.
            left, top, right, bottom = (
                float(thing.find("bndbox").findtext(side))  # type: ignore[union-attr, arg-type]
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
            # Pascal VOC counts pixels from one and includes the last row and column in a box.
            annotation.boxes.append([left - 1, top - 1, right, bottom])
            annotation.names.append(thing.findtext("name").strip())  # type: ignore[union-attr]
            annotation.difficult.append(thing.findtext("difficult", "0").strip() == "1")
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            "An annotation must be XML with a name and a bndbox (xmin, ymin, xmax, ymax) for each "
            f"object ({error}). Received: {path}"
        ) from error
    for left, top, right, bottom in annotation.boxes:
        if not (left < right and top < bottom):
            raise UserError(
                "The xmin and ymin of a box must be at most its xmax and ymax. Received: "
                f"{left + 1:g}, {top + 1:g}, {right:g}, {bottom:g} in {path}"
            )
    return annotation


def _folder_reader(
    paths: Sequence[str], annotations: Sequence[_Annotation], class_names: Sequence[str]
) -> typing.Callable[[int | None], tf.data.Dataset]:
    """Returns the function `examples` of a folder's split."""
    labels = {name: label for label, name in enumerate(class_names)}
    counts = [len(annotation.names) for annotation in annotations]

    def ragged(by_image: list[list], dtype: type, shape: int | tuple[int, ...]) -> tf.RaggedTensor:
        flat: np.ndarray = np.array(
            [value for values in by_image for value in values], dtype
        ).reshape(shape)
        return tf.RaggedTensor.from_row_lengths(flat, counts)

    columns = {
        "boxes": ragged([a.boxes for a in annotations], np.float32, (-1, 4)),
        "labels": ragged([[labels[name] for name in a.names] for a in annotations], np.int32, -1),
        "difficult": ragged([a.difficult for a in annotations], bool, -1),
    }
    path_tensor = tf.constant(paths)

    def read(index: tf.Tensor) -> dict:
        image = decoding.decode_image(tf.io.read_file(path_tensor[index]))
        return {"image": image} | {name: column[index] for name, column in columns.items()}

    def examples(seed: int | None) -> tf.data.Dataset:
        indices = tf.data.Dataset.range(len(paths))
        if seed is not None:
            indices = indices.shuffle(len(paths), seed=seed)
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE)

    return examples


def _load_tfds(name: str, data_dir: str, splits: Sequence[str]) -> list[Split]:
    builder = datasets.prepared_builder(name, data_dir or None)
    features = builder.info.features
    try:
        class_names = tuple(features["objects"]["label"].names)
        _ = features["objects"]["bbox"], features["objects"]["is_difficult"]
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            "--dataset must be voc_folder or TFDS's voc, whose objects have bbox, label and "
            f"is_difficult. Received: {name}"
        ) from None
    return [_tfds_split(builder, split, class_names) for split in splits]


def _tfds_split(
    builder: tfds.core.DatasetBuilder, split: str, class_names: tuple[str, ...]
) -> Split:
    if split == "trainval":
        split = "train+validation"
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise UserError(
            f"The split must be one of {builder.info.full_name}'s: "
            f"{', '.join(builder.info.splits)}. "
            f"Received: {split}"
        ) from None
    undecoded = {"image": tfds.decode.SkipDecoding()}
    one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
    spec = {
        "image": tf.TensorSpec([], tf.string),
        "boxes": tf.TensorSpec([None, 4], tf.float32),
        "labels": tf.TensorSpec([None], tf.int32),
        "difficult": tf.TensorSpec([None], tf.bool),
    }

    def columns(example: dict) -> dict:
        objects = example["objects"]
        return {
            "image": example["image"],
            "boxes": objects["bbox"],
            "labels": tf.cast(objects["label"], tf.int32),
            "difficult": objects["is_difficult"],
        }

    def records() -> tf.data.Dataset:
        if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
            found = builder.as_dataset(split=split, decoders=undecoded, read_config=one_by_one)
            return found.map(columns)
        source = builder.as_data_source(split=split, decoders=undecoded)
        return tf.data.Dataset.from_generator(
            lambda: (columns(source[index]) for index in range(len(source))), output_signature=spec
        )

    def decode(example: dict) -> dict:
        image = decoding.decode_image(example["image"])
        height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
        top, left, bottom, right = tf.unstack(example["boxes"], axis=-1)
        boxes = tf.stack([left * width, top * height, right * width, bottom * height], axis=-1)
        return example | {"image": image, "boxes": boxes}

    def examples(seed: int | None) -> tf.data.Dataset:
        found = records()
        if seed is not None:
            found = found.shuffle(min(count, _SHUFFLE_BUFFER), seed=seed)
        return found.map(decode, num_parallel_calls=tf.data.AUTOTUNE)

    name = f"{builder.info.full_name} {split}"
    return Split(
        name,
        count,
        lambda index: f"record {index} of {name} in {builder.data_dir}",
        class_names,
        examples,
    )
