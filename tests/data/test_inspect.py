"""Inspection: its counts are those of what the test made, and its flags are what train.py takes."""

import io
import json
import os
import re

import browser
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from simsiam_tf import config as config_lib
from simsiam_tf import flags
from simsiam_tf.data import advice, census, datasets, duplicates, inspect_settings
from simsiam_tf.data.digits import Digits
from simsiam_tf.reporting import inspection
from simsiam_tf.schema import UserError


def encode(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def picture(seed, width=40, height=32, mode="RGB"):
    """Returns a smooth random picture, which no two seeds share."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    return encode(image, "JPEG", exif=exif)


def save(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 70 files of two classes; 3 cannot be read."""
    root = tmp_path_factory.mktemp("images")
    common = {f"{n:02}.png": encode(picture(n)) for n in range(40)}
    common |= {f"gray{n}.png": encode(picture(100 + n, mode="L")) for n in range(4)}
    common |= {f"colourless{n}.png": encode(picture(200 + n, mode="L").convert("RGB"))
               for n in range(2)}  # fmt: skip
    common |= {f"photo{n}.jpg": encode(picture(300 + n, 200, 120), "JPEG") for n in range(8)}
    common |= {f"turned{n}.jpg": turned(picture(400 + n)) for n in range(3)}
    common["wide.bmp"] = encode(picture(500, 160, 40), "BMP")
    frames = [picture(600), picture(601)]
    common["frames.gif"] = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    # Copies of the first photograph: its bytes twice, worse quality, smaller.
    photo = picture(300, 200, 120)
    common["same1.jpg"] = common["same2.jpg"] = common["photo0.jpg"]
    common["worse.jpg"] = encode(photo, "JPEG", quality=50)
    common["smaller.png"] = encode(photo.resize((100, 60)))
    common["cut.jpg"] = common["photo1.jpg"][:1000]
    common["text.png"] = b"no image"
    common["empty.png"] = b""
    save(root / "train" / "common", common)
    rare = {"a.webp": encode(picture(700), "WEBP", lossless=True), "b.png": encode(picture(701))}
    save(root / "train" / "rare", rare | {"c.png": common["00.png"]})
    save(root / "test" / "common", {"0.png": encode(picture(900))})
    return root


NUM_FILES = 40 + 4 + 2 + 8 + 3 + 2 + 4 + 3 + 3


def flags_of(text):
    return [line for line in text.splitlines(keepends=True) if not line.startswith("#")]


def inspect(folder, output, *arguments):
    """Returns what the program writes: the numbers, the page and the flagfile's flags."""
    arguments = ["--dataset=folder", f"--data_dir={folder}", *arguments]
    config = flags.read([*arguments, f"--output={output}"], inspect_settings.InspectConfig)
    inspection.write(config)
    suggestion = output.with_name("suggested.cfg")
    return (
        json.loads(output.with_suffix(".json").read_text()),
        output.read_text(),
        "".join(flags_of(suggestion.read_text())) if suggestion.exists() else "",
    )


@pytest.fixture(scope="module")
def inspected(images, tmp_path_factory):
    return inspect(images, tmp_path_factory.mktemp("page") / "images.html")


def warning_about(numbers, word):
    (text,) = [one["text"] for one in numbers["warnings"] if word in one["text"]]
    return text


# The counts.


def test_the_counts_are_those_of_the_files(inspected):
    numbers, _, _ = inspected
    assert numbers["num_images"] == numbers["num_inspected"] == NUM_FILES
    assert numbers["num_unreadable"] == 3
    assert numbers["formats"] == {"PNG": 49, "JPEG": 14, "BMP": 1, "GIF": 1, "WEBP": 1}
    assert sum(numbers["formats"].values()) == NUM_FILES - 3
    assert numbers["channels"] == {"3": NUM_FILES - 3 - 4, "1": 4}
    assert numbers["dtypes"] == {"uint8": NUM_FILES - 3}
    assert numbers["exif_orientations"] == {"1": NUM_FILES - 6, "6": 3}
    assert numbers["num_with_several_frames"] == 1
    assert numbers["num_gray_stored_as_rgb"] == 2
    assert numbers["classes"] == {"common": NUM_FILES - 3, "rare": 3}
    assert numbers["short_side"]["median"] == 32
    assert numbers["short_side"]["largest"] == 120
    assert numbers["aspect_ratio"]["largest"] == 4


def test_the_bytes_of_all_files_are_counted(inspected, images):
    files = [path for path in (images / "train").rglob("*") if path.is_file()]
    assert inspected[0]["num_bytes"] == sum(path.stat().st_size for path in files)


def test_each_unreadable_image_has_its_path_and_reason(inspected):
    numbers, text, _ = inspected
    found = {os.path.basename(one["path"]): one["reason"] for one in numbers["unreadable"]}
    assert found.keys() == {"cut.jpg", "text.png", "empty.png"}
    assert found["empty.png"] == "an empty file"
    assert "no image of a kind that is read" in found["text.png"]
    assert sum(numbers["unreadable_reasons"].values()) == 3
    for name in found:
        assert name in text


def test_exact_duplicates_have_the_same_bytes(inspected):
    groups = [
        [os.path.basename(path) for path in group] for group in inspected[0]["exact_duplicates"]
    ]
    assert sorted(map(sorted, groups)) == [
        ["00.png", "c.png"],
        ["photo0.jpg", "same1.jpg", "same2.jpg"],
    ]
    assert inspected[0]["num_exact_copies"] == 3


def test_near_duplicates_are_found_in_other_sizes_and_qualities(inspected):
    (group,) = inspected[0]["near_duplicates"]
    assert sorted(map(os.path.basename, group)) == ["photo0.jpg", "smaller.png", "worse.jpg"]
    assert inspected[0]["num_near_copies"] == 2


def test_warnings_say_what_to_do_and_the_worst_come_first(inspected):
    numbers, text, _ = inspected
    assert "3 images cannot be read (4 %)" in warning_about(numbers, "cannot be read")
    assert "--on_bad_image=skip" in numbers["warnings"][0]["text"]
    batch = warning_about(numbers, "--batch_size=512")
    assert batch == f"{NUM_FILES} images are fewer than --batch_size=512: choose --batch_size=16."
    assert "choose --image_size=32" in warning_about(numbers, "--image_size=224")
    assert "3 images turned by EXIF" in warning_about(numbers, "EXIF")
    assert "6 images are grey among RGB" in warning_about(numbers, "grey")
    assert "1 image has several frames" in warning_about(numbers, "frames")
    assert "1 group of duplicates is in more than one class" in warning_about(numbers, "class:")
    kinds = [one["kind"] for one in numbers["warnings"]]
    assert kinds == sorted(kinds, key=("bad", "doubtful", "open").index)
    assert text.count('<li class="bad">') == kinds.count("bad")


def test_a_class_of_under_one_percent_is_named(tmp_path):
    save(tmp_path / "many", {f"{n}.png": encode(picture(n, 16, 16)) for n in range(150)})
    save(tmp_path / "few", {"x.png": encode(picture(200, 16, 16))})
    (tmp_path / "none").mkdir()
    numbers, _, _ = inspect(tmp_path, tmp_path / "page.html")
    assert "Class none has 0 %" in warning_about(numbers, "Class")
    assert "1 more" in warning_about(numbers, "Class")
    assert numbers["classes"] == {"many": 150, "few": 1, "none": 0}


def test_a_sample_is_random_and_reproducible(images, tmp_path):
    def indices(seed):
        source = datasets.load("folder", str(images), "train")
        found = census.take_census(source, 10**6, upright=True, limit=20, seed=seed)
        return found.records["index"].tolist()

    assert indices(0) == indices(0) != indices(1)
    assert len(set(indices(0))) == 20
    numbers, text, _ = inspect(images, tmp_path / "page.html", "--limit=20")
    assert numbers["num_inspected"] == 20
    assert numbers["num_images"] == NUM_FILES
    assert f"A random sample of 20 of {NUM_FILES} images" in text


def test_the_order_of_the_threads_changes_nothing(images):
    source = datasets.load("folder", str(images), "train")
    first, second = (census.take_census(source, 10**6, upright=True) for _ in range(2))
    np.testing.assert_array_equal(first.records, second.records)
    assert first.records["index"].tolist() == list(range(NUM_FILES))
    assert first.records.dtype.itemsize < 200


def test_an_image_that_vanishes_is_unreadable(images, tmp_path):
    save(tmp_path, {f"{n}.png": encode(picture(n)) for n in range(10)})
    source = datasets.load("folder", str(tmp_path), "train")
    (tmp_path / "4.png").unlink()
    found = census.take_census(source, 10**6, upright=True)
    assert list(found.unreadable) == [4]
    assert "4.png" in found.unreadable[4]
    assert len(found.readable) == 9


def test_an_image_of_too_many_pixels_is_unreadable(tmp_path):
    save(tmp_path, {"0.png": encode(picture(0, 100, 100)), "1.webp": encode(picture(1), "WEBP"),
                    "2.tiff": encode(picture(2, 100, 100), "TIFF")})  # fmt: skip
    source = datasets.load("folder", str(tmp_path), "train")
    found = census.take_census(source, 9_000, upright=True)
    assert list(found.unreadable) == [0, 2]
    assert list(found.reasons.values()) == [2]  # the numbers of each image do not count
    assert "--max_image_pixels" in next(iter(found.reasons))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_any_source_is_inspected(tmp_path, file_format):
    builder = Digits(data_dir=str(tmp_path / "tfds"), file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    arguments = ["--dataset=digits", "--train_split=test", "--batch_size=32", "--image_size=16"]
    numbers, text, suggestion = inspect(tmp_path / "tfds", tmp_path / "page.html", *arguments)
    assert numbers["num_inspected"] == 360
    assert numbers["formats"] == {"PNG": 360}
    assert len(numbers["classes"]) == 10
    assert sum(numbers["classes"].values()) == 360
    assert text.count('<figure title="') >= 60
    assert "--train_split=test\n" in suggestion
    assert "--image_size=16\n--stem=cifar\n--crop_min_area=0.6\n" in suggestion


# Channels and bits.


def test_grey_images_of_twelve_bits_take_their_range(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        levels = np.kron(rng.integers(0, 4096, (4, 4)), np.ones((8, 8))).astype(np.uint16)
        levels[0, 0] = 4095
        save(tmp_path, {f"{number}.png": encode(Image.fromarray(levels))})
    numbers, text, suggestion = inspect(tmp_path, tmp_path / "page.html")
    assert numbers["dtypes"] == {"uint16": 12}
    assert numbers["extreme_values"]["uint16"][1] == 4095
    assert "--channels=1\n--value_range=0,4095\n" in suggestion
    assert "12 images have more than 8 bits" in warning_about(numbers, "8 bits")
    assert numbers["pixels"]["channels"] == 1
    assert text.count('<div class="pair">') == 2 * 8
    assert numbers["classes"] == {}
    assert "The images have no labels" in text


def test_images_whose_channels_do_not_fit_together_are_counted(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 5), dtype=np.uint8)
    for number, array in enumerate(levels):
        np.save(tmp_path / f"{number}.npy", array)
    save(tmp_path, {f"{number}.png": encode(picture(number)) for number in range(15)})
    numbers, text, suggestion = inspect(tmp_path, tmp_path / "page.html")
    assert numbers["channels"] == {"3": 15, "5": 5}
    assert "5 images cannot be used with the others" in numbers["warnings"][0]["text"]
    assert "--channels=3\n" in suggestion
    assert "--on_bad_image=skip\n--max_bad_fraction=0.26" in suggestion
    assert "Not shown" not in text


# Duplicates.


def slow_pairs(hashes):
    """Returns the pairs of close hashes, by comparing all of them."""
    return {
        (first, second)
        for first in range(len(hashes))
        for second in range(first)
        if (int(hashes[first]) ^ int(hashes[second])).bit_count() <= duplicates.MAX_DISTANCE
    }


def test_near_groups_are_those_of_comparing_all_pairs():
    rng = np.random.default_rng(0)
    records = np.zeros(400, census.RECORD)
    records["digest"] = rng.integers(0, 2**63, (400, 2))
    records["hash"] = rng.integers(0, 2**64, 400, dtype=np.uint64)
    for copy in range(1, 7):  # up to six bits away: the last two are too far
        for original in range(20):
            bits = rng.choice(64, copy, replace=False).tolist()
            mask = np.uint64(sum(1 << bit for bit in bits))
            records["hash"][20 * copy + original] = records["hash"][original] ^ mask
    expected = {place: {place} for place in range(400)}
    for first, second in slow_pairs(records["hash"]):
        joined = expected[first] | expected[second]
        for place in joined:
            expected[place] = joined
    groups = {frozenset(group) for group in expected.values() if len(group) > 1}
    assert {frozenset(group.tolist()) for group in duplicates.near_groups(records)} == groups
    assert len(groups) == 20


def test_other_colours_are_no_near_duplicates():
    records = np.zeros(3, census.RECORD)
    records["digest"][:, 0] = 1, 2, 3
    records["colors"][2] = 50
    (group,) = duplicates.near_groups(records)
    assert group.tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_have_no_duplicates(count):
    records = np.zeros(count, census.RECORD)
    assert duplicates.exact_groups(records) == duplicates.near_groups(records) == []


# The flagfile.


def test_train_py_takes_the_suggested_flags(images, inspected, tmp_path, train_here):
    _, _, suggestion = inspected
    path = tmp_path / "suggested.cfg"
    path.write_text(suggestion)
    config = flags.read([f"--flagfile={path}"], config_lib.PretrainConfig)
    assert config.data.data_dir == str(images)
    assert (config.views.image_size, config.encoder.stem) == (32, "cifar")
    assert (config.data.on_bad_image, config.optimization.batch_size) == ("skip", 16)
    train_here(
        tmp_path / "run", f"--flagfile={path}", "--backbone=resnet10", "--width=4", "--epochs=1",
        "--projection_dim=16", "--projection_hidden_dim=16", "--prediction_hidden_dim=8",
        "--knn_every_epochs=0",
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == NUM_FILES // 16


def test_photographs_keep_the_size_of_the_recipe(tmp_path):
    save(tmp_path, {f"{n}.jpg": encode(picture(n, 300, 260), "JPEG") for n in range(8)})
    numbers, text, _ = inspect(
        tmp_path, tmp_path / "page.html", "--recipe=r18", "--dataset=folder", "--batch_size=2"
    )
    assert numbers["suggested_flags"] == {
        "dataset": "folder", "data_dir": str(tmp_path), "image_size": 224, "stem": "imagenet",
        "channels": 3, "batch_size": 4,
    }  # fmt: skip
    assert numbers["warnings"] == []
    assert "Ready to train." in text
    assert text.count('<div class="pair">') == 8


def test_a_folder_with_only_val_is_evaluated_on_it(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split, {f"{n}.png": encode(picture(n)) for n in range(3)})
    assert "--eval_split=val\n" in inspect(tmp_path, tmp_path / "page.html")[2]


# The page.


def test_the_page_has_all_sections(inspected):
    _, text, _ = inspected
    text = re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)  # the library of the charts
    assert re.findall("<h2>([^<]*)", text) == [
        "What to do", "Sizes", "Files", "Unreadable images", "Duplicates", "Classes",
        "Contact sheet", "View pairs",
    ]  # fmt: skip
    sheet = text.split("<h2>Contact sheet")[1].split("</section>")[0]
    assert sheet.count("<img") == 60
    assert text.split("<h2>Duplicates")[1].split("</section>")[0].count("<img") == 2 + 3 + 3
    assert text.count('<div class="pair">') == 2 * 8
    assert "Fix this first." in text


def test_a_data_set_without_a_readable_image_has_a_page(tmp_path):
    save(tmp_path, {"a.png": b"no image", "b.jpg": b""})
    numbers, text, suggestion = inspect(tmp_path, tmp_path / "page.html")
    assert numbers["num_unreadable"] == 2
    assert "No image can be read" in text
    assert suggestion == ""


def test_names_are_escaped(tmp_path):
    save(tmp_path / "<b>", {f"<i>{n}.png": encode(picture(0)) for n in range(2)})
    save(tmp_path / "c", {"bad<i>.png": b"x"})
    _, text, _ = inspect(tmp_path, tmp_path / "page.html")
    assert "<b>" not in text
    assert "<i>" not in text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page_without_a_network_and_within_the_screen(
    inspected, tmp_path, width, dark
):
    path = browser.find()
    if path is None:
        reason = f"no browser is installed, none of {', '.join(browser.NAMES)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    page = tmp_path / "page.html"
    page.write_text(inspected[1])
    with browser.started(path, tmp_path / "profile") as tab:
        asked, complaints = tab.open(page.as_uri(), width, dark)
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
        assert complaints == []
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
        assert tab.value("document.querySelectorAll('svg').length") == 3


# The program.


def test_the_program_ends_with_the_page_and_the_most_important_warning(program, images, tmp_path):
    output = tmp_path / "page.html"
    finished = program(
        "-m", "simsiam_tf.data.inspect", "--dataset=folder", f"--data_dir={images}",
        f"--output={output}", f"--flagfile_output={tmp_path / 'mine.cfg'}",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert f"Wrote {output}: " in line
    assert "--on_bad_image=skip" in line or "class" in line
    assert (tmp_path / "mine.cfg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.cfg",
        "page.html",
        "page.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--output=page.txt"], 2, ["--output must end in .html", "Received: page.txt"]),
        (["--output=no/where.html"], 1, ["--output must be", "Received: no/where.html"]),
        (["--dataset=folder", "--data_dir=no/images"], 1, ["--data_dir", "Received: no/images"]),
        (["--limit=-1"], 2, ["--limit", "at least 0"]),
    ],
)
def test_a_mistake_ends_the_program_with_one_line(program, arguments, status, words):
    finished = program("-m", "simsiam_tf.data.inspect", *arguments)
    assert finished.returncode == status, finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert line.startswith("inspect.py: ")
    for word in words:
        assert word in line


def test_a_stream_that_breaks_off_is_an_error_of_one_line(tmp_path):
    builder = Digits(data_dir=str(tmp_path / "tfds"), file_format="tfrecord")
    builder.download_and_prepare()
    (path,) = tmp_path.rglob("*test.tfrecord*")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read") as raised:
        inspect(tmp_path / "tfds", tmp_path / "page.html", "--dataset=digits", "--train_split=test")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [(38, 100, "38 %"), (4, 1000, "0.4 %"), (1, 10**5, "under 0.1 %"), (0, 5, "0 %")],
)
def test_shares_keep_what_matters(count, total, text):
    assert advice.share(count, total) == text
