"""Tests of the extraction of features to files and to memory."""

import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.data import datasets
from simsiam_tf.evaluation import features
from simsiam_tf.schema import UserError

PNG = tf.io.encode_png(np.zeros((2, 2, 3), np.uint8)).numpy()


def source_of(count, bad=()):
    """Tiny images, each labelled with its index; images in `bad` cannot be decoded."""
    bad = tf.constant(list(bad), tf.int64)

    def read(indices):
        is_bad = tf.reduce_any(indices[:, tf.newaxis] == bad, axis=1)
        return tf.where(is_bad, b"no image", PNG), tf.cast(indices, tf.int32)

    return datasets.Source("tiny", count, (), str, read=read, read_at_once=256)


def same(image):
    return tf.cast(image, tf.float32)


class Numbers:
    """An encoder whose features are the next random numbers of a fixed sequence."""

    def __init__(self, dimension):
        self.rng = np.random.default_rng(0)
        self.dimension = dimension

    def __call__(self, images):
        return tf.constant(self.rng.random((len(images), self.dimension), np.float32))


def extract(folder, source, **options):
    with (
        open(folder / "features.npy", "w+b") as features_file,
        open(folder / "labels.npy", "w+b") as labels_file,
    ):
        files = features_file, labels_file
        return features.extract(Numbers(64), source, same, 1000, files=files, **options)


def test_memory_does_not_grow_with_the_number_of_features(tmp_path):
    count = 100_000
    tracemalloc.start()
    found, labels = extract(tmp_path, source_of(count))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < found.nbytes / 5
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(labels, np.arange(count))
    np.testing.assert_array_equal(found, np.random.default_rng(0).random((count, 64), np.float32))


def test_the_npy_files_leave_out_images_that_cannot_be_read(tmp_path, evaluation_config):
    data = evaluation_config(encoder="x", on_bad_image="skip", max_bad_fraction=0.5).data
    found, labels = extract(tmp_path, source_of(1200, bad=(0, 999, 1100)), data=data)
    assert labels.tolist() == [index for index in range(1200) if index not in (0, 999, 1100)]
    assert found.shape == (1197, 64)
    for name, rows in (("features", found), ("labels", labels)):
        loaded = np.load(tmp_path / f"{name}.npy")
        assert loaded.dtype == rows.dtype
        np.testing.assert_array_equal(loaded, rows)
        size = (tmp_path / f"{name}.npy").stat().st_size
        assert size == rows.nbytes + rows.offset  # the file ends with the last row


def test_without_files_the_same_features_stay_in_memory(tmp_path):
    mapped = extract(tmp_path, source_of(1500))
    in_memory = features.extract(Numbers(64), source_of(1500), same, 1000)
    for one, other in zip(mapped, in_memory, strict=True):
        assert not isinstance(other, np.memmap)
        np.testing.assert_array_equal(one, other)


def test_a_source_without_a_readable_image_is_refused(tmp_path, evaluation_config):
    data = evaluation_config(encoder="x", on_bad_image="skip", max_bad_fraction=1.0).data
    with pytest.raises(UserError, match="No image of tiny can be read"):
        extract(tmp_path, source_of(2, bad=(0, 1)), data=data)
