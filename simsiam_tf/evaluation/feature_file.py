"""Features as a file for other programs: .npz or .tfrecord."""

import json

import numpy as np
import tensorflow as tf

from simsiam_tf import files
from simsiam_tf.evaluation.config import FEATURE_FILES
from simsiam_tf.progress import Progress
from simsiam_tf.schema import UserError

_NPZ, _TFRECORD = FEATURE_FILES


def save(path, features, labels, indices, paths, class_names, facts):
    """Writes features with what they are of; what has the name is whole.

    An .npz has the arrays `features`, `labels`, `indices`, `paths`, `class_names` and `facts`, a
    JSON text. A .tfrecord has an example an image, with `features`, `label`, `index` and `path`;
    class names and facts are in a .json beside it.

    Args:
      path: the file, which ends in .npz or .tfrecord.
      features: `[N, F]` float32; a memory-mapped array too.
      labels: `[N]` int, −1 where there is none.
      indices: of the images in their split, `[N]` int.
      paths: of the images' files, N texts; empty where they are none.
      class_names: of the labels, texts; empty where there are no labels.
      facts: a dict that JSON can hold.

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


def _save_npz(path, features, labels, indices, paths, class_names, facts):
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


def _save_tfrecord(path, features, labels, indices, paths):
    names = paths or [""] * len(features)
    with (
        tf.io.TFRecordWriter(path) as writer,
        Progress(len(features), "writing features", "image") as progress,
    ):
        for row, label, index, name in zip(features, labels, indices, names, strict=True):
            example = {
                "features": tf.train.Feature(float_list=tf.train.FloatList(value=row)),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "index": tf.train.Feature(int64_list=tf.train.Int64List(value=[index])),
                "path": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode()])),
            }
            features_of_example = tf.train.Features(feature=example)
            writer.write(tf.train.Example(features=features_of_example).SerializeToString())
            progress.update()
