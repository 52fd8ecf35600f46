"""Sends the metrics of a run to an experiment tracker as well: Weights & Biases or MLflow.

Where the tracker is, and who you are there, is set as the tracker's own documentation says:
WANDB_MODE, WANDB_PROJECT and the key of `wandb login`; MLFLOW_TRACKING_URI and
MLFLOW_EXPERIMENT_NAME.
"""

import importlib.util
import json
import math
import os
from collections.abc import Callable
from typing import Any

import keras

from simsiam_tf import files, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training.loop import Step
from simsiam_tf.training.run_log import RunLog

FILE_NAME = "tracker.json"  # which run of the tracker a resumed run goes on with
_PROJECT = "simsiam_tf"

Send = Callable[[int, dict[str, float]], None]  # step and metrics


def check(track: str) -> None:
    """Checks that the package of a tracker is installed.

    Raises:
      UserError: it is not.
    """
    if track != "none" and not importlib.util.find_spec(track):
        raise UserError(
            "--track needs the packages of requirements-track.txt. "
            f"Received: --track={track}, without the package {track}"
        )


class Tracker(keras.callbacks.Callback):
    """Sends each line of the metrics.

    Place it after the callbacks that write metrics.
    """

    def __init__(self, log: RunLog, config: PretrainConfig) -> None:
        """Args:
        log: of the run.
        config: of the run; `--track` names the tracker.
        """
        super().__init__()
        self.log = log
        self.config = config
        self.num_sent = len(log.lines)
        self.send: Send
        self.finish: Callable[[], None]

    def on_train_begin(self, logs: dict | None = None) -> None:
        start = {"wandb": _start_wandb, "mlflow": _start_mlflow}[self.config.monitor.track]
        path = os.path.join(self.log.workdir, FILE_NAME)
        settings = {
            name: schema.format_value(value) for name, value in schema.flatten(self.config).items()
        }
        name = os.path.basename(os.path.abspath(self.log.workdir))
        known = run_folder.read_json(path).get(self.config.monitor.track)
        identity, self.send, self.finish = start(self.log.workdir, name, settings, known)
        with files.writing_to(self.log.workdir):
            files.write_text(path, json.dumps({self.config.monitor.track: identity}))
        self._send_lines()

    def on_train_batch_end(self, batch: int, logs: Step) -> None:
        self._send_lines()

    def on_epoch_end(self, epoch: int, logs: Step) -> None:
        self._send_lines()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.finish()

    def _send_lines(self) -> None:
        for line in self.log.lines[self.num_sent :]:
            values = {
                name: float(value)
                for name, value in line.items()
                if name != "step" and isinstance(value, int | float) and math.isfinite(value)
            }
            self.send(line["step"], values)
        self.num_sent = len(self.log.lines)


def _start_wandb(
    workdir: str, name: str, settings: dict[str, str], known: str | None
) -> tuple[str, Send, Callable[[], None]]:
    """Returns the identity of the tracker's run, and how to send metrics and to finish."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=name,
        id=known,
        resume="allow",
        config=settings,
        dir=workdir,
    )
    return run.id, lambda step, values: run.log(values, step=step), run.finish


def _start_mlflow(
    workdir: str, name: str, settings: dict[str, str], known: str | None
) -> tuple[str, Send, Callable[[], None]]:
    """As `_start_wandb`."""
    from mlflow import entities, tracking

    client: Any = tracking.MlflowClient()
    if known is None:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else client.create_experiment(project)
        known = client.create_run(number, run_name=name).info.run_id
        params = [entities.Param(flag, value) for flag, value in settings.items()]
        client.log_batch(known, params=params[:100])
        client.log_batch(known, params=params[100:])
    client.update_run(known, status="RUNNING")

    def send(step: int, values: dict[str, float]) -> None:
        for metric, value in values.items():
            client.log_metric(known, metric, value, step=step)

    return known, send, lambda: client.set_terminated(known)
