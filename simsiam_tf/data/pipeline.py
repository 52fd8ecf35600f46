"""From a source to batches of views: order → read → decode → views → batch → prefetch.

Order and views are pure functions of (seed, epoch, index). So the state of the pipeline is the
step's number: a run that goes on from step n asks for step n, and whoever reads a share of the
global batch finds the same samples and views in it, however many share it.
"""

import itertools

import tensorflow as tf

from simsiam_tf.config import Purpose
from simsiam_tf.data import ops
from simsiam_tf.schema import UserError

_READ_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.DataLossError,
    tf.errors.UnknownError,
)


def training_batches(source, views, *, batch_size, seed, first_step, last_step, context=None):
    """The batches of steps first_step … last_step − 1, one replica's share at a time.

    Each epoch is a full permutation; its last, partial batch is dropped.

    Args:
      source: a `datasets.Source` of at least `batch_size` images.
      views: (image, seed) → a tuple of views.
      batch_size: global.
      seed: an int.
      first_step: number of the first step.
      last_step: number of the step after the last.
      context: a `tf.distribute.InputContext`; None: everything is this process's share.

    Returns:
      A `tf.data.Dataset` of {"views": a tuple of [b, size, size, 3] float32, "label": int32 [b],
      "index": int64 [b]}, b the replica's share; a step is as many elements as there are replicas
      here, in their order.
    """
    replicas = context.num_replicas_in_sync if context else 1
    num_shares = context.num_input_pipelines if context else 1
    share = context.input_pipeline_id if context else 0
    share_size = batch_size // num_shares
    positions = (share * share_size, (share + 1) * share_size)
    build = _read_in_order if source.read else _stream_in_order
    examples = build(source, batch_size, positions, seed, first_step, last_step)

    def to_views(epoch, index, encoded, label):
        image = ops.decode_image(encoded)
        views_seed = fold_in([seed, Purpose.VIEWS], epoch, index)
        return {"views": views(image, views_seed), "label": label, "index": index}

    batches = examples.map(to_views, num_parallel_calls=tf.data.AUTOTUNE)
    # What is left of an epoch was dropped as indices, before anything was read.
    batches = batches.batch(batch_size // replicas, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def step_order(num_examples, batch_size, seed, step):
    """The samples of a step's global batch: a step's number → indices int64 `[batch_size]`."""
    steps_per_epoch = num_examples // batch_size
    positions = step % steps_per_epoch * batch_size + tf.range(batch_size, dtype=tf.int64)
    return epoch_order(num_examples, seed, step // steps_per_epoch, positions)


def epoch_order(num_examples, seed, epoch, positions, purpose=Purpose.ORDER):
    """The samples at some positions of an epoch: int64 `[k]` → indices int64 `[k]`."""
    # The public index_shuffle keys on the low bits of the seed's words, one of them the epoch, and
    # would repeat after 256 epochs; its four rounds leave neighbours correlated.
    key = tf.random.stateless_uniform([3], fold_in([seed, purpose], epoch), None, None, tf.int32)
    return tf.raw_ops.RandomIndexShuffle(
        index=positions, seed=key, max_index=tf.constant(num_examples - 1, tf.int64), rounds=8
    )


def fold_in(seed, *words):
    """A seed int32 `[2]` that is a function of a seed `[2]` and of each further word."""
    seed = tf.convert_to_tensor([int(word) for word in seed], tf.int32)
    for word in words:
        seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(word, tf.int32))
    return seed


def _read_in_order(source, batch_size, positions, seed, first_step, last_step):
    """(epoch, index, encoded, label), each sample looked up."""
    first, last = positions

    def order(step):
        indices = step_order(source.num_examples, batch_size, seed, step)[first:last]
        epoch = step // (source.num_examples // batch_size)
        return tf.fill(tf.shape(indices), epoch), indices

    def read(epoch, indices):
        return (epoch, indices, *source.read(indices))

    steps = tf.data.Dataset.range(first_step, last_step).map(order)
    chunks = steps.unbatch().batch(source.read_at_once)
    return chunks.map(read, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def _stream_in_order(source, batch_size, positions, seed, first_step, last_step):
    """The same from a source that is only streamed; steps already done are skipped undecoded."""
    steps_per_epoch = source.num_examples // batch_size
    first_epoch, steps_done = divmod(first_step, steps_per_epoch)
    last_epoch = -(-last_step // steps_per_epoch)

    def one_epoch(epoch):
        done = tf.where(epoch == first_epoch, steps_done, 0)
        todo = tf.minimum(tf.cast(steps_per_epoch, tf.int64), last_step - epoch * steps_per_epoch)

        def shares(records):
            records = records.take(tf.cast(todo, tf.int64) * batch_size)
            records = records.skip(tf.cast(done, tf.int64) * batch_size).enumerate()
            mine = records.filter(
                lambda place, _: (
                    (place % batch_size >= positions[0]) & (place % batch_size < positions[1])
                )
            )
            return mine.map(lambda _, record: record)

        examples = source.stream(fold_in([seed, Purpose.ORDER], epoch), shares)
        return examples.map(lambda index, encoded, label: (epoch, index, encoded, label))

    return tf.data.Dataset.range(first_epoch, last_epoch).flat_map(one_epoch)


def evaluation_batches(source, view, batch_size, *, seed=0, limit=None):
    """Every image once, or a fixed random subset of `limit`, in a fixed order.

    Args:
      source: a `datasets.Source`.
      view: image → what the encoder takes.
      batch_size: of the result; the last one may be smaller.
      seed: of the subset.
      limit: how many images at most.

    Returns:
      A `tf.data.Dataset` of (images [b, size, size, 3] float32, labels int32 [b]).
    """
    count = min(limit or source.num_examples, source.num_examples)
    if source.read:
        order = (
            tf.data.Dataset.range(count)
            .batch(source.read_at_once)
            .map(lambda positions: evaluation_order(source, positions, seed=seed, limit=limit))
        )
        examples = order.map(source.read, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    else:
        subset_seed = fold_in([seed, Purpose.SUBSET]) if count < source.num_examples else None
        examples = source.stream(subset_seed, lambda records: records.take(count))
        examples = examples.map(lambda index, encoded, label: (encoded, label))
    batches = examples.map(
        lambda encoded, label: (view(ops.decode_image(encoded)), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return batches.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def evaluation_order(source, positions, *, seed=0, limit=None):
    """The samples at some positions of `evaluation_batches`: int64 `[k]` → indices `[k]`."""
    if not limit or limit >= source.num_examples:
        return positions
    return epoch_order(source.num_examples, seed, 0, positions, Purpose.SUBSET)


def iterate(batches, source, indices_of):
    """The batches one by one; an image that cannot be read is a `UserError` that names it.

    Args:
      batches: an iterable, of `training_batches` or `evaluation_batches`, distributed or not.
      source: the `datasets.Source` they come from.
      indices_of: position of a batch in `batches` → indices of the (global) batch.
    """
    iterator = iter(batches)
    for position in itertools.count():
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except _READ_ERRORS as error:
            raise _explain(error, source, indices_of(position)) from error
        yield batch


def _explain(error, source, indices):
    """The `UserError` for a failure of the pipeline: reads the batch's images again, one by one."""
    for index in indices.numpy() if source.read else ():
        try:
            ops.decode_image(source.read(tf.constant([index], tf.int64))[0][0])
        except _READ_ERRORS as cause:
            return UserError(
                f"An image cannot be read: {source.describe(index)} ({_reason(cause)}). "
                "Remove or replace it"
            )
    return UserError(f"An image of {source.name} cannot be read ({_reason(error)})")


def _reason(error):
    return error.message.split("}} ")[-1].split(" [Op:")[0].split("[[")[0].strip()
