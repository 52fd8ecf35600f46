"""The scripts in the cluster files run, with stand-ins for the programs of a cluster."""

import os
import subprocess

import pytest
import tensorflow as tf
import yaml
from conftest import ROOT

from simsiam_tf import config as config_lib
from simsiam_tf import flags
from simsiam_tf.distribution import devices

CLUSTER = ROOT / "cluster"
SERVICE, JOB = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(WORKER,) = POD["containers"]
ENVIRONMENT = {entry["name"]: entry["value"] for entry in WORKER["env"]}
PORT = WORKER["ports"][0]["containerPort"]

# Stands in for the training program and records its arguments.
ECHO = """#!/usr/bin/env bash
printf '%s\\n' "${TF_CONFIG:-none}" "$@" > "$CALLED"
exit "${STATUS:-0}"
"""


@pytest.fixture
def run(tmp_path):
    """Runs (command, stand-ins {name: text}, environment) → (process, recorded lines)."""

    def run(command, programs, **environment):
        for name, text in programs.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        called = tmp_path / "called"
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        finished = subprocess.run(
            command,
            cwd=ROOT,
            env={"PATH": path, "CALLED": str(called), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return finished, called.read_text().splitlines()

    return run


def settings_of(arguments, monkeypatch):
    """Returns the config that train.py reads from its command line."""
    monkeypatch.chdir(ROOT)
    script, *arguments = arguments
    assert script == "train.py"
    return flags.read(arguments, config_lib.PretrainConfig)


@pytest.mark.parametrize("index", range(JOB["spec"]["completions"]))
def test_each_pod_gives_train_py_all_workers_and_its_own_index(index, run, monkeypatch):
    finished, (tf_config, *arguments) = run(
        WORKER["command"] + WORKER["args"],
        {"python": ECHO},
        JOB_COMPLETION_INDEX=str(index),
        **ENVIRONMENT,
    )
    assert finished.returncode == 0, finished.stderr
    monkeypatch.setenv("TF_CONFIG", tf_config)
    count = JOB["spec"]["completions"]
    assert JOB["spec"]["parallelism"] == count  # with fewer, the workers would wait forever
    # Kubernetes names the pods of an indexed Job <Job>-<index>, in the domain of the Service.
    names = [f"{JOB['metadata']['name']}-{number}.{POD['subdomain']}" for number in range(count)]
    assert devices._workers_of_environment() == [f"{name}:{PORT}" for name in names]
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert (resolver.task_type, resolver.task_id) == ("worker", index)

    settings = settings_of(arguments, monkeypatch)
    assert settings.system.strategy == "multi_worker"
    mounts = [mount["mountPath"] for mount in WORKER["volumeMounts"]]
    assert os.path.dirname(settings.system.workdir) in mounts
    assert settings.data.data_dir in mounts


def test_the_service_resolves_the_jobs_pods_before_they_are_ready():
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["publishNotReadyAddresses"]
    assert SERVICE["spec"]["selector"] == JOB["spec"]["template"]["metadata"]["labels"]
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in WORKER["volumeMounts"]} == volumes


def test_the_batch_script_starts_train_py_with_srun(run, monkeypatch):
    finished, (tf_config, *arguments) = run(
        ["bash", CLUSTER / "slurm.sbatch"], {"srun": ECHO}, SLURM_CPUS_PER_TASK="32"
    )
    assert finished.returncode == 0, finished.stderr
    assert tf_config == "none"  # Slurm's variables list the workers
    assert arguments[:2] == ["--cpus-per-task=32", ".venv/bin/python"]
    assert settings_of(arguments[2:], monkeypatch).system.strategy == "multi_worker"


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (2, False), (143, True)])
def test_only_a_job_that_was_told_to_stop_is_requeued(status, again, run, tmp_path):
    requeue = '#!/usr/bin/env bash\necho "$@" > "$CALLED.scontrol"\n'
    finished, _ = run(
        ["bash", CLUSTER / "slurm.sbatch"],
        {"srun": ECHO, "scontrol": requeue},
        STATUS=str(status),
        SLURM_JOB_ID="7",
    )
    assert finished.returncode == status
    noted = tmp_path / "called.scontrol"
    assert noted.exists() == again
    if again:
        assert noted.read_text() == "requeue 7\n"
