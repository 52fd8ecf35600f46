"""Images in memory as a data set."""

import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import PixelsConfig
from simsiam_tf.data import datasets, image_files, sampling
from simsiam_tf.data.arrays import load_arrays
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.schema import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 0])


def pixels_of(source):
    encoded, labels = source.read(tf.range(source.num_examples, dtype=tf.int64))
    return [decode_image(file).numpy() for file in encoded], labels.numpy()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (IMAGES, IMAGES),
        (IMAGES.astype(np.float32) + 0.4, IMAGES),
        (IMAGES.astype(np.int64), IMAGES),
        (IMAGES[..., :1], np.repeat(IMAGES[..., :1], 3, axis=-1)),
        (IMAGES[..., 0], np.repeat(IMAGES[..., :1], 3, axis=-1)),
        (tf.data.Dataset.from_tensor_slices(IMAGES), IMAGES),
        (0.0 * IMAGES, 0 * IMAGES),
    ],
    ids=["uint8", "float", "int", "one channel", "no channel", "tf.data", "black float"],
)
def test_images_keep_every_pixel(data, expected):
    source = load_arrays(data, "train")
    found, labels = pixels_of(source)
    np.testing.assert_array_equal(found, expected)
    assert not source.labelled
    assert labels.tolist() == [-1] * 4


@pytest.mark.parametrize(
    "data",
    [
        IMAGES / 255,
        IMAGES.astype(int) - 1,
        IMAGES.astype(np.uint16) * 256,
        IMAGES[..., :2],
        np.concatenate([IMAGES] * 4, axis=-1).astype(np.float32) - 1.5,
    ],
    ids=["unit range", "negative", "16 bits", "two channels", "twelve channels"],
)
def test_images_of_other_ranges_and_channels_keep_their_depth(data):
    source = load_arrays(data, "train")
    encoded, _ = source.read(tf.range(4, dtype=tf.int64))
    found = [image_files.decode(file, 100, upright=True)[0] for file in encoded.numpy()]
    np.testing.assert_array_equal(found, data)
    pixels = sampling.resolve_pixels(PixelsConfig(), source)
    assert pixels.depth == "float32"
    assert pixels.channels == data.shape[-1]


@pytest.mark.parametrize("kind", [tuple, tf.data.Dataset.from_tensor_slices])
def test_a_pair_has_labels(kind):
    source = load_arrays(kind((IMAGES, LABELS)), "train")
    assert source.class_names == ("0", "1", "2")
    assert pixels_of(source)[1].tolist() == datasets.labels_of(source).tolist() == LABELS.tolist()


def test_images_of_a_dataset_may_differ_in_size():
    def generate():
        yield from (IMAGES[0], IMAGES[1, :2], IMAGES[2, :, :3])

    data = tf.data.Dataset.from_generator(
        generate, output_signature=tf.TensorSpec([None, None, 3], tf.uint8)
    )
    found, _ = pixels_of(load_arrays(data, "train"))
    assert [image.shape for image in found] == [(5, 6, 3), (2, 6, 3), (5, 3, 3)]


def test_other_images_or_labels_have_another_fingerprint():
    data = [(IMAGES, LABELS), (IMAGES[::-1], LABELS), (IMAGES, LABELS[::-1]), (IMAGES, LABELS)]
    first, *others, again = (load_arrays(pair, "train").fingerprint() for pair in data)
    assert len({first, *others}) == 3
    assert first == again


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (IMAGES[:0], "must contain an image"),
        (IMAGES[None], r"\[H, W, C\] .*Received: one of the shape \[4, 5, 6, 3\], uint8"),
        (IMAGES > 9, "of numbers. Received: .*bool"),
        ((IMAGES, LABELS[:2]), "4 images and 2 labels"),
        ((IMAGES, LABELS - 1), "labels from 0 on. Received: -1"),
        ([1, 2], "Received: list"),
        (tf.data.Dataset.from_tensor_slices(IMAGES).repeat(), "repeats for ever"),
    ],
)
def test_other_data_are_refused_in_one_line(data, match):
    with pytest.raises(UserError, match=match) as raised:
        load_arrays(data, "train")
    assert "\n" not in str(raised.value)


def test_the_data_set_in_memory_has_its_splits_only_inside_of_the_context():
    source = load_arrays(IMAGES, "train")
    with datasets.in_memory({"train": source}):
        assert datasets.load("memory", "", "train") is source
        with pytest.raises(UserError, match=r"has the splits train\. Received: test"):
            datasets.load("memory", "", "test")
    with pytest.raises(UserError, match="must be passed to simsiam_tf"):
        datasets.load("memory", "", "train")
