"""The project as a Python library: what `train.py` and `evaluate.py` do, as functions.

Every flag is a keyword argument of the same name, checked by the same rule. `simsiam_tf` has these
functions as its own: `simsiam_tf.pretrain(...)`.
"""

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simsiam_tf import files, flags, storage
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import datasets, sampling, views
from simsiam_tf.data.arrays import load_arrays
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.distribution import process_state
from simsiam_tf.evaluation import run as evaluation_run
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.export.keras_encoder import Encoder, load_encoder
from simsiam_tf.methods import build
from simsiam_tf.methods.base import SelfSupervisedModel
from simsiam_tf.models import precision
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training import initial_weights
from simsiam_tf.training import pretrain as pretrain_module
from simsiam_tf.training.batches import TrainingBatches

_BACKBONE = "backbone.keras"

__all__ = ["Run", "build_model", "evaluate", "load_encoder", "load_views", "pretrain"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: folder of the run.
    """

    workdir: str

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The trained encoder, a `keras.Model`: images → features."""
        return load_encoder(self.workdir)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The metrics of the run, {name: `[lines]` float64}; NaN where a line lacks the metric."""
        lines = run_folder.read_metrics(self.workdir)
        names = dict.fromkeys(name for line in lines for name in line)
        return {name: np.array([line.get(name, np.nan) for line in lines], float) for name in names}

    @property
    def summary(self) -> dict[str, Any]:
        """The entries of summary.json."""
        with open(os.path.join(self.workdir, run_folder.SUMMARY), encoding="utf-8") as file:
            return json.load(file)


def pretrain(
    *, dataset: Any = None, callbacks: Sequence[keras.callbacks.Callback] = (), **settings: Any
) -> Run:
    """Pre-trains an encoder on unlabelled images, as `train.py` does; resumes a run that stopped.

    The number formats and the determinism of Keras and TensorFlow are afterwards as they were.

    Args:
      dataset: a name, as for `--dataset`; images in memory, as `arrays.load_arrays` takes them; or
        a dict of these by split, {"train": ..., "test": ...}. None: the recipe's, or the digits.
      callbacks: called at each step besides the run's own.
      **settings: flags of `train.py`, such as `backbone="resnet18"`, or `recipe="r18"`. `backbone`
        may also be a `keras.Model` of images, whose weights are the initial ones; the run keeps it
        as `backbone.keras`.

    Returns:
      The run.

    Raises:
      UserError: a `ValueError` whose text says what to change.
    """
    if isinstance(settings.get("backbone"), keras.Model):
        settings = _with_saved_backbone(settings)
    with _config(PretrainConfig, dataset, settings) as config:
        pretrain_module.run(config, callbacks)
    return Run(config.system.workdir)


def evaluate(
    encoder: "str | os.PathLike | Run | Encoder", *, dataset: Any = None, **settings: Any
) -> dict[str, Any]:
    """Evaluates an encoder by a protocol, as `evaluate.py` does.

    Args:
      encoder: folder of an encoder or of a run, a `Run`, or an `Encoder`.
      dataset: as for `pretrain`.
      **settings: flags of `evaluate.py`, such as `protocol="probe"`.

    Returns:
      The entries of the result, such as "top1" in percent.

    Raises:
      UserError: a `ValueError` whose text says what to change.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(encoder, Encoder):
            folder = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "encoder")
            encoder.export_folder(folder)
        else:
            path = encoder.workdir if isinstance(encoder, Run) else os.fspath(encoder)
            folder = run_folder.encoder_folder(path)
        settings = {"encoder": folder} | settings
        config = stack.enter_context(_config(EvaluationConfig, dataset, settings))
        return evaluation_run.evaluate(config)


def build_model(*, dataset: Any = None, **settings: Any) -> SelfSupervisedModel:
    """Returns a model to train by `fit`, compiled with the optimizer that `train.py` would use.

    Call it under the scope of the strategy that trains. The model's methods are those of a
    `keras.Model`; `fit` takes a data set of tuples of views, as `load_views` makes it.

    Args:
      dataset: as for `pretrain`; its size sets the length of the schedules.
      **settings: flags of `train.py`. Flags that concern the loop, the devices and the folder have
        no effect.

    Raises:
      UserError: a `ValueError` whose text says what to change.
    """
    strategy = tf.distribute.get_strategy()
    with _config(PretrainConfig, dataset, settings) as config:
        _refuse_auto(config)
        source = _load_source(config)
        with precision.of_new_layers(config.system.precision):
            model, _ = build.build_model(config, strategy, build.plan_of(config, source))
        if config.start.init_from:
            initial_weights.load(model, config.start.init_from)
    return model


def load_views(*, dataset: Any = None, num_views: int = 2, **settings: Any) -> tf.data.Dataset:
    """Returns the batches of a run's views for `fit` on one machine: all epochs in turn.

    Args:
      dataset: as for `pretrain`.
      num_views: number of views of each image, `num_views` of the model.
      **settings: flags of `train.py`.

    Returns:
      A data set of tuples of normalised views, `[batch_size, image_size, image_size, C]` float32.

    Raises:
      UserError: a `ValueError` whose text says what to change.
    """
    with _config(PretrainConfig, dataset, settings) as config:
        _refuse_auto(config)
        source = _load_source(config)
        plan = build.plan_of(config, source)
        make_views = views.build_views(config.views, num_views, source.pixels)
        batches = TrainingBatches(
            tf.distribute.get_strategy(), config, make_views, Quarantine(source, config.data), plan
        ).of_worker(0)
    inputs = batches.map(lambda batch: views.prepare(batch, source.pixels))
    inputs = inputs.apply(tf.data.experimental.assert_cardinality(plan.num_steps))
    # There is one worker. To share the data set among several, TensorFlow would rewrite it, which
    # takes half a minute.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return inputs.with_options(options)


def _refuse_auto(config: PretrainConfig) -> None:
    if config.given is not None:
        raise UserError(
            "Only pretrain takes recipe='auto', which trains to choose; pass the flags of its "
            "flags.cfg. Received: recipe='auto'"
        )


def _load_source(config: PretrainConfig) -> Source:
    data = config.data
    source = datasets.load(data.dataset, data.data_dir, data.train_split)
    pixels = sampling.resolve_pixels(config.pixels, source, data.max_image_pixels)
    return dataclasses.replace(source, pixels=pixels)


def _with_saved_backbone(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings with the network in a file of the workdir, which it writes once.

    Raises:
      UserError: the run in the workdir began with another network, or the workdir is a URL.
    """
    model, others = settings["backbone"], dict(settings)
    del others["backbone"]
    workdir = flags.from_keywords(others, PretrainConfig).system.workdir
    if storage.is_url(workdir):
        raise UserError(
            "A model as backbone needs a --workdir on this machine; save it, and pass its path. "
            f"Received: {workdir}"
        )
    path = os.path.join(workdir, _BACKBONE)
    if not os.path.exists(path):
        files.make_folder(workdir)
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            model.save(os.path.join(folder, _BACKBONE))
            os.replace(os.path.join(folder, _BACKBONE), path)
    elif keras.models.load_model(path, compile=False).get_config() != model.get_config():
        raise UserError(
            f"The run in {workdir} began with another network as its backbone. Take another "
            f"workdir, or pass the same network. Received: {model.name}"
        )
    return others | {"backbone": path}


@contextlib.contextmanager
def _config(config_class: type, dataset: Any, settings: Mapping[str, Any]) -> Iterator[Any]:
    """Yields a config; data in memory can be loaded by its data set's name meanwhile."""
    with contextlib.ExitStack() as stack:
        if isinstance(dataset, str):
            settings = {"dataset": dataset, **settings}
        elif dataset is not None:
            by_split = dataset if isinstance(dataset, Mapping) else {"train": dataset}
            splits = {name: load_arrays(data, name) for name, data in by_split.items()}
            stack.enter_context(datasets.in_memory(splits))
            settings = {"dataset": datasets.MEMORY, **settings}
        if isinstance(settings.get("backbone"), keras.layers.Layer):
            raise UserError(
                "Only pretrain takes a keras.Model as backbone; save another one as a .keras file, "
                f"and pass its path. Received: {type(settings['backbone']).__name__}"
            )
        config = flags.from_keywords(settings, config_class)
        stack.enter_context(process_state.unchanged())
        yield config
