"""Restores the settings of Keras and TensorFlow that a run changes in its process."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

# TensorFlow has no public way to ask for these two.
from tensorflow.python.framework.config import disable_op_determinism, is_op_determinism_enabled


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """A context after which number formats, determinism and TF32 are as they were before.

    The division of the CPU into logical devices stays.
    """
    policy, float_type = keras.config.dtype_policy(), keras.config.floatx()
    deterministic = is_op_determinism_enabled()
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(float_type)
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        if not deterministic:
            disable_op_determinism()
