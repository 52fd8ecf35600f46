"""`--track`: what a tracker itself has of a run, in its mode without a server."""

import importlib.util
import json
import struct

import pytest
from conftest import TINY_RUN
from mlflow import tracking as mlflow_tracking
from run_results import lines_of
from wandb.proto import wandb_internal_pb2

from simsiam_tf.schema import UserError

SMALL = [*TINY_RUN, "--width=4", "--health_every_epochs=1"]


def expected(workdir, metric):
    return [(line["step"], line[metric]) for line in lines_of(workdir) if metric in line]


def test_mlflow_has_the_metrics_and_a_resumed_run_goes_on_there(train_here, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    workdir = tmp_path / "mine"
    for epochs in (1, 2):
        train_here(workdir, *SMALL, f"--epochs={epochs}", "--track=mlflow")
    client = mlflow_tracking.MlflowClient()
    experiment = client.get_experiment_by_name("simsiam_tf")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["width"] == "4"
    for metric in ("loss", "effective_rank"):
        found = client.get_metric_history(run.info.run_id, metric)
        assert [(point.step, point.value) for point in found] == expected(workdir, metric)
        assert found[-1].step == 44


def records_of(path):
    """The records of a file that W&B keeps until it is synchronized.

    It is a log of LevelDB, after a header of seven bytes: blocks of 32 KiB, of parts with a header
    of seven bytes, which has the length and whether the part ends a record.
    """
    content, place, data = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768  # the rest of a block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record
            data = b""


def test_wandb_has_the_metrics_under_the_name_of_the_run(train_here, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "mine"
    train_here(workdir, *SMALL, "--epochs=1", "--track=wandb")
    (path,) = workdir.glob("wandb/offline-run-*/*.wandb")
    records = list(records_of(path))
    (name,) = {record.run.display_name for record in records if record.HasField("run")}
    assert name == "mine"
    rows = [
        {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.HasField("history")
    ]
    for metric in ("loss", "effective_rank"):
        found = [(row["_step"], row[metric]) for row in rows if metric in row]
        assert found == expected(workdir, metric)


def test_a_tracker_that_is_not_installed_is_told_before_the_run(train_here, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "wandb" else find_spec(name, *rest),
    )
    with pytest.raises(UserError, match=r"requirements-track\.txt.*without the package wandb"):
        train_here(tmp_path / "run", *SMALL, "--track=wandb")
    assert not (tmp_path / "run").exists()
