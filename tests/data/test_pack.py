"""Packing: the images keep their bytes, a stopped call goes on, and damage is found."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simsiam_tf import flags
from simsiam_tf.data import datasets, pack, packed, packing
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.digits import Digits
from simsiam_tf.data.source import UNLABELLED
from simsiam_tf.schema import UserError


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def picture(width, height, mode="RGB"):
    """Returns an image of smooth colours."""
    rows, columns = np.mgrid[:height, :width]
    levels = [rows * 255 / height, columns * 255 / width, (rows + columns) * 120 / height]
    pixels = np.stack(levels, axis=-1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def images(tmp_path):
    """Returns a folder of 11 labelled training images and 3 test images."""
    root = tmp_path / "images"
    for split, count in (("train", 11), ("test", 3)):
        for number in range(count):
            folder = root / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02}.png").write_bytes(encode(picture(8 + number, 9), "PNG"))
    return root


def config_of(images, output, *arguments):
    defaults = [f"--data_dir={images}", "--split=train,test", "--images_per_shard=4"]
    return flags.read([*defaults, f"--output={output}", *arguments], pack.PackConfig)


def pack_images(images, output, *arguments):
    return packing.pack(config_of(images, output, *arguments))


def read_all(source):
    encoded, labels = source.read(tf.range(source.num_examples, dtype=tf.int64))
    return encoded.numpy().tolist(), labels.numpy().tolist()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def error_of(function, *arguments):
    """Returns the message of the `UserError` that a call raises; it must be one line."""
    with pytest.raises(UserError) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What is written.


def test_a_manifest_describes_every_shard_and_nothing_else_is_left(images, tmp_path):
    line = pack_images(images, tmp_path / "packed")
    assert "14 images in 4 files" in line
    shards = [f"train-{number:05}-of-00003.array_record" for number in range(3)]
    shards.append("test-00000-of-00001.array_record")
    assert sorted(contents(tmp_path / "packed")) == sorted([*shards, "packed.json"])
    manifest = json.loads((tmp_path / "packed" / "packed.json").read_text())
    assert list(manifest["splits"]) == ["train", "test"]
    train = manifest["splits"]["train"]
    assert train["class_names"] == ["cat", "dog"]
    assert [shard["file"] for shard in train["shards"]] == shards[:3]
    labels = [label for shard in train["shards"] for label in shard["labels"]]
    assert labels == datasets.load("folder", str(images), "train").labels.tolist()
    for shard in train["shards"]:
        assert len(shard["sha256"]) == 64
        assert shard["num_bytes"] == (tmp_path / "packed" / shard["file"]).stat().st_size


def test_an_unlabelled_data_set_stays_unlabelled(images, tmp_path):
    (images / "train" / "loose.png").write_bytes(encode(picture(5, 5), "PNG"))
    pack_images(images, tmp_path / "packed", "--split=train")
    source = datasets.load("packed", str(tmp_path / "packed"), "train")
    expected = datasets.load("folder", str(images), "train")
    assert not source.labelled
    assert read_all(source) == read_all(expected)
    assert read_all(source)[1] == [UNLABELLED] * 12


def test_a_description_names_the_file_and_the_record(images, tmp_path):
    pack_images(images, tmp_path / "packed")
    source = datasets.load("packed", str(tmp_path / "packed"), "train")
    assert source.describe(9) == f"{tmp_path}/packed/train-00002-of-00003.array_record: record 1"


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_any_source_can_be_packed_also_in_two_calls(tmp_path, file_format, monkeypatch):
    builder = Digits(data_dir=str(tmp_path / "tfds"), file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    arguments = ["--dataset=digits", "--split=test[:60]", "--images_per_shard=25"]
    whole = tmp_path / "whole"
    pack_images(tmp_path / "tfds", whole, *arguments)
    source = datasets.load("packed", str(whole), "test[:60]")
    expected = datasets.load("digits", str(tmp_path / "tfds"), "test[:60]")
    assert source.class_names == expected.class_names
    if file_format == "array_record":
        assert read_all(source) == read_all(expected)
    else:  # in the order of the stream
        pairs = [(encoded.numpy(), int(label)) for _, encoded, label in expected.stream(None)]
        assert list(zip(*read_all(source), strict=True)) == pairs
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        pack_images(tmp_path / "tfds", tmp_path / "parts", *arguments)
    monkeypatch.undo()
    pack_images(tmp_path / "tfds", tmp_path / "parts", *arguments)
    assert contents(tmp_path / "parts") == contents(whole)


# Smaller images.


def packed_image(tmp_path, encoded, max_side):
    """Returns the file of an image after packing, and its shard."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded)
    pack_images(tmp_path / "images", tmp_path / "out", "--split=train", f"--max_side={max_side}")
    ((file,), _) = read_all(datasets.load("packed", str(tmp_path / "out"), "train"))
    (shard,) = packed.complete_splits(str(tmp_path / "out"))["train"].shards
    return file, shard


@pytest.mark.parametrize(
    ("mode", "file_format", "kept_format", "kept_mode"),
    [
        ("RGB", "JPEG", "JPEG", "RGB"),
        ("L", "JPEG", "JPEG", "L"),
        ("CMYK", "JPEG", "JPEG", "RGB"),
        ("RGB", "PNG", "PNG", "RGB"),
        ("RGBA", "PNG", "PNG", "RGB"),
        ("P", "PNG", "PNG", "RGB"),
        ("LA", "PNG", "PNG", "L"),
        ("1", "PNG", "PNG", "L"),
        ("RGB", "BMP", "PNG", "RGB"),
    ],
)
def test_a_larger_image_is_made_smaller_with_its_kind_and_its_looks(
    tmp_path, mode, file_format, kept_format, kept_mode
):
    original = encode(picture(200, 100, mode), file_format)
    file, shard = packed_image(tmp_path, original, 50)
    assert (shard.num_reencoded, shard.num_kept_large) == (1, 0)
    with Image.open(io.BytesIO(file)) as image, Image.open(io.BytesIO(original)) as before:
        assert (image.format, image.mode, image.size) == (kept_format, kept_mode, (50, 25))
        expected = before.convert("RGB").resize((50, 25), Image.Resampling.LANCZOS)
        difference = np.asarray(image.convert("RGB"), int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 3
    assert decode_image(tf.constant(file)).shape == [25, 50, 3]


@pytest.mark.parametrize("max_side", [0, 100, 200])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_image_that_is_not_larger_keeps_its_bytes(tmp_path, max_side, file_format):
    original = encode(picture(100, 60), file_format) + b"after the end\0\0"
    file, shard = packed_image(tmp_path, original, max_side)
    assert file == original
    assert (shard.num_reencoded, shard.num_kept_large) == (0, 0)


def test_a_very_narrow_image_keeps_a_pixel(tmp_path):
    file, _ = packed_image(tmp_path, encode(picture(1000, 2), "PNG"), 10)
    assert Image.open(io.BytesIO(file)).size == (10, 1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_smaller_image_keeps_its_exif_orientation_and_not_its_other_exif(tmp_path, file_format):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    file, _ = packed_image(tmp_path, encode(picture(90, 60), file_format, exif=exif), 30)
    with Image.open(io.BytesIO(file)) as image:
        assert image.size == (30, 20)
        assert dict(image.getexif()) == {0x0112: 6}


DEEP = tf.io.encode_png(np.zeros([80, 90, 3], np.uint16)).numpy()
FRAMES = encode(picture(90, 80), "GIF", save_all=True, append_images=[picture(90, 80, "L")])


@pytest.mark.parametrize(
    "original",
    [DEEP, FRAMES, encode(picture(90, 80), "JPEG")[:-200], b"no image", b""],
    ids=["16 bit", "frames", "damaged", "no image", "empty"],
)
def test_an_image_that_cannot_be_made_smaller_without_loss_keeps_its_bytes(tmp_path, original):
    file, shard = packed_image(tmp_path, original, 50)
    assert file == original
    assert (shard.num_reencoded, shard.num_kept_large) == (0, 1)


# Stopped, repeated and other calls.


def stop_after(monkeypatch, num_shards):
    """Lets the program be interrupted when the next shard is about to get its name."""
    sha256_of, calls = packing._sha256_of, []

    def interrupted(path):
        calls.append(path)
        if len(calls) > num_shards:
            raise KeyboardInterrupt
        return sha256_of(path)

    monkeypatch.setattr(packing, "_sha256_of", interrupted)


def test_a_stopped_call_goes_on_and_keeps_the_finished_shards(images, tmp_path, monkeypatch):
    pack_images(images, tmp_path / "whole")
    output = tmp_path / "packed"
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        pack_images(images, output)
    monkeypatch.undo()
    assert len(list(output.glob("*.array_record"))) == 2
    assert not list(output.glob("*.partial"))
    assert "complete" in error_of(datasets.load, "packed", str(output), "train")
    assert "complete" in error_of(packing.verify, str(output))
    before = {path: path.stat().st_ino for path in output.glob("*.array_record")}
    pack_images(images, output)
    assert {path: path.stat().st_ino for path in before} == before
    assert contents(output) == contents(tmp_path / "whole")


def test_the_same_call_again_writes_no_shard(images, tmp_path):
    line = pack_images(images, tmp_path / "packed")
    before = {path: path.stat().st_ino for path in (tmp_path / "packed").glob("*.array_record")}
    assert pack_images(images, tmp_path / "packed") == line
    assert {path: path.stat().st_ino for path in before} == before


@pytest.mark.parametrize(
    ("argument", "word"),
    [("--max_side=7", "max_side"), ("--images_per_shard=5", "images"), ("--split=train", "splits")],
)
def test_a_folder_of_other_flags_is_refused(images, tmp_path, argument, word):
    pack_images(images, tmp_path / "packed")
    before = contents(tmp_path / "packed")
    message = error_of(pack_images, images, tmp_path / "packed", argument)
    assert f"with other {word}" in message
    assert contents(tmp_path / "packed") == before


def test_a_folder_of_other_images_or_of_other_files_is_refused(images, tmp_path):
    pack_images(images, tmp_path / "packed")
    (images / "train" / "cat" / "new.png").write_bytes(encode(picture(5, 5), "PNG"))
    assert "with other splits" in error_of(pack_images, images, tmp_path / "packed")
    message = error_of(pack_images, images, images)
    assert message.endswith(f"Received: {images}")
    assert not (images / "packed.json").exists()


def test_an_output_that_cannot_be_written_to_is_one_line(images, tmp_path):
    (tmp_path / "file").write_text("")
    message = error_of(pack_images, images, tmp_path / "file")
    assert message.startswith("--output cannot be written to")
    assert message.endswith(f"Received: {tmp_path / 'file'}")


@pytest.mark.parametrize("dataset", ["folder", "tar"])
def test_an_image_that_cannot_be_read_is_named_and_its_shard_is_not_written(
    images, tmp_path, monkeypatch, dataset
):
    load = datasets.load

    def load_then_lose(name, data_dir, split):
        source = load(name, data_dir, split)
        if dataset == "tar":
            os.truncate(images / "0.tar", int(source.describe(5).rpartition(" ")[2]))
        else:
            (images / "train" / "cat" / "10.png").unlink()
        return source

    if dataset == "tar":
        with tarfile.open(images / "0.tar", "w") as file:
            for path in sorted((images / "train").rglob("*.png"), key=lambda path: path.name):
                file.add(path, path.name)
    monkeypatch.setattr(datasets, "load", load_then_lose)
    monkeypatch.setattr(packing, "_IMAGES_AT_ONCE", 1)  # so that the first shard is complete
    arguments = [f"--dataset={dataset}", "--split=train"]
    arguments += [f"--data_dir={images}/0.tar"] if dataset == "tar" else []
    message = error_of(pack_images, images, tmp_path / "packed", *arguments)
    assert ("05.png at byte" if dataset == "tar" else "cat/10.png (") in message
    assert "Traceback" not in message
    names = [path.name for path in (tmp_path / "packed").glob("*.array_record")]
    assert names == ["train-00000-of-00003.array_record"]


# Damage.


def test_verification_reads_every_byte(images, tmp_path):
    output = tmp_path / "packed"
    pack_images(images, output)
    assert packing.verify(str(output)).endswith("14 images in 4 files are as they were written")
    before = contents(output)
    path = output / "train-00001-of-00003.array_record"
    for content in (before[path.name][:-1], before[path.name][:-1] + b"\1", None):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        assert error_of(packing.verify, str(output)).endswith(f"Received: {path}")
    pack_images(images, output)
    assert contents(output) == before


def test_a_missing_or_cut_shard_is_an_error_before_any_image_is_read(images, tmp_path):
    pack_images(images, tmp_path / "packed")
    path = tmp_path / "packed" / "train-00001-of-00003.array_record"
    os.truncate(path, 1000)
    message = error_of(datasets.load, "packed", str(tmp_path / "packed"), "train")
    assert message.endswith(f"Received: {path}")
    assert datasets.load("packed", str(tmp_path / "packed"), "test").num_examples == 3
    pack_images(images, tmp_path / "packed")
    assert datasets.load("packed", str(tmp_path / "packed"), "train").num_examples == 11


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 2}', "[]", '{"format": 1, "splits": {"a": 1}}']
)
def test_a_manifest_that_is_none_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "packed.json").write_text(text)
    message = error_of(datasets.load, "packed", str(tmp_path), "train")
    assert str(tmp_path / "packed.json") in message


# The program.


def test_the_program_packs_and_verifies(images, tmp_path, program):
    arguments = [f"--data_dir={images}", f"--output={tmp_path / 'packed'}", "--split=train"]
    packed_first = program("-m", "simsiam_tf.data.pack", *arguments)
    assert packed_first.returncode == 0, packed_first.stderr
    assert "11 images in 1 files" in packed_first.stdout
    verified = program("-m", "simsiam_tf.data.pack", f"--output={tmp_path / 'packed'}", "--verify")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.endswith("11 images in 1 files are as they were written\n")


@pytest.mark.parametrize("argument", ["--split=", "--split=a,,b", "--split=a,a", "--max_side=-1"])
def test_a_wrong_flag_is_refused(tmp_path, argument):
    message = error_of(config_of, tmp_path, tmp_path / "packed", argument)
    assert argument.partition("=")[0] in message
