"""An encoder on all replicas of this process."""

import tensorflow as tf

from simsiam_tf.distribution import devices


def on_all_replicas(strategy, encode, piece_size):
    """Returns `encode` for batches of any size, split into pieces and over the local replicas.

    A piece is split evenly over the replicas; the last one is padded with zeros, whose features are
    cut off. There is no collective, so one worker of several may encode alone.

    Args:
      strategy: the `tf.distribute.Strategy` in whose scope the encoder was built or loaded.
      encode: images `[b, H, W, 3]` float32 in [0, 255] → features `[b, F]` float, in inference
        mode, so that the features of an image do not depend on the others.
      piece_size: images that are encoded at once, over all replicas; an int.

    Returns:
      A function: images `[B, H, W, 3]` uint8 or float32 in [0, 255], B ≥ 1 → features `[B, F]`.
    """
    encode_piece = _encode_on_one_device(encode)
    with strategy.scope():
        if tf.distribute.has_strategy():
            encode_piece = _encode_on_replicas(strategy, encode)

    def encode_all(images):
        found = []
        for start in range(0, len(images), piece_size):
            with tf.device("CPU:0"):  # else a GPU is sent the whole batch to cut each piece from
                piece = images[start : start + piece_size]
            found.append(encode_piece(piece))
        return found[0] if len(found) == 1 else tf.concat(found, axis=0)

    return encode_all


def _encode_on_one_device(encode):
    return lambda images: encode(tf.cast(images, tf.float32))


def _encode_on_replicas(strategy, encode):
    num_replicas = devices.num_local_replicas(strategy)

    @tf.function(reduce_retracing=True, autograph=False)
    def encode_parts(parts):
        found = strategy.run(_encode_on_one_device(encode), args=(parts,))
        return strategy.experimental_local_results(found)

    def encode_piece(images):
        count = len(images)
        with tf.device("CPU:0"):
            padding = tf.zeros([-count % num_replicas, *images.shape[1:]], images.dtype)
            parts = iter(tf.split(tf.concat([images, padding], axis=0), num_replicas))
        parts = strategy.experimental_distribute_values_from_function(lambda _: next(parts))
        return tf.concat(encode_parts(parts), axis=0)[:count]

    return encode_piece
