"""Lists, tar shards, Parquet files and packed data sets: the same images as a folder of files."""

import csv
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time
from concurrent import futures

import numpy as np
import pyarrow
import pytest
import tensorflow as tf
from PIL import Image
from pyarrow import parquet

from simsiam_tf.data import (
    datasets,
    pack,
    packing,
    parquet_files,
    pipeline,
    shards,
    tar_shards,
    views,
)
from simsiam_tf.data.source import UNLABELLED
from simsiam_tf.schema import UserError

CLASSES = ("0", "1", "2")  # numbers, so that every container can name them
SPLITS = {"train": 13, "test": 5}
RECIPE = views.build_linear_view(8, 0.2, 0.5)


def encoded_image(number):
    """Returns the file of a small image: a PNG or a JPEG in turn, each of another size."""
    ramp = np.linspace(0, 60, (9 + number) * 11).reshape(9 + number, 11, 1) + 10 * number
    file = io.BytesIO()
    image = Image.fromarray(np.repeat(ramp, 3, axis=-1).astype(np.uint8))
    image.save(file, ("PNG", "JPEG")[number % 2])
    # Bytes after the end of an image belong to its file. A zero is what a C string would lose.
    return file.getvalue() + b"\0" * (number % 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder of labelled images; class 2 has none among the test images."""
    root = tmp_path_factory.mktemp("images")
    for split, count in SPLITS.items():
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
        for number in range(count):
            label = number * (3 if split == "train" else 2) // count
            suffix = ("png", "jpg")[number % 2]
            path = root / split / str(label) / f"{number:03}.{suffix}"
            path.write_bytes(encoded_image(number))
    return root


def folder(root, split="train"):
    return datasets.load("folder", str(root), split)


def rows_of(root, split="train"):
    """Returns [(path relative to the root, text of the label)] in the order of the folder."""
    source = folder(root, split)
    paths = [source.describe(index) for index in range(source.num_examples)]
    labels = [source.class_names[label] for label in source.labels]
    return [(os.path.relpath(path, root), label) for path, label in zip(paths, labels, strict=True)]


def write_table(path, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def write_list(root, folder):
    """Writes the images as one list with a column for the split. Returns its path."""
    rows = [(path, label, split) for split in SPLITS for path, label in rows_of(root, split)]
    rows = [(os.path.relpath(root / path, folder), label, split) for path, label, split in rows]
    write_table(folder / "images.csv", [("path", "label", "split"), *rows])
    return folder / "images.csv"


def write_tar(path, members):
    """Writes a tar file of [(name, content)]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def samples_of(root, split="train"):
    """Returns the members of a tar file, an image and a label for each image of the folder."""
    members = []
    for number, (path, label) in enumerate(rows_of(root, split)):
        stem = path.partition(".")[0]
        text = f'{{"label": {label}}}' if number % 2 else f" {label}\n"
        members += [(path, (root / path).read_bytes())]
        members += [(f"{stem}.{'json' if number % 2 else 'cls'}", text.encode())]
    return members


def write_tars(root, folder):
    """Writes the images as tar files of at most 5 images. Returns the folder."""
    for split in SPLITS:
        members = samples_of(root, split)
        for number, start in enumerate(range(0, len(members), 10)):
            write_tar(folder / f"my-{split}-{number:03}.tar", members[start : start + 10])
    return folder


def write_parquet(path, images, labels, class_names=None, rows_per_group=2):
    """Writes a Parquet file in the layout of Hugging Face's datasets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [image if isinstance(image, dict) else {"bytes": image} for image in images]
    columns = {"id": range(len(images)), "image": [{"path": None, **image} for image in images]}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns["image"] = pyarrow.array(columns["image"], kind)
    features = {"image": {"_type": "Image"}, "id": {"_type": "Value", "dtype": "int64"}}
    if labels is not None:
        columns["label"] = labels
        features["label"] = {"_type": "ClassLabel", "names": class_names}
    table = pyarrow.table(columns)
    if class_names:
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    parquet.write_table(table, path, row_group_size=rows_per_group)


def files_and_labels(root, split="train"):
    rows = rows_of(root, split)
    return [(root / path).read_bytes() for path, _ in rows], [int(label) for _, label in rows]


def write_parquets(root, folder):
    """Writes the images as Parquet files of at most 7 images. Returns the folder."""
    for split in SPLITS:
        images, labels = files_and_labels(root, split)
        for number, start in enumerate(range(0, len(images), 7)):
            part = slice(start, start + 7)
            path = folder / "data" / f"{split}-{number:05}-of-00002.parquet"
            write_parquet(path, images[part], labels[part], CLASSES)
    return folder


def write_packed(root, folder):
    """Packs the images, at most 6 in a file. Returns the folder."""
    packing.pack(
        pack.PackConfig(
            dataset="folder",
            data_dir=str(root),
            split="train,test",
            output=str(folder),
            images_per_shard=6,
        )
    )
    return folder


WRITERS = {
    "list": write_list,
    "tar": write_tars,
    "parquet": write_parquets,
    "packed": write_packed,
}


@pytest.fixture(scope="module", params=WRITERS)
def container(request, root, tmp_path_factory):
    """Returns the name and the `--data_dir` of a container of the folder's images."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, str(WRITERS[request.param](root, folder))


def read_all(source):
    """Returns the files and the labels of a source, by index."""
    encoded, labels = source.read(tf.range(source.num_examples, dtype=tf.int64))
    return encoded.numpy().tolist(), labels.numpy().tolist()


def error_of(name, data_dir, split="train"):
    """Returns the message of the `UserError` that loading raises; it must be one line."""
    with pytest.raises(UserError) as raised:
        datasets.load(name, str(data_dir), split)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Every container.


@pytest.mark.parametrize("split", SPLITS)
def test_a_container_has_the_files_labels_classes_and_order_of_the_folder(root, container, split):
    expected, source = folder(root, split), datasets.load(*container, split)
    assert source.num_examples == SPLITS[split]
    assert source.class_names == expected.class_names == CLASSES
    assert read_all(source) == read_all(expected)
    np.testing.assert_array_equal(datasets.labels_of(source), expected.labels)


def test_a_container_reads_any_indices_in_a_graph(root, container):
    source = datasets.load(*container, "train")
    files, labels = read_all(folder(root))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    def read(indices):
        return source.read(indices)

    chosen = [12, 0, 12, 5]
    encoded, found = read(tf.constant(chosen, tf.int64))
    assert found.dtype == tf.int32
    assert found.numpy().tolist() == [labels[index] for index in chosen]
    assert encoded.numpy().tolist() == [files[index] for index in chosen]


def batches_of(source, context=None):
    batches = pipeline.training_batches(
        source, RECIPE, batch_size=4, seed=3, first_step=1, last_step=8, context=context
    )
    return list(batches.as_numpy_iterator())


@pytest.mark.parametrize(
    "context", [None, tf.distribute.InputContext(2, 1, 2)], ids=["alone", "second of two workers"]
)
def test_a_container_gives_the_batches_of_the_folder_byte_for_byte(root, container, context):
    expected = batches_of(folder(root), context)
    found = batches_of(datasets.load(*container, "train"), context)
    assert len(found) == len(expected) == 7
    for batch, other in zip(found, expected, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, batch, other)


def test_a_fingerprint_is_that_of_a_split_and_stays(container):
    prints = [datasets.load(*container, split).fingerprint() for split in ("train", "test")]
    assert prints[0] != prints[1]
    assert prints[0] == datasets.load(*container, "train").fingerprint()


def test_each_image_of_a_container_has_its_own_description(container):
    source = datasets.load(*container, "train")
    assert len({source.describe(index) for index in range(13)}) == 13
    assert all("\n" not in source.describe(index) for index in range(13))


def test_a_split_that_a_container_lacks_is_an_error_that_names_the_others(container):
    message = error_of(*container, "validation")
    assert message.endswith("Received: validation")
    assert "test" in message
    assert "train" in message


def test_a_container_needs_a_data_dir_that_exists(container, tmp_path):
    name, _ = container
    assert error_of(name, "").endswith("Received: none")
    assert str(tmp_path / "missing") in error_of(name, tmp_path / "missing")


# Lists.


@pytest.mark.parametrize("column", ["path", "image", "file_name", "Path"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "parquet"])
def test_a_list_of_any_kind_is_found_by_the_names_of_its_columns(root, tmp_path, suffix, column):
    paths, labels = zip(*rows_of(root), strict=True)
    columns = {"id": range(13), "label": labels, column: [str(root / path) for path in paths]}
    path = tmp_path / f"images.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.table(columns), path)
    else:
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        write_table(path, rows, "," if suffix == "csv" else "\t")
    source = datasets.load("list", str(path), "train")
    assert source.class_names == CLASSES
    assert read_all(source) == read_all(folder(root))


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("txt", "\t"), ("txt", ",")])
def test_a_list_without_a_header_has_paths_and_labels_in_this_order(
    root, tmp_path, suffix, delimiter
):
    rows = [(str(root / path), label) for path, label in rows_of(root)]
    write_table(tmp_path / f"images.{suffix}", rows, delimiter)
    source = datasets.load("list", str(tmp_path / f"images.{suffix}"), "train")
    assert read_all(source) == read_all(folder(root))


def test_a_list_of_paths_alone_is_unlabelled(root, tmp_path):
    paths = [str(root / path) for path, _ in rows_of(root)]
    (tmp_path / "images.txt").write_text("\n\n".join(paths))
    source = datasets.load("list", str(tmp_path / "images.txt"), "train")
    files, labels = read_all(source)
    assert not source.labelled
    assert labels == [UNLABELLED] * 13
    assert files == read_all(folder(root))[0]
    assert source.describe(3) == paths[3]


def test_a_folder_of_lists_has_a_split_for_each_and_classes_common_to_all(root, tmp_path):
    for split, suffix in {"train": "csv", "test": "txt"}.items():
        rows = [(str(root / path), f"class {label}") for path, label in rows_of(root, split)]
        write_table(tmp_path / f"{split}.{suffix}", rows)
    (tmp_path / "readme.txt").write_text("No list.")
    for split in SPLITS:
        source = datasets.load("list", str(tmp_path), split)
        assert source.class_names == ("class 0", "class 1", "class 2")
        assert read_all(source) == read_all(folder(root, split))


def test_labels_that_are_numbers_are_sorted_as_numbers_and_others_as_text(root, tmp_path):
    paths = [str(root / path) for path, _ in rows_of(root)][:4]
    for labels, names, numbers in [
        (("10", "9", "10", "07"), ("7", "9", "10"), [2, 1, 2, 0]),
        (("10", "9", "b", "07"), ("07", "10", "9", "b"), [1, 2, 3, 0]),
    ]:
        write_table(tmp_path / "images.csv", zip(paths, labels, strict=True))
        source = datasets.load("list", str(tmp_path / "images.csv"), "train")
        assert source.class_names == names
        assert source.labels.tolist() == numbers


def test_a_list_may_begin_with_a_byte_order_mark_and_name_an_image_twice(root, tmp_path):
    path = root / rows_of(root)[0][0]
    (tmp_path / "images.csv").write_text(f'path\n"{path}"\n{path}\n', encoding="utf-8-sig")
    assert datasets.load("list", str(tmp_path / "images.csv"), "train").num_examples == 2


LIST = "path,label\ntrain/0/000.png,0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("path,label\n", ["empty"]),
        (
            "name,class,fold\na.png,0,1\n",
            ["column path or image or file_name", "name, class, fold"],
        ),
        ("name,label\na.png,0\n", ["column path or image or file_name"]),
        (f"{LIST},1\n", ["a path", "row 3 of"]),
        (f"{LIST}\ntrain/1/005.jpg,\n", ["without a label", "row 4 of"]),
        (f"{LIST}train/1/005.jpg\n", ["without a label", "row 3 of"]),
        (f"{LIST}train/1/005.jpg,-1\n", ["from 0", "-1 in row 3"]),
        (f"{LIST}gone.png,1\n", ["must exist", "gone.png, row 3 of"]),
        ("name\ntrain/0/000.png\n", ["name, row 1 of", "a header names"]),
        ("path,split\ntrain/0/000.png,\n", ["a split", "row 2 of"]),
        (b"path\n\xff\xfe.png\n", ["UTF-8"]),
    ],
)
def test_a_mistake_in_a_list_is_an_error_that_names_its_row(root, text, words):
    path = root / "broken.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    message = error_of("list", path)
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_list_that_is_no_parquet_file_or_holds_images_is_an_error(root, tmp_path):
    path = tmp_path / "images.parquet"
    path.write_bytes(b"PAR1 no more")
    assert str(path) in error_of("list", path)
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "a.png"}]}), path)
    assert "--dataset=parquet" in error_of("list", path)
    parquet.write_table(pyarrow.table({"name": ["a.png"]}), path)
    assert "column path or image or file_name" in error_of("list", path)
    parquet.write_table(pyarrow.table({"path": ["a.png", None]}), path)
    assert "row 2 of" in error_of("list", path)


def test_a_folder_of_lists_has_one_list_for_a_split_and_no_column_for_it(root, tmp_path):
    assert "train, val, validation, test" in error_of("list", tmp_path)
    path = root / rows_of(root)[0][0]
    (tmp_path / "train.csv").write_text(f"path,split\n{path},train\n")
    assert "no column split" in error_of("list", tmp_path)
    (tmp_path / "train.txt").write_text(f"{path}\n")
    assert "train.csv, train.txt" in error_of("list", tmp_path)


def test_a_listed_image_that_vanishes_is_named_when_it_is_read(root, tmp_path):
    paths = [pathlib.Path(tmp_path, f"{number}.png") for number in range(4)]
    for path in paths:
        path.write_bytes(encoded_image(0))
    (tmp_path / "images.txt").write_text("\n".join(map(str, paths)))
    source = datasets.load("list", str(tmp_path / "images.txt"), "train")
    before = source.fingerprint()
    paths[2].unlink()
    batches = pipeline.evaluation_batches(source, lambda image: image[0, 0], 4)
    with pytest.raises(UserError, match=r"2\.png"):
        list(pipeline.iterate(batches, source, lambda _: range(4)))
    paths[2].write_bytes(encoded_image(2))
    source = datasets.load("list", str(tmp_path / "images.txt"), "train")
    assert source.fingerprint() != before


# Files of a container.


def test_files_come_from_ranges_choices_patterns_folders_and_lists_of_these(tmp_path):
    names = [f"{part}/{number:02}.tar" for part in "ab" for number in range(8, 12)]
    for name in (*names, "a/notes.txt", "a/.hidden.tar", ".cache/12.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def found(*patterns):
        data_dir = ",".join(f"{tmp_path}/{pattern}" for pattern in patterns)
        (paths,) = shards.find_splits(data_dir, [".tar"], "tar").values()
        return [os.path.relpath(path, tmp_path) for path in paths]

    assert found("") == names
    assert found("a") == found("a/{08..11}.tar") == found("a/*.tar") == names[:4]
    assert found("{b,a}/{09..10}.tar") == ["b/09.tar", "b/10.tar", "a/09.tar", "a/10.tar"]
    assert found("b/1?.tar", "a/08.tar", "b") == [*names[6:], names[0], *names[4:6]]
    with pytest.raises(UserError, match=r"a/12\.tar"):
        found("a/{11..12}.tar")
    with pytest.raises(UserError, match=r"c\*\.tar"):
        found("c*.tar")
    os.mkdir(tmp_path / "empty")
    with pytest.raises(UserError, match="empty"):
        found("empty")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("a/train-00000-of-00002.parquet", "train"),
        ("a/imagenet1k-validation-07.tar", "validation"),
        ("train/0001.tar", "train"),
        ("data/val/0001.tar", "val"),
        ("test/train-0.tar", "train"),
        ("Test/0.tar", "test"),
        ("mytest/values7.tar", "train"),
        ("my_test/0.tar", "train"),
        ("0.tar", "train"),
    ],
)
def test_a_file_is_of_the_split_that_its_name_or_its_folder_names(path, split):
    assert shards.split_of(path) == split


# Tar files.


def test_files_of_one_name_up_to_the_first_dot_are_a_sample_whatever_their_order(root, tmp_path):
    image = encoded_image(0)
    members = [
        ("./b/1.cls", b"2"),
        ("./a/1.png", image),
        ("./a/1.seg.png", b"no image of this sample"),
        ("./b/1.JPG", encoded_image(1)),
        ("./a/1.txt", b"a caption"),
        ("./a/1.cls", b"1"),
        ("./a/2.json", b'{"label": 5}'),
        ("./readme", b""),
        ("./.hidden.png", b""),
    ]
    write_tar(tmp_path / "0.tar", members)
    source = datasets.load("tar", str(tmp_path / "0.tar"), "train")
    assert read_all(source) == ([encoded_image(1), image], [2, 1])
    assert "b/1.JPG at byte " in source.describe(0)


def test_labels_of_tar_files_are_class_numbers_or_sorted_names(tmp_path):
    image = encoded_image(0)
    for labels, names, numbers in [
        (["3", "0"], ("0", "1", "2", "3"), [3, 0]),
        (['"dog"', '"cat"'], ("cat", "dog"), [1, 0]),
        (['"\\u00e9"', "10"], ("10", "\u00e9"), [1, 0]),
    ]:
        members = [(f"{n}.json", f'{{"cls": {label}}}'.encode()) for n, label in enumerate(labels)]
        write_tar(tmp_path / "0.tar", [*members, ("0.png", image), ("1.png", image)])
        source = datasets.load("tar", str(tmp_path / "0.tar"), "train")
        assert source.class_names == names
        assert source.labels.tolist() == numbers


def test_a_tar_file_without_labels_is_unlabelled(tmp_path):
    members = [("a.png", encoded_image(0)), ("a.json", b'{"width": 9}'), ("b.png", b"x")]
    write_tar(tmp_path / "0.tar", members)
    source = datasets.load("tar", str(tmp_path), "train")
    assert not source.labelled
    assert read_all(source) == ([encoded_image(0), b"x"], [UNLABELLED] * 2)


def test_a_tar_file_is_indexed_once_and_again_when_it_changes(root, tmp_path, monkeypatch):
    write_tars(root, tmp_path)
    read, read_headers = [], tar_shards._read_headers
    monkeypatch.setattr(
        tar_shards, "_read_headers", lambda path: read.append(path) or read_headers(path)
    )
    first = datasets.load("tar", str(tmp_path), "train")
    assert len(read) == 4
    assert (tmp_path / tar_shards.INDEX_NAME).exists()
    again = datasets.load("tar", str(tmp_path), "train")
    assert len(read) == 4
    assert read_all(first) == read_all(again)
    changed = tmp_path / "my-train-001.tar"
    write_tar(changed, [("x.png", encoded_image(7)), ("x.cls", b"1")])
    # A part of the files keeps what the index has of the others.
    datasets.load("tar", str(changed), "train")
    source = datasets.load("tar", str(tmp_path), "train")
    assert read[4:] == [str(changed)]
    assert read_all(source)[0] == [
        *read_all(first)[0][:5],
        encoded_image(7),
        *read_all(first)[0][10:],
    ]
    assert source.fingerprint() != first.fingerprint()
    (tmp_path / tar_shards.INDEX_NAME).write_bytes(b"PK\x03\x04 no more")
    assert read_all(datasets.load("tar", str(tmp_path), "train")) == read_all(source)
    assert len(read) == 9


def test_the_index_of_a_folder_that_cannot_be_written_to_is_in_the_users_cache(
    root, tmp_path, monkeypatch
):
    write_tars(root, tmp_path / "shards")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # No file can have this name. The permissions of a folder would not stop root.
    monkeypatch.setattr(tar_shards, "INDEX_NAME", "x" * 300)
    source = datasets.load("tar", str(tmp_path / "shards"), "train")
    (index,) = (tmp_path / "cache").rglob("*.npz")
    written = index.stat().st_mtime_ns
    again = datasets.load("tar", str(tmp_path / "shards"), "train")
    assert read_all(again) == read_all(source) == read_all(folder(root))
    assert index.stat().st_mtime_ns == written


def test_more_tar_files_are_read_than_a_process_may_open(tmp_path):
    for number in range(150):
        write_tar(tmp_path / f"{number:03}.tar", [("a.png", str(number).encode())])
    code = (
        "import resource, sys, tensorflow as tf\n"
        "from simsiam_tf.data import datasets, tar_shards\n"
        "source = datasets.load('tar', sys.argv[1], 'train')\n"
        "list(tf.data.Dataset.range(150).map(lambda i: source.read(i[None])).take(1))\n"
        "tar_shards._FILES_OPEN = 8\n"
        "source = datasets.load('tar', sys.argv[1], 'train')\n"
        "import os; used = len(os.listdir('/proc/self/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, used + 40))\n"
        "read = tf.data.Dataset.range(300).map(\n"
        "    lambda i: source.read(i[None] % 150)[0][0], num_parallel_calls=8)\n"
        "assert [int(x) for x in read.as_numpy_iterator()] == [*range(150)] * 2\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("suffix", ["", ".compressed"])
def test_a_compressed_tar_file_is_an_error_that_says_what_to_do(tmp_path, compression, suffix):
    path = tmp_path / (f"a.tar.{compression}" if suffix else "a.tar")
    with tarfile.open(path, f"w:{compression}") as file:
        file.addfile(tarfile.TarInfo("a.png"))
    message = error_of("tar", tmp_path)
    assert "must not be compressed" in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("cut", "offset"),
    [(0, 0), (100, 0), (700, 1024), (1024, 1024), (1300, 1024), (2048, 2048), (2100, 2048)],
)
def test_a_truncated_tar_file_is_an_error_that_names_it_and_the_offset(tmp_path, cut, offset):
    path = tmp_path / "a.tar"
    write_tar(path, [("a.png", b"x" * 500), ("b.png", b"y" * 500)])
    with open(path, "r+b") as file:
        file.truncate(cut)
    message = error_of("tar", path)
    assert f"at byte {offset} " in message
    assert str(path) in message


def test_a_damaged_header_is_an_error_that_names_the_tar_file_and_the_offset(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("a.png", b"x" * 500), ("b.png", b"y" * 500)])
    with open(path, "r+b") as file:
        file.seek(1024 + 150)  # in the header's checksum; tarfile alone would see an end here
        file.write(b"zz")
    assert "at byte 1024 " in error_of("tar", path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.cls", b"1")], ["an image", "without one"]),
        ([("a.png", b"x"), ("a.jpg", b"y")], ["Two images", "a.png and a.jpg"]),
        ([("a.png", b"x"), ("a.cls", b"cat")], ["a.cls must be a number", "'cat'"]),
        ([("a.png", b"x"), ("a.json", b"{")], ["a.json is no JSON"]),
        ([("a.png", b"x"), ("a.json", b'{"label": -1}')], ["a.json", "-1"]),
        ([("a.png", b"x"), ("a.json", b'{"label": 1.5}')], ["a.json", "1.5"]),
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"y")], ["b.png at byte", "without a label"]),
    ],
)
def test_a_mistake_in_a_tar_file_is_an_error_that_names_the_member(tmp_path, members, words):
    write_tar(tmp_path / "a.tar", members)
    message = error_of("tar", tmp_path)
    for word in (*words, str(tmp_path)):
        assert word in message


def test_an_image_of_a_tar_file_that_became_shorter_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{number}.png", encoded_image(number)) for number in range(0, 8, 2)])
    source = datasets.load("tar", str(path), "train")
    with open(path, "r+b") as file:
        file.truncate(int(source.describe(3).rpartition(" ")[2]) + 7)
    batches = pipeline.evaluation_batches(source, lambda image: image[0, 0], 4, skip_bad=True)
    assert [len(labels) for _, labels in batches] == [3]
    batches = pipeline.evaluation_batches(source, lambda image: image[0, 0], 4)
    with pytest.raises(UserError, match=r"6\.png at byte .*become shorter") as raised:
        list(pipeline.iterate(batches, source, lambda _: range(4)))
    assert "Traceback" not in str(raised.value)


# Parquet files.


@pytest.mark.parametrize("rows_per_group", [1, 3, 100])
@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_images_are_read_from_row_groups_of_any_size_with_any_memory(
    root, tmp_path, monkeypatch, rows_per_group, cache_bytes
):
    monkeypatch.setattr(parquet_files, "_CACHE_BYTES", cache_bytes)
    images, labels = files_and_labels(root)
    write_parquet(tmp_path / "0.parquet", images, labels, rows_per_group=rows_per_group)
    source = datasets.load("parquet", str(tmp_path), "train")
    for batch, other in zip(batches_of(source), batches_of(folder(root)), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, batch, other)


def test_the_row_groups_used_last_are_kept_up_to_a_limit_and_read_once_by_many_threads():
    read = []
    sizes = {0: 40, 1: 40, 2: 40, 3: 500}

    def read_images(number):
        read.append(number)
        time.sleep(0.02)
        return pyarrow.chunked_array([[bytes(sizes[number])]])

    cache = parquet_files._RowGroups(read_images, 120)
    with futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(cache.get, [0] * 16))
    assert read == [0]
    for number in (1, 0, 2, 0, 1):  # 2 replaces 1, then 1 replaces 2
        assert len(cache.get(number)[0].as_py()) == 40
        assert cache.num_bytes <= 120
    assert read == [0, 1, 2, 1]
    assert len(cache.get(3)[0].as_py()) == 500  # alone
    assert cache.num_bytes > 500
    cache.get(1)
    assert cache.num_bytes < 120


def test_an_image_column_may_be_bytes_and_other_columns_are_found_by_their_kind(root, tmp_path):
    images, labels = files_and_labels(root)
    names = ["a", "b", "c"]
    features = {"fine": {"_type": "ClassLabel", "names": names}, "img": {"_type": "Image"}}
    table = pyarrow.table({"other": images, "img": images, "fine": labels})
    described = json.dumps({"info": {"features": features}})
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": described}), tmp_path / "a.parquet"
    )
    source = datasets.load("parquet", str(tmp_path), "train")
    assert source.class_names == ("a", "b", "c")
    assert read_all(source) == (images, labels)
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet")
    source = datasets.load("parquet", str(tmp_path), "train")
    assert not source.labelled
    assert read_all(source) == (images, [UNLABELLED] * 13)
    assert source.describe(12) == f"{tmp_path}/a.parquet: row 12"


def test_classes_without_names_are_numbers_or_sorted_texts_common_to_all_splits(root, tmp_path):
    images, labels = files_and_labels(root, "test")
    write_parquet(tmp_path / "test" / "0.parquet", images, labels)
    write_parquet(tmp_path / "train" / "0.parquet", images, [4] * 5)
    source = datasets.load("parquet", str(tmp_path), "test")
    assert source.class_names == ("0", "1", "2", "3", "4")
    assert source.labels.tolist() == labels
    texts = pyarrow.array([f"class {label}" for label in labels]).dictionary_encode()
    parquet.write_table(
        pyarrow.table({"image": images, "label": texts}), tmp_path / "test" / "0.parquet"
    )
    write_parquet(tmp_path / "train" / "0.parquet", images, ["an apple"] * 5)
    source = datasets.load("parquet", str(tmp_path), "test")
    assert source.class_names == ("an apple", "class 0", "class 1")
    assert source.labels.tolist() == [label + 1 for label in labels]


def test_a_split_whose_labels_are_all_minus_1_is_unlabelled(root, tmp_path):
    images, labels = files_and_labels(root, "test")
    write_parquet(tmp_path / "train-0.parquet", images, labels, CLASSES)
    write_parquet(tmp_path / "test-0.parquet", images, [-1] * 5, CLASSES)
    assert not datasets.load("parquet", str(tmp_path), "test").labelled
    assert datasets.load("parquet", str(tmp_path), "train").class_names == CLASSES


def test_a_broken_parquet_file_is_an_error_that_names_it(root, tmp_path):
    path = tmp_path / "0.parquet"
    images, labels = files_and_labels(root)
    write_parquet(path, images, labels, CLASSES)
    whole = path.read_bytes()
    for content in (b"", b"no Parquet file", whole[:-100]):
        path.write_bytes(content)
        assert str(path) in error_of("parquet", tmp_path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"picture": [b"x"]}, ["a column image", "with picture"]),
        ({"image": ["a.png"]}, ["must be bytes", "--dataset=list", "string"]),
        ({"image": [b"x", b"y"], "label": [0, None]}, ["row 1", "without a label"]),
        ({"image": [b"x", b"y"], "label": ["", "a"]}, ["row 0", "without a label"]),
        ({"image": [b"x", b"y"], "label": [0, 10**7]}, ["row 1", "10000000"]),
        ({"image": pyarrow.array([], pyarrow.binary())}, ["an image", "without one"]),
    ],
)
def test_a_mistake_in_a_parquet_file_is_an_error_that_names_it(tmp_path, columns, words):
    parquet.write_table(pyarrow.table(columns), tmp_path / "0.parquet")
    message = error_of("parquet", tmp_path)
    for word in (*words, str(tmp_path)):
        assert word in message


def test_labels_and_class_names_of_parquet_files_must_fit_together(root, tmp_path):
    images, labels = files_and_labels(root)
    write_parquet(tmp_path / "0.parquet", images, labels, CLASSES[:2])
    assert "one of 2 classes. Received: 2 in" in error_of("parquet", tmp_path)
    write_parquet(tmp_path / "1.parquet", images, labels, CLASSES)
    assert "2 lists of classes" in error_of("parquet", tmp_path)


def test_an_image_that_is_only_a_path_in_a_parquet_file_is_an_error_at_once(root, tmp_path):
    images, labels = files_and_labels(root)
    images[4] = {"bytes": None, "path": "there.png"}
    write_parquet(tmp_path / "0.parquet", images, labels, CLASSES)
    message = error_of("parquet", tmp_path)
    assert "not only its path" in message
    assert "rows 4 to 5" in message
    assert str(tmp_path / "0.parquet") in message


def test_an_image_without_bytes_is_named_if_the_statistics_do_not_tell_of_it(tmp_path):
    table = pyarrow.table({"image": [encoded_image(0), None, encoded_image(2)]})
    parquet.write_table(table, tmp_path / "0.parquet", write_statistics=False)
    source = datasets.load("parquet", str(tmp_path), "train")
    batches = pipeline.evaluation_batches(source, lambda image: image[0, 0], 4)
    with pytest.raises(UserError, match=r"0\.parquet: row 1 \(the file has no bytes"):
        list(pipeline.iterate(batches, source, lambda _: range(3)))
