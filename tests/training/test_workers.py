"""Several processes on one machine, run and interrupted as a cluster runs and interrupts them."""

import json
import re
import signal
import socket
import time

import pytest
from conftest import TINY_RUN
from programs import Program
from run_results import assert_same_training, losses_of

FLAGS = [
    *TINY_RUN,
    "--precision=float64",
    "--epochs=3",
    "--width=4",
    "--log_every_steps=1",
    "--checkpoint_every_steps=5",
    "--knn_every_epochs=3",
]


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture
def start_workers(tmp_path, tfds_dir):
    """(*flags, script) → the two processes of a new start in `tmp_path / "run"`."""
    started = []

    def start(*flags, script="train.py"):
        addresses = [f"localhost:{port}" for port in free_ports(2)]
        workers = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            cluster = {"cluster": {"worker": addresses}, "task": task}
            workers.append(
                Program(
                    script,
                    *FLAGS,
                    *flags,
                    f"--workdir={tmp_path / 'run'}",
                    TFDS_DATA_DIR=str(tfds_dir),
                    TF_CONFIG=json.dumps(cluster),
                )
            )
        started.extend(workers)
        return workers

    yield start
    for process in started:
        process.kill()


def wait_for_step(workdir, step, workers):
    while not (workdir / "checkpoints" / f"step-{step:09d}").exists():
        for worker in workers:
            assert worker.poll() is None, worker.communicate()[1]
        time.sleep(0.01)


def end_of(worker, timeout):
    """(exit status, the last line that it wrote)."""
    _, stderr = worker.communicate(timeout=timeout)
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("train.py: ")]
    return worker.returncode, lines[-1] if lines else stderr


def test_two_workers_stop_together_survive_a_kill_and_end_with_the_weights_of_one_process(
    start_workers, train_here, tmp_path
):
    workdir = tmp_path / "run"

    # A notice to one of them stops both, at the same step.
    workers = start_workers()
    wait_for_step(workdir, 5, workers)
    workers[1].send_signal(signal.SIGTERM)
    ends = [end_of(worker, timeout=60) for worker in workers]
    assert [status for status, _ in ends] == [128 + signal.SIGTERM] * 2
    assert "Another worker was told to stop: saved step" in ends[0][1]
    assert "SIGTERM: saved step" in ends[1][1]
    steps = {re.search(r"saved step (\d+) of 66", line)[1] for _, line in ends}
    assert len(steps) == 1
    stopped = int(steps.pop())
    assert (workdir / "checkpoints" / f"step-{stopped:09d}").exists()

    # One that is lost is named by the other, which stops.
    workers = start_workers()
    killed_at = (stopped // 5 + 2) * 5
    wait_for_step(workdir, killed_at, workers)
    workers[1].kill()
    status, line = end_of(workers[0], timeout=60)
    assert status == 1
    assert "Lost worker-1 at localhost:" in line
    assert "Run the same command on every worker to resume" in line

    # Started again, they finish what one process does alone.
    workers = start_workers()
    ends = [end_of(worker, timeout=200) for worker in workers]
    assert [status for status, _ in ends] == [0, 0], ends
    alone = tmp_path / "alone"
    train_here(alone, *FLAGS)
    assert_same_training(workdir, alone, rtol=1e-7)

    # Only the chief writes what is the run's; each has a log.
    assert {path.name for path in workdir.iterdir()} == {
        "flags.cfg", "checkpoints", "metrics.jsonl", "tensorboard", "encoder", "summary.json",
        "logs", "images.json", "history.jsonl",
    }  # fmt: skip
    assert len(list((workdir / "tensorboard").glob("events*"))) == 3  # one file a start
    first, second = ((workdir / "logs" / f"worker-{index}.log").read_text() for index in (0, 1))
    assert "Lost worker-1" in first
    assert "SIGTERM: saved step" in second
    assert "kNN" in first
    assert "kNN" not in second


METHODS = {
    "simsiam": [],
    "alternation": ["--inner_steps=2"],
    "simclr": ["--predictor=none", "--stop_gradient=false"],
    "mocov2": ["--queue_size=128"],
    "byol": ["--projection_bn=hidden", "--prediction_bn=hidden"],
    "swav": ["--predictor=none", "--num_prototypes=16"],
    "supervised": [],
}
# SwAV gathers scores from all workers, as MoCo v2 and SimCLR do; -m long runs the other methods.
PARAMETERS = [
    pytest.param(method, marks=[] if method == "swav" else [pytest.mark.long]) for method in METHODS
]


@pytest.mark.parametrize("method", PARAMETERS)
def test_two_workers_of_two_devices_train_each_method_as_one_process_does(
    method, start_workers, train_here, tmp_path
):
    flags = [
        f"--method={method}", *METHODS[method], "--train_split=train[:256]", "--epochs=2",
        "--base_learning_rate=0.1", "--knn_every_epochs=0",
    ]  # fmt: skip
    workers = start_workers(*flags, script="tests/two_devices.py")
    ends = [end_of(worker, timeout=200) for worker in workers]
    assert [status for status, _ in ends] == [0, 0], ends
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["replicas"] == 4
    train_here(tmp_path / "alone", *FLAGS, *flags)
    assert len(losses_of(tmp_path / "run")) == 8
    assert_same_training(tmp_path / "run", tmp_path / "alone", rtol=1e-7)
