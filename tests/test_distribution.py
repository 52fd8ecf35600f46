import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf import config as config_lib
from simsiam_tf.distribution import collectives, devices, workers
from simsiam_tf.schema import UserError


def on_each(strategy, function):
    """Returns the results of `function(replica index)` on every replica, in a graph."""

    @tf.function(autograph=False)
    def run():
        def replica():
            context = tf.distribute.get_replica_context()
            index = tf.cast(context.replica_id_in_sync_group, tf.float32)
            return function(index)

        return strategy.run(replica)

    return [value.numpy() for value in strategy.experimental_local_results(run())]


def test_mean_over_replicas_is_the_same_on_each_replica(two_replicas):
    results = on_each(two_replicas, lambda index: collectives.mean_over_replicas(index * [2, 4]))
    assert [list(result) for result in results] == [[1, 2], [1, 2]]


def test_gather_over_replicas_keeps_their_order_and_a_static_shape(two_replicas):
    def gather(index):
        gathered = collectives.gather_over_replicas(tf.stack([index, index + 10]))
        assert gathered.shape == (2, 2)
        return gathered

    for result in on_each(two_replicas, gather):
        np.testing.assert_array_equal(result, [[0, 10], [1, 11]])


def test_collectives_of_one_replica_return_its_own_value():
    value = tf.constant([1.0, 2.0])
    assert collectives.num_replicas() == 1
    assert collectives.mean_over_replicas(value) is value
    np.testing.assert_array_equal(collectives.gather_over_replicas(value), [[1, 2]])


def test_the_default_strategy_rejects_several_replicas():
    with pytest.raises(UserError, match="--strategy=mirrored"):
        devices.build_strategy(config_lib.SystemConfig(strategy="default", cpu_replicas=2))


SLURM = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "node[7-8]",
         "SLURM_STEP_TASKS_PER_NODE": "2,1"}  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "address"), [("0", "node7:8888"), ("1", "node7:8889"), ("2", "node8:8888")]
)
def test_workers_are_read_from_slurms_variables(monkeypatch, rank, address):
    for name, value in (SLURM | {"SLURM_PROCID": rank}).items():
        monkeypatch.setenv(name, value)
    resolver = devices._slurm_resolver()
    cluster = resolver.cluster_spec()
    assert cluster.as_dict() == {"worker": ["node7:8888", "node7:8889", "node8:8888"]}
    assert cluster.task_address(resolver.task_type, resolver.task_id) == address
    assert resolver.num_accelerators() == {"GPU": 0}  # the GPUs visible to this task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ('{"cluster": {"worker": ["a:1"]}}', ["a:1"]),
        ('{"cluster": {"worker": ["a:1"], "chief": ["b:1"], "ps": ["c:1"]}}', ["b:1", "a:1"]),
    ],
)
def test_workers_are_read_from_tf_config(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert devices._workers_of_environment() == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": [1]}', '{"cluster": {"worker": 3}}'])
def test_a_malformed_tf_config_is_rejected(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG must have TensorFlow's format"):
        devices.build_strategy(config_lib.SystemConfig())


def test_multi_worker_needs_tf_config_or_slurm(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="needs TF_CONFIG, or a program that Slurm's srun starts"):
        devices.build_strategy(config_lib.SystemConfig(strategy="multi_worker"))


@pytest.mark.parametrize(
    ("settings", "hosts", "received"),
    [
        ({"tpu": "my-tpu"}, "", "--tpu=my-tpu"),
        ({"tpu": "grpc://10.0.0.2:8470"}, "", "--tpu=grpc://10.0.0.2:8470"),
        ({}, "host-0,host-1", "TPU_WORKER_HOSTNAMES=host-0,host-1"),
        ({"precision": "float64"}, "localhost", "--precision=float64"),
        ({"xla": "false"}, "localhost", "--xla=false"),
    ],
)
def test_settings_unsupported_by_tpus_are_rejected_before_connecting(
    monkeypatch, settings, hosts, received
):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
    with pytest.raises(UserError) as raised:
        devices._connect_to_tpu(config_lib.SystemConfig(strategy="tpu", **settings))
    assert received in str(raised.value)


def test_a_missing_tpu_is_reported_in_one_line(program, tmp_path):
    finished = program("train.py", "--strategy=tpu", f"--workdir={tmp_path}")
    assert finished.returncode == 1
    line = finished.stderr.splitlines()[-1]
    assert line.startswith("train.py: --strategy=tpu found no TPU that it could start (")
    assert line.endswith("). Received: --tpu=local")
    assert "Traceback" not in finished.stderr


def test_a_single_process_is_the_chief():
    strategy = tf.distribute.get_strategy()
    assert workers.is_chief(strategy)
    assert workers.worker_name(strategy) == "worker-0"
    assert workers.gather_over_workers(strategy, 7) == [7]


def test_more_replicas_than_logical_cpus_are_rejected():
    with pytest.raises(UserError, match="Received: a process whose CPU is split into 2"):
        devices.build_strategy(config_lib.SystemConfig(cpu_replicas=3))


def test_xla_on_several_cpu_replicas_is_rejected(two_replicas):
    del two_replicas  # the strategy must be created first
    settings = config_lib.SystemConfig(strategy="mirrored", cpu_replicas=2, xla="true")
    with pytest.raises(UserError, match="--xla needs one replica"):
        devices.build_strategy(settings)


def test_replica_count_and_device_type_of_a_process(two_replicas):
    for strategy, count in ((tf.distribute.get_strategy(), 1), (two_replicas, 2)):
        assert devices.num_local_replicas(strategy) == count
        assert devices.device_type(strategy) == "CPU"
