"""The health monitor: how spread features and projections are, and how alike views, without labels.

`runs.diagnosis` judges a run by these numbers.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import encoding, spectrum
from simsiam_tf.methods.base import SelfSupervisedModel
from simsiam_tf.schema import UserError
from simsiam_tf.training import tags
from simsiam_tf.training.assembly import Parts
from simsiam_tf.training.loop import Step
from simsiam_tf.training.run_log import RunLog

# Number of images in a sample: a twelfth of the data set, so that a measurement takes about 5 % of
# the time of an epoch, but no fewer and no more than these.
_FEWEST, _MOST = 64, 256
_MOST_BYTES = 2**28  # of all views; large images of many bands have a smaller sample
_ENCODE_AT_ONCE = 256


def load_heldout(config: PretrainConfig, train: Source) -> Source | None:
    """Returns the images of `--eval_split`, on which the run does not train; None without them."""
    data = config.data
    if data.eval_split == data.train_split:
        return None
    try:
        heldout = datasets.load(data.dataset, data.data_dir, data.eval_split)
    except UserError:  # a run needs only images to train on
        return None
    return dataclasses.replace(heldout, pixels=train.pixels)


class Sample:
    """Two views of 64 to 256 training images, and of as many held-out images, which stay the same.

    The network that looks at them is in inference mode, as it is exported.
    """

    def __init__(self, parts: Parts, heldout: Source | None) -> None:
        """Args:
        parts: of the run; the replicas of this process share the work.
        heldout: images that are not trained on; None: there are none.
        """
        self.config = parts.config
        self.pixels = parts.quarantine.source.pixels
        self.feature_dim = parts.model.encoder.feature_dim
        self.has_projections = hasattr(parts.model, "projector")
        self.encode = encoding.on_all_replicas(
            parts.strategy,
            tf.function(self._encode_by(parts.model), autograph=False, reduce_retracing=True),
            _ENCODE_AT_ONCE,
        )
        size = min(max(_FEWEST, parts.plan.num_examples // 12), _MOST, self._most_in_memory())
        self.views = {"": self._views(parts.quarantine, size)}
        if heldout:
            quarantine = Quarantine(heldout, self.config.data)
            self.views["heldout_"] = self._views(quarantine, size)

    def _most_in_memory(self) -> int:
        number_bytes = 1 if self.pixels.depth == "uint8" else 4
        view_bytes = self.config.views.image_size**2 * self.pixels.channels * number_bytes
        return max(2, _MOST_BYTES // (4 * view_bytes))  # two views of two kinds of images

    def _encode_by(self, model: SelfSupervisedModel) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function: a view `[b, H, W, C]` → features and projections in one tensor."""

        def encode(view):
            numbers = view / 255 if self.pixels.depth == "uint8" else view
            images = self.pixels.normalize(tf.cast(numbers, keras.config.floatx()))
            features = model.encoder(images, training=False)
            found = [features]
            if self.has_projections:
                found.append(model.projector(features, training=False))
            return tf.concat([tf.cast(x, tf.float32) for x in found], axis=1)

        return encode

    def _views(self, quarantine: Quarantine, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns two views of the first images of the random order, `[n, S, S, C]` each."""
        make_views = views.build_views(
            dataclasses.replace(self.config.views, augment_on="host"), 2, self.pixels
        )
        (batch,) = pipeline.first_steps(
            make_views,
            batch_size=min(size, quarantine.source.num_examples),
            seed=self.config.system.seed,
            num_steps=1,
            quarantine=quarantine,
        )
        return batch["views"]

    def measure(self) -> tuple[dict[str, float], np.ndarray]:
        """Returns the metrics, and the features' singular values over √n, `[min(n, F)]` float.

        The metrics are `effective_rank` and `alignment` of the features, `z_effective_rank` and
        `z_alignment` of the projections, and `heldout_z_alignment` of held-out images.
        """
        parts = {"": slice(self.feature_dim)}
        if self.has_projections:
            parts["z_"] = slice(self.feature_dim, None)
        values: dict[str, float] = {}
        spectra = {}
        for prefix, sample in self.views.items():
            found = [self.encode(view).numpy() for view in sample]
            for name, part in parts.items():
                x, y = (encoded[:, part] for encoded in found)
                values[f"{prefix}{name}alignment"] = float(spectrum.alignment(x, y))
                if not prefix:
                    spectra[name] = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
                    values[f"{name}effective_rank"] = spectrum.effective_rank(spectra[name])
        values.pop("heldout_alignment", None)
        return values, spectra[""] / np.sqrt(len(self.views[""][0]))


class Health(keras.callbacks.Callback):
    """Writes the health of the network every few epochs, and that of the random network."""

    def __init__(self, log: RunLog, sample: Sample, every_epochs: int) -> None:
        """Args:
        log: of the run.
        sample: what is measured.
        every_epochs: epochs from one measurement to the next.
        """
        super().__init__()
        self.log = log
        self.sample = sample
        self.every_epochs = every_epochs

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self.log.is_new:
            self._write(0)

    def on_epoch_end(self, epoch: int, logs: Step) -> None:
        done = epoch + 1
        if done % self.every_epochs == 0 or done == self.log.plan.epochs:
            self._write(logs.number)

    def _write(self, step: int) -> None:
        values, singular_values = self.sample.measure()
        self.log.write(step, values)
        with self.log.summaries(step):
            name = tags.tag_of("singular_values")
            tf.summary.histogram(name, singular_values)
