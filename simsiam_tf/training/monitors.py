"""What a run shows of itself: metrics.jsonl, TensorBoard, the terminal."""

import contextlib
import itertools
import json
import logging as standard_logging
import os
import sys
import tempfile

import tensorflow as tf
from absl import logging
from tqdm import tqdm

from simsiam_tf.data import views
from simsiam_tf.evaluation import encoding, features, knn
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError
from simsiam_tf.training import meter
from simsiam_tf.training.checkpoints import write_whole, writing_to

METRICS = "metrics.jsonl"
COLLAPSED_STD = 0.3
VIEW_PAIRS = 8
_ENCODE_AT_ONCE = 256


@contextlib.contextmanager
def log_file(path):
    """A context in which the log goes to a file too, its end with a `UserError` included."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handler = standard_logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None  # a full disk is told of by whoever needs the disk
    handler.setFormatter(logging.get_absl_handler().python_handler.formatter)
    for log_filter in logging.get_absl_handler().filters:
        handler.addFilter(log_filter)
    root = standard_logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except UserError as error:
        logger = logging.get_absl_logger()
        handler.handle(
            logger.makeRecord(logger.name, logging.ERROR, __file__, 0, str(error), (), None)
        )
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


class Monitor:
    """Watches a run; call `step` after every step, and `flush` before a checkpoint."""

    def __init__(
        self,
        workdir,
        *,
        restored_step,
        last_step,
        steps_per_epoch,
        batch_size,
        log_every_steps,
        learning_rates,
        predictor_learning_rates,
        peak_flops,
    ):
        """Args:
        workdir: the run's folder.
        restored_step: that of the checkpoint that the run goes on from, None where there is none;
          lines of the metrics that came after it are dropped.
        last_step: of the whole run.
        steps_per_epoch: an int.
        batch_size: global.
        log_every_steps: from one line to the next.
        learning_rates: of every epoch.
        predictor_learning_rates: likewise.
        peak_flops: FLOP/s that all devices reach in matrix products.
        """
        self.last_step = last_step
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.log_every_steps = log_every_steps
        self.learning_rates = learning_rates
        self.predictor_learning_rates = predictor_learning_rates
        self.peak_flops = peak_flops
        self.lines = _reopen_metrics(os.path.join(workdir, METRICS), restored_step)
        self.file = open(os.path.join(workdir, METRICS), "a", encoding="utf-8")  # noqa: SIM115
        self.summaries = tf.summary.create_file_writer(os.path.join(workdir, "tensorboard"))
        self.progress = tqdm(
            total=last_step,
            initial=restored_step or 0,
            unit="step",
            disable=not sys.stderr.isatty(),
            bar_format="{desc} {n_fmt}/{total_fmt} steps |{bar:20}|{postfix}, {remaining} left",
        )
        self.recent = meter.Usage()
        self.usages = []  # of each line of this start
        # How many steps up to the newest were skipped, since their loss or gradient was not finite.
        steps = {line["step"] for line in self.lines if "nonfinite" in line}
        last = restored_step or 0
        self.skipped_in_a_row = next(n for n in itertools.count() if last - n not in steps)

    def step(self, step):
        """Takes note of a `loop.Step`; writes a line where one is due."""
        self.recent += meter.Usage(self.batch_size, step.seconds, step.waited, step.flops)
        self.progress.update()
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if step.metrics["void"] else 0
        if step.metrics["void"]:
            self._write_void(step)
        elif step.number % self.log_every_steps == 0 or step.number == self.last_step:
            self._write_step(step)
        if step.number % self.steps_per_epoch == 0:
            self._look_for_collapse(step.number)

    def _write_step(self, step):
        values = {name: value for name, value in step.metrics.items() if name != "void"}
        # The rate that the step was made with.
        epoch = (step.number - 1) // self.steps_per_epoch
        self.usages.append(self.recent)
        rates = self.recent.rates(self.peak_flops)
        line = values | {"learning_rate": self.learning_rates[epoch]} | rates
        self._write(step.number, line)
        with self.summaries.as_default(step.number):
            tf.summary.scalar("predictor_learning_rate", self.predictor_learning_rates[epoch])
            # Lines to read the curve by.
            tf.summary.scalar("feature_std_healthy", 1.0)
            tf.summary.scalar("feature_std_collapsed", COLLAPSED_STD)
        text = (
            f"loss {line['loss']:.4f}, std {line['feature_std']:.3f}, "
            f"{line['images_per_second']:.0f} images/s"
        )
        epochs = f"epoch {epoch + 1}/{len(self.learning_rates)}"
        self.progress.set_description(epochs, refresh=False)
        self.progress.set_postfix_str(text)
        if self.progress.disable:
            left = (self.last_step - step.number) * self.batch_size / rates["images_per_second"]
            logging.info(
                "%s, step %d/%d, %s, %s left",
                epochs,
                step.number,
                self.last_step,
                text,
                tqdm.format_interval(left),
            )
        self.recent = meter.Usage()

    def _write_void(self, step):
        """A step that changed nothing, since its loss or gradient was not finite."""
        self._write_line(step.number, {"nonfinite": True, "indices": step.indices})
        self.warn(
            step.number,
            f"Step {step.number} changed no weight: its loss or gradient is not finite. Its "
            f"samples: {', '.join(map(str, step.indices))}",
        )

    def view_pairs(self, batch_views):
        """A grid of view pairs as the network sees them first: a row for each image.

        Args:
          batch_views: a tuple of `[B, H, W, 3]`, normalised; B is best `VIEW_PAIRS`.
        """
        rows = tf.concat([views.denormalize(view) for view in batch_views], axis=2)
        grid = tf.concat(tf.unstack(rows), axis=0)
        with self.summaries.as_default(0):
            tf.summary.image("view_pairs", grid[tf.newaxis])

    def _look_for_collapse(self, step):
        """Warns where every line of the epoch has a std under 0.3."""
        first = step - self.steps_per_epoch
        newest = itertools.takewhile(lambda line: line["step"] > first, reversed(self.lines))
        stds = [line["feature_std"] for line in newest if "feature_std" in line]
        if stds and max(stds) < COLLAPSED_STD:
            text = (
                f"Collapse: the features' std was {max(stds):.3f} or less throughout epoch "
                f"{step // self.steps_per_epoch}; healthy is about 1"
            )
            self.warn(step, text)

    def warn(self, step, text):
        """A warning in the log and in TensorBoard."""
        with self.pause():
            logging.warning("%s", text)
        with self.summaries.as_default(step):
            tf.summary.text("warnings", text)

    def knn(self, step, top1):
        """Takes note of the kNN classifier's top-1, in percent."""
        self._write(step, {"knn_top1": top1})
        with self.pause():
            logging.info("kNN top-1 %.2f %% after epoch %g", top1, self._epoch(step))

    def usage(self):
        """The rates of this start as a whole and, in a sentence, what limits them."""
        # The first line's time went into tracing and compiling the step.
        usages = self.usages[1:] or self.usages
        if usages:
            rates = sum(usages, meter.Usage()).rates(self.peak_flops)
        else:  # every step was done before
            rates = {name: self.latest(name, 0.0) for name in meter.RATES}
        return rates | {"limit": meter.what_limits(rates, self.peak_flops)}

    @contextlib.contextmanager
    def pause(self):
        """A context in which the progress line is away."""
        self.progress.clear()
        yield
        self.progress.refresh()

    def latest(self, name, default=None):
        """The newest value of a metric."""
        return next((line[name] for line in reversed(self.lines) if name in line), default)

    def first(self, name, default=None):
        """The oldest value of a metric."""
        return next((line[name] for line in self.lines if name in line), default)

    def flush(self):
        """Forces to disk what was written; to be called before a checkpoint is saved."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.summaries.flush()

    def close(self):
        """Ends the files and the progress line."""
        self.flush()
        self.file.close()
        self.summaries.close()
        self.progress.close()

    def _write_line(self, step, values):
        line = {"step": step, "epoch": self._epoch(step), **values}
        self.lines.append(line)
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def _write(self, step, values):
        self._write_line(step, values)
        with self.summaries.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def _epoch(self, step):
        return round(step / self.steps_per_epoch, 4)


def _reopen_metrics(path, restored_step):
    """The lines up to the checkpoint; those that came after it leave the file."""
    if not os.path.exists(path):
        return []
    if restored_step is None:
        os.remove(path)
        return []
    with open(path, encoding="utf-8") as file:
        # A line that was cut off by a kill has no end.
        texts = [text for text in file if text.endswith("\n")]
    try:
        lines = [json.loads(text) for text in texts]
        kept = [index for index, line in enumerate(lines) if line["step"] <= restored_step]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} must hold a JSON object with a step in every line. Received: {error}; mend or "
            "remove that line"
        ) from error
    write_whole(path, "".join(texts[index] for index in kept))
    return [lines[index] for index in kept]


class KnnMonitor:
    """The kNN top-1 of the encoder as it is now, on a labelled data set."""

    def __init__(self, strategy, encoder, bank, queries, config):
        """Args:
        strategy: the `tf.distribute.Strategy` that the encoder was built under; this process's
          replicas share the work.
        encoder: of normalised images.
        bank: labelled `datasets.Source` to compare with.
        queries: labelled `datasets.Source` to classify.
        config: a `PretrainConfig`.
        """
        self.served = saved_model.ServedEncoder(
            encoder, config.views.image_size, config.views.eval_crop_ratio
        )
        self.encode = encoding.on_all_replicas(
            strategy, lambda images: self.served.features(images)["features"], _ENCODE_AT_ONCE
        )
        self.bank = bank
        self.queries = queries
        self.config = config
        self.bank_features = None  # [N, F], of the newest evaluation

    def top1(self):
        """In percent."""
        config = self.config
        bank, bank_labels = self._extract(self.bank, config.monitor.knn_bank_size)
        self.bank_features = bank
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

    def _extract(self, source, limit):
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
            with writing_to(folder):
                raise
