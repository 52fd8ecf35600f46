"""Files of features for other programs: .npz or .tfrecord."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.evaluation.config import FEATURE_FILES
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress

_NPZ, _TFRECORD = FEATURE_FILES


def save(
    path: str,
    features: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    indices: Sequence[int] | np.ndarray,
    paths: Sequence[str],
    class_names: Sequence[str],
    facts: dict[str, Any],
) -> None:
    """Writes features with the labels, indices and paths of their images, whole or not at all.

    An .npz has the arrays `features`, `labels`, `indices`, `paths`, `class_names` and `facts`, a
    JSON text. A .tfrecord has one example per image, with `features`, `label`, `index` and `path`;
    class names and facts are in a .json file beside it.

    Args:
      path: the file, which ends in .npz or .tfrecord.
      features: `[N, F]` float32; may be memory-mapped.
      labels: class indices, `[N]` int; −1 for an image without a label.
      indices: indices of the images in their split, `[N]` int.
      paths: paths of the image files, N strings; empty if the images are not files.
      class_names: names of the classes; empty if there are no labels.
      facts: how the features were made; a dict that JSON can represent.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with files.written_whole(path) as staging:
            if path.endswith(_NPZ):
                _save_npz(staging, features, labels, indices, paths, class_names, json.dumps(facts))
            else:
                _save_tfrecord(staging, features, labels, indices, paths)
                text = json.dumps({"class_names": class_names, "facts": facts})
                files.write_text(f"{path}.json", text)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"--output cannot be written ({files.reason_of(error)}). Received: {path}"
        ) from error


def _save_npz(
    path: str,
    features: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    indices: Sequence[int] | np.ndarray,
    paths: Sequence[str],
    class_names: Sequence[str],
    facts: str,
) -> None:
    with open(path, "wb") as file:
        np.savez(
            file,
            features=features,
            labels=labels,
            indices=indices,
            paths=np.array(paths, dtype=str),
            class_names=np.array(class_names, dtype=str),
            facts=np.array(facts),
        )


def _save_tfrecord(
    path: str,
    features: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    indices: Sequence[int] | np.ndarray,
    paths: Sequence[str],
) -> None:
    names = paths or [""] * len(features)
    with (
        tf.io.TFRecordWriter(path) as writer,
        Progress(len(features), "writing features", "image") as progress,
    ):
        for values, label, index, name in zip(features, labels, indices, names, strict=True):
            example = {
                "features": tf.train.Feature(float_list=tf.train.FloatList(value=values)),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "index": tf.train.Feature(int64_list=tf.train.Int64List(value=[index])),
                "path": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode()])),
            }
            features_of_example = tf.train.Features(feature=example)
            writer.write(tf.train.Example(features=features_of_example).SerializeToString())
            progress.update()
