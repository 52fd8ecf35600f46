"""Encoding of images on all replicas of this process."""

from collections.abc import Callable

import tensorflow as tf

from simsiam_tf.distribution import devices


def on_all_replicas(
    strategy: tf.distribute.Strategy,
    encode: Callable[[tf.Tensor], tf.Tensor],
    piece_size: int,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns `encode` for batches of any size, split into pieces and over the local replicas.

    Each piece is split evenly over the replicas. The last piece is padded with zeros, and the
    features of the padding are dropped. No collective is used, so one worker of several may encode
    alone.

    Args:
      strategy: the strategy in whose scope the encoder was built or loaded.
      encode: images `[b, H, W, 3]` float32 in [0, 255] → features `[b, F]` float, in inference
        mode, so that the features of an image do not depend on the rest of the batch.
      piece_size: number of images that are encoded at once, over all replicas.

    Returns:
      A function: images `[B, H, W, 3]` uint8 or float32 in [0, 255], B ≥ 1 → features `[B, F]`.
    """
    encode_piece = _encode_on_one_device(encode)
    with strategy.scope():
        if tf.distribute.has_strategy():
            encode_piece = _encode_on_replicas(strategy, encode)

    def encode_all(images: tf.Tensor) -> tf.Tensor:
        found = []
        for start in range(0, len(images), piece_size):
            with tf.device("CPU:0"):  # otherwise each slice copies the whole batch to the GPU
                piece = images[start : start + piece_size]
            found.append(encode_piece(piece))
        return found[0] if len(found) == 1 else tf.concat(found, axis=0)

    return encode_all


def _encode_on_one_device(
    encode: Callable[[tf.Tensor], tf.Tensor],
) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda images: encode(tf.cast(images, tf.float32))


def _encode_on_replicas(
    strategy: tf.distribute.Strategy, encode: Callable[[tf.Tensor], tf.Tensor]
) -> Callable[[tf.Tensor], tf.Tensor]:
    num_replicas = devices.num_local_replicas(strategy)

    @tf.function(reduce_retracing=True, autograph=False)
    def encode_parts(parts):
        found = strategy.run(_encode_on_one_device(encode), args=(parts,))
        return strategy.experimental_local_results(found)

    def encode_piece(images: tf.Tensor) -> tf.Tensor:
        count = len(images)
        with tf.device("CPU:0"):
            padding = tf.zeros([-count % num_replicas, *images.shape[1:]], images.dtype)
            parts = iter(tf.split(tf.concat([images, padding], axis=0), num_replicas))
        parts = strategy.experimental_distribute_values_from_function(lambda _: next(parts))
        return tf.concat(encode_parts(parts), axis=0)[:count]

    return encode_piece
