"""Max-pooling whose gradient XLA can compute deterministically."""

import keras
import tensorflow as tf


class MaxPool(keras.layers.Layer):
    """The maximum of 3x3 windows with stride 2 and padding 1, for non-negative inputs.

    The gradient goes to the first maximum of each window in row-major order, as in PyTorch.
    TensorFlow's own gradient has no deterministic implementation in XLA; this one consists of
    shifted slices.
    """

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the maximum of each window.

        Args:
          x: `[N, H, W, C]` float, at least zero.
          training: use the deterministic gradient.

        Returns:
          `[N, ⌈H/2⌉, ⌈W/2⌉, C]`.
        """
        return _max_pool_with_gradient(x) if training else _max_pool(x)


def _max_pool(x):
    # The inputs are at least zero, so padding with zeros equals padding with minus infinity.
    return tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")


@tf.custom_gradient
def _max_pool_with_gradient(x):
    y = _max_pool(x)
    return y, lambda dy: _gradient(x, y, dy)


@tf.function(jit_compile=True, autograph=False)
def _gradient(x, y, dy):
    """Returns dx like x `[N, H, W, C]`, from y and dy `[N, ⌈H/2⌉, ⌈W/2⌉, C]`."""
    height, width = x.shape[1:3]
    rows, columns = y.shape[1:3]
    # The padding makes the numbers of rows and columns even. It is −1, so it equals no maximum.
    paddings = [[0, 0], [1, 2 * rows + 1 - height], [1, 2 * columns + 1 - width], [0, 0]]
    padded = tf.pad(x, paddings, constant_values=-1)
    is_pending = tf.ones(y.shape, tf.bool)  # whether the window's maximum is not found yet
    routed = []  # the share of dy for each of the nine elements of a window, in row-major order
    for row in range(3):
        for column in range(3):
            row_slice, column_slice = (
                slice(start, start + 2 * n, 2) for start, n in ((row, rows), (column, columns))
            )
            is_maximum = padded[:, row_slice, column_slice] == y
            is_first = tf.logical_and(is_pending, is_maximum)
            is_pending = tf.logical_and(is_pending, tf.logical_not(is_first))
            routed.append(tf.where(is_first, dy, 0))

    def shifted(part, down, right):
        """Returns for each window the share of the next window below, to the right, or both."""
        part = tf.pad(part, [[0, 0], [0, down], [0, right], [0, 0]])
        return part[:, down:, right:]

    # Along each axis, an even pixel is the middle of one window; two windows share an odd pixel.
    even = tf.stack([routed[4], routed[5] + shifted(routed[3], 0, 1)], axis=3)
    odd = [
        routed[7] + shifted(routed[1], 1, 0),
        routed[8] + shifted(routed[6], 0, 1) + shifted(routed[2], 1, 0) + shifted(routed[0], 1, 1),
    ]
    pairs = tf.stack([even, tf.stack(odd, axis=3)], axis=2)  # [N, rows, 2, columns, 2, C]
    whole = tf.reshape(pairs, [-1, 2 * rows, 2 * columns, x.shape[3]])
    return whole[:, :height, :width]
