"""Images that cannot be read: their substitutes, their list, and the rules that stop a run."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simsiam_tf.config import DataConfig, Purpose
from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.data.order import fold_in, step_order
from simsiam_tf.data.quarantine import READ_ERRORS, Quarantine
from simsiam_tf.schema import UserError

NUM_IMAGES = 30
BATCH = 6
STEPS = 2 * (NUM_IMAGES // BATCH)  # two epochs
RECIPE = views.build_linear_view(8, 0.2, 0.5)
SKIP = DataConfig(on_bad_image="skip", max_bad_fraction=0.5)
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def truncated(path, file_format):
    Image.fromarray(NOISE).save(path, file_format)
    os.truncate(path, path.stat().st_size // 2)


def link_to_nothing(path):
    path.unlink()
    path.symlink_to(path.parent / "nothing.png")


def make_large(path):
    Image.new("RGB", (13000, 10000)).save(path, "PNG")


# {index: (function that damages the image, text that its reason contains)}.
BAD = {
    3: (lambda path: truncated(path, "JPEG"), "Invalid JPEG data"),
    7: (lambda path: truncated(path, "PNG"), "Invalid PNG"),
    8: (lambda path: path.write_bytes(b""), "an empty file"),
    14: (lambda path: path.write_text("A list of images.\n"), "no image of a kind that is read"),
    21: (link_to_nothing, "No such file"),
    22: (
        make_large,
        "--max_image_pixels=120000000 pixels; width and height are 13000 10000",
    ),
}


def write_images(root):
    for index in range(NUM_IMAGES):
        path = root / ("first" if index < 15 else "second") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 12), (8 * index,) * 3).save(path)
    return root


def path_of(root, index):
    return root / ("first" if index < 15 else "second") / f"{index:02}.png"


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("images"))
    for index, (spoil, _) in BAD.items():
        spoil(path_of(root, index))
    return root


@pytest.fixture(scope="module")
def source(bad_folder):
    return datasets.load("folder", str(bad_folder), "train")


def batches_of(source, quarantine, *, first=0, last=STEPS, recipe=RECIPE, context=None, seed=0):
    return pipeline.training_batches(
        source,
        recipe,
        batch_size=BATCH,
        seed=seed,
        first_step=first,
        last_step=last,
        context=context,
        quarantine=quarantine,
    )


def train(source, quarantine=None, **options):
    quarantine = quarantine or Quarantine(source, SKIP)
    return list(batches_of(source, quarantine, **options).as_numpy_iterator())


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, batch, other)


def level(image, seed):
    del seed
    return {"views": (tf.cast(image[0, 0, 0], tf.float32),)}


# Substitutes.


def test_only_bad_samples_are_substituted_at_their_batch_offsets(source):
    num_bad = 0
    for step, batch in enumerate(train(source, recipe=level)):
        order = step_order(NUM_IMAGES, BATCH, 0, step).numpy()
        for wanted, index, label, view in zip(
            order, batch["index"], batch["label"], batch["views"][0], strict=True
        ):
            assert index not in BAD
            assert index == wanted or wanted in BAD
            # The substitute's own pixels and label come with its index.
            assert (view, label) == (8 * index, index >= 15)
            num_bad += wanted in BAD
    assert num_bad == 2 * len(BAD)


def test_substitutes_depend_on_the_epoch_and_the_seed(source):
    def substitutes(seed):
        batches = train(source, recipe=level, seed=seed)
        found = {}
        for step, batch in enumerate(batches):
            order = step_order(NUM_IMAGES, BATCH, seed, step).numpy()
            for wanted, index in zip(order, batch["index"], strict=True):
                if wanted in BAD:
                    found[step // (STEPS // 2), wanted] = int(index)
        return found

    first = substitutes(0)
    assert len(set(first.values())) > 4
    assert [first[0, index] for index in BAD] != [first[1, index] for index in BAD]
    assert [first[0, index] for index in BAD] != [substitutes(1)[0, index] for index in BAD]


def test_views_of_a_substitute_are_drawn_by_its_own_index(source):
    def drawn(image, seed):
        del image
        return {"views": (seed,)}

    for step, batch in enumerate(train(source, recipe=drawn)):
        for index, words in zip(batch["index"], batch["views"][0], strict=True):
            expected = fold_in([0, Purpose.VIEWS], step // (STEPS // 2), index)
            np.testing.assert_array_equal(words, expected)


def test_batches_are_the_same_when_repeated_and_when_resumed(source):
    batches = train(source)
    assert_same(train(source), batches)
    assert_same(train(source, first=3), batches[3:])


@pytest.mark.parametrize("num_pipelines", [1, 2])
def test_two_replicas_share_the_batches_of_one(source, num_pipelines):
    contexts = [
        tf.distribute.InputContext(
            num_input_pipelines=num_pipelines, input_pipeline_id=index, num_replicas_in_sync=2
        )
        for index in range(num_pipelines)
    ]
    shares = [train(source, context=context) for context in contexts]
    halves = shares if num_pipelines == 2 else [shares[0][0::2], shares[0][1::2]]
    together = [
        tf.nest.map_structure(lambda *columns: np.concatenate(columns), *parts)
        for parts in zip(*halves, strict=True)
    ]
    assert_same(together, train(source))


def test_a_quarantine_without_bad_images_changes_nothing(tmp_path):
    source = datasets.load("folder", str(write_images(tmp_path)), "train")
    quarantine = Quarantine(source, SKIP)
    expected = list(batches_of(source, None).as_numpy_iterator())
    assert_same(train(source, quarantine), expected)
    quarantine.check()
    assert quarantine.num_bad == 0


def test_a_batch_without_readable_images_is_filled(tmp_path):
    root = write_images(tmp_path)
    source = datasets.load("folder", str(root), "train")
    bad = step_order(NUM_IMAGES, BATCH, 0, 0).numpy()
    for index in bad:
        path_of(root, index).write_bytes(b"")
    (batch,) = train(source, last=1)
    assert len(batch["index"]) == BATCH
    assert not set(batch["index"]) & set(bad)


# The list of bad images.


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_bad_image_is_listed_once_with_path_and_reason(source, bad_folder, tmp_path, caplog):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(source, SKIP, path)
    train(source, quarantine)
    assert not path.exists()
    for _ in range(2):
        quarantine.check()
    assert quarantine.num_bad == len(BAD)
    entries = {entry["index"]: entry for entry in lines_of(path)}
    assert len(lines_of(path)) == len(BAD)
    assert entries.keys() == BAD.keys()
    for index, (_, reason) in BAD.items():
        assert entries[index]["path"] == str(path_of(bad_folder, index))
        assert reason in entries[index]["reason"]
        assert not set(entries[index]["reason"]) & set("{}[]\n")
        assert str(path_of(bad_folder, index)) in caplog.text


def test_bad_substitutes_are_counted_too(tmp_path):
    root = write_images(tmp_path)
    source = datasets.load("folder", str(root), "train")
    for index in range(NUM_IMAGES - 6):
        path_of(root, index).write_bytes(b"")
    quarantine = Quarantine(source, DataConfig(on_bad_image="skip", max_bad_fraction=1.0))
    train(source, quarantine, last=1)
    quarantine.check()
    assert quarantine.num_bad > BATCH


def test_a_restart_lists_only_the_image_whose_line_was_cut_off(source, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    first = Quarantine(source, SKIP, path)
    train(source, first)
    first.check()
    whole = lines_of(path)
    os.truncate(path, path.stat().st_size - 20)
    second = Quarantine(source, SKIP, path)
    assert second.num_bad == len(BAD) - 1
    train(source, second)
    second.check()
    assert lines_of(path) == whole
    third = Quarantine(source, SKIP, path)
    assert third.num_bad == len(BAD)


def test_a_listed_image_that_was_removed_does_not_count(source, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    entries = [{"path": "/gone.png", "index": index, "reason": ""} for index in (1, 10**6)]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(text + "\0\0\n[]\n")
    assert Quarantine(source, SKIP, path).num_bad == 0


def test_an_image_that_is_listed_under_another_index_is_not_listed_again(
    source, bad_folder, tmp_path
):
    # Indices shift when other images are removed.
    path = tmp_path / "quarantine.jsonl"
    entries = [{"path": str(path_of(bad_folder, index)), "index": index + 1} for index in BAD]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    quarantine = Quarantine(source, SKIP, path)
    assert quarantine.num_bad == 0
    train(source, quarantine)
    quarantine.check()
    assert quarantine.num_bad == len(BAD)
    assert lines_of(path) == entries


# The rules that stop a run.


def test_the_first_bad_image_is_an_error_with_its_path_by_default(source, bad_folder):
    quarantine = Quarantine(source, DataConfig())
    iterator = iter(batches_of(source, quarantine))
    for step in range(STEPS):
        order = step_order(NUM_IMAGES, BATCH, 0, step).numpy()
        batch = next(iterator)
        if set(order) & set(BAD):
            break
        assert set(batch["index"]) == set(order)
    # The batch without the bad image was given out, so the next step must not run.
    with pytest.raises(UserError, match="An image cannot be read: ") as raised:
        quarantine.check()
    assert any(str(path_of(bad_folder, index)) in str(raised.value) for index in BAD)
    assert "--on_bad_image=skip" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("fraction", "stops"), [(6 / 30, False), (5 / 30, True), (0.0, True)])
def test_more_bad_images_than_the_largest_fraction_stop_the_run(source, fraction, stops):
    data = DataConfig(on_bad_image="skip", max_bad_fraction=fraction)
    quarantine = Quarantine(source, data)
    train(source, quarantine)
    if not stops:
        quarantine.check()
        return
    with pytest.raises(UserError, match=r"--max_bad_fraction.*Received: [16] of 30"):
        quarantine.check()


def test_the_error_for_a_removed_folder_is_one_line(tmp_path):
    root = write_images(tmp_path / "images")
    source = datasets.load("folder", str(root), "train")
    root.rename(tmp_path / "elsewhere")
    quarantine = Quarantine(source, SKIP)
    with pytest.raises(READ_ERRORS) as raised:
        train(source, quarantine)
    indices = step_order(NUM_IMAGES, BATCH, 0, 0).numpy()
    message = str(quarantine.explain(raised.value, indices))
    assert str(path_of(root, indices[0])) in message
    assert "No such file or directory" in message
    assert "\n" not in message


def test_iterate_checks_the_quarantine_before_it_yields_a_batch(source):
    def indices_of(step):
        return step_order(NUM_IMAGES, BATCH, 0, step).numpy()

    quarantine = Quarantine(source, DataConfig())
    batches = pipeline.iterate(
        batches_of(source, quarantine), source, indices_of, quarantine=quarantine
    )
    given = []
    with pytest.raises(UserError, match="An image cannot be read: "):
        given.extend(batch["index"].numpy() for batch in batches)
    for step, indices in enumerate(given):
        np.testing.assert_array_equal(indices, indices_of(step))
