"""Data sets by name. Other packages import the functions for data sets from here.

Image folders (`folders`), lists, tar and Parquet files, packed data sets and TFDS's ArrayRecord
files are read by random access, so that the n-th sample of an epoch is a lookup. TFDS's TFRecord
files (`tfrecords`) are streamed, because a lookup in them reads every earlier record of the file.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from simsiam_tf import storage
from simsiam_tf.data.folders import IMAGE_SUFFIXES, folder_splits, load_folder
from simsiam_tf.data.lists import load_list
from simsiam_tf.data.packed import load_packed
from simsiam_tf.data.source import ALL_FILES, Source, StreamImages, unchanged
from simsiam_tf.data.tar_shards import load_tar
from simsiam_tf.data.tfds_sets import load_tfds, prepared_builder
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

__all__ = [
    "IMAGE_SUFFIXES",
    "Source",
    "folder_splits",
    "in_memory",
    "is_own",
    "labels_of",
    "load",
    "prepared_builder",
    "subset",
    "with_indices",
]

MEMORY = "memory"  # name of the data set that a Python program passes in
_LABELS_AT_ONCE = 256


def _load_parquet(data_dir: str, split: str) -> Source:
    from simsiam_tf.data.parquet_files import load_parquet  # here, because only it needs pyarrow

    return load_parquet(data_dir, split)


# name of a data set → a function of (data_dir, split); every other name is TFDS's
_LOADERS: dict[str, Callable[[str, str], Source]] = {
    "folder": load_folder,
    "list": load_list,
    "tar": load_tar,
    "parquet": _load_parquet,
    "packed": load_packed,
}


def is_own(name: str) -> bool:
    """True if a data set is the user's own files or arrays, which may lack a split to evaluate on.

    Args:
      name: name of the data set.
    """
    return name in (*_LOADERS, MEMORY)


@contextlib.contextmanager
def in_memory(splits: Mapping[str, Source]) -> Iterator[None]:
    """A context in which the data set "memory" has these splits."""

    def load_split(_: str, split: str) -> Source:
        if split not in splits:
            raise UserError(f"dataset has the splits {', '.join(splits)}. Received: {split}")
        return splits[split]

    _LOADERS[MEMORY] = load_split
    try:
        yield
    finally:
        del _LOADERS[MEMORY]


def load(name: str, data_dir: str, split: str) -> Source:
    """Returns the `Source` of a split. TFDS downloads and prepares a data set that is not on disk.

    Args:
      name: "digits", "folder", "list", "tar", "parquet", "packed", "memory" (see `in_memory`), or
        a TFDS name with optional "/config".
      data_dir: the folder (also as a URL), list or shards of the images, or the folder where TFDS
        keeps its data sets. Empty: TFDS's own default.
      split: name of a split; for TFDS also a slice, "train[:90%]".

    Raises:
      UserError: the data set is unknown, is not available, or contains no image.
    """
    if storage.is_url(data_dir) and name in _LOADERS and name not in ("folder", MEMORY):
        raise UserError(
            "--data_dir may be a URL for --dataset=folder; rows of --dataset=list may be URLs too. "
            f"Received: --dataset={name} --data_dir={data_dir}"
        )
    if name in _LOADERS:
        return _LOADERS[name](data_dir, split)
    if name == MEMORY:
        raise UserError(
            "--dataset=memory is the data set of a Python program, which must be passed to "
            "simsiam_tf.pretrain again. Received: a program without it"
        )
    return load_tfds(prepared_builder(name, data_dir or None), split)


def labels_of(source: Source) -> np.ndarray:
    """Returns the label of every image, `[N]` int32. Records may be read, but no image is decoded.

    Args:
      source: a `Source` of N images.
    """
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


def with_indices(source: Source) -> Source:
    """Returns the source with [label, index] in place of each label.

    Args:
      source: a `Source`. The result's `read` gives labels `[k, 2]` int32, its `stream` `[2]` int32.
    """

    def read(indices):
        encoded, labels = source.read(indices)
        return encoded, _pairs(labels, indices)

    stream = _stream_with_indices(source.stream) if source.stream else None
    return dataclasses.replace(source, read=read, stream=stream)


def _stream_with_indices(stream_images: StreamImages) -> StreamImages:
    def stream(seed, transform=unchanged, share=ALL_FILES):
        return stream_images(seed, transform, share).map(
            lambda index, encoded, label: (index, encoded, _pairs(label, index))
        )

    return stream


def _pairs(labels: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    return tf.stack([labels, tf.cast(indices, tf.int32)], axis=-1)


def subset(source: Source, indices: np.ndarray) -> Source:
    """Returns the `Source` of some of a source's images.

    Args:
      source: a `Source`.
      indices: `[n]` int64, the images' indices in `source`. The image at `indices[i]` has the
        index i in the result.
    """
    index_tensor = tf.constant(indices, tf.int64)
    new_indices = np.full(source.num_examples, -1, np.int64)
    new_indices[indices] = np.arange(len(indices))
    new_index_tensor = tf.constant(new_indices)

    def fingerprint():
        text = f"{source.fingerprint()}\n{np.asarray(indices).tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    return dataclasses.replace(
        source,
        num_examples=len(indices),
        describe=lambda index: source.describe(int(indices[index])),
        read=lambda indices: source.read(tf.gather(index_tensor, indices)),
        fingerprint=fingerprint,
        stream=_stream_of_subset(source.stream, new_index_tensor) if source.stream else None,
        num_stream_files=1,  # equal shares of the files contain unequal numbers of these images
        labels=None if source.labels is None else source.labels[indices],
    )


def _stream_of_subset(stream_images: StreamImages, new_indices: tf.Tensor) -> StreamImages:
    """Returns the stream of a subset.

    Args:
      stream_images: the stream of the whole source of N images.
      new_indices: `[N]` int64, the index of each image in the subset; -1 for the other images.
    """

    def stream(seed, transform=unchanged, share=ALL_FILES):
        examples = stream_images(
            seed,
            lambda records: transform(records.filter(lambda index, _: new_indices[index] >= 0)),
            share,
        )
        return examples.map(lambda index, encoded, label: (new_indices[index], encoded, label))

    return stream
