"""Max-pooling whose gradient XLA can compute deterministically."""

import keras
import tensorflow as tf


class MaxPool(keras.layers.Layer):
    """The maximum of 3x3 windows with stride 2, padded by one, of what is at least zero.

    The gradient goes to the first maximum of each window, row by row, as in PyTorch. TensorFlow's
    own has no deterministic implementation in XLA; this one is written as shifted slices.
    """

    def call(self, x, training=False):
        """`[N, H, W, C]` → `[N, ⌈H/2⌉, ⌈W/2⌉, C]`."""
        return _with_gradient(x) if training else _max_pool(x)


def _max_pool(x):
    # Zeros pad as well as minus infinity would: what comes in is at least zero.
    return tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")


@tf.custom_gradient
def _with_gradient(x):
    y = _max_pool(x)
    return y, lambda dy: _gradient(x, y, dy)


@tf.function(jit_compile=True, autograph=False)
def _gradient(x, y, dy):
    """The gradient by x, from x `[N, H, W, C]`, y and dy `[N, ⌈H/2⌉, ⌈W/2⌉, C]`."""
    height, width = x.shape[1:3]
    rows, columns = y.shape[1:3]
    # Even numbers of rows and columns; what is padded equals no maximum.
    far = [[0, 0], [1, 2 * rows + 1 - height], [1, 2 * columns + 1 - width], [0, 0]]
    padded = tf.pad(x, far, constant_values=-1)
    is_left = tf.ones(y.shape, tf.bool)  # whether the window's maximum is still to come
    won = []  # the share of dy that each of the nine places of a window gets
    for row in range(3):
        for column in range(3):
            rows_of, columns_of = (
                slice(at, at + 2 * n, 2) for at, n in ((row, rows), (column, columns))
            )
            is_first = tf.logical_and(is_left, padded[:, rows_of, columns_of] == y)
            is_left = tf.logical_and(is_left, tf.logical_not(is_first))
            won.append(tf.where(is_first, dy, 0))

    def shifted(part, down, right):
        """What the window above and to the left has for a pixel, where it is shared with it."""
        part = tf.pad(part, [[0, 0], [0, down], [0, right], [0, 0]])
        return part[:, down:, right:]

    # A pixel of an even row lies in the middle of one window, of an odd row between two.
    even = tf.stack([won[4], won[5] + shifted(won[3], 0, 1)], axis=3)
    odd = [
        won[7] + shifted(won[1], 1, 0),
        won[8] + shifted(won[6], 0, 1) + shifted(won[2], 1, 0) + shifted(won[0], 1, 1),
    ]
    pairs = tf.stack([even, tf.stack(odd, axis=3)], axis=2)  # [N, rows, 2, columns, 2, C]
    whole = tf.reshape(pairs, [-1, 2 * rows, 2 * columns, x.shape[3]])
    return whole[:, :height, :width]
