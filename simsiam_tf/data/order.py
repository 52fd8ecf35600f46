"""The order of the samples: pure functions of (seed, epoch, offset in the epoch).

The order of a stream whose files are shared by workers also depends on the number of workers.
"""

from collections.abc import Sequence

import tensorflow as tf

from simsiam_tf.config import Purpose
from simsiam_tf.data.source import Source, StreamImages


def step_order(num_examples: int, batch_size: int, seed: int, step: int | tf.Tensor) -> tf.Tensor:
    """Returns the indices of the samples in a step's global batch, `[batch_size]` int64.

    Args:
      num_examples: number of images of the source.
      batch_size: global batch size.
      seed: of the run.
      step: number of the step, from 0.
    """
    steps_per_epoch = num_examples // batch_size
    offsets = step % steps_per_epoch * batch_size + tf.range(batch_size, dtype=tf.int64)
    return epoch_order(num_examples, seed, step // steps_per_epoch, offsets)


def epoch_order(
    num_examples: int,
    seed: int,
    epoch: int | tf.Tensor,
    offsets: tf.Tensor,
    purpose: Purpose = Purpose.ORDER,
) -> tf.Tensor:
    """Returns the indices of the samples at some offsets of an epoch's permutation, `[k]` int64.

    Args:
      num_examples: length of the permutation.
      seed: of the run.
      epoch: number of the epoch, from 0.
      offsets: `[k]` int64, each below `num_examples`.
      purpose: the use of the permutation; no two purposes share draws.
    """
    # The public index_shuffle uses only the low bits of the seed's words, one of which is the
    # epoch, so its orders would repeat after 256 epochs. Its four rounds leave neighbours
    # correlated.
    key = tf.random.stateless_uniform([3], fold_in([seed, purpose], epoch), None, None, tf.int32)
    return tf.raw_ops.RandomIndexShuffle(
        index=offsets, seed=key, max_index=tf.constant(num_examples - 1, tf.int64), rounds=8
    )


def evaluation_order(
    source: Source, offsets: tf.Tensor, *, seed: int = 0, limit: int | None = None
) -> tf.Tensor:
    """Returns the indices of the samples at some offsets of `evaluation_batches`, `[k]`.

    Args:
      source: a `Source`. A stream has an order of its own.
      offsets: `[k]` int64.
      seed: of the subset.
      limit: size of the subset; None or 0: every image, in the order of the indices.
    """
    if not limit or limit >= source.num_examples:
        return offsets
    return epoch_order(source.num_examples, seed, 0, offsets, Purpose.SUBSET)


def in_order(
    source: Source,
    batch_size: int,
    offsets: tuple[int, int],
    seed: int,
    first_step: int,
    last_step: int,
) -> tf.data.Dataset:
    """Returns a data set of (epoch, index), sample by sample.

    Args:
      source: the `Source`.
      batch_size: global batch size.
      offsets: first batch offset that this worker reads, and the offset after the last.
      seed: of the run.
      first_step: number of the first step.
      last_step: number of the step after the last.
    """
    first, last = offsets

    def order(step):
        indices = step_order(source.num_examples, batch_size, seed, step)[first:last]
        epoch = step // (source.num_examples // batch_size)
        return tf.fill(tf.shape(indices), epoch), indices

    return tf.data.Dataset.range(first_step, last_step).map(order).unbatch()


def stream_in_order(
    stream: StreamImages,
    source: Source,
    batch_size: int,
    offsets: tuple[int, int],
    seed: int,
    first_step: int,
    last_step: int,
) -> tf.data.Dataset:
    """Returns a data set of (epoch, index, encoded, label) from a stream, sample by sample.

    Steps that are already done are skipped without decoding. Workers share the files if there is at
    least one for each: a worker then reads a part of the records, and all that it reads is its part
    of the batch. Otherwise every worker reads all records and keeps those at its batch offsets.

    Args:
      stream: of the source. The other arguments are those of `in_order`.
    """
    steps_per_epoch = source.num_examples // batch_size
    share_size = offsets[1] - offsets[0]
    num_shares = batch_size // share_size
    options = {}
    if 1 < num_shares <= source.num_stream_files:
        options["share"] = (offsets[0] // share_size, num_shares)
        batch_size, offsets = share_size, (0, share_size)
    first_epoch, steps_done = divmod(first_step, steps_per_epoch)
    last_epoch = -(-last_step // steps_per_epoch)

    def one_epoch(epoch):
        # TensorFlow mixes the process's random seed (keras.utils.set_random_seed) into the seed of
        # every shuffle. This call clears it in the graph of this function only.
        tf.compat.v1.set_random_seed(None)
        done = tf.where(epoch == first_epoch, steps_done, 0)
        todo = tf.minimum(tf.cast(steps_per_epoch, tf.int64), last_step - epoch * steps_per_epoch)

        def shares(records):
            records = records.take(tf.cast(todo, tf.int64) * batch_size)
            records = records.skip(tf.cast(done, tf.int64) * batch_size).enumerate()
            mine = records.filter(
                lambda number, _: (
                    (number % batch_size >= offsets[0]) & (number % batch_size < offsets[1])
                )
            )
            return mine.map(lambda _, record: record)

        examples = stream(fold_in([seed, Purpose.ORDER], epoch), shares, **options)
        return examples.map(lambda index, encoded, label: (epoch, index, encoded, label))

    return tf.data.Dataset.range(first_epoch, last_epoch).flat_map(one_epoch)


def fold_in(seed: Sequence[int], *words: int | tf.Tensor) -> tf.Tensor:
    """Returns a seed, `[2]` int32, that is a function of a seed and of each further word.

    Args:
      seed: two integers.
      *words: scalar integers.
    """
    folded = tf.convert_to_tensor([int(word) for word in seed], tf.int32)
    for word in words:
        folded = tf.random.experimental.stateless_fold_in(folded, tf.cast(word, tf.int32))
    return folded
