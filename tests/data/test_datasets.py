"""The embedded digits and TFDS: the images of each name, and the errors; subsets of every kind."""

import http.server
import io
import json
import shutil
import socket
import threading

import numpy as np
import pytest
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
import urllib3
from conftest import ROOT
from sklearn.datasets import load_digits
from sources import error_of, read_all, write_images

from simsiam_tf.data import datasets, decoding, tfds_sets
from simsiam_tf.data.digits import Digits
from simsiam_tf.data.source import UNLABELLED

# Digits.


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    """Returns the folder where TFDS keeps the digits, which are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    datasets.load("digits", str(folder), "train")
    return folder


@pytest.mark.parametrize(("split", "num_examples"), [("train", 1437), ("test", 360)])
def test_digits_have_their_sizes_and_ten_classes(digits_dir, split, num_examples):
    source = datasets.load("digits", str(digits_dir), split)
    assert source.num_examples == num_examples
    assert source.labelled
    assert source.class_names == tuple("0123456789")
    assert source.read is not None


def sklearn_digits(split):
    """Returns scikit-learn's [(pixels, label)]; every fifth, from the first on, is for testing."""
    bunch = load_digits()
    gray = np.round(bunch.images * 255 / 16).astype(np.uint8)
    examples = zip(np.repeat(gray[..., None], 3, axis=-1), bunch.target, strict=True)
    return [
        (image.tobytes(), int(label))
        for number, (image, label) in enumerate(examples)
        if (number % 5 == 0) == (split == "test")
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_equal_those_of_scikit_learn(digits_dir, split):
    images, labels = read_all(datasets.load("digits", str(digits_dir), split))
    assert {image.shape for image in images} == {(8, 8, 3)}
    examples = [(image.tobytes(), label) for image, label in zip(images, labels, strict=True)]
    assert sorted(examples) == sorted(sklearn_digits(split))


def test_digits_are_prepared_once(digits_dir):
    files = {path: path.stat().st_mtime_ns for path in digits_dir.rglob("*") if path.is_file()}
    datasets.load("digits", str(digits_dir), "test")
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert any(path.suffix == ".json" for path in files)


def test_prepared_digits_keep_their_file_format(tmp_path):
    Digits(data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    files = set(tmp_path.rglob("*"))
    source = datasets.load("digits", str(tmp_path), "test")
    assert source.read is not None
    assert source.stream is not None
    assert source.num_examples == 360
    assert set(tmp_path.rglob("*")) == files


def streamed(source, seed=None):
    """Returns [(index, image, label)]; without a seed, in the order on disk."""
    return [
        (int(index), decoding.decode_image(encoded).numpy().tobytes(), int(label))
        for index, encoded, label in source.stream(seed)
    ]


def test_digits_as_tfrecord_equal_those_of_scikit_learn(tmp_path):
    Digits(data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    indices, *examples = zip(*streamed(datasets.load("digits", str(tmp_path), "test")), strict=True)
    assert sorted(indices) == list(range(360))
    assert sorted(zip(*examples, strict=True)) == sorted(sklearn_digits("test"))


def test_slices_of_a_streamed_split_partition_it(tmp_path):
    builder = Digits(data_dir=str(tmp_path), file_format="tfrecord")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    examples = []
    for split in ("test[:10%]", "test[10%:60%]", "test[60%:]"):
        source = datasets.load("digits", str(tmp_path), split)
        part = streamed(source)
        assert sorted(index for index, _, _ in part) == list(range(source.num_examples))
        examples += [example for _, *example in part]
    assert sorted(map(tuple, examples)) == sorted(sklearn_digits("test"))


def test_array_record_is_preferred_if_both_formats_are_on_disk(digits_dir, tmp_path):
    Digits(data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    for path in digits_dir.rglob("*.array_record*"):
        shutil.copy(path, tmp_path / path.relative_to(digits_dir))
    # `tfds convert_format` writes this entry when it converts in place.
    (info,) = tmp_path.rglob("dataset_info.json")
    noted = json.loads(info.read_text()) | {"alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(noted))
    images, labels = read_all(datasets.load("digits", str(tmp_path), "test"))
    examples = [(image.tobytes(), label) for image, label in zip(images, labels, strict=True)]
    assert sorted(examples) == sorted(sklearn_digits("test"))


# TFDS.


def test_slices_of_a_split_partition_it(digits_dir):
    slices = ["test[:10%]", "test[10%:60%]", "test[60%:]"]
    sources = [datasets.load("digits", str(digits_dir), split) for split in slices]
    assert [source.num_examples for source in sources] == [36, 180, 144]
    whole = read_all(datasets.load("digits", str(digits_dir), "test"))
    parts = [read_all(source) for source in sources]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), whole[0])
    assert [label for _, labels in parts for label in labels] == whole[1]


def test_read_takes_records_in_any_order(digits_dir):
    source = datasets.load("digits", str(digits_dir), "train[100:110]")
    images, labels = read_all(source)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    def read(indices):
        return source.read(indices)

    encoded, some_labels = read(tf.constant([9, 0, 9, 4], tf.int64))
    assert some_labels.dtype == tf.int32
    assert some_labels.numpy().tolist() == [labels[index] for index in (9, 0, 9, 4)]
    for image, index in zip(encoded, (9, 0, 9, 4), strict=True):
        np.testing.assert_array_equal(decoding.decode_image(image), images[index])


@pytest.mark.parametrize("split", ["validation", "train[", "train[:10%", "", "train[:2000]"])
def test_an_unknown_split_is_an_error(digits_dir, split):
    message = error_of("digits", digits_dir, split)
    assert message.endswith(f"Received: {split}")
    assert "train, test" in message


@pytest.mark.parametrize("split", ["train[:0]", "train[:0%]", "train[90%:10%]"])
def test_an_empty_slice_is_an_error(digits_dir, split):
    assert error_of("digits", digits_dir, split).endswith(f"Received: {split}")


@pytest.mark.parametrize("name", ["no_such_data_set", "digitz", "no_such_data_set/config"])
def test_an_unknown_name_is_an_error(tmp_path, name):
    message = error_of(name, tmp_path, "train")
    assert message.endswith(f"Received: {name}")
    assert "digits, folder" in message


@pytest.mark.parametrize("name", ["digits/no_such_config", "digits:9.9.9", "Not a name"])
def test_an_unknown_config_or_version_or_a_malformed_name_is_an_error(digits_dir, name):
    assert name in error_of(name, digits_dir, "train")


class UnlabelledPatches(tfds.core.GeneratorBasedBuilder):
    """Three flat images in a feature that is not named "image", without labels."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "picture": image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key in range(3):
            yield key, {"id": str(key), "picture": np.full([4, 5 + key, 3], key, np.uint8)}


class Sentences(UnlabelledPatches):
    """A data set without images."""

    def _info(self):
        features = tfds.features.FeaturesDict({"id": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"id": "A sentence."}


class OutOfReach(UnlabelledPatches):
    """A data set that cannot be prepared, as without a network."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("Name or service not known")


def test_a_tfds_set_without_labels_is_unlabelled(tmp_path):
    source = datasets.load("unlabelled_patches", str(tmp_path), "train")
    images, labels = read_all(source)
    assert not source.labelled
    assert labels == [UNLABELLED] * 3
    assert sorted((image.shape, int(image.max())) for image in images) == [
        ((4, 5, 3), 0),
        ((4, 6, 3), 1),
        ((4, 7, 3), 2),
    ]


def test_a_tfds_set_without_images_is_an_error(tmp_path):
    assert error_of("sentences", tmp_path, "train").endswith("Received: sentences/1.0.0")


def test_a_tfds_set_that_cannot_be_prepared_is_an_error(tmp_path):
    message = error_of("out_of_reach", tmp_path, "train")
    assert "out_of_reach" in message
    assert str(tmp_path) in message
    assert "Name or service not known" in message


class Downloaded(UnlabelledPatches):
    """A data set whose images are downloaded."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_images(dl_manager.download(URL))}

    def _generate_images(self, path):
        yield 0, {"id": "0", "picture": np.load(path)}


URL = "http://images.invalid/image.npy"  # a name that no network knows


@pytest.fixture
def proxy(monkeypatch):
    """A local proxy. Returns the requests that it gets, and its next answers if they are errors."""
    seen, errors = [], []
    content = io.BytesIO()
    np.save(content, np.full([4, 5, 3], 7, np.uint8))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.command, self.path))
            self.send_response(errors.pop() if errors and self.command == "GET" else 200)
            self.send_header("Content-Length", str(len(content.getvalue())))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content.getvalue())

        do_HEAD = do_GET  # noqa: N815 (the server looks for this name)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_proxy(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield seen, errors
        server.shutdown()


def use_proxy(monkeypatch, address):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if address:
        monkeypatch.setenv("HTTP_PROXY", address)


@pytest.fixture
def no_retries(monkeypatch):
    """Fails where TFDS waits before it tries a download again."""

    def wait(*_):
        raise AssertionError("TFDS tries again")

    monkeypatch.setattr(urllib3.Retry, "sleep", wait)


def test_a_download_through_a_proxy_that_is_closed_is_not_tried_again(
    tmp_path, monkeypatch, no_retries
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # takes the port, and does not listen
        use_proxy(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
        message = error_of("downloaded", tmp_path, "train")
    assert message.startswith("The data set downloaded is not in ")
    assert "images.invalid" in message
    assert "Prepare it on a machine with a network" in message


def test_a_download_from_a_host_whose_name_is_not_resolved_is_given_up(
    tmp_path, monkeypatch, no_retries
):
    use_proxy(monkeypatch, None)
    monkeypatch.setattr(tfds_sets, "_REACH_SECONDS", 0.5)
    resolved = threading.Event()

    def hang(*_, **__):
        resolved.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    message = error_of("downloaded", tmp_path, "train")
    resolved.set()
    assert "images.invalid does not answer within 0.5 s" in message


def test_a_download_through_a_proxy_tries_a_host_once(tmp_path, proxy):
    seen, errors = proxy
    request = requests.Session.request
    errors.append(503)  # an error of a host that can be reached is left to TFDS
    images, _ = read_all(datasets.load("downloaded", str(tmp_path), "train"))
    assert images[0].max() == 7
    assert seen == [("HEAD", "http://images.invalid/"), ("GET", URL), ("GET", URL)]
    assert requests.Session.request is request


def test_a_file_that_was_downloaded_needs_no_network(tmp_path, monkeypatch, proxy, no_retries):
    datasets.load("downloaded", str(tmp_path), "train")
    shutil.rmtree(tmp_path / "downloaded")
    use_proxy(monkeypatch, "http://127.0.0.1:1")
    assert datasets.load("downloaded", str(tmp_path), "train").num_examples == 1


def test_a_record_is_described_by_its_split_and_folder(digits_dir):
    description = datasets.load("digits", str(digits_dir), "test").describe(7)
    assert "7" in description
    assert "digits/1.0.0 test" in description
    assert str(digits_dir) in description


@pytest.mark.parametrize("split", ["train+test", "train[:50%]+test"])
def test_splits_can_be_combined(digits_dir, split):
    source = datasets.load("digits", str(digits_dir), split)
    first, second = (datasets.load("digits", str(digits_dir), part) for part in split.split("+"))
    assert source.num_examples == first.num_examples + second.num_examples
    assert read_all(source)[1] == read_all(first)[1] + read_all(second)[1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "transfer").glob("*.cfg")), ids=lambda path: path.stem
)
def test_tfds_knows_the_transfer_sets(path):
    assert tfds.builder_cls(path.stem).name == path.stem


# Labels and subsets.


@pytest.fixture(params=["folder", "array_record", "tfrecord"])
def any_source(request, tmp_path):
    """Returns a source of each kind. The TFRecords are in several files."""
    if request.param == "folder":
        write_images(tmp_path, *(f"train/{name}/{n}.png" for name in "ab" for n in range(6)))
        return datasets.load("folder", str(tmp_path), "train")
    builder = Digits(data_dir=str(tmp_path), file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return datasets.load("digits", str(tmp_path), "test")


def test_labels_of_equals_the_labels_read_with_the_images(any_source):
    labels = datasets.labels_of(any_source)
    assert labels.dtype == "int32"
    assert labels.tolist() == read_all(any_source)[1]


def test_a_subset_reads_and_streams_only_its_images(any_source):
    indices = np.array([1, 4, 7, 8, 11])
    part = datasets.subset(any_source, indices)
    images, labels = read_all(any_source)
    expected = [(images[index].tobytes(), labels[index]) for index in indices]
    assert part.num_examples == 5
    found, found_labels = read_all(part)
    assert [image.tobytes() for image in found] == [image for image, _ in expected]
    assert found_labels == datasets.labels_of(part).tolist() == [label for _, label in expected]
    assert part.describe(2) == any_source.describe(7)
    assert part.class_names == any_source.class_names
    if any_source.stream:
        for seed in (None, tf.constant([0, 1])):
            by_index = {index: (image, label) for index, image, label in streamed(part, seed)}
            assert [by_index[index] for index in range(5)] == expected


def test_different_subsets_have_different_fingerprints(any_source):
    prints = {datasets.subset(any_source, np.array(part)).fingerprint() for part in ([1], [2])}
    assert len(prints | {any_source.fingerprint()}) == 3


def test_a_source_with_indices_gives_pairs_of_label_and_index(any_source):
    source = datasets.with_indices(any_source)
    indices = tf.constant([3, 11, 0], tf.int64)
    images, labels = any_source.read(indices)
    found, pairs = source.read(indices)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(pairs, np.stack([labels, indices], axis=1))
    assert pairs.dtype == tf.int32
    if source.stream:
        labels = datasets.labels_of(any_source)
        for index, _, pair in source.stream(tf.constant([0, 1]), lambda records: records.take(9)):
            assert pair.numpy().tolist() == [labels[int(index)], int(index)]
