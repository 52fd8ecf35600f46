"""Folders of images behind a URL: the images, order, labels and batches of the local folder."""

import os
import threading

import fsspec
import numpy as np
import pytest
import tensorflow as tf
from fsspec.registry import known_implementations
from sources import error_of, read_all, write_images

from simsiam_tf import storage
from simsiam_tf.config import DataConfig
from simsiam_tf.data import datasets, folders, pipeline
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.schema import UserError

# Names whose order depends on whether paths or the names of each folder are sorted.
SPLITS = [
    "train/cat/b.png", "train/cat/a.PNG", "train/cat/Z.png", "train/cat-1/z.jpg",
    "train/dog/x/y/z.png", "train/dog/ä.bmp", "train/.hidden/h.png", "train/dog/._x.png",
    "train/dog/.cache/a.png", "val/ant/a.png", "val/cat/b.png",
]  # fmt: skip
LAYOUTS = {
    "splits": SPLITS,
    "classes": [name.removeprefix("train/") for name in SPLITS if name.startswith("train/")],
    "loose": ["b.png", "a.png", "a-1/b.png", "a/b.png"],
}


@pytest.fixture(params=["file", "memory"])
def put(request):
    """(local folder) → a URL of the same files."""
    system = fsspec.filesystem("memory")
    stored = "/simsiam/images"

    def put(folder):
        if request.param == "file":
            return f"file://{folder}"
        system.put(f"{folder}/", stored, recursive=True)
        return f"memory:/{stored}"

    yield put
    if system.exists("/simsiam"):
        system.rm("/simsiam", recursive=True)


@pytest.fixture
def memory():
    """(names and contents of files) → the URL of a folder in memory."""
    system = fsspec.filesystem("memory")

    def write(files):
        for name, content in files.items():
            system.pipe_file(f"/simsiam/images/{name}", content)
        return "memory://simsiam/images"

    yield write
    if system.exists("/simsiam"):
        system.rm("/simsiam", recursive=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_url_has_the_images_labels_and_order_of_the_local_folder(tmp_path, put, layout):
    write_images(tmp_path, *LAYOUTS[layout])
    (tmp_path / "notes.txt").write_text("not an image")
    url = put(tmp_path)
    splits = folders.folder_splits(str(tmp_path))
    assert folders.folder_splits(url) == splits
    for split in splits or ["train"]:
        local = datasets.load("folder", str(tmp_path), split)
        remote = datasets.load("folder", url, split)
        assert remote.class_names == local.class_names
        np.testing.assert_array_equal(remote.labels, local.labels)
        paths = [remote.describe(index) for index in range(remote.num_examples)]
        assert [path.removeprefix(url) for path in paths] == [
            local.describe(index).removeprefix(str(tmp_path)) for index in range(local.num_examples)
        ]
        indices = tf.constant([*range(local.num_examples), 0, 0], tf.int64)
        for ours, theirs in zip(remote.read(indices), local.read(indices), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_batches_are_those_of_the_local_folder_byte_by_byte(tmp_path, put):
    write_images(tmp_path, *(f"{name}/{i}.png" for i in range(7) for name in ("cat", "dog")))

    def batches_of(data_dir):
        source = datasets.load("folder", data_dir, "train")
        batches = pipeline.training_batches(
            source,
            lambda image, seed: {"views": (image,), "seed": seed},
            batch_size=4, seed=3, first_step=1, last_step=8,
            quarantine=Quarantine(source, DataConfig()),
        )  # fmt: skip
        return [tf.nest.flatten(batch) for batch in batches]

    ours, theirs = batches_of(put(tmp_path)), batches_of(str(tmp_path))
    assert len(ours) == len(theirs) == 7
    for our_batch, their_batch in zip(ours, theirs, strict=True):
        for our_column, their_column in zip(our_batch, their_batch, strict=True):
            np.testing.assert_array_equal(our_column, their_column)


def test_the_log_names_the_files_that_are_left_out_as_for_a_local_folder(tmp_path, put, caplog):
    write_images(tmp_path, "cat/a.png")
    for name in ("cat/b.MP4", "README", "cat/.hidden.mp4"):
        (tmp_path / name).write_text("")
    caplog.set_level("INFO", logger="absl")
    datasets.load("folder", put(tmp_path), "train")
    assert "1 images, 1 classes; left out: 1 .mp4, 1 without an ending" in caplog.text


def test_several_images_are_read_at_once(memory, monkeypatch):
    url = memory({f"{number}.png": b"%d" % number for number in range(8)})
    source = datasets.load("folder", url, "train")
    all_wait = threading.Barrier(8, timeout=60)  # broken if fewer than eight reads meet
    read_from = storage.read_from

    def read_when_all_wait(*arguments):
        all_wait.wait()
        return read_from(*arguments)

    monkeypatch.setattr(storage, "read_from", read_when_all_wait)
    encoded, _ = source.read(tf.range(8, dtype=tf.int64))
    assert encoded.numpy().tolist() == [b"%d" % number for number in range(8)]


def test_the_fingerprint_changes_when_a_file_is_written_again(memory):
    url = memory({"a.png": b"one", "b.png": b"two"})

    def fingerprint():
        return datasets.load("folder", url, "train").fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    memory({"a.png": b"three"})
    assert fingerprint() != before


def test_a_file_that_vanishes_is_missing_alone_and_gives_the_error_of_a_local_one(tmp_path, put):
    write_images(tmp_path, "a.png", "b.png")
    url = put(tmp_path)
    source = datasets.load("folder", url, "train")
    fsspec.url_to_fs(url)[0].rm(f"{fsspec.url_to_fs(url)[1]}/b.png")
    encoded, _ = source.read(tf.constant([0, 1], tf.int64))
    assert [bool(image) for image in encoded.numpy()] == [True, False]
    quarantine = Quarantine(source, DataConfig())
    quarantine.note(np.array([1, 0]))
    with pytest.raises(UserError) as error:
        quarantine.check()
    assert str(error.value).startswith(
        f"An image cannot be read: {url}/b.png (No such file or directory). "
    )


@pytest.mark.parametrize(
    ("data_dir", "split", "words"),
    [
        ("memory://simsiam/nowhere", "train", "must be a folder that exists"),
        ("memory://simsiam/images/a.png", "train", "must be a folder that exists"),
        ("memory://simsiam/images", "test", "no split 'test'"),
        ("memory://simsiam/images/text", "train", "No image"),
        ("nonsense://bucket", "train", "Protocol not known: nonsense"),
    ],
)
def test_a_wrong_url_is_one_line_that_names_it(memory, data_dir, split, words):
    memory({"a.png": b"", "text/a.txt": b""})
    message = error_of("folder", data_dir, split)
    assert words in message
    assert data_dir in message


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    fact = {"class": "no_such_driver.FileSystem", "err": "Install it"}
    monkeypatch.setitem(known_implementations, "bucket", fact)
    message = error_of("folder", "bucket://images", "train")
    assert "pip install no_such_driver" in message


def test_a_store_that_refuses_is_one_line(memory, monkeypatch):
    url = memory({"a.png": b""})

    def refuse(*_, **__):
        raise RuntimeError("403 Forbidden:\n  no access to the bucket")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", refuse)
    message = error_of("folder", url, "train")
    assert "permission to read it (403 Forbidden: no access to the bucket)" in message
    assert url in message


@pytest.mark.parametrize("name", ["tar", "parquet", "packed", "list"])
def test_data_sets_that_are_not_read_by_url_say_so(name):
    assert "--dataset=folder" in error_of(name, "memory://simsiam/images", "train")


def test_a_list_has_local_paths_and_urls(tmp_path, memory):
    write_images(tmp_path, "local.png")
    content = (tmp_path / "local.png").read_bytes()
    url = memory({"a.png": content})
    rows = ["path,label", f"{url}/a.png,dog", "local.png,cat", f"file://{tmp_path}/local.png,dog"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    source = datasets.load("list", str(tmp_path / "list.csv"), "train")
    encoded, labels = source.read(tf.constant([0, 1, 2], tf.int64))
    assert encoded.numpy().tolist() == [content] * 3
    assert labels.numpy().tolist() == [1, 0, 1]
    assert source.describe(0) == f"{url}/a.png"
    os.remove(tmp_path / "local.png")
    with pytest.raises(tf.errors.InvalidArgumentError, match="No such file or directory"):
        source.read(tf.constant([1], tf.int64))


def test_local_folders_and_lists_keep_their_reader(tmp_path, monkeypatch):
    write_images(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("path\na.png\n")
    monkeypatch.setattr(storage, "open_url", None)
    monkeypatch.setattr(storage, "read_from", None)
    for name, data_dir in (("folder", tmp_path), ("list", tmp_path / "list.csv")):
        source = datasets.load(name, str(data_dir), "train")
        assert source.read_at_once == 1
        assert len(read_all(source)[0]) == 1
