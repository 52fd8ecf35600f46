"""Restores what a run changes in its process: settings of Keras and TensorFlow, and memory."""

import contextlib
import gc
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf

# TensorFlow has no public names for these.
from tensorflow.python.framework.config import disable_op_determinism, is_op_determinism_enabled
from tensorflow.python.framework.ops import gradient_registry


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """A context after which number formats, determinism and TF32 are as they were before.

    The graphs that were traced in it are let go, and so are their models. The division of the CPU
    into logical devices stays.
    """
    gradients = custom_gradients()
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
        forget_gradients(custom_gradients() - gradients)


def custom_gradients() -> set[str]:
    """Returns the names of the custom gradients that this process has traced."""
    return {name for name in gradient_registry._registry if name.startswith("CustomGradient-")}


def forget_gradients(names: Iterable[str]) -> None:
    """Lets go of custom gradients. TensorFlow keeps each with its graph and its model for good.

    Args:
      names: of `custom_gradients`. No graph that has one of them can be differentiated afterwards.
    """
    for name in names:
        del gradient_registry._registry[name]
    gc.collect()
