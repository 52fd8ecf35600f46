import numpy as np
import tensorflow as tf

from simsiam_tf.models.queue import KeyQueue


def test_the_queue_starts_with_random_keys_of_length_1():
    keys = KeyQueue(50, 8, seed=1).keys.numpy()
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-6)
    assert np.abs(keys @ keys.T - np.eye(50)).max() < 0.95
    assert not np.array_equal(keys, KeyQueue(50, 8, seed=2).keys.numpy())


def test_new_keys_enter_and_the_oldest_leave():
    queue = KeyQueue(5, 2, seed=0)
    start = queue.keys.numpy()
    first, second = np.full([2, 2], 1.0, "float32"), np.full([2, 2], 2.0, "float32")
    queue.enter(tf.constant(first), tf.constant(False))
    queue.enter(tf.constant(second), tf.constant(False))
    np.testing.assert_array_equal(queue.keys, [*second, *first, start[0]])
    queue.enter(tf.constant(first), tf.constant(True))
    np.testing.assert_array_equal(queue.keys, [*second, *first, start[0]])


def test_only_the_first_keys_enter_if_there_are_more_than_the_queue_size():
    queue = KeyQueue(3, 1, seed=0)
    queue.enter(tf.constant([[1.0], [2.0], [3.0], [4.0]]), tf.constant(False))
    np.testing.assert_array_equal(queue.keys, [[1], [2], [3]])
