"""Order, views and errors of the pipeline: a batch is a function of the step's number."""

import collections
import io
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simsiam_tf.config import ViewsConfig
from simsiam_tf.data import datasets, pipeline, tfrecords, views
from simsiam_tf.data.digits import Digits
from simsiam_tf.data.order import epoch_order, evaluation_order, step_order
from simsiam_tf.schema import UserError

NUM_IMAGES = 23
SEED = 3
# One view with a random crop and flip. Two views with colours take long to trace.
RECIPE = views.build_linear_view(8, 0.2, 0.5)


def level_of(index):
    return 10 * index + 10


def write_image(path, index):
    """Writes a gray ramp whose mean encodes the index of the image."""
    ramp = np.linspace(-4, 4, 12).round()
    pixels = np.broadcast_to((level_of(index) + ramp)[None, :, None], (10, 12, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def encoded_image():
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        folder = root / ("first" if index < 12 else "second")
        folder.mkdir(exist_ok=True)
        write_image(folder / f"{index:02}.png", index)
    return root


@pytest.fixture(scope="module")
def folder(image_folder):
    return datasets.load("folder", str(image_folder), "train")


def prepared_digits(folder, file_format):
    builder = Digits(data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    return datasets.load("digits", str(folder), "train[20%:26%]")  # parts of two shards


@pytest.fixture(scope="module")
def array_record(tmp_path_factory):
    return prepared_digits(tmp_path_factory.mktemp("array_record"), "array_record")


@pytest.fixture(scope="module")
def tfrecord(tmp_path_factory):
    return prepared_digits(tmp_path_factory.mktemp("tfrecord"), "tfrecord")


@pytest.fixture(scope="module", params=["folder", "array_record", "tfrecord"])
def source(request):
    """Returns a source of each kind: files and records by random access, and streamed records."""
    return request.getfixturevalue(request.param)


def batch_size_of(source):
    """Returns an even batch size that leaves a partial batch: 4 for 23 images, 16 for 86."""
    return 4 if source.num_examples == NUM_IMAGES else 16


def steps_per_epoch(source):
    return source.num_examples // batch_size_of(source)


def training_batches(source, first_step, last_step, *, seed=SEED, recipe=RECIPE, context=None):
    return pipeline.training_batches(
        source,
        recipe,
        batch_size=batch_size_of(source),
        seed=seed,
        first_step=first_step,
        last_step=last_step,
        context=context,
    )


def train(source, first_step, last_step, **options):
    return list(training_batches(source, first_step, last_step, **options).as_numpy_iterator())


def indices(batches):
    return np.stack([batch["index"] for batch in batches])


def assert_same_batches(batches, others):
    """Checks equality bit for bit."""
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys() == {"views", "label", "index"}
        tf.nest.map_structure(np.testing.assert_array_equal, batch, other)


def pixels(image):
    return tf.cast(image, tf.float32)


def no_augmentation(image, seed):
    del seed
    return {"views": (pixels(image),)}


@pytest.fixture(scope="module")
def plain(source):
    """Returns the batches of four epochs without augmentation."""
    return train(source, 0, 4 * steps_per_epoch(source), recipe=no_augmentation)


@pytest.fixture(scope="module")
def uninterrupted(source):
    """Returns the augmented batches of two epochs and two steps."""
    return train(source, 0, 2 * steps_per_epoch(source) + 2)


# Order.


def test_every_epoch_is_a_permutation_without_its_partial_batch(source, plain):
    steps = steps_per_epoch(source)
    assert source.num_examples % batch_size_of(source) > 0
    assert indices(plain).shape == (4 * steps, batch_size_of(source))
    for epoch in indices(plain).reshape(4, -1):
        assert len(set(epoch)) == steps * batch_size_of(source)
        assert set(epoch) <= set(range(source.num_examples))


def test_epochs_differ_in_order_and_in_dropped_samples(plain):
    first, second, *_ = indices(plain).reshape(4, -1)
    assert (first != second).mean() > 0.5
    assert set(first) != set(second)
    # The first epoch is not in the order on disk either.
    assert (first != np.arange(len(first))).mean() > 0.5
    assert np.abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.6


def test_an_epoch_is_complete_if_the_batch_size_divides_it(folder):
    batches = pipeline.training_batches(
        folder, no_augmentation, batch_size=NUM_IMAGES, seed=SEED, first_step=0, last_step=4
    )
    for batch in batches.as_numpy_iterator():
        assert sorted(batch["index"]) == list(range(NUM_IMAGES))


def test_every_image_is_equally_often_at_every_offset():
    count, num_epochs = 12, 250
    orders = np.stack(
        [
            epoch_order(count, SEED, epoch, tf.range(count, dtype=tf.int64))
            for epoch in range(num_epochs)
        ]
    )
    times = np.stack([np.bincount(column, minlength=count) for column in orders.T])
    assert (times.sum(axis=1) == num_epochs).all()
    # Each of the 144 counts has the mean 21 and the deviation 4.4. The bound is five deviations.
    assert abs(times - num_epochs / count).max() < 22


def test_the_order_mixes_the_classes_of_a_sorted_data_set_in_each_batch():
    # The 5,000 images are sorted by class. A batch of 250 contains about 25 of each of ten classes.
    order = epoch_order(5000, SEED, 0, tf.range(5000, dtype=tf.int64)).numpy()
    classes = order.reshape(20, 250) // 500
    times = np.stack([np.bincount(batch, minlength=10) for batch in classes])
    assert sorted(order) == list(range(5000))
    assert 6 < times.min() <= times.max() < 48


def test_orders_of_a_long_run_do_not_repeat():
    # The authors' schedule for CIFAR-10 has 800 epochs.
    offsets = tf.range(20, dtype=tf.int64)
    orders = tf.data.Dataset.range(1000).map(
        lambda epoch: epoch_order(50_000, SEED, epoch, offsets)
    )
    assert len({tuple(order) for order in orders.as_numpy_iterator()}) == 1000


def test_neighbours_in_an_order_are_independent():
    # CIFAR-10 has 50,000 images. The deviation of a correlation is 1/√50,000 = 0.0045.
    order = epoch_order(50_000, SEED, 0, tf.range(50_000, dtype=tf.int64)).numpy()
    for lag in range(1, 9):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.02, lag


def test_step_order_names_the_images_of_each_step(folder):
    steps = steps_per_epoch(folder)
    for step, batch in enumerate(train(folder, 0, 2 * steps, recipe=no_augmentation)):
        order = step_order(NUM_IMAGES, batch_size_of(folder), SEED, step)
        np.testing.assert_array_equal(batch["index"], order)


def test_another_seed_gives_another_order(source, plain):
    steps = steps_per_epoch(source)
    first = indices(plain[:steps])
    other = indices(train(source, 0, steps, recipe=no_augmentation, seed=SEED + 1))
    assert (first != other).mean() > 0.5


@pytest.mark.parametrize("seed", [0, 7])
def test_a_random_seed_of_the_process_changes_no_order(source, plain, seed):
    tf.random.set_seed(seed)
    try:
        batches = train(source, 0, steps_per_epoch(source), recipe=no_augmentation)
    finally:
        tf.compat.v1.set_random_seed(None)
    np.testing.assert_array_equal(indices(batches), indices(plain)[: len(batches)])


def test_a_run_without_steps_has_no_batches(source):
    steps = steps_per_epoch(source)
    assert train(source, steps + 1, steps + 1, recipe=no_augmentation) == []
    assert train(source, 2 * steps, 2 * steps, recipe=no_augmentation) == []


# Pixels, labels, views.


def test_index_label_and_pixels_belong_to_one_image(folder):
    for batch in train(folder, 0, 2 * steps_per_epoch(folder)):
        np.testing.assert_array_equal(batch["label"], batch["index"] >= 12)
        for view, index in zip(batch["views"][0], batch["index"], strict=True):
            assert abs(view.mean() - level_of(index)) < 5


def test_an_index_names_the_same_image_in_every_epoch(source, plain):
    images = collections.defaultdict(set)
    for batch in plain:
        for index, image, label in zip(
            batch["index"], batch["views"][0], batch["label"], strict=True
        ):
            images[index].add((image.tobytes(), int(label)))
    assert len(images) > 0.9 * source.num_examples
    assert all(len(seen) == 1 for seen in images.values())


def test_batches_have_the_promised_shapes_and_dtypes(source):
    size = batch_size_of(source)
    recipe = views.build_views(ViewsConfig(image_size=8, jitter_probability=0.0), 2)
    (batch,) = train(source, 0, 1, recipe=recipe)
    assert [view.shape for view in batch["views"]] == [(size, 8, 8, 3)] * 2
    assert [view.dtype for view in batch["views"]] == [np.uint8] * 2
    assert batch["label"].shape == batch["index"].shape == (size,)
    assert batch["label"].dtype == np.int32
    assert batch["index"].dtype == np.int64


def test_crops_for_the_device_come_with_their_draws(source):
    size = batch_size_of(source)
    recipe = views.build_views(ViewsConfig(image_size=8, augment_on="device"), 2)
    (batch,) = train(source, 0, 1, recipe=recipe)
    assert [view.shape for view in batch["views"]] == [(size, 8, 8, 3)] * 2
    shapes = {"factors": (size, 4), "order": (size, 4)}
    shapes |= dict.fromkeys(("gray", "sigma", "flip"), (size,))
    for draws in batch["draws"]:
        assert {name: column.shape for name, column in draws.items()} == shapes


def test_views_are_drawn_anew_for_each_seed_epoch_and_image():
    # This recipe returns its seed as the view.
    def drawn(image, seed):
        del image
        return {"views": (seed,)}

    def read(indices):
        return tf.fill(tf.shape(indices), encoded_image()), indices

    source = datasets.Source("five", 5, (), str, read=read)
    seeds = set()
    for seed in (0, 1):
        batches = pipeline.training_batches(
            source, drawn, batch_size=5, seed=seed, first_step=0, last_step=4
        )
        for batch in batches.as_numpy_iterator():
            seeds |= {tuple(words) for words in batch["views"][0]}
    assert len(seeds) == 2 * 4 * 5


# Resuming, sharing and parallelism do not change the batches.


@pytest.mark.parametrize("when", ["in_the_first_epoch", "at_an_epochs_end", "in_a_later_epoch"])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(source, uninterrupted, when):
    steps = steps_per_epoch(source)
    first = {"in_the_first_epoch": 2, "at_an_epochs_end": steps, "in_a_later_epoch": steps + 3}
    resumed = train(source, first[when], 2 * steps + 2)
    assert_same_batches(resumed, uninterrupted[first[when] :])


def concatenated(*shares):
    return [
        tf.nest.map_structure(lambda *columns: np.concatenate(columns), *parts)
        for parts in zip(*shares, strict=True)
    ]


def shares_of(source, count, first_step, last_step, **options):
    """Returns the batches of each of `count` workers with one replica each."""
    return [
        train(
            source,
            first_step,
            last_step,
            context=tf.distribute.InputContext(
                num_input_pipelines=count, input_pipeline_id=number, num_replicas_in_sync=count
            ),
            **options,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("kind", "count"), [("folder", 2), ("array_record", 2), ("tfrecord", 4)])
def test_workers_share_the_global_batch_of_a_single_worker(request, kind, count):
    source = request.getfixturevalue(kind)  # four workers cannot share the two TFRecord files
    last = steps_per_epoch(source) + 2
    shares = shares_of(source, count, 1, last)
    assert len(shares[0][0]["index"]) == batch_size_of(source) // count
    assert_same_batches(concatenated(*shares), train(source, 1, last))


# Streams whose files are shared by workers.


@pytest.fixture(scope="module")
def unequal_files(tmp_path_factory):
    """Returns a source of 86 records in two files, of 75 and 11 records."""
    folder = tmp_path_factory.mktemp("unequal")
    prepared_digits(folder, "tfrecord")
    source = datasets.load("digits", str(folder), "train[:75]+train[1000:1011]")
    assert source.num_stream_files == 2
    return source


@pytest.fixture(params=["tfrecord", "unequal_files"])
def files(request):
    return request.getfixturevalue(request.param)


def test_workers_that_share_files_see_a_sample_once_an_epoch_and_have_equally_many_steps(files):
    steps = steps_per_epoch(files)
    first, second = map(indices, shares_of(files, 2, 0, 3 * steps, recipe=no_augmentation))
    assert first.shape == second.shape == (3 * steps, batch_size_of(files) // 2)
    for epoch in range(3):
        seen = [share[epoch * steps : (epoch + 1) * steps].ravel() for share in (first, second)]
        assert len(set(np.concatenate(seen))) == steps * batch_size_of(files)


def test_each_of_two_workers_that_share_files_reads_half_of_the_records(files):
    for seed in ([0, 1], [0, 2], [0, 3]):
        first, second = (
            {int(index) for index, _, _ in files.stream(tf.constant(seed), share=(number, 2))}
            for number in range(2)
        )
        assert len(first) == len(second) == files.num_examples // 2
        assert len(first | second) == files.num_examples // 2 * 2


def test_an_index_names_the_same_image_on_any_number_of_workers(files):
    images = collections.defaultdict(set)
    steps = steps_per_epoch(files)
    for count in (1, 2):
        for share in shares_of(files, count, 0, 2 * steps, recipe=no_augmentation):
            for batch in share:
                for index, image in zip(batch["index"], batch["views"][0], strict=True):
                    images[index].add(image.tobytes())
    assert len(images) > 0.9 * files.num_examples
    assert all(len(seen) == 1 for seen in images.values())


@pytest.mark.parametrize("first_step", [2, 5, 8])  # an epoch has five steps
def test_workers_that_share_files_resume_exactly(files, first_step):
    whole, resumed = (shares_of(files, 2, first, 11) for first in (0, first_step))
    for before, after in zip(whole, resumed, strict=True):
        assert_same_batches(after, before[first_step:])


def test_a_share_of_the_files_is_its_part_of_the_records():
    takes = [5, 1, 30, 0, 7, 2]
    firsts = np.cumsum([0, *takes[:-1]])
    columns = (
        tf.constant([f"file {number}" for number in range(6)]),
        tf.constant([100, 0, 3, 0, 0, 9], tf.int64),
        tf.constant(takes, tf.int64),
        tf.constant(firsts, tf.int64),
    )
    order = [
        (f"file {number}", record) for number, take in enumerate(takes) for record in range(take)
    ]
    for count in (1, 2, 3, 4, 6):
        size = sum(takes) // count
        for number in range(count):
            share = tfrecords._share_of_shards(columns, number, count)
            found = []
            for path, skip, take, first in zip(*(column.numpy() for column in share), strict=True):
                file = int(path.decode().split()[1])
                start = skip - columns[1][file].numpy()
                assert first == firsts[file] + start
                found += [(path.decode(), record) for record in range(start, start + take)]
            assert found == order[number * size : (number + 1) * size]


def test_the_log_says_that_the_order_of_a_stream_depends_on_the_workers(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    prepared_digits(tmp_path, "tfrecord")
    assert "the order of the samples depends on the number of workers" in caplog.text


def test_two_replicas_of_one_worker_get_the_halves_of_the_batch(source, uninterrupted):
    last = steps_per_epoch(source) + 1
    context = tf.distribute.InputContext(
        num_input_pipelines=1, input_pipeline_id=0, num_replicas_in_sync=2
    )
    halves = train(source, 0, last, context=context)
    assert len(halves) == 2 * last
    assert_same_batches(concatenated(halves[0::2], halves[1::2]), uninterrupted[:last])


def test_four_replicas_of_two_workers_get_the_quarters_of_the_batch(folder):
    contexts = [
        tf.distribute.InputContext(
            num_input_pipelines=2, input_pipeline_id=pipeline_id, num_replicas_in_sync=4
        )
        for pipeline_id in range(2)
    ]
    first, second = (train(folder, 0, 3, context=context) for context in contexts)
    quarters = concatenated(first[0::2], first[1::2], second[0::2], second[1::2])
    assert_same_batches(quarters, train(folder, 0, 3))


def unfused():
    """Returns options that keep the stages separate. Fused stages would hide a missing order."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return options


def test_parallelism_does_not_change_the_batches(source, uninterrupted):
    options = unfused()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    last = steps_per_epoch(source) + 1
    batches = training_batches(source, 0, last).with_options(options)
    assert_same_batches(list(batches.as_numpy_iterator()), uninterrupted[:last])


def test_slow_images_keep_their_batch_offsets():
    def read(indices):
        # The first 16 images are slow to read and to decode.
        sides = tf.where(indices < 16, 600, 1)
        encoded = tf.map_fn(
            lambda side: tf.io.encode_png(tf.zeros([side, side, 3], tf.uint8)),
            sides,
            fn_output_signature=tf.string,
        )
        return encoded, tf.cast(indices, tf.int32)

    source = datasets.Source("large and small", 64, (), str, read=read)
    batches = pipeline.training_batches(
        source,
        lambda image, seed: {"views": (tf.reduce_sum(image),)},
        batch_size=8,
        seed=SEED,
        first_step=0,
        last_step=8,
    )
    for step, batch in enumerate(batches.with_options(unfused()).as_numpy_iterator()):
        order = step_order(64, 8, SEED, step)
        np.testing.assert_array_equal(batch["index"], order)
    evaluation = pipeline.evaluation_batches(source, mean_view, 8).with_options(unfused())
    _, labels = evaluated(evaluation.as_numpy_iterator())
    np.testing.assert_array_equal(labels, np.arange(64))


def test_batches_are_the_same_when_iterated_again(source):
    batches = training_batches(source, 1, 3, recipe=no_augmentation)
    first, second = (list(batches.as_numpy_iterator()) for _ in range(2))
    assert_same_batches(second, first)
    batches = pipeline.evaluation_batches(source, pixels, 8, limit=16)
    first, second = (images_and_labels(batches.as_numpy_iterator()) for _ in range(2))
    assert second == first


# Evaluation.


def mean_view(image):
    return tf.reduce_mean(tf.cast(image, tf.float32))


def evaluate(source, batch_size, view=mean_view, **options):
    batches = pipeline.evaluation_batches(source, view, batch_size, **options)
    return list(batches.as_numpy_iterator())


def evaluated(batches):
    """Returns the images and labels of all batches."""
    return [np.concatenate(column) for column in zip(*batches, strict=True)]


def test_evaluation_sees_every_image_once_in_order(folder):
    batches = evaluate(folder, 5)
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    levels, labels = evaluated(batches)
    np.testing.assert_allclose(levels, level_of(np.arange(NUM_IMAGES)), atol=0.5)
    np.testing.assert_array_equal(labels, np.arange(NUM_IMAGES) >= 12)
    assert labels.dtype == np.int32


def test_evaluation_order_names_the_images_of_each_batch(folder):
    for limit in (None, 9):
        (levels, _) = evaluated(evaluate(folder, 4, seed=1, limit=limit))
        offsets = tf.range(len(levels), dtype=tf.int64)
        order = evaluation_order(folder, offsets, seed=1, limit=limit).numpy()
        np.testing.assert_allclose(levels, level_of(order), atol=0.5)


def images_and_labels(batches):
    images, labels = evaluated(batches)
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


@pytest.fixture(scope="module")
def everything(source):
    """Returns the images and labels of evaluation without a limit."""
    return images_and_labels(evaluate(source, 10, pixels))


def test_evaluation_sees_every_image_of_every_kind_of_source_once(source, plain, everything):
    assert len(everything) == source.num_examples
    in_training_order = [
        (image.tobytes(), int(label))
        for batch in plain
        for image, label in zip(batch["views"][0], batch["label"], strict=True)
    ]
    # The four epochs contain every image, so both sets of images are the same.
    assert set(everything) == set(in_training_order)
    assert everything == images_and_labels(evaluate(source, 7, pixels))


@pytest.mark.parametrize("limit", [1, 9])
def test_a_limit_takes_a_fixed_random_subset(source, everything, limit):
    subset = images_and_labels(evaluate(source, 4, pixels, limit=limit))
    assert len(subset) == limit
    assert subset == images_and_labels(evaluate(source, 4, pixels, limit=limit))
    assert not collections.Counter(subset) - collections.Counter(everything)
    assert subset != everything[:limit]
    if limit > 1:
        assert set(subset) != set(everything[:limit])
        assert subset != images_and_labels(evaluate(source, 4, pixels, limit=limit, seed=1))


@pytest.mark.parametrize("limit", [0, 1000])
def test_no_limit_or_a_large_one_takes_everything_in_order(source, everything, limit):
    assert images_and_labels(evaluate(source, 10, pixels, limit=limit)) == everything


# Errors.

# Noise makes a file that is long enough to truncate.
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def write_truncated_jpeg(path):
    Image.fromarray(NOISE).save(path, "JPEG")
    os.truncate(path, path.stat().st_size // 2)


def write_truncated_png(path):
    Image.fromarray(NOISE).save(path, "PNG")
    os.truncate(path, path.stat().st_size // 2)


def write_nothing(path):
    path.write_bytes(b"")


def write_text(path):
    path.write_text("This is a list of images.\n")


def link_to_nothing(path):
    path.symlink_to(path.parent / "nothing.png")


@pytest.fixture(
    params=[
        ("broken.jpg", write_truncated_jpeg),
        ("broken.png", write_truncated_png),
        ("empty.png", write_nothing),
        ("empty.jpg", write_nothing),
        ("text.png", write_text),
        ("link.png", link_to_nothing),
    ],
    ids=[
        "truncated_jpeg",
        "truncated_png",
        "zero_byte_png",
        "zero_byte_jpeg",
        "text_named_png",
        "broken_link",
    ],
)
def broken(request, image_folder, tmp_path):
    """Returns the source of a folder and the path of its only unreadable image, in the middle."""
    name, write = request.param
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    path = root / "first" / f"07-{name}"
    write(path)
    return datasets.load("folder", str(root), "train"), path


def index_of(path, source):
    return next(i for i in range(source.num_examples) if source.describe(i) == str(path))


def batches_until_error(batches):
    """Returns the number of batches before the `UserError`, and its message."""
    count = 0
    try:
        for _ in batches:
            count += 1
    except UserError as error:
        return count, str(error)
    pytest.fail("No UserError was raised")


def test_training_names_the_image_that_cannot_be_read(broken):
    source, path = broken
    first_step, last_step, size = 2, 20, 4

    def indices_of(number):
        return step_order(source.num_examples, size, SEED, first_step + number)

    batches = pipeline.training_batches(
        source, RECIPE, batch_size=size, seed=SEED, first_step=first_step, last_step=last_step
    )
    sound, message = batches_until_error(pipeline.iterate(batches, source, indices_of))
    assert str(path) in message
    assert "\n" not in message
    index = index_of(path, source)
    assert sound == next(i for i in range(last_step - first_step) if index in indices_of(i))


def test_evaluation_names_the_image_that_cannot_be_read(broken):
    source, path = broken

    def indices_of(number):
        offsets = tf.range(5 * number, min(5 * number + 5, source.num_examples))
        return evaluation_order(source, offsets)

    batches = pipeline.evaluation_batches(source, mean_view, 5)
    sound, message = batches_until_error(pipeline.iterate(batches, source, indices_of))
    assert str(path) in message
    assert "\n" not in message
    assert sound == index_of(path, source) // 5


def test_iterate_does_not_change_batches_of_readable_images(folder):
    expected = train(folder, 0, 7)
    batches = training_batches(folder, 0, len(expected))
    passed = [
        tf.nest.map_structure(np.asarray, batch)
        for batch in pipeline.iterate(batches, folder, indices_of=None)
    ]
    assert_same_batches(passed, expected)


def test_a_record_without_an_image_in_a_stream_is_a_user_error():
    def stream(seed, transform):
        del seed
        records = tf.data.Dataset.from_tensor_slices([encoded_image(), b"not an image"])
        return transform(records).enumerate().map(lambda index, encoded: (index, encoded, 0))

    source = datasets.Source("two records", 2, (), str, read=None, stream=stream)
    batches = pipeline.evaluation_batches(source, pixels, 1)
    with pytest.raises(UserError, match="two records") as raised:
        list(pipeline.iterate(batches, source, lambda number: None))
    assert "\n" not in str(raised.value)
