"""The kNN monitor: how well nearest neighbours classify by the features of the moment."""

import dataclasses
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import datasets
from simsiam_tf.data.datasets import Source
from simsiam_tf.evaluation import encoding, features, knn
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError
from simsiam_tf.training.loop import Step
from simsiam_tf.training.run_log import RunLog

_ENCODE_AT_ONCE = 256


def load_sources(config: PretrainConfig, train: Source) -> tuple[Source, Source] | None:
    """The labelled images of the kNN monitor: those to compare with and those to classify.

    Returns:
      None if the monitor is off or there are no labels; the log says so.

    Raises:
      UserError: `--knn_dataset` has no labels, or a data set cannot be read.
    """
    if config.monitor.knn_every_epochs == 0:
        return None
    data = config.data
    if config.monitor.knn_dataset:
        name, folder = config.monitor.knn_dataset, config.monitor.knn_data_dir
        bank = datasets.load(name, folder, data.train_split)
        queries = datasets.load(name, folder, data.eval_split)
        if not (bank.labelled and queries.labelled):
            raise UserError(f"--knn_dataset must have labels. Received: {name} {folder}".strip())
        return _with_pixels(bank, train), _with_pixels(queries, train)
    if not train.labelled:
        logging.info("No kNN monitor: %s has no labels; --knn_dataset may name another", train.name)
        return None
    try:
        queries = datasets.load(data.dataset, data.data_dir, data.eval_split)
        return train, _with_pixels(queries, train)
    except UserError as error:
        if not datasets.is_own(data.dataset):
            raise
        logging.info("No kNN monitor: %s", error)  # a run needs only images to train on
        return None


def _with_pixels(source: Source, train: Source) -> Source:
    return dataclasses.replace(source, pixels=train.pixels)


class Knn(keras.callbacks.Callback):
    """Writes the encoder's kNN top-1 every few epochs.

    A new run also evaluates the random network, for comparison.
    """

    def __init__(
        self,
        log: RunLog,
        strategy: tf.distribute.Strategy,
        encoder: keras.layers.Layer,
        bank: Source,
        queries: Source,
        config: PretrainConfig,
    ) -> None:
        """Args:
        log: of the run.
        strategy: under which the encoder was built; this process's replicas share the work.
        encoder: of normalised images.
        bank: labelled images to compare with.
        queries: labelled images to classify.
        config: of the run.
        """
        super().__init__()
        self.log = log
        self.served = saved_model.ServedEncoder(
            encoder, config.views.image_size, config.views.eval_crop_ratio, bank.pixels
        )
        self.encode = encoding.on_all_replicas(
            strategy, lambda images: self.served.features(images)["features"], _ENCODE_AT_ONCE
        )
        self.bank = bank
        self.queries = queries
        self.config = config

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self.log.is_new:
            self._evaluate(0)

    def on_epoch_end(self, epoch: int, logs: Step) -> None:
        done = epoch + 1
        if done % self.config.monitor.knn_every_epochs == 0 or done == self.log.plan.epochs:
            self._evaluate(logs.number)

    def _evaluate(self, step: int) -> None:
        top1 = self.top1()
        self.log.write(step, {"knn_top1": top1})
        logging.info("kNN top-1 %.2f %% after epoch %g", top1, self.log.epoch(step))

    def top1(self) -> float:
        """Returns the top-1 in percent."""
        config = self.config
        bank, bank_labels = self._extract(self.bank, config.monitor.knn_bank_size)
        queries, labels = self._extract(self.queries, None)
        votes = knn.class_votes(
            bank,
            bank_labels,
            queries,
            len(self.bank.class_names),
            config.knn.knn_k,
            config.knn.knn_temperature,
        )
        return knn.top_k_accuracy(votes, labels, 1)

    def _extract(self, source: Source, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        folder = self.config.system.workdir
        try:
            with (
                tempfile.TemporaryFile(dir=folder) as features_file,
                tempfile.TemporaryFile(dir=folder) as labels_file,
            ):
                return features.extract(
                    self.encode,
                    source,
                    self.served.view,
                    _ENCODE_AT_ONCE,
                    files=(features_file, labels_file),
                    seed=self.config.system.seed,
                    limit=limit,
                    data=self.config.data,
                )
        except OSError:
            with files.writing_to(folder):
                raise
