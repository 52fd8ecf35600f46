"""From a source to batches of views: order → read → decode → views → batch → prefetch.

Order and views are pure functions of (seed, epoch, index), so the step number is the whole state of
the pipeline. A run that resumes after n steps asks for step n. A worker that reads a share of the
global batch finds the same samples and views in it, for any number of workers. A substitute for an
image that cannot be read is a pure function too. Only the order of a stream whose files are shared
by workers depends on more: it is a function of (seed, epoch, number of workers). The views are not.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from simsiam_tf.config import DataConfig, Purpose
from simsiam_tf.data.decoding import decode_image
from simsiam_tf.data.order import (
    evaluation_order,
    fold_in,
    in_order,
    step_order,
    stream_in_order,
)
from simsiam_tf.data.quarantine import READ_ERRORS, Quarantine, explain
from simsiam_tf.data.source import Source
from simsiam_tf.data.substitutes import Batch, build_fill, empty_batch
from simsiam_tf.data.views import MakeViews

NUM_FIRST_VIEWS = 8  # images whose views are shown to the user
_BATCHES_AT_ONCE = 2  # a batch begins while the last images of the previous one are processed
_BATCHES_READY = 2  # a fixed number, so that memory is bounded by the batch

# Nothing here needs AutoGraph, whose conversion takes seconds at the start of every program. Views
# and sources are traced without it as well: a condition on a tensor is `tf.cond`, not `if`.
_without_autograph = tf.autograph.experimental.do_not_convert


@_without_autograph
def training_batches(
    source: Source,
    views: MakeViews,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    context: tf.distribute.InputContext | None = None,
    max_pixels: int = DataConfig.max_image_pixels,
    quarantine: Quarantine | None = None,
) -> tf.data.Dataset:
    """Returns the batches of steps first_step … last_step − 1, one replica's share at a time.

    Each epoch is a full permutation, whose last, partial batch is dropped. Where workers share the
    files of a stream, the samples that an epoch drops are the remainders of all workers.

    Args:
      source: a `Source` of at least `batch_size` images.
      views: (image, seed) → {"views": a tuple of views}, and further entries for the batch.
      batch_size: global batch size.
      seed: of the run.
      first_step: number of the first step.
      last_step: number of the step after the last.
      context: which share of the batch this worker reads; None: all of it.
      max_pixels: largest number of pixels of an image; a larger image counts as unreadable.
      quarantine: notes the images that cannot be read; other images are substituted. None: such an
        image is an error of the iterator.

    Returns:
      A data set of {"views": a tuple of `[b, size, size, 3]`, "label": int32 `[b]`, "index": int64
      `[b]`} and the further entries of `views`; b is the share of one replica. A step has as many
      elements as this worker has replicas, in their order.
    """
    replicas = context.num_replicas_in_sync if context else 1
    num_shares = context.num_input_pipelines if context else 1
    share = context.input_pipeline_id if context else 0
    share_size = batch_size // num_shares
    offsets = (share * share_size, (share + 1) * share_size)
    arguments = (source, batch_size, offsets, seed, first_step, last_step)
    examples = stream_in_order(source.stream, *arguments) if source.stream else in_order(*arguments)
    # The remainder of an epoch was dropped as indices, before anything was read.
    size = batch_size // replicas
    examples = examples.batch(size, drop_remainder=True)

    def to_example(epoch, index, encoded, label):
        views_seed = fold_in([seed, Purpose.VIEWS], epoch, index)
        image = decode_image(encoded, max_pixels, source.pixels)
        return {**views(image, views_seed), "label": label, "index": index}

    def make_batch(epochs, indices, *streamed):
        examples = _read(source, epochs, indices, *streamed)
        examples = examples.map(to_example, num_parallel_calls=tf.data.AUTOTUNE)
        if quarantine is None:
            return examples.batch(size, drop_remainder=True)
        # An iterator that ignores errors takes time to set up. Setting up one per batch costs less
        # than one per image.
        examples = examples.ignore_errors()
        nothing = empty_batch(examples)
        batch = examples.batch(size).concatenate(tf.data.Dataset.from_tensors(nothing)).take(1)
        return batch.map(lambda batch: (epochs, indices, batch))

    batches = examples.interleave(
        make_batch,
        cycle_length=_BATCHES_AT_ONCE,
        num_parallel_calls=_BATCHES_AT_ONCE,
        deterministic=True,
    )
    if quarantine is not None:
        fill = build_fill(source, to_example, seed, quarantine)

        def complete(epochs, indices, batch):
            is_complete = tf.equal(tf.size(batch["index"]), size)
            batch = tf.cond(is_complete, lambda: batch, lambda: fill(epochs, indices, batch))
            return tf.nest.map_structure(
                lambda column: tf.ensure_shape(column, [size, *column.shape[1:]]), batch
            )

        batches = batches.map(complete, num_parallel_calls=_BATCHES_AT_ONCE)
    return batches.prefetch(_BATCHES_READY)


def _read(source, epochs, indices, *streamed):
    """Returns the samples of a batch, a data set of (epoch, index, encoded, label)."""
    if streamed:
        return tf.data.Dataset.from_tensor_slices((epochs, indices, *streamed))
    chunks = tf.data.Dataset.from_tensor_slices((epochs, indices)).batch(source.read_at_once)
    return chunks.map(
        lambda epochs, indices: (epochs, indices, *source.read(indices)),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).unbatch()


@_without_autograph
def evaluation_batches(
    source: Source,
    view: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    *,
    seed: int = 0,
    limit: int | None = None,
    max_pixels: int = DataConfig.max_image_pixels,
    skip_bad: bool = False,
) -> tf.data.Dataset:
    """Returns batches of every image once, or of a fixed random subset, in a fixed order.

    Args:
      source: a `Source`.
      view: image `[H, W, 3]` uint8 → the input of the encoder.
      batch_size: number of images in a batch; the last batch may be smaller.
      seed: of the subset.
      limit: size of the subset; None or 0: every image.
      max_pixels: largest number of pixels of an image; a larger image counts as unreadable.
      skip_bad: True leaves out an image that cannot be read; False makes it an error of the
        iterator.

    Returns:
      A data set of (images `[b, size, size, 3]` float32, labels `[b]` int32).
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
            .map(lambda offsets: evaluation_order(source, offsets, seed=seed, limit=limit))
        )
        examples = order.map(source.read, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    examples = examples.map(
        lambda encoded, label: (view(decode_image(encoded, max_pixels, source.pixels)), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    if skip_bad:
        examples = examples.ignore_errors()
    return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def first_steps(
    views: MakeViews,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    quarantine: Quarantine,
    strategy: tf.distribute.Strategy | None = None,
) -> Iterator[Batch]:
    """Yields the batches of the first steps over a source, with the errors of `iterate`.

    Args:
      views: as `training_batches` takes it.
      batch_size: global batch size.
      seed: of the run.
      num_steps: number of steps.
      quarantine: of the source; it determines the effect of an image that cannot be read.
      strategy: the strategy whose replicas share each batch; None: a batch is not shared.
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


def first_views(make_views: MakeViews, seed: int, quarantine: Quarantine) -> Batch:
    """Returns the views of a run's first few images, as the first step of the run sees them.

    Args:
      make_views: of `views.build_views`.
      seed: of the run.
      quarantine: of the images.

    Returns:
      A batch of `training_batches` with `NUM_FIRST_VIEWS` images, or with all if there are fewer.
    """
    few = min(NUM_FIRST_VIEWS, quarantine.source.num_examples)
    (batch,) = first_steps(
        make_views, batch_size=few, seed=seed, num_steps=1, quarantine=quarantine
    )
    return batch


def iterate(
    batches: Iterable,
    source: Source,
    indices_of: Callable[[int], tf.Tensor],
    *,
    max_pixels: int = DataConfig.max_image_pixels,
    quarantine: Quarantine | None = None,
) -> Iterator:
    """Yields the batches; an image that cannot be read is a `UserError` that names it.

    Args:
      batches: of `training_batches` or `evaluation_batches`, distributed or not.
      source: the `Source` of the batches.
      indices_of: number of a batch in `batches`, from 0 → indices of the (global) batch.
      max_pixels: as the batches were made with.
      quarantine: as the batches were made with.

    Raises:
      UserError: an image cannot be read.
    """
    iterator = iter(batches)
    for number in itertools.count():
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except READ_ERRORS as error:
            indices = indices_of(number)
            if quarantine is not None:
                raise quarantine.explain(error, indices) from error
            raise explain(error, source, indices, max_pixels) from error
        if quarantine is not None:
            quarantine.check()
        yield batch
