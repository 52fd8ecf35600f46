"""The log of a run: metrics.jsonl, TensorBoard, the log file and the progress line."""

import contextlib
import json
import logging as standard_logging
import os
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from simsiam_tf import files
from simsiam_tf.methods.base import Plan
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.terminal import Progress
from simsiam_tf.training import tags


@contextlib.contextmanager
def log_file(path: str) -> Iterator[None]:
    """A context in which the log also goes to a file, including the `UserError` that ends it."""
    with files.writing_to(os.path.dirname(os.path.dirname(path))):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handler = standard_logging.FileHandler(path, encoding="utf-8")
    # A full disk is reported by whoever needs the disk.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    absl_handler = logging.get_absl_handler()
    handler.setFormatter(absl_handler.python_handler.formatter)
    for log_filter in absl_handler.filters:
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


class RunLog:
    """The metrics of a run, in metrics.jsonl and TensorBoard. A context that closes its files.

    A method that writes raises `UserError` if the disk is full or cannot be written to.
    """

    def __init__(self, workdir: str, plan: Plan, restored_step: int | None) -> None:
        """Args:
        workdir: folder of the run.
        plan: the run's `Plan`.
        restored_step: step of the checkpoint that the run resumes from; lines that came after it
          are dropped. None: a new run.
        """
        self.workdir = workdir
        self.plan = plan
        self.restored_step = restored_step
        with files.writing_to(workdir):
            self.lines = run_folder.truncate_metrics(workdir, restored_step)
            path = os.path.join(workdir, run_folder.METRICS)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
            self._summaries = tf.summary.create_file_writer(
                os.path.join(workdir, run_folder.TENSORBOARD)
            )
        self.progress = Progress(
            plan.num_steps, "starting", "step", done=restored_step or 0, logs=False
        )

    @property
    def is_new(self) -> bool:
        """Whether the run starts anew, not from a checkpoint."""
        return self.restored_step is None

    def write_line(self, step: int, values: dict) -> None:
        """Writes a line of metrics.jsonl."""
        line = {"step": step, "epoch": self.epoch(step), **values}
        self.lines.append(line)
        with files.writing_to(self.workdir):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers as a line of metrics.jsonl and as scalars of TensorBoard."""
        self.write_line(step, values)
        with self.summaries(step):
            for name, value in values.items():
                tf.summary.scalar(tags.tag_of(name), value, description=tags.description_of(name))

    @contextlib.contextmanager
    def summaries(self, step: int) -> Iterator[None]:
        """A context in which `tf.summary` writes to the run's TensorBoard, at a step."""
        with files.writing_to(self.workdir), self._summaries.as_default(step):
            yield

    def warn(self, step: int, text: str) -> None:
        """Writes a warning to the log and to TensorBoard."""
        logging.warning("%s", text)
        with self.summaries(step):
            tf.summary.text(tags.WARNINGS, text)

    def epoch(self, step: int) -> float:
        """The epochs that are done after a step."""
        return round(step / self.plan.steps_per_epoch, 4)

    def latest(self, name: str) -> float | None:
        """The newest value of a metric; None if there is none."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)

    def first(self, name: str) -> float | None:
        """The oldest value of a metric; None if there is none."""
        return next((line[name] for line in self.lines if name in line), None)

    def flush(self) -> None:
        """Forces to disk what was written; call it before a checkpoint is saved."""
        with files.writing_to(self.workdir):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._summaries.flush()

    def __enter__(self) -> "RunLog":
        self.progress.__enter__()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.progress.__exit__()
        # After an error that already says why, a full disk has nothing to add.
        quietly = contextlib.suppress(UserError) if kind else contextlib.nullcontext()
        with quietly, files.writing_to(self.workdir):
            self._file.close()
            self._summaries.close()
