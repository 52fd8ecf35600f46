"""What TensorBoard shows of a run besides its scalars: layout, hyper-parameters, spectrum, weights,
and some images in the projector."""

import os

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams

from simsiam_tf import schema
from simsiam_tf.evaluation import spectrum
from simsiam_tf.training.checkpoints import write_whole

MOST_POINTS = 1000  # of the projector
SPRITE_SIZE = 64  # pixels of its images, at most
_SPECTRUM_ROWS = 4096  # more features hardly change the spectrum, and take time
# What the tab "Custom scalars" shows: {part: {chart: tags}}.
_LAYOUT = {
    "Is it healthy?": {
        "std of the features: 1 is healthy, under 0.3 collapsed": [
            "feature_std", "feature_std_healthy", "feature_std_collapsed",
        ],
        "kNN top-1, percent": ["knn_top1"],
        "effective rank of the features": ["effective_rank"],
        "loss": ["loss"],
    },
    "How does it train?": {
        "learning rates": ["learning_rate", "predictor_learning_rate"],
        "images a second": ["images_per_second"],
        "shares: waiting for images, and of the devices' peak": [
            "input_wait_fraction", "model_flop_utilization",
        ],
    },
}  # fmt: skip
_FINAL_METRICS = ("knn_top1", "feature_std", "loss")


def describe_run(summaries, config):
    """Writes what stays the same in a run: its layout and its hyper-parameters.

    Args:
      summaries: a `tf.summary` writer.
      config: the `PretrainConfig`; the settings that define the run are its hyper-parameters.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(
                    title=chart,
                    multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]),
                )
                for chart, tags in charts.items()
            ],
        )
        for title, charts in _LAYOUT.items()
    ]
    layout = custom_scalar.pb(layout_pb2.Layout(category=categories))
    names = schema.run_defining_names(type(config))
    values = {name: value for name, value in schema.flatten(config).items() if name in names}
    with summaries.as_default(0):
        tf.summary.experimental.write_raw_pb(layout.SerializeToString())
        hparams.hparams_config(
            hparams=[hparams.HParam(name) for name in values],
            metrics=[hparams.Metric(name) for name in _FINAL_METRICS],
        )
        hparams.hparams(values)


def write_spectrum(summaries, step, features):
    """Writes how many directions the features of some images fill.

    Args:
      summaries: a `tf.summary` writer.
      step: an int.
      features: `[N, F]` float.
    """
    features = features[:: -(-len(features) // _SPECTRUM_ROWS)]
    _, covariance = spectrum.moments(features)
    values = spectrum.singular_values(covariance, len(features))
    with summaries.as_default(step):
        tf.summary.scalar("effective_rank", spectrum.effective_rank(values))
        tf.summary.histogram("singular_values", values / np.sqrt(len(features)))


def write_weights(summaries, step, model):
    """Writes a histogram of each tensor that a `SelfSupervisedModel` learns."""
    with summaries.as_default(step):
        for variable in model.learned_variables:
            tf.summary.histogram(f"weights/{variable.path}", variable.value)


def write_projector(folder, features, labels, thumbnails, class_names):
    """Writes images and their features for TensorBoard's projector.

    Args:
      folder: of the event files.
      features: `[N, F]` float.
      labels: `[N]` int.
      thumbnails: `[N, s, s, 3]` uint8.
      class_names: of the labels; empty: none.
    """
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(tensor_name="features", tensor_path="features.tsv")
    lines = ("\t".join(f"{value:.4g}" for value in row) for row in features.tolist())
    write_whole(os.path.join(folder, embedding.tensor_path), "\n".join(lines) + "\n")
    if class_names:
        embedding.metadata_path = "labels.tsv"
        lines = (" ".join(class_names[label].split()) for label in labels)
        write_whole(os.path.join(folder, embedding.metadata_path), "\n".join(lines) + "\n")
    embedding.sprite.image_path = "sprites.png"
    embedding.sprite.single_image_dim.extend(thumbnails.shape[2:0:-1])
    sprites = tf.io.encode_png(_tiled(thumbnails))
    tf.io.write_file(os.path.join(folder, embedding.sprite.image_path), sprites)
    projector.visualize_embeddings(folder, config)


def _tiled(images):
    """Images `[N, h, w, 3]` in the rows of a square, the rest of it black: `[H, W, 3]`."""
    count, height, width, channels = images.shape
    side = int(np.ceil(np.sqrt(count)))
    grid = np.zeros([side * side, height, width, channels], images.dtype)
    grid[:count] = images
    grid = grid.reshape(side, side, height, width, channels).swapaxes(1, 2)
    return grid.reshape(side * height, side * width, channels)
