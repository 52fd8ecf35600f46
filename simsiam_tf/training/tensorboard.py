"""TensorBoard's tabs besides the scalars of the metrics: layout, hyper-parameters, view pairs,
spectrum, weights and the projector."""

import dataclasses
import os
import textwrap
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont
from tensorboard.plugins import projector
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams

from simsiam_tf import files, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import pipeline, views
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.pixels import Pixels
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import features
from simsiam_tf.export import saved_model
from simsiam_tf.runs import diagnosis, run_folder
from simsiam_tf.training import tags
from simsiam_tf.training.loop import Step
from simsiam_tf.training.run_log import RunLog

_MOST_POINTS = 1000  # of the projector
_SPRITE_SIZE = 64  # pixels of its images, at most
_ENCODE_AT_ONCE = 64
# The tab "Custom scalars": {category: {chart: metrics}}.
_LAYOUT = {
    "Is it healthy?": {
        "std of the features: 1 is healthy, under 0.3 collapsed": ["feature_std"],
        "kNN top-1, percent": ["knn_top1"],
        "effective rank of the features and of z": ["effective_rank", "z_effective_rank"],
        "alignment of two views: of the features, of z, of held-out z": [
            "alignment", "z_alignment", "heldout_z_alignment",
        ],
        "loss": ["loss"],
    },
    "How does it train?": {
        "learning rate": ["learning_rate"],
        "images a second": ["images_per_second"],
        "shares: waiting for images, processors at work, of the devices' peak": [
            "input_wait_fraction", "processor_use", "model_flop_utilization",
        ],
    },
}  # fmt: skip
_FINAL_METRICS = ("knn_top1", "effective_rank", "feature_std", "loss")
_NUM_CARDS = 10  # of a run; TensorBoard shows the last one first
_CARD_SIZE, _LINE_HEIGHT, _LINE_LENGTH = (900, 320), 34, 76
_CARD_COLORS = {"healthy": "#1d7a4b", "doubtful": "#96690a", "collapsed": "#b3342d"}


class TensorBoard(keras.callbacks.Callback):
    """Writes what a new run looks like at its start, histograms of the weights, and the projector
    at the end."""

    def __init__(
        self,
        log: RunLog,
        config: PretrainConfig,
        make_views: Callable,
        quarantine: Quarantine,
        evaluated: Source,
    ) -> None:
        """Args:
        log: of the run.
        config: of the run.
        make_views: of `views.build_views`.
        quarantine: of the images that are trained on.
        evaluated: images for the projector.
        """
        super().__init__()
        self.log = log
        self.config = config
        self.make_views = make_views
        self.quarantine = quarantine
        self.evaluated = evaluated

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self.log.is_new:
            return
        batch = pipeline.first_views(self.make_views, self.config.system.seed, self.quarantine)
        with self.log.summaries(0):
            describe_run(self.config)
            pixels = self.quarantine.source.pixels
            write_view_pairs(views.prepare(batch, pixels), pixels)

    def on_epoch_end(self, epoch: int, logs: Step) -> None:
        done, epochs = epoch + 1, self.log.plan.epochs
        if done == epochs or done * _NUM_CARDS // epochs > epoch * _NUM_CARDS // epochs:
            with self.log.summaries(logs.number):
                write_verdict(*diagnosis.verdict(self.log.lines, self.config))
        every = self.config.monitor.histogram_every_epochs
        if every and (epoch + 1) % every == 0:
            with self.log.summaries(logs.number):
                write_weights(self.model)

    def on_train_end(self, logs: dict | None = None) -> None:
        size, ratio = self.config.views.image_size, self.config.views.eval_crop_ratio
        served = saved_model.ServedEncoder(
            self.model.encoder, size, ratio, self.quarantine.source.pixels
        )
        found, labels, thumbnails = features.extract_with_thumbnails(
            lambda images: served.features(images)["features"],
            self.evaluated,
            served.view,
            _ENCODE_AT_ONCE,
            _SPRITE_SIZE,
            seed=self.config.system.seed,
            limit=_MOST_POINTS,
            # The run is done: an image that cannot be read must not fail it now.
            data=dataclasses.replace(self.config.data, on_bad_image="skip", max_bad_fraction=1.0),
        )
        with files.writing_to(self.log.workdir):
            write_projector(
                os.path.join(self.log.workdir, run_folder.TENSORBOARD),
                found,
                labels,
                thumbnails,
                self.evaluated.class_names,
            )


def describe_run(config: PretrainConfig) -> None:
    """Writes TensorBoard's layout of a run and, as hyper-parameters, the flags that make it differ.

    Those are the settings that define a run and have not their default values.

    Call it in a context of `RunLog.summaries`, like the next four functions.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(
                    title=chart,
                    multiline=layout_pb2.MultilineChartContent(
                        tag=[f"^{tags.tag_of(name)}$" for name in names]
                    ),
                )
                for chart, names in charts.items()
            ],
        )
        for title, charts in _LAYOUT.items()
    ]
    layout = custom_scalar.pb(layout_pb2.Layout(category=categories))
    defining, defaults = schema.run_defining_names(type(config)), schema.defaults(type(config))
    values = {
        name: value
        for name, value in schema.flatten(config).items()
        if name in defining and value != defaults[name]
    }
    tf.summary.experimental.write_raw_pb(layout.SerializeToString())
    hparams.hparams_config(
        hparams=[hparams.HParam(name) for name in values],
        metrics=[hparams.Metric(tags.tag_of(name), display_name=name) for name in _FINAL_METRICS],
    )
    hparams.hparams(values, trial_id=os.path.basename(os.path.abspath(config.system.workdir)))


def write_verdict(word: str, sentences: str) -> None:
    """Writes how the run is, as the first card and as a text.

    Args:
      word: of `diagnosis.verdict`.
      sentences: why, and what to do.
    """
    card = Image.new("RGB", _CARD_SIZE, "white")
    draw = ImageDraw.Draw(card)
    color = _CARD_COLORS.get(word, "#667079")
    draw.rectangle((0, 0, 10, _CARD_SIZE[1]), fill=color)
    draw.text((34, 20), word.capitalize(), fill=color, font=ImageFont.load_default(40))
    most = (_CARD_SIZE[1] - 90) // _LINE_HEIGHT
    # The font has neither of these characters.
    plain = sentences.replace("’", "'").replace("−", "-")
    for number, line in enumerate(textwrap.wrap(plain, _LINE_LENGTH)[:most]):
        place = (34, 80 + number * _LINE_HEIGHT)
        draw.text(place, line, fill="#1d2329", font=ImageFont.load_default(24))
    tf.summary.image(tags.VERDICT, np.asarray(card)[np.newaxis])
    tf.summary.text(tags.VERDICT_TEXT, f"**{word.capitalize()}.** {sentences}")


def write_view_pairs(batch_views: tuple[tf.Tensor, ...], pixels: Pixels) -> None:
    """Writes a grid of views as the network sees them, a row for each image.

    Args:
      batch_views: `[B, H, W, C]` each, normalised.
      pixels: what the pixels of the images are.
    """
    rows = tf.concat([pixels.show(pixels.denormalize(view)) for view in batch_views], axis=2)
    grid = tf.concat(tf.unstack(rows), axis=0)
    tf.summary.image(tags.VIEW_PAIRS, grid[tf.newaxis])


def write_weights(model: keras.Model) -> None:
    """Writes a histogram of each tensor that a `SelfSupervisedModel` learns."""
    for variable in model.learned_variables:
        tf.summary.histogram(f"weights/{variable.path}", variable.value)


def write_projector(
    directory: str,
    found: np.ndarray,
    labels: np.ndarray,
    thumbnails: np.ndarray,
    class_names: tuple[str, ...],
) -> None:
    """Writes images and their features for TensorBoard's projector.

    Args:
      directory: folder of the event files.
      found: the features, `[N, F]` float.
      labels: `[N]` int.
      thumbnails: `[N, s, s, 3]` uint8.
      class_names: of the labels; empty: the images have none.
    """
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(tensor_name="features", tensor_path="features.tsv")
    lines = ("\t".join(f"{value:.4g}" for value in row) for row in found.tolist())
    files.write_text(os.path.join(directory, embedding.tensor_path), "\n".join(lines) + "\n")
    if class_names:
        embedding.metadata_path = "labels.tsv"
        lines = (" ".join(class_names[label].split()) for label in labels)
        files.write_text(os.path.join(directory, embedding.metadata_path), "\n".join(lines) + "\n")
    embedding.sprite.image_path = "sprites.png"
    embedding.sprite.single_image_dim.extend(thumbnails.shape[2:0:-1])
    sprites = tf.io.encode_png(_tiled(thumbnails))
    tf.io.write_file(os.path.join(directory, embedding.sprite.image_path), sprites)
    projector.visualize_embeddings(directory, config)


def _tiled(images: np.ndarray) -> np.ndarray:
    """Tiles images `[N, h, w, 3]` row by row into a square `[H, W, 3]`, whose rest is black."""
    count, height, width, channels = images.shape
    side = int(np.ceil(np.sqrt(count)))
    grid = np.zeros([side * side, height, width, channels], images.dtype)
    grid[:count] = images
    grid = grid.reshape(side, side, height, width, channels).swapaxes(1, 2)
    return grid.reshape(side * height, side * width, channels)
