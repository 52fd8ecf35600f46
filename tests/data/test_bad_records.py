"""TFDS records without an image, in both file formats, in training and in evaluation."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simsiam_tf.config import DataConfig
from simsiam_tf.data import datasets, pipeline
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import features
from simsiam_tf.schema import UserError

NUM_IMAGES = 60
NUM_BAD = 3
BATCH = 8
STEPS = 2 * (NUM_IMAGES // BATCH)
SKIP = DataConfig(on_bad_image="skip", max_bad_fraction=0.1)
BAD_KEYS = (7, 8, 40)


class SpottedPatches(tfds.core.GeneratorBasedBuilder):
    """Flat images whose level and label encode their number; three records are text instead."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        label = tfds.features.ClassLabel(num_classes=NUM_IMAGES)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key in range(NUM_IMAGES):
            file = io.BytesIO()
            Image.new("RGB", (5, 6), (4 * key,) * 3).save(file, "PNG")
            encoded = b"This is no image." if key in BAD_KEYS else file.getvalue()
            yield key, {"image": io.BytesIO(encoded), "label": key}


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    builder = SpottedPatches(data_dir=str(folder), file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    source = datasets.load("spotted_patches", str(folder), "train")
    assert (source.stream is not None) == (request.param == "tfrecord")
    return source


def labels_of(source):
    """Returns {index: label}. The records are read one at a time, from the last to the first."""
    indices = range(NUM_IMAGES - 1, -1, -1)
    return {index: int(source.read(tf.constant([index], tf.int64))[1][0]) for index in indices}


def level(image, seed=None):
    del seed
    return tf.reduce_mean(tf.cast(image, tf.float32))


def train(source, quarantine):
    batches = pipeline.training_batches(
        source,
        lambda image, seed: {"views": (level(image),)},
        batch_size=BATCH,
        seed=1,
        first_step=0,
        last_step=STEPS,
        quarantine=quarantine,
    )
    return list(batches.as_numpy_iterator())


def test_random_access_and_stream_give_a_record_the_same_index(source):
    labels = labels_of(source)
    assert sorted(labels.values()) == list(range(NUM_IMAGES))
    encoded, several = source.read(tf.constant([5, 59, 0, 30], tf.int64))
    assert several.numpy().tolist() == [labels[index] for index in (5, 59, 0, 30)]
    assert encoded.shape == (4,)
    if source.stream:
        streamed = source.stream(tf.constant([1, 2])).as_numpy_iterator()
        assert {int(index): int(label) for index, _, label in streamed} == labels


def test_bad_records_are_listed_and_readable_ones_substituted(source, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(source, SKIP, path)
    batches = train(source, quarantine)
    assert len(batches) == STEPS
    labels = labels_of(source)
    for batch in batches:
        for index, label, value in zip(
            batch["index"], batch["label"], batch["views"][0], strict=True
        ):
            assert label not in BAD_KEYS
            assert label == labels[index] == value / 4
    quarantine.check()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {labels[entry["index"]] for entry in entries} == set(BAD_KEYS)
    assert all(entry["path"].startswith("record ") for entry in entries)
    for batch, again in zip(batches, train(source, quarantine), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, batch, again)


def test_the_default_error_names_the_bad_record(source):
    quarantine = Quarantine(source, DataConfig())
    train(source, quarantine)
    with pytest.raises(UserError, match=r"An image cannot be read: record .*no image of a kind"):
        quarantine.check()


# Evaluation.


def extract(source, data=None, **options):
    view = lambda image: tf.fill([1, 1, 3], level(image))  # noqa: E731
    return features.extract(
        lambda images: images[:, 0, 0, :1], source, view, 8, data=data, **options
    )


def test_evaluation_skips_bad_records_with_their_labels_and_logs_their_number(source, caplog):
    values, labels = extract(source, SKIP)
    assert sorted(labels) == sorted(set(range(NUM_IMAGES)) - set(BAD_KEYS))
    np.testing.assert_array_equal(values[:, 0], 4 * labels)
    assert f"3 of {NUM_IMAGES} images of " in caplog.text
    some_values, some_labels = extract(source, SKIP, limit=NUM_IMAGES // 2)
    assert NUM_IMAGES // 2 - NUM_BAD <= len(some_labels) <= NUM_IMAGES // 2
    np.testing.assert_array_equal(some_values[:, 0], 4 * some_labels)


def test_evaluation_stops_at_a_bad_record_by_default(source):
    with pytest.raises(UserError, match=r"An image cannot be read: .*--on_bad_image=skip"):
        extract(source)


def test_evaluation_stops_if_too_many_records_are_bad(source):
    data = DataConfig(on_bad_image="skip", max_bad_fraction=2 / NUM_IMAGES)
    with pytest.raises(UserError, match=f"--max_bad_fraction.*Received: 3 of {NUM_IMAGES}"):
        extract(source, data)


def test_evaluation_without_a_readable_image_is_an_error(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_text("")
    source = datasets.load("folder", str(tmp_path), "train")
    data = DataConfig(on_bad_image="skip", max_bad_fraction=1.0)
    with pytest.raises(UserError, match=r"No image of .* can be read"):
        extract(source, data)
