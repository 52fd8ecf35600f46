"""Readable images in place of those that cannot be read, drawn by (seed, epoch, index)."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from simsiam_tf.config import Purpose
from simsiam_tf.data.order import fold_in
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.data.source import Source

_MAX_SUBSTITUTES = 31  # tries for each sample, because a substitute may be unreadable too

Batch = dict[str, Any]
# (epoch, index, encoded image, label), all scalar → the example of a batch.
ToExample = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], Batch]


def empty_batch(examples: tf.data.Dataset) -> Batch:
    """Returns a batch of no examples, with the structure of a data set's elements."""

    def no_examples(spec):
        return tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype)

    return tf.nest.map_structure(no_examples, examples.element_spec)


def build_fill(
    source: Source, to_example: ToExample, seed: int, quarantine: Quarantine
) -> Callable[[tf.Tensor, tf.Tensor, Batch], Batch]:
    """Returns a function that completes a batch from which unreadable samples are missing.

    Args:
      source: the `Source` that the substitutes come from.
      to_example: makes the example of a sample.
      seed: of the run.
      quarantine: notes the samples that cannot be read.

    Returns:
      A function (epochs `[b]` int64, indices `[b]` int64, batch) → batch of b examples. The
      substitutes are at the batch offsets of the missing samples.
    """

    def substitute(epoch, index):
        """Returns the example of the first readable image among those drawn for a sample."""
        drawn = tf.random.stateless_uniform(
            [_MAX_SUBSTITUTES],
            fold_in([seed, Purpose.SUBSTITUTE], epoch, index),
            maxval=source.num_examples,
            dtype=tf.int64,
        )

        def candidate(number, index):
            encoded, label = source.read(index[tf.newaxis])
            return number, to_example(epoch, index, encoded[0], label[0])

        candidates = tf.data.Dataset.from_tensor_slices(drawn).enumerate().map(candidate)
        number, example = candidates.ignore_errors().take(1).get_single_element()
        tried = tf.concat([[index], drawn[: number + 1]], axis=0)
        # A stateful function would make `enable_op_determinism` run the pipeline sequentially. The
        # stateless one is not pruned, because the batch needs its result.
        read = tf.numpy_function(quarantine.note, [tried], tf.int64, stateful=False)
        return example | {"index": tf.ensure_shape(read, [])}

    def fill(epochs, indices, batch):
        def example_of(epoch, index):
            # One or none: a batch is within one epoch, which has each index once.
            offsets = tf.where(batch["index"] == index)[:, 0]
            return tf.cond(
                tf.size(offsets) > 0,
                lambda: tf.nest.map_structure(lambda column: column[offsets[0]], batch),
                lambda: substitute(epoch, index),
            )

        examples = tf.data.Dataset.from_tensor_slices((epochs, indices))
        examples = examples.map(example_of, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(tf.size(indices, tf.int64)).get_single_element()

    return fill
