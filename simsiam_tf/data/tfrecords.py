"""TFRecord files, which have no fast random access: shuffled streams that workers can share."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simsiam_tf.data.source import ALL_FILES, ReadImages, StreamImages, unchanged

SHUFFLE_BUFFER = 10_000  # records
_SHARDS_READ_AT_ONCE = 16

# Records `[k]` string → (encoded images `[k]` string, labels `[k]` int32).
Parse = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
# The part of each file that belongs to a split, one column each: path (string), number of records
# to skip, number of records to take, and index of the first record in the split (int64).
Shards = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


def shards_of(instructions: Sequence[tfds.core.utils.shard_utils.FileInstruction]) -> Shards:
    """Returns the part of each TFRecord file that belongs to a split.

    Args:
      instructions: `file_instructions` of TFDS's split.
    """
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


def reader(shards: Shards, parse: Parse) -> ReadImages:
    """Returns a function that reads records by index; each lookup skips all earlier records.

    Args:
      shards: of `shards_of`.
      parse: records → (encoded images, labels).
    """
    paths, skips, _, firsts = shards

    def fetch(index):
        shard = tf.searchsorted(firsts, [index], side="right")[0] - 1
        before = skips[shard] + index - firsts[shard]
        return tf.data.TFRecordDataset(paths[shard]).skip(before).take(1).get_single_element()

    return lambda indices: parse(tf.map_fn(fetch, indices, fn_output_signature=tf.string))


def streamer(shards: Shards, parse: Parse) -> StreamImages:
    """Returns a function that streams the records in a seeded order.

    The files are interleaved in a seeded order, and the records pass a seeded shuffle buffer.

    Args:
      shards: of `shards_of`.
      parse: records → (encoded images, labels).
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
        if share != ALL_FILES:
            columns = _share_of_shards(columns, *share)
        records = tf.data.Dataset.from_tensor_slices(columns).interleave(
            open_shard,
            cycle_length=min(num_shards, _SHARDS_READ_AT_ONCE),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if seed is not None:
            records = records.shuffle(
                SHUFFLE_BUFFER,
                seed=tf.bitcast(seed, tf.int64),
                reshuffle_each_iteration=False,
            )
        return records

    def parse_one(index, record):
        encoded, label = parse(record[tf.newaxis])
        return index, encoded[0], label[0]

    def stream_parsed(seed, transform=unchanged, share=ALL_FILES):
        # `transform` comes before `parse`, so that a skipped record costs no parsing.
        return transform(stream(seed, share)).map(parse_one)

    return stream_parsed


def _share_of_shards(columns: Shards, number: int, count: int) -> Shards:
    """Returns the part of the files that one of `count` workers reads.

    Files differ in size, but no worker may run out of records before the others. So the records of
    all files, in the order of the files, are cut into `count` equal parts. The remainder, fewer
    than `count` records, is dropped. A share consists of whole files, except for its first and its
    last one.
    """
    paths, skips, takes, firsts = columns
    ends = tf.cumsum(takes)
    size = ends[-1] // count
    starts = tf.maximum(ends - takes, number * size)
    sizes = tf.minimum(ends, (number + 1) * size) - starts
    num_skipped = starts - (ends - takes)
    is_read = sizes > 0
    columns = paths, skips + num_skipped, sizes, firsts + num_skipped
    return tuple(tf.boolean_mask(column, is_read) for column in columns)
