"""Folders of images: which files are images, their order, their labels, and the kept list."""

import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import tracemalloc
import types

import numpy as np
import pytest
import tensorflow as tf
from sources import described, error_of, levels_of, read_all, write_images

from simsiam_tf.data import datasets, decoding, folders, listing
from simsiam_tf.data.source import UNLABELLED


def write_files(root, *names):
    """Writes a file per name, with the name as its content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def load(root, split="train"):
    return datasets.load("folder", str(root), split)


@pytest.fixture
def log(monkeypatch):
    """The lines of the log."""
    lines = []
    for module in (folders, listing):
        for level in ("info", "warning"):
            monkeypatch.setattr(
                module.logging, level, lambda text, *values: lines.append(text % values)
            )
    return lines


def slow_paths(root):
    """The sorted paths of all images, by the code that found them before lists were compact."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        start = os.path.join(folder, "")
        found += [
            start + name
            for name in names
            if name.lower().endswith(folders.IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def slow_labels(root, class_names):
    names = [path.removeprefix(os.path.join(root, "")) for path in slow_paths(root)]
    if not all("/" in name for name in names):
        return [UNLABELLED] * len(names)
    return [class_names.index(name.split("/")[0]) for name in names]


def slow_fingerprint(root):
    files = []
    for path in slow_paths(root):
        status = os.stat(path)
        name = path.removeprefix(os.path.join(root, ""))
        files.append([name, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


# Splits, classes and errors.


def test_split_folders_with_class_folders_are_labelled(tmp_path):
    write_images(tmp_path, "train/cat/b.png", "train/cat/a.png", "train/dog/c.png")
    write_images(tmp_path, "val/cat/d.png", "val/dog/e.png", level=3)
    train = datasets.load("folder", str(tmp_path), "train")
    assert train.labelled
    assert train.class_names == ("cat", "dog")
    assert described(train, tmp_path) == ["train/cat/a.png", "train/cat/b.png", "train/dog/c.png"]
    assert levels_of(train) == [1, 0, 2]
    assert read_all(train)[1] == [0, 0, 1]
    validation = datasets.load("folder", str(tmp_path), "val")
    assert validation.class_names == ("cat", "dog")
    assert levels_of(validation) == [3, 4]
    assert read_all(validation)[1] == [0, 1]


def test_class_folders_without_splits_are_the_training_split(tmp_path):
    write_images(tmp_path, "dog/a.png", "cat/b.png", "ant/c.png")
    source = datasets.load("folder", str(tmp_path), "train")
    assert source.class_names == ("ant", "cat", "dog")
    assert levels_of(source) == [2, 1, 0]
    assert read_all(source)[1] == [0, 1, 2]


@pytest.mark.parametrize("names", [("b.png", "a.png"), ("train/b.png", "train/a.png")])
def test_a_folder_of_loose_images_is_unlabelled(tmp_path, names):
    write_images(tmp_path, *names)
    source = datasets.load("folder", str(tmp_path), "train")
    assert not source.labelled
    assert source.class_names == ()
    assert source.num_examples == 2
    assert levels_of(source) == [1, 0]
    assert read_all(source)[1] == [UNLABELLED] * 2


def test_loose_images_beside_class_folders_make_all_unlabelled(tmp_path):
    write_images(tmp_path, "a.png", "cat/b.png", "dog/c.png")
    source = datasets.load("folder", str(tmp_path), "train")
    assert not source.labelled
    assert levels_of(source) == [0, 1, 2]
    assert read_all(source)[1] == [UNLABELLED] * 3


def test_images_nested_in_a_class_folder_have_that_class(tmp_path):
    write_images(tmp_path, "train/cat/2020/may/a.png", "train/cat/b.png", "train/dog/x/y/z/c.png")
    source = datasets.load("folder", str(tmp_path), "train")
    assert source.class_names == ("cat", "dog")
    assert levels_of(source) == [0, 1, 2]
    assert read_all(source)[1] == [0, 0, 1]


def test_hidden_files_and_folders_are_ignored(tmp_path):
    write_images(tmp_path, "cat/a.png", "cat/._a.png", ".thumbnails/b.png", "cat/.cache/c.png")
    source = datasets.load("folder", str(tmp_path), "train")
    assert source.class_names == ("cat",)
    assert described(source, tmp_path) == ["cat/a.png"]


def test_linked_folders_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere", "a.png", "b.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    source = datasets.load("folder", str(tmp_path / "images"), "train")
    assert source.class_names == ("cat",)
    assert levels_of(source) == [0, 1]


def test_a_class_missing_from_one_split_does_not_shift_labels(tmp_path):
    write_images(tmp_path, "train/ant/a.png", "train/bee/b.png", "train/cat/c.png")
    write_images(tmp_path, "test/bee/d.png", "test/cat/e.png", "test/dog/f.png", level=3)
    train = datasets.load("folder", str(tmp_path), "train")
    test = datasets.load("folder", str(tmp_path), "test")
    assert train.class_names == test.class_names == ("ant", "bee", "cat", "dog")
    assert read_all(train)[1] == [0, 1, 2]
    assert read_all(test)[1] == [1, 2, 3]


@pytest.mark.parametrize("split", ["train", "val", "validation", "test"])
def test_each_split_folder_is_a_split(tmp_path, split):
    for level, name in enumerate(("train", "val", "validation", "test")):
        write_images(tmp_path, f"{name}/a.png", level=level)
    source = datasets.load("folder", str(tmp_path), split)
    assert described(source, tmp_path) == [f"{split}/a.png"]


def test_read_takes_any_indices_in_any_order(tmp_path):
    write_images(tmp_path, *[f"{name}/{name}.png" for name in "abcdef"])
    source = datasets.load("folder", str(tmp_path), "train")

    @tf.function(autograph=False)
    def read(indices):
        return source.read(indices)

    encoded, labels = read(tf.constant([4, 0, 4, 2], tf.int64))
    assert labels.numpy().tolist() == [4, 0, 4, 2]
    assert labels.dtype == tf.int32
    assert [int(decoding.decode_image(image)[0, 0, 0]) for image in encoded] == [4, 0, 4, 2]


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    write_images(tmp_path, "images/a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.load("folder", "~/images", "train").num_examples == 1


def test_a_folder_needs_a_data_dir():
    assert error_of("folder", "", "train").endswith("Received: none")


def test_a_data_dir_that_does_not_exist_is_an_error(tmp_path):
    missing = tmp_path / "missing"
    assert error_of("folder", missing, "train").endswith(f"Received: {missing}")
    file = tmp_path / "file"
    file.write_text("")
    assert error_of("folder", file, "train").endswith(f"Received: {file}")


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "readme.txt").write_text("")
    message = error_of("folder", tmp_path, "train")
    assert message.endswith(f"Received: {tmp_path / 'train'}")
    assert ".png" in message


def test_a_split_that_the_folder_lacks_is_an_error(tmp_path):
    write_images(tmp_path, "train/a.png", "val/b.png")
    message = error_of("folder", tmp_path, "test")
    assert message.endswith("Received: test")
    assert "train, val" in message


def test_a_folder_without_splits_has_only_a_training_split(tmp_path):
    write_images(tmp_path, "cat/a.png")
    message = error_of("folder", tmp_path, "test")
    assert message.endswith("Received: test")
    assert str(tmp_path) in message


# Which images, in which order.


# Characters around "/" in their order, letters of several bytes, and a byte that is no UTF-8.
CHARACTERS = [" ", "!", "+", "-", ".", "0", "A", "a", "~", "é", "中", "\ufffd", "🐈", "\udcff"]


@pytest.mark.parametrize("seed", range(8))
def test_images_have_the_order_labels_and_fingerprint_of_a_sort_of_all_paths(tmp_path, seed):
    draw = random.Random(seed)

    def name(suffix=""):
        letters = "".join(draw.choices(CHARACTERS, k=draw.randint(0, 3)))
        return draw.choice("ab-é") + letters + suffix

    names = set()
    for _ in range(120):
        parents = [name() for _ in range(draw.randint(seed % 2, 3))]
        names.add("/".join([*parents, name(draw.choice([".png", ".JPG", ".txt", ".webp"]))]))
    write_files(tmp_path, *sorted(names))
    root = str(tmp_path)
    source = load(root)
    expected = slow_paths(root)
    assert [source.describe(index) for index in range(source.num_examples)] == expected
    assert len(expected) > 50
    assert source.labelled == (seed % 2 == 1)
    assert source.labels.tolist() == slow_labels(root, list(source.class_names))
    assert source.labels.dtype == np.int32
    assert source.fingerprint() == slow_fingerprint(root)
    indices = draw.choices(range(source.num_examples), k=40)
    encoded, labels = source.read(tf.constant(indices, tf.int64))
    assert labels.numpy().tolist() == source.labels[indices].tolist()
    for index, content in zip(indices, encoded.numpy(), strict=True):
        with open(expected[index], "rb") as file:
            assert content == file.read()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_relative_folder_gives_relative_paths(tmp_path, monkeypatch, end):
    write_files(tmp_path, "images/train/a.png", "images/train/a-b/c.png")
    monkeypatch.chdir(tmp_path)
    source = load("images" + end)
    assert [source.describe(index) for index in range(2)] == slow_paths("images/train")


def test_every_kind_of_image_is_found_by_its_suffix_in_either_case(tmp_path):
    names = [f"a{suffix}" for suffix in folders.IMAGE_SUFFIXES]
    names += [f"B{suffix.upper()}" for suffix in folders.IMAGE_SUFFIXES]
    write_files(tmp_path, *names, "png", "c.png.bak", "d.mp4")
    assert described(load(tmp_path), tmp_path) == sorted(names)


def test_a_folder_and_a_broken_link_may_have_the_name_of_an_image(tmp_path):
    write_files(tmp_path, "train/a.png/b.png")
    (tmp_path / "train" / "c.png").symlink_to("nowhere")
    source = load(tmp_path)
    assert described(source, tmp_path) == ["train/a.png/b.png", "train/c.png"]
    with pytest.raises(tf.errors.NotFoundError):
        source.read(tf.constant([1], tf.int64))


# Files that are left out.


def test_the_log_counts_the_files_that_are_left_out(tmp_path, log):
    write_files(tmp_path, "cat/a.png", *[f"cat/{number}.MP4" for number in range(12)])
    write_files(tmp_path, "b.txt", "cat/c.txt", "dog/d.e.txt", "Makefile", ".hidden", ".git/e.sh")
    load(tmp_path)
    (line,) = [line for line in log if "left out" in line]
    assert line.endswith("1 images, 2 classes; left out: 12 .mp4, 3 .txt, 1 without an ending")


def test_the_log_names_nothing_where_nothing_is_left_out(tmp_path, log):
    write_files(tmp_path, "a.png", ".hidden.txt")
    load(tmp_path)
    assert not [line for line in log if "left out" in line]


def test_at_most_ten_endings_are_named(tmp_path, log, monkeypatch):
    write_files(tmp_path, "a.png", *[f"{n}.e{kind:02}" for kind in range(13) for n in range(kind)])
    load(tmp_path)
    named = ", ".join(f"{kind} .e{kind:02}" for kind in range(12, 2, -1))
    assert log[-1].endswith(f"left out: {named}, 3 other")


def test_numbers_as_endings_need_no_memory(tmp_path, log, monkeypatch):
    monkeypatch.setattr(listing, "_MOST_ENDINGS", 3)
    write_files(tmp_path, "a.png", *[f"frame.{number}" for number in range(9)])
    write_files(tmp_path, "Dr. No", "b.a_long_comment")
    load(tmp_path)
    assert sum(int(part.split()[0]) for part in log[-1].split("left out: ")[1].split(", ")) == 11
    assert log[-1].count(",") <= 4


def test_the_error_of_a_folder_without_images_counts_the_files(tmp_path):
    write_files(tmp_path, "train/cat/a.mp4", "train/b.mp4", "train/c")
    message = error_of("folder", tmp_path, "train")
    assert "was found; left out: 2 .mp4, 1 without an ending. --data_dir" in message
    assert message.endswith(f"Received: {tmp_path / 'train'}")


def test_a_folder_that_vanishes_during_the_walk_is_named(tmp_path, log, monkeypatch):
    write_files(tmp_path, "cat/a.png", "dog/b.png")
    scan = os.scandir

    def scan_and_remove(path):
        if path.endswith("cat/"):
            (tmp_path / "dog" / "b.png").unlink()
            (tmp_path / "dog").rmdir()
        return scan(path)

    monkeypatch.setattr(listing.os, "scandir", scan_and_remove)
    assert described(load(tmp_path), tmp_path) == ["cat/a.png"]
    assert f"the first one is {tmp_path}/dog/ (No such file or directory)" in "".join(log)


# Links.


def test_a_link_back_to_its_folder_is_not_followed(tmp_path, log):
    names = ["loop/a.png", "loop/b.png", "loop/sub/c.png", "loop/sub/d.png"]
    write_files(tmp_path, *names)
    (tmp_path / "loop" / "sub" / "back").symlink_to(tmp_path / "loop")
    assert described(load(tmp_path / "loop"), tmp_path) == names
    assert "1 path(s) lead to folders that are listed under another path" in "".join(log)


@pytest.mark.parametrize("link", ["a_link", "z_link"])
def test_a_folder_is_listed_under_its_own_path_not_under_a_link_to_it(tmp_path, link):
    write_files(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / link).symlink_to("dog", target_is_directory=True)
    source = load(tmp_path)
    assert described(source, tmp_path) == ["cat/a.png", "dog/b.png"]
    assert source.labels.tolist() == [source.class_names.index(name) for name in ("cat", "dog")]


def test_of_two_links_the_first_one_counts(tmp_path):
    write_files(tmp_path, "elsewhere/x/a.png", "elsewhere/b.png", "images/own/c.png")
    (tmp_path / "images" / "second").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "first").symlink_to(tmp_path / "elsewhere" / "x")
    names = ["images/first/a.png", "images/own/c.png", "images/second/b.png"]
    assert described(load(tmp_path / "images"), tmp_path) == names


def test_a_link_to_the_folder_above_ends(tmp_path):
    write_files(tmp_path, "images/cat/a.png", "other/b.png")
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    assert described(load(tmp_path / "images"), tmp_path) == [
        "images/cat/a.png",
        "images/up/other/b.png",
    ]


def test_a_link_to_a_hidden_folder_is_followed(tmp_path):
    write_files(tmp_path, ".store/a.png", "dog/b.png")
    (tmp_path / "cat").symlink_to(".store", target_is_directory=True)
    assert described(load(tmp_path), tmp_path) == ["cat/a.png", "dog/b.png"]


def test_the_folder_itself_may_be_a_link(tmp_path):
    write_files(tmp_path, "elsewhere/cat/a.png", "elsewhere/dog/b.png")
    (tmp_path / "images").symlink_to("elsewhere")
    (tmp_path / "elsewhere" / "a_link").symlink_to(tmp_path / "images" / "dog")
    source = load(tmp_path / "images")
    assert described(source, tmp_path) == ["images/cat/a.png", "images/dog/b.png"]


def test_folders_without_inode_numbers_are_all_listed(tmp_path, monkeypatch):
    write_files(tmp_path, "cat/a.png", "dog/b.png")
    stat = os.stat

    def unnumbered(path, **options):
        found = stat(path, **options)
        return types.SimpleNamespace(st_dev=1, st_ino=0, st_ctime_ns=found.st_ctime_ns)

    with monkeypatch.context() as patch:
        patch.setattr(listing.os, "stat", unnumbered)
        found = listing.list_images(str(tmp_path))
    assert found.names == b"cat/a.pngdog/b.png"


# The kept list.


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder whose list is kept, although it is small and new. Returns the folder."""
    monkeypatch.setattr(listing, "_LEAST_KEPT", 1)
    monkeypatch.setattr(listing, "_SETTLED_SECONDS", -1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    write_files(folder, "cat/a.png", "cat/x/b.png", "dog-1/c.png", "dog/\udcff.png", "d.txt")
    (tmp_path / "elsewhere").mkdir()
    write_files(tmp_path, "elsewhere/e.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "twice").symlink_to(tmp_path / "elsewhere")
    load(folder)
    return folder


@pytest.fixture
def walks(monkeypatch):
    """The folders that are walked."""
    found = []
    walk = listing._Walk.run
    monkeypatch.setattr(listing._Walk, "run", lambda self: found.append(self) or walk(self))
    return found


def facts_of(source, root):
    return (
        described(source, root),
        source.labels.tolist(),
        source.class_names,
        source.fingerprint(),
    )


def test_a_kept_list_equals_the_walk(kept, walks, log):
    first = facts_of(load(kept), kept)
    read_lines = log.copy()
    assert not walks
    (kept / listing.FILE_NAME).unlink()
    log.clear()
    assert facts_of(load(kept), kept) == first
    assert len(walks) == 1
    assert read_lines[1:] == log[1:]  # but for the way of the list
    assert "left out: 1 .txt" in log[-1]
    assert "1 path(s) lead to folders" in log[1]
    assert first[0] == ["cat/a.png", "cat/x/b.png", "dog-1/c.png", "dog/\udcff.png", "link/e.png"]


def test_the_list_is_the_only_file_that_is_added(kept, tmp_path):
    names = {path.name for path in kept.iterdir()}
    assert names == {"cat", "dog-1", "dog", "link", "twice", "d.txt", listing.FILE_NAME}
    assert not (tmp_path / "cache").exists()


def change_add(folder):
    write_files(folder, "cat/new.png")


def change_add_at_the_top(folder):
    write_files(folder, "new.png")


def change_remove(folder):
    (folder / "cat" / "x" / "b.png").unlink()


def change_rename(folder):
    (folder / "cat" / "a.png").rename(folder / "cat" / "z.png")


def change_rename_folder(folder):
    (folder / "dog").rename(folder / "bird")


def change_linked_folder(folder):
    write_files(folder.parent, "elsewhere/new.png")


def change_target_of_link(folder):
    write_files(folder.parent, "other/new.png")
    (folder.parent / "elsewhere").rename(folder.parent / "former")
    (folder.parent / "other").rename(folder.parent / "elsewhere")


def change_file_into_folder(folder):
    (folder / "cat" / "a.png").unlink()
    write_files(folder, "cat/a.png/new.png")


def change_folder_into_file(folder):
    shutil.rmtree(folder / "cat" / "x")
    write_files(folder, "cat/x")


def change_and_set_the_time_back(folder):
    status = os.stat(folder / "cat")
    (folder / "cat" / "a.png").unlink()
    os.utime(folder / "cat", ns=(status.st_atime_ns, status.st_mtime_ns))


def change_and_set_the_time_of_the_top_back(folder):
    status = os.stat(folder)
    write_files(folder, "new.png")
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = [value for name, value in list(globals().items()) if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_folder_is_walked_again(kept, walks, change):
    before = described(load(kept), kept)
    assert not walks
    change(kept)
    source = load(kept)
    assert len(walks) == 1
    # The slow code lists the folder "elsewhere" a second time, through the second link.
    expected = [path for path in slow_paths(str(kept)) if "/twice/" not in path]
    assert [source.describe(index) for index in range(source.num_examples)] == expected
    assert described(source, kept) != before
    assert facts_of(load(kept), kept) == facts_of(source, kept)
    assert len(walks) == 1  # the new list is kept


def test_a_changed_file_does_not_change_the_list(kept, walks):
    before = load(kept).fingerprint()
    (kept / "cat" / "a.png").write_text("longer than before")
    assert load(kept).fingerprint() != before
    assert not walks


def test_a_copy_of_the_folder_is_walked(kept, walks, tmp_path):
    subprocess.run(["cp", "-a", kept, tmp_path / "copy"], check=True)
    (tmp_path / "copy" / "cat" / "a.png").unlink()
    assert "cat/a.png" not in described(load(tmp_path / "copy"), tmp_path / "copy")
    assert len(walks) == 1


def test_a_renamed_folder_keeps_its_list_or_is_walked(kept, tmp_path):
    before = described(load(kept), kept)
    kept.rename(tmp_path / "renamed")
    assert described(load(tmp_path / "renamed"), tmp_path / "renamed") == before


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "array", "missing", "facts"])
def test_a_damaged_list_is_not_used(kept, walks, damage):
    path = kept / listing.FILE_NAME
    before, status, content = described(load(kept), kept), os.stat(path), path.read_bytes()
    middle = content.index(b"cat/a.png")
    if damage == "array":
        np.savez(path, names=np.zeros(3))
    elif damage in ("missing", "facts"):
        with np.load(path) as found:
            arrays = dict(found)
        if damage == "missing":
            del arrays["names"]
        else:
            facts = json.loads(arrays["facts"].tobytes())
            facts["surplus"] = 1
            arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(path, **arrays)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"not a list",
                "cut": content[: len(content) // 2],
                "flipped": content[:middle] + b"dog" + content[middle + 3 :],
            }[damage]
        )
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert described(load(kept), kept) == before
    assert len(walks) == 1
    load(kept)
    assert len(walks) == 1


def test_a_list_of_other_suffixes_is_not_used(kept, walks, monkeypatch):
    monkeypatch.setattr(listing, "IMAGE_SUFFIXES", (*listing.IMAGE_SUFFIXES, ".new"))
    load(kept)
    assert len(walks) == 1


def test_a_small_folder_gets_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "_SETTLED_SECONDS", -1000)
    write_files(tmp_path, *[f"images/{number}.png" for number in range(100)])
    load(tmp_path / "images")
    assert not (tmp_path / "images" / listing.FILE_NAME).exists()
    assert not (tmp_path / "cache").exists()


def test_the_list_of_a_folder_that_has_just_changed_is_not_kept(kept, monkeypatch):
    monkeypatch.setattr(listing, "_SETTLED_SECONDS", 1000)
    (kept / listing.FILE_NAME).unlink()
    load(kept)
    assert not (kept / listing.FILE_NAME).exists()


def test_a_folder_that_changes_while_it_is_listed_keeps_no_list(kept, monkeypatch):
    (kept / listing.FILE_NAME).unlink()
    savez = np.savez

    def change_and_save(*arguments, **arrays):
        write_files(kept, "new.png")
        savez(*arguments, **arrays)

    monkeypatch.setattr(listing.np, "savez", change_and_save)
    load(kept)
    assert [path.name for path in kept.iterdir() if path.name.startswith(".")] == []


def test_a_file_system_without_times_of_change_keeps_no_list(kept, monkeypatch):
    (kept / listing.FILE_NAME).unlink()
    monkeypatch.setattr(listing, "_stamp", lambda folder: (7, 8))
    walk = listing._Walk.run

    def run(self):
        found = walk(self)
        self.inodes[0], self.times[0] = 7, 8
        return found

    monkeypatch.setattr(listing._Walk, "run", run)
    load(kept)
    assert not (kept / listing.FILE_NAME).exists()


def read_only(monkeypatch, *folders_without_permission):
    """Lets no file be opened for writing below some folders, as for a user without permission."""
    opened = open

    def refuse(path, mode="r", **options):
        if "w" in mode and str(path).startswith(tuple(map(str, folders_without_permission))):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr("builtins.open", refuse)


def test_the_list_of_a_read_only_folder_is_kept_in_the_cache(kept, walks, monkeypatch, tmp_path):
    (kept / listing.FILE_NAME).unlink()
    read_only(monkeypatch, kept)
    before = facts_of(load(kept), kept)
    assert facts_of(load(kept), kept) == before
    assert len(walks) == 1
    assert len(list((tmp_path / "cache" / "simsiam_tf" / "listings").iterdir())) == 1
    change_add_at_the_top(kept)
    assert "new.png" in described(load(kept), kept)


def test_without_a_place_for_the_list_the_folder_is_walked(kept, walks, monkeypatch, tmp_path):
    (kept / listing.FILE_NAME).unlink()
    read_only(monkeypatch, kept, tmp_path / "cache")
    assert load(kept).num_examples == load(kept).num_examples == 5
    assert len(walks) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert load(kept).num_examples == 5


def test_the_home_folder_has_the_cache_by_default(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    _, path = listing._kept_in("/images")
    assert path.startswith("/home/ada/.cache/simsiam_tf/listings/")


# Many images.


class FakeEntry:
    """An entry of a folder that is not on disk."""

    def __init__(self, folder, name, is_folder):
        self.name, self.path, self._is_folder = name, folder + name, is_folder

    def is_dir(self):
        return self._is_folder

    def is_symlink(self):
        return False


def test_100_000_images_need_little_memory(tmp_path, monkeypatch):
    names = [f"n{number:08}" for number in range(1000)]
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
    scan = os.scandir

    def scan_or_invent(path):
        if path == str(tmp_path / "train"):
            return scan(path)
        images = [f"{number:02}.JPEG" for number in range(100)]
        if path.endswith("train/"):
            return contextlib.nullcontext(FakeEntry(path, name, True) for name in names[::-1])
        return contextlib.nullcontext(FakeEntry(path, name, False) for name in images[::-1])

    stats = collections.Counter()
    monkeypatch.setattr(listing.os, "scandir", scan_or_invent)
    monkeypatch.setattr(folders, "_size_and_time", lambda path: stats.update([0]) or (7, 8))
    tracemalloc.start()
    source = load(f"{tmp_path}/")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A name has 17 bytes, a label 4, an end of a name 8. TensorFlow keeps as much again.
    assert peak < 70 * 100_000
    assert source.num_examples == 100_000
    assert source.class_names == tuple(names)
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(1000), 100))
    assert source.describe(99_999) == f"{tmp_path}/train/n00000999/99.JPEG"

    tracemalloc.start()
    found = source.fingerprint()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e5
    assert source.fingerprint() == found
    assert stats.total() == 100_000  # once per file
    files = [[f"{name}/{number:02}.JPEG", 7, 8] for name in names for number in range(100)]
    assert found == hashlib.sha256(json.dumps(files).encode()).hexdigest()
