"""Folders of small images to evaluate on."""

import numpy as np
import tensorflow as tf


def folder_of(root, *paths):
    """Writes black images of 8x8 pixels, and returns the settings of that data set."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image = np.zeros((8, 8, 3), np.uint8)
        (root / path).write_bytes(tf.io.encode_png(image).numpy())
    return {"dataset": "folder", "data_dir": str(root), "image_size": 8}
