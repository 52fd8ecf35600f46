"""From a source to batches of views: order → read → decode → views → batch → prefetch.

Order and views are pure functions of (seed, epoch, index). So the state of the pipeline is the
step's number: a run that goes on from step n asks for step n, and whoever reads a share of the
global batch finds the same samples and views in it, however many share it. Where an image cannot be
read, so is the one that takes its place. The order of a stream that workers share by its files is a
function of (seed, epoch, number of workers) instead; the views are not.
"""

import itertools

import tensorflow as tf

from simsiam_tf.config import DataConfig, Purpose
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.quarantine import READ_ERRORS, explain

_MAX_SUBSTITUTES = 31  # all of which may be bad too
NUM_FIRST_VIEWS = 8  # images whose views people look at
_BATCHES_AT_ONCE = 2  # the next begins while the last images of one are at work
_BATCHES_READY = 2  # a fixed number, so that memory is bounded by the batch


def training_batches(
    source,
    views,
    *,
    batch_size,
    seed,
    first_step,
    last_step,
    context=None,
    max_pixels=DataConfig.max_image_pixels,
    quarantine=None,
):
    """The batches of steps first_step … last_step − 1, one replica's share at a time.

    Each epoch is a full permutation; its last, partial batch is dropped. Where workers share the
    files of a stream, the samples that an epoch drops are those that are left over on each of them.

    Args:
      source: a `datasets.Source` of at least `batch_size` images.
      views: (image, seed) → {"views": a tuple of views}, and what else goes with them.
      batch_size: global.
      seed: an int.
      first_step: number of the first step.
      last_step: number of the step after the last.
      context: a `tf.distribute.InputContext`; None: everything is this process's share.
      max_pixels: of an image; a larger one counts as one that cannot be read.
      quarantine: a `Quarantine`, which notes the images that cannot be read; others take their
        place. None: such an image is an error of the iterator.

    Returns:
      A `tf.data.Dataset` of {"views": a tuple of [b, size, size, 3], "label": int32 [b],
      "index": int64 [b]} and what else `views` gives, b the replica's share; a step is as many
      elements as there are replicas here, in their order.
    """
    replicas = context.num_replicas_in_sync if context else 1
    num_shares = context.num_input_pipelines if context else 1
    share = context.input_pipeline_id if context else 0
    share_size = batch_size // num_shares
    positions = (share * share_size, (share + 1) * share_size)
    order = _stream_in_order if source.stream else _in_order
    examples = order(source, batch_size, positions, seed, first_step, last_step)
    # What is left of an epoch was dropped as indices, before anything was read.
    size = batch_size // replicas
    examples = examples.batch(size, drop_remainder=True)

    def to_example(epoch, index, encoded, label):
        views_seed = fold_in([seed, Purpose.VIEWS], epoch, index)
        image = decode_image(encoded, max_pixels)
        return {**views(image, views_seed), "label": label, "index": index}

    def make_batch(epochs, indices, *streamed):
        examples = _read(source, epochs, indices, *streamed)
        examples = examples.map(to_example, num_parallel_calls=tf.data.AUTOTUNE)
        if quarantine is None:
            return examples.batch(size, drop_remainder=True)
        # An iterator that ignores errors costs its setup: one for a batch, not one for an image.
        examples = examples.ignore_errors()
        nothing = tf.nest.map_structure(_no_rows, examples.element_spec)
        batch = examples.batch(size).concatenate(tf.data.Dataset.from_tensors(nothing)).take(1)
        return batch.map(lambda batch: (epochs, indices, batch))

    def complete(epochs, indices, batch):
        fill = _filler(source, to_example, seed, quarantine)
        is_complete = tf.equal(tf.size(batch["index"]), size)
        batch = tf.cond(is_complete, lambda: batch, lambda: fill(epochs, indices, batch))
        return tf.nest.map_structure(
            lambda rows: tf.ensure_shape(rows, [size, *rows.shape[1:]]), batch
        )

    batches = examples.interleave(
        make_batch,
        cycle_length=_BATCHES_AT_ONCE,
        num_parallel_calls=_BATCHES_AT_ONCE,
        deterministic=True,
    )
    if quarantine is not None:
        batches = batches.map(complete, num_parallel_calls=_BATCHES_AT_ONCE)
    return batches.prefetch(_BATCHES_READY)


def _read(source, epochs, indices, *streamed):
    """The samples of a batch, a data set of (epoch, index, encoded, label)."""
    if streamed:
        return tf.data.Dataset.from_tensor_slices((epochs, indices, *streamed))
    chunks = tf.data.Dataset.from_tensor_slices((epochs, indices)).batch(source.read_at_once)
    return chunks.map(
        lambda epochs, indices: (epochs, indices, *source.read(indices)),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).unbatch()


def _no_rows(spec):
    return tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype)


def _filler(source, to_example, seed, quarantine):
    """What puts substitutes where a batch lacks samples: (epochs, indices, batch) → the batch."""

    def substitute(epoch, index):
        """The first that can be read of the images drawn for a sample of an epoch."""
        drawn = tf.random.stateless_uniform(
            [_MAX_SUBSTITUTES],
            fold_in([seed, Purpose.SUBSTITUTE], epoch, index),
            maxval=source.num_examples,
            dtype=tf.int64,
        )

        def candidate(place, index):
            encoded, label = source.read(index[tf.newaxis])
            return place, to_example(epoch, index, encoded[0], label[0])

        candidates = tf.data.Dataset.from_tensor_slices(drawn).enumerate().map(candidate)
        place, example = candidates.ignore_errors().take(1).get_single_element()
        tried = tf.concat([[index], drawn[: place + 1]], axis=0)
        # Stateless, else `enable_op_determinism` would run the pipeline one by one; it is not
        # pruned, as the batch needs what it returns.
        read = tf.numpy_function(quarantine.note, [tried], tf.int64, stateful=False)
        return example | {"index": tf.ensure_shape(read, [])}

    def fill(epochs, indices, batch):
        def row(epoch, index):
            places = tf.where(batch["index"] == index)[:, 0]  # one or none: a batch is of an epoch
            return tf.cond(
                tf.size(places) > 0,
                lambda: tf.nest.map_structure(lambda rows: rows[places[0]], batch),
                lambda: substitute(epoch, index),
            )

        rows = tf.data.Dataset.from_tensor_slices((epochs, indices))
        rows = rows.map(row, num_parallel_calls=tf.data.AUTOTUNE)
        return rows.batch(tf.size(indices, tf.int64)).get_single_element()

    return fill


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


def _in_order(source, batch_size, positions, seed, first_step, last_step):
    """(epoch, index), sample by sample."""
    first, last = positions

    def order(step):
        indices = step_order(source.num_examples, batch_size, seed, step)[first:last]
        epoch = step // (source.num_examples // batch_size)
        return tf.fill(tf.shape(indices), epoch), indices

    return tf.data.Dataset.range(first_step, last_step).map(order).unbatch()


def _stream_in_order(source, batch_size, positions, seed, first_step, last_step):
    """(epoch, index, encoded, label) from a stream; steps already done are skipped undecoded.

    Workers share the files, if each can have one: then each reads a part of the records, and its
    part of the batch is all of what it reads. Else each reads everything and keeps its positions.
    """
    steps_per_epoch = source.num_examples // batch_size
    share_size = positions[1] - positions[0]
    num_shares = batch_size // share_size
    options = {}
    if 1 < num_shares <= source.num_stream_files:
        options["share"] = (positions[0] // share_size, num_shares)
        batch_size, positions = share_size, (0, share_size)
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

        examples = source.stream(fold_in([seed, Purpose.ORDER], epoch), shares, **options)
        return examples.map(lambda index, encoded, label: (epoch, index, encoded, label))

    return tf.data.Dataset.range(first_epoch, last_epoch).flat_map(one_epoch)


def evaluation_batches(
    source,
    view,
    batch_size,
    *,
    seed=0,
    limit=None,
    max_pixels=DataConfig.max_image_pixels,
    skip_bad=False,
):
    """Every image once, or a fixed random subset of `limit`, in a fixed order.

    Args:
      source: a `datasets.Source`.
      view: image → what the encoder takes.
      batch_size: of the result; the last one may be smaller.
      seed: of the subset.
      limit: how many images at most.
      max_pixels: of an image; a larger one counts as one that cannot be read.
      skip_bad: whether an image that cannot be read is left out, or an error of the iterator.

    Returns:
      A `tf.data.Dataset` of (images [b, size, size, 3] float32, labels int32 [b]).
    """
    count = min(limit or source.num_examples, source.num_examples)
    if source.stream:
        subset_seed = fold_in([seed, Purpose.SUBSET]) if count < source.num_examples else None
        examples = source.stream(subset_seed, lambda records: records.take(count))
        examples = examples.map(lambda index, encoded, label: (encoded, label))
    else:
        order = (
            tf.data.Dataset.range(count)
            .batch(source.read_at_once)
            .map(lambda positions: evaluation_order(source, positions, seed=seed, limit=limit))
        )
        examples = order.map(source.read, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    examples = examples.map(
        lambda encoded, label: (view(decode_image(encoded, max_pixels)), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    if skip_bad:
        examples = examples.ignore_errors()
    return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def evaluation_order(source, positions, *, seed=0, limit=None):
    """The samples at some positions of `evaluation_batches`: int64 `[k]` → indices `[k]`."""
    if not limit or limit >= source.num_examples:
        return positions
    return epoch_order(source.num_examples, seed, 0, positions, Purpose.SUBSET)


def first_steps(views, *, batch_size, seed, num_steps, quarantine, strategy=None):
    """The batches of the first steps over a source, one by one, with the errors of `iterate`.

    Args:
      views: as for `training_batches`, like `batch_size` and `seed`.
      num_steps: how many.
      quarantine: the source's `Quarantine`, which says what an image that cannot be read does.
      strategy: the `tf.distribute.Strategy` whose replicas share each batch; None: nobody does.
    """
    source = quarantine.source

    def batches_of(context=None):
        return training_batches(
            source,
            views,
            batch_size=batch_size,
            seed=seed,
            first_step=0,
            last_step=num_steps,
            context=context,
            max_pixels=quarantine.data.max_image_pixels,
            quarantine=quarantine,
        )

    return iterate(
        strategy.distribute_datasets_from_function(batches_of) if strategy else batches_of(),
        source,
        lambda step: step_order(source.num_examples, batch_size, seed, step),
        quarantine=quarantine,
    )


def first_views(make_views, seed, quarantine):
    """The views of the first few images of a run, as its first step sees them.

    Args:
      make_views: of `views.build_views`.
      seed: of the run.
      quarantine: of the images; a `Quarantine`.

    Returns:
      A batch as `training_batches` gives it, of `NUM_FIRST_VIEWS` images or of all there are.
    """
    few = min(NUM_FIRST_VIEWS, quarantine.source.num_examples)
    (batch,) = first_steps(
        make_views, batch_size=few, seed=seed, num_steps=1, quarantine=quarantine
    )
    return batch


def iterate(
    batches,
    source,
    indices_of,
    *,
    max_pixels=DataConfig.max_image_pixels,
    quarantine=None,
):
    """The batches one by one; a failure to read them is a `UserError` that names an image.

    Args:
      batches: an iterable, of `training_batches` or `evaluation_batches`, distributed or not.
      source: the `datasets.Source` they come from.
      indices_of: position of a batch in `batches` → indices of the (global) batch.
      max_pixels: as the batches were made with.
      quarantine: as the batches were made with.
    """
    iterator = iter(batches)
    for position in itertools.count():
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except READ_ERRORS as error:
            indices = indices_of(position)
            if quarantine is not None:
                raise quarantine.explain(error, indices) from error
            raise explain(error, source, indices, max_pixels) from error
        if quarantine is not None:
            quarantine.check()
        yield batch
