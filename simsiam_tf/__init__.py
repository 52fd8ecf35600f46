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

_loaded = sys.modules.get("keras")
_backend = _loaded.config.backend() if _loaded else os.environ["KERAS_BACKEND"]
if _backend != "tensorflow":
    raise ImportError(
        "simsiam_tf needs Keras with the TensorFlow backend: set KERAS_BACKEND=tensorflow "
        f"before Keras is imported. Received: {_backend}"
    )

_API = ("Run", "build_model", "evaluate", "load_encoder", "load_views", "pretrain")


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(importlib.import_module("simsiam_tf.api"), name)
    raise AttributeError(f"module 'simsiam_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
