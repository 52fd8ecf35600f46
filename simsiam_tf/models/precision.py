"""The number format of new layers."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def of_new_layers(policy: str) -> Iterator[None]:
    """A context in which Keras builds layers of a dtype policy, such as "mixed_bfloat16"."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
