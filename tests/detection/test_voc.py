"""Detection data from a VOC folder and from TFDS, and the detector's batches of it."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from simsiam_tf.detection import inputs, voc
from simsiam_tf.detection.settings import TransferConfig
from simsiam_tf.schema import UserError

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write(folder, split, name, image, objects):
    """Adds an image to a split; objects are tuples (name, difficult, xmin, ymin, xmax, ymax)."""
    for subfolder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    with open(folder / "ImageSets/Main" / f"{split}.txt", "a") as file:
        file.write(f"{name}\n")
    (folder / "JPEGImages" / f"{name}.jpg").write_bytes(tf.io.encode_png(image).numpy())
    content = "".join(OBJECT.format(*values) for values in objects)
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{content}</annotation>")


def white_box(height, width, left, top, right, bottom):
    """Returns a black image with a white box."""
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    return image


@pytest.fixture
def folder(tmp_path):
    wide = white_box(40, 60, 10, 20, 26, 36)
    tall = white_box(50, 30, 2, 8, 12, 48)
    write(tmp_path, "trainval", "wide", wide, [("dog", 0, 11, 21, 26, 36), ("cat", 1, 1, 1, 5, 5)])
    write(tmp_path, "trainval", "tall", tall, [("cat", 0, 3, 9, 12, 48)])
    write(tmp_path, "test", "empty", tall, [])
    write(tmp_path, "test", "bird", tall, [("bird", 0, 3, 9, 12, 48)])
    return tmp_path


def read(split, seed=None):
    return list(split.examples(seed).as_numpy_iterator())


def load(folder):
    return voc.load("voc_folder", str(folder), ("trainval", "test"))


def test_a_box_encloses_its_pixels_and_all_splits_share_the_classes(folder):
    train, test = load(folder)
    assert train.class_names == test.class_names == ("bird", "cat", "dog")
    wide, tall = read(train)
    left, top, right, bottom = wide["boxes"][0].astype(int)
    assert wide["image"][top:bottom, left:right].min() == 255
    assert wide["image"].sum() == 255 * 3 * (bottom - top) * (right - left)
    assert wide["labels"].tolist() == [2, 1]
    assert wide["difficult"].tolist() == [False, True]
    assert tall["boxes"].tolist() == [[2, 8, 12, 48]]
    assert [len(example["boxes"]) for example in read(test)] == [0, 1]


def test_one_seed_gives_every_epoch_another_order(tmp_path):
    for number in range(8):
        image = np.full((8, 8, 3), number, np.uint8)
        write(tmp_path, "trainval", str(number), image, [("dog", 0, 1, 1, 8, 8)])
    (split,) = voc.load("voc_folder", str(tmp_path), ("trainval",))
    examples = split.examples(3)
    epochs = [[int(e["image"][0, 0, 0]) for e in examples.as_numpy_iterator()] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tfds_voc_gives_boxes_in_pixels(tmp_path, file_format):
    builder = tfds.builder("voc/2007", data_dir=str(tmp_path))
    box = tfds.features.BBox(ymin=20 / 40, xmin=10 / 60, ymax=36 / 40, xmax=26 / 60)
    thing = {"bbox": box, "label": 11, "pose": 0, "is_truncated": False, "is_difficult": True}
    example = {
        "image": white_box(40, 60, 10, 20, 26, 36),
        "image/filename": "0.jpg",
        "objects": [thing, thing | {"is_difficult": False}],
        "labels": [11],
        "labels_no_difficult": [11],
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="voc",
        config="2007",
        version=str(builder.version),
        features=builder.info.features,
        split_datasets={name: [(0, example)] for name in ("train", "validation", "test")},
        data_dir=str(tmp_path),
        file_format=file_format,
    )
    train, test = voc.load("voc/2007", str(tmp_path), ("trainval", "test"))
    assert (train.num_images, len(read(train, seed=1)), test.num_images) == (2, 2, 1)
    (found,) = read(test)
    np.testing.assert_allclose(found["boxes"], [[10, 20, 26, 36]] * 2, rtol=1e-5)
    assert [test.class_names[label] for label in found["labels"]] == ["dog", "dog"]
    assert found["difficult"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "ImageSets/Main/test.txt").unlink(), "test.txt"),
        (lambda folder: (folder / "ImageSets/Main/test.txt").write_text(""), "is empty"),
        (lambda folder: (folder / "JPEGImages/bird.jpg").unlink(), "no file .*bird"),
        (lambda folder: (folder / "Annotations/bird.xml").unlink(), "bird.xml"),
        (lambda folder: (folder / "Annotations/bird.xml").write_text("<annotation>"), "bird.xml"),
        (
            lambda folder: write(folder, "test", "odd", np.zeros((8, 8, 3), np.uint8), [
                ("dog", 0, 7, 2, 6, 4)
            ]),
            "7, 2, 6, 4 in .*odd.xml",
        ),
        (
            lambda folder: write(folder, "test", "odd", np.zeros((8, 8, 3), np.uint8), [
                ("dog", 0, "x", 2, 6, 4)
            ]),
            "odd.xml",
        ),
    ],
)  # fmt: skip
def test_a_missing_or_wrong_file_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=f"Received: .*{message}"):
        load(folder)


def test_the_check_finds_an_unreadable_image(folder):
    path = folder / "JPEGImages" / "bird.jpg"
    path.write_bytes(path.read_bytes()[:40])
    train, test = load(folder)
    voc.check(train)
    with pytest.raises(UserError, match=r"Received: .*bird\.jpg"):
        voc.check(test)


def test_a_split_of_only_difficult_objects_is_rejected(tmp_path):
    write(tmp_path, "test", "a", np.zeros((8, 8, 3), np.uint8), [("dog", 1, 1, 1, 8, 8)])
    (split,) = voc.load("voc_folder", str(tmp_path), ("test",))
    with pytest.raises(UserError, match="not difficult"):
        voc.check(split)


def test_boxes_move_with_their_pixels_in_flip_and_resize(folder):
    train, _ = load(folder)
    batches = inputs.training_batches(
        train, TransferConfig(encoder="encoder", image_size=64, batch_size=2)
    )
    variants = set()
    for _ in range(8):
        ((images, objects),) = batches
        assert images.shape == (2, 64, 64, 3)
        batch = zip(images.numpy(), objects["boxes"].numpy(), objects["labels"], strict=True)
        for image, boxes, labels in batch:
            # The tolerance is for the resizing, which blurs an edge by about one pixel.
            for side, axis in enumerate((0, 1)):
                white = np.flatnonzero((image > 1).all(axis=2).any(axis=axis))
                ends = boxes[0, side], boxes[0, side + 2]
                np.testing.assert_allclose(ends, [white[0], white[-1] + 1], atol=1.5)
            variants.add((int(labels[0]), round(float(boxes[0, 0]))))
            if labels[0] == 1:  # padded to the two boxes of the other image
                assert labels[1] == -1
    assert len(variants) == 4  # each of two images, unchanged and flipped
