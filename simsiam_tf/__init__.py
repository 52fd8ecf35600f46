"""SimSiam in TensorFlow and Keras (Chen & He, CVPR 2021).

    import simsiam_tf as st

    run = st.pretrain(dataset="folder", data_dir="my_images", recipe="r18", workdir="runs/mine")
    features = run.encoder(images)

Importing the package chooses the backend before TensorFlow and Keras load, and does nothing else.
The functions of `simsiam_tf.api` load when they are first used.
"""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Off by default on CPUs without AVX-512, where it still makes a training step up to 2.7x faster.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_API = ("Run", "build_model", "evaluate", "load_encoder", "load_views", "pretrain")


def check_backend() -> None:
    """Checks that Keras has, or will have, the TensorFlow backend.

    Raises:
      ImportError: the environment, or the program that has imported Keras, chose another backend.
    """
    loaded = sys.modules.get("keras")
    backend = loaded.config.backend() if loaded else os.environ["KERAS_BACKEND"]
    if backend != "tensorflow":
        raise ImportError(
            "simsiam_tf needs Keras with the TensorFlow backend: set KERAS_BACKEND=tensorflow "
            f"before Keras is imported. Received: {backend}"
        )


def __getattr__(name: str) -> Any:
    if name in _API:
        check_backend()
        return getattr(importlib.import_module("simsiam_tf.api"), name)
    raise AttributeError(f"module 'simsiam_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
