"""Data sets by name: the only code that reads data.

A `Source` hands out encoded images by index. Folders and TFDS's ArrayRecord files are read by
random access, so that the n-th sample of an epoch is a lookup; TFDS's TFRecord files, where a
lookup passes over all that comes before, are streamed.
"""

import dataclasses
import functools
import hashlib
import json
import os
import typing

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from simsiam_tf.data import digits  # noqa: F401 (TFDS knows the builder once it is imported)
from simsiam_tf.progress import Progress
from simsiam_tf.schema import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
UNLABELLED = -1
_SHUFFLE_BUFFER = 10_000
_SHARDS_READ_AT_ONCE = 16
_LABELS_AT_ONCE = 256
_EVERYTHING = (0, 1)  # share 0 of 1


@dataclasses.dataclass(frozen=True)
class Source:
    """Encoded images with labels, and how to read them: as a stream, where there is one."""

    name: str  # as messages call it
    num_examples: int
    class_names: tuple[str, ...]  # empty: unlabelled, every label is UNLABELLED
    describe: typing.Callable[[int], str]  # index → where that image is, for error messages
    # indices int64 [k] → (encoded string [k], label int32 [k]), in a graph
    read: typing.Callable
    read_at_once: int = 1  # how many indices `read` best takes
    # () → a text that is another one where the images are other ones, as far as it is cheap to tell
    fingerprint: typing.Callable[[], str] = str
    # Sequential reader, for formats without fast random access (TFRecord):
    # (seed int32 [2], or None for the order on disk; transform, see `_record_streamer`; share)
    # → data set of (index, encoded, label)
    stream: typing.Callable | None = None
    num_stream_files: int = 1  # that workers may share: `stream` takes a share of so many at most
    labels: np.ndarray | None = None  # int32 [N], where they are known without reading

    @property
    def labelled(self):
        return bool(self.class_names)


def load(name, data_dir, split):
    """The `Source` of a data set's split, prepared or downloaded where it has to be.

    Args:
      name: "digits", "folder", or a TFDS name with optional "/config".
      data_dir: the folder's path, or where TFDS keeps its data; empty: TFDS's own default.
      split: a split's name; for TFDS also a slice, "train[:90%]".

    Raises:
      UserError: the data set is unknown, cannot be had, or holds no image.
    """
    if name == "folder":
        return _load_folder(data_dir, split)
    return _load_tfds(prepared_builder(name, data_dir or None), split)


def labels_of(source):
    """The label of every image, int32 `[N]`; records are read for it, but nothing is decoded."""
    if source.labels is not None:
        return source.labels
    if source.stream:
        pairs = source.stream(None).map(lambda index, encoded, label: (index, label))
        pairs = pairs.batch(_LABELS_AT_ONCE)
    else:
        pairs = tf.data.Dataset.range(source.num_examples).batch(_LABELS_AT_ONCE)
        pairs = pairs.map(lambda indices: (indices, source.read(indices)[1]))
    labels = np.empty(source.num_examples, np.int32)
    with Progress(source.num_examples, f"labels of {source.name}", "image") as progress:
        for indices, found in pairs:
            labels[indices] = found
            progress.update(len(found))
    return labels


def with_indices(source):
    """The same source, but that each label is a row of two: [label, index]."""

    def pairs(labels, indices):
        return tf.stack([labels, tf.cast(indices, tf.int32)], axis=-1)

    def read(indices):
        encoded, labels = source.read(indices)
        return encoded, pairs(labels, indices)

    def stream(*arguments, **options):
        return source.stream(*arguments, **options).map(
            lambda index, encoded, label: (index, encoded, pairs(label, index))
        )

    return dataclasses.replace(source, read=read, stream=stream if source.stream else None)


def subset(source, rows):
    """The `Source` of some of a source's images.

    Args:
      source: a `Source`.
      rows: their indices, int64 `[n]`; an image's index is its place there from now on.
    """
    row_tensor = tf.constant(rows, tf.int64)
    places = np.full(source.num_examples, -1, np.int64)
    places[rows] = np.arange(len(rows))
    place_tensor = tf.constant(places)

    def stream(seed, transform=lambda records: records):
        examples = source.stream(
            seed,
            lambda records: transform(records.filter(lambda index, _: place_tensor[index] >= 0)),
        )
        return examples.map(lambda index, encoded, label: (place_tensor[index], encoded, label))

    def fingerprint():
        text = f"{source.fingerprint()}\n{np.asarray(rows).tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    return dataclasses.replace(
        source,
        num_examples=len(rows),
        describe=lambda index: source.describe(int(rows[index])),
        read=lambda indices: source.read(tf.gather(row_tensor, indices)),
        fingerprint=fingerprint,
        stream=stream if source.stream else None,
        num_stream_files=1,  # equal shares of the files hold unequal numbers of these rows
        labels=None if source.labels is None else source.labels[rows],
    )


def _load_folder(data_dir, split):
    if not data_dir:
        raise UserError("--dataset=folder needs --data_dir, the images' folder. Received: none")
    root = os.path.expanduser(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"--data_dir must be a folder that exists. Received: {data_dir}")
    splits = folder_splits(data_dir)
    if not splits and split != "train":
        raise UserError(
            f"{data_dir} has no split {split!r}: without folders of the names "
            f"{', '.join(SPLIT_FOLDERS)}, all of it is 'train'. Received: {split}"
        )
    if splits and split not in splits:
        raise UserError(f"{data_dir} has the splits {', '.join(splits)}. Received: {split}")
    split_root = os.path.join(root, split) if splits else root
    paths = _find_images(split_root)
    if not paths:
        raise UserError(
            f"No image ({', '.join(IMAGE_SUFFIXES)}) was found; --data_dir must hold some. "
            f"Received: {split_root}"
        )
    # One list of classes for all splits: a class that one of them lacks must not shift the others.
    # A path below the folder is a cut text: os.path.relpath would take a minute for a million.
    names = [path.removeprefix(os.path.join(split_root, "")) for path in paths]
    if not all(os.sep in name for name in names):
        class_names, labels = (), np.full(len(paths), UNLABELLED, np.int32)
    else:
        roots = [os.path.join(root, name) for name in splits] or [root]
        class_names = tuple(sorted({name for folder in roots for name in _subfolders(folder)}))
        number = {name: index for index, name in enumerate(class_names)}
        labels = np.array([number[name.split(os.sep, 1)[0]] for name in names], np.int32)
    logging.info(
        "Folder %s: %d images, %s",
        split_root,
        len(paths),
        f"{len(class_names)} classes" if class_names else "unlabelled",
    )
    # As objects: NumPy would have an array of as many characters of 4 bytes as the longest has.
    path_tensor = tf.constant(np.array(paths, dtype=object))
    label_tensor = tf.constant(labels)

    def read(indices):
        encoded = tf.map_fn(tf.io.read_file, tf.gather(path_tensor, indices))
        return encoded, tf.gather(label_tensor, indices)

    @functools.cache  # a result asks several times
    def fingerprint():
        # The hash of the JSON of all files, built file by file to save memory.
        whole, separator = hashlib.sha256(b"["), b""
        for name, path in zip(names, paths, strict=True):
            whole.update(separator + json.dumps([name, *_size_and_time(path)]).encode())
            separator = b", "
        whole.update(b"]")
        return whole.hexdigest()

    return Source(
        split_root,
        len(paths),
        class_names,
        lambda index: paths[index],
        read=read,
        fingerprint=fingerprint,
        labels=labels,
    )


def folder_splits(data_dir):
    """The splits that a folder of images has folders for; none: all of it is "train"."""
    root = os.path.expanduser(data_dir)
    return [name for name in SPLIT_FOLDERS if os.path.isdir(os.path.join(root, name))]


def _size_and_time(path):
    """Size and time of the last change of a file; nothing where it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _find_images(root):
    """The paths of all images below a folder, sorted; hidden files and folders are left out."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        start = os.path.join(folder, "")
        found += [
            start + name
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _subfolders(folder):
    return [
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    ]


def prepared_builder(name, data_dir):
    """The TFDS builder of a data set that is on disk, where it was put now if it was not before."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():  # else the format is the one on disk
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            "--dataset must be digits, folder or the name of a TFDS data set, as "
            f"https://www.tensorflow.org/datasets/catalog lists them. Received: {name}"
        ) from None
    except (AssertionError, ValueError, ImportError) as error:  # AssertionError: a version
        raise UserError(f"TFDS cannot build the data set {name}: {_one_line(error)}") from error
    if not builder.is_prepared():
        logging.info("Preparing %s in %s", name, builder.data_dir)
        try:
            builder.download_and_prepare()
        except Exception as error:  # of the data set's own script, the network, the disk
            raise UserError(
                f"The data set {name} is not in {builder.data_dir}, and TFDS cannot put it there: "
                f"{type(error).__name__}: {_one_line(error)}. Prepare it where there is a network, "
                "copy that folder here, and name with --data_dir the folder that TFDS kept it in"
            ) from error
    # Opened anew, it knows every file format that is on disk.
    return tfds.builder_from_directory(builder.data_dir)


def _one_line(error):
    return " ".join(str(error).split())


def _load_tfds(builder, split):
    name = f"{builder.info.full_name} {split}"
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError):
        raise UserError(
            f"{builder.info.full_name} has the splits {', '.join(builder.info.splits)}. "
            f"Received: {split}"
        ) from None
    if info.num_examples < 1:
        raise UserError(f"A split must hold an image or more. Received: {split}")
    features = builder.info.features
    image_key = _key_of(features, tfds.features.Image)
    label_key = _key_of(features, tfds.features.ClassLabel)
    if image_key is None:
        raise UserError(f"--dataset must be one of images. Received: {builder.info.full_name}")
    class_names = tuple(features[label_key].names) if label_key else ()
    spec = {image_key: tf.io.FixedLenFeature([], tf.string)}
    if label_key:
        spec[label_key] = tf.io.FixedLenFeature([], tf.int64)

    def parse(records):
        examples = tf.io.parse_example(records, spec)
        encoded = examples[image_key]
        label = examples[label_key] if label_key else tf.fill(tf.shape(encoded), UNLABELLED)
        return encoded, tf.cast(label, tf.int32)

    def describe(index):
        return f"record {index} of {name} in {builder.data_dir}"

    common = {
        "name": name,
        "num_examples": info.num_examples,
        "class_names": class_names,
        "describe": describe,
        "fingerprint": lambda: f"{name} in {builder.data_dir}",
    }
    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        logging.info("%s: %d images, by random access (ArrayRecord)", name, info.num_examples)
        return Source(**common, read=_array_record_reader(builder, split, parse), read_at_once=16)
    logging.info(
        "%s: %d images, streamed (%s) through a shuffle buffer of %d; several workers share its %d "
        "file(s), so that the order of the samples depends on the number of workers. For full "
        "shuffles by random access, in an order that does not, convert it in place: pip install "
        "apache-beam mlcroissant && tfds convert_format --dataset_version_dir=%s "
        "--out_file_format=array_record",
        name,
        info.num_examples,
        builder.info.file_format.value,
        _SHUFFLE_BUFFER,
        len(info.file_instructions),
        builder.data_dir,
    )
    shards = _shards(info.file_instructions)
    return Source(
        **common,
        read=_record_reader(shards, parse),
        stream=_record_streamer(shards, parse),
        num_stream_files=len(info.file_instructions),
    )


def _key_of(features, kind):
    return next((key for key, feature in features.items() if isinstance(feature, kind)), None)


def _array_record_reader(builder, split, parse):
    records = builder.as_data_source(split=split).data_source  # the raw bytes, undecoded

    def fetch(indices):
        return np.array(records.__getitems__(indices.tolist()), dtype=object)

    def read(indices):
        raw = tf.numpy_function(fetch, [indices], tf.string, stateful=False)
        return parse(tf.ensure_shape(raw, indices.shape))

    return read


def _shards(instructions):
    """What a split takes of each TFRecord file: columns of paths, skip, take and first index."""
    takes = [
        instruction.examples_in_shard if instruction.take == -1 else instruction.take
        for instruction in instructions
    ]
    return (
        tf.constant([str(instruction.filename) for instruction in instructions]),
        tf.constant([instruction.skip for instruction in instructions], tf.int64),
        tf.constant(takes, tf.int64),
        tf.constant(np.cumsum([0, *takes[:-1]]), tf.int64),
    )


def _record_reader(shards, parse):
    """TFRecord files, a record at a time: all before it in its file are passed over."""
    paths, skips, _, firsts = shards

    def fetch(index):
        shard = tf.searchsorted(firsts, [index], side="right")[0] - 1
        before = skips[shard] + index - firsts[shard]
        return tf.data.TFRecordDataset(paths[shard]).skip(before).take(1).get_single_element()

    return lambda indices: parse(tf.map_fn(fetch, indices, fn_output_signature=tf.string))


def _record_streamer(shards, parse):
    """TFRecord files: shards in a seeded order, interleaved, through a seeded shuffle buffer.

    Returns:
      (seed, transform, share) → data set of (index, encoded, label). The transform is applied to
      the data set of (index, record), before anything is parsed. The share, (number, count), is
      that of one worker of several.
    """
    num_shards = len(shards[0])

    def open_shard(path, skip, take, first):
        records = tf.data.TFRecordDataset(path).skip(skip).take(take)
        return records.enumerate(first)

    def stream(seed, share):
        columns = shards
        if seed is not None:
            order = tf.argsort(tf.random.stateless_uniform([num_shards], seed))
            columns = tuple(tf.gather(column, order) for column in columns)
        if share != _EVERYTHING:
            columns = _share_of_shards(columns, *share)
        records = tf.data.Dataset.from_tensor_slices(columns).interleave(
            open_shard,
            cycle_length=min(num_shards, _SHARDS_READ_AT_ONCE),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if seed is not None:
            records = records.shuffle(
                _SHUFFLE_BUFFER,
                seed=tf.bitcast(seed, tf.int64),
                reshuffle_each_iteration=False,
            )
        return records

    def parse_one(index, record):
        encoded, label = parse(record[tf.newaxis])
        return index, encoded[0], label[0]

    def stream_parsed(seed, transform=lambda records: records, share=_EVERYTHING):
        # Skipping is left to the caller, before `parse`: it costs no decoding.
        return transform(stream(seed, share)).map(parse_one)

    return stream_parsed


def _share_of_shards(columns, number, count):
    """The columns of a share of the files, of which each of `count` has as many records.

    The records of all files in their order are cut into `count` equal parts; the rest, fewer than
    `count`, is left out. A share has whole files but for its first and last one, which it takes a
    part of: files differ in size, and no worker may run out before the others.
    """
    paths, skips, takes, firsts = columns
    ends = tf.cumsum(takes)
    size = ends[-1] // count
    starts = tf.maximum(ends - takes, number * size)
    sizes = tf.minimum(ends, (number + 1) * size) - starts
    passed_over = starts - (ends - takes)
    mine = sizes > 0
    columns = paths, skips + passed_over, sizes, firsts + passed_over
    return tuple(tf.boolean_mask(column, mine) for column in columns)
