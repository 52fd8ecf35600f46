import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf import config as config_lib
from simsiam_tf.distribution import collectives, devices, workers
from simsiam_tf.schema import UserError


def on_each(strategy, function):
    """The results of `function(replica number)` on every replica, in a graph."""

    @tf.function
    def run():
        def replica():
            context = tf.distribute.get_replica_context()
            number = tf.cast(context.replica_id_in_sync_group, tf.float32)
            return function(number)

        return strategy.run(replica)

    return [value.numpy() for value in strategy.experimental_local_results(run())]


def test_mean_over_replicas_is_the_same_on_each(two_replicas):
    results = on_each(two_replicas, lambda number: collectives.mean_over_replicas(number * [2, 4]))
    assert [list(result) for result in results] == [[1, 2], [1, 2]]


def test_gather_over_replicas_keeps_their_order_and_a_static_shape(two_replicas):
    def gather(number):
        gathered = collectives.gather_over_replicas(tf.stack([number, number + 10]))
        assert gathered.shape == (2, 2)
        return gathered

    for result in on_each(two_replicas, gather):
        np.testing.assert_array_equal(result, [[0, 10], [1, 11]])


def test_one_replica_talks_to_nobody():
    value = tf.constant([1.0, 2.0])
    assert collectives.num_replicas() == 1
    assert collectives.mean_over_replicas(value) is value
    np.testing.assert_array_equal(collectives.gather_over_replicas(value), [[1, 2]])


def test_one_device_with_replicas_is_refused():
    with pytest.raises(UserError, match="--strategy=mirrored"):
        devices.build_strategy(config_lib.SystemConfig(strategy="default", cpu_replicas=2))


SLURM = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "node[7-8]",
         "SLURM_STEP_TASKS_PER_NODE": "2,1"}  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "place"), [("0", "node7:8888"), ("1", "node7:8889"), ("2", "node8:8888")]
)
def test_slurm_says_who_the_workers_are(monkeypatch, rank, place):
    for name, value in (SLURM | {"SLURM_PROCID": rank}).items():
        monkeypatch.setenv(name, value)
    resolver = devices._slurm_resolver()
    cluster = resolver.cluster_spec()
    assert cluster.as_dict() == {"worker": ["node7:8888", "node7:8889", "node8:8888"]}
    assert cluster.task_address(resolver.task_type, resolver.task_id) == place
    assert resolver.num_accelerators() == {"GPU": 0}  # those that this task sees


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ('{"cluster": {"worker": ["a:1"]}}', ["a:1"]),
        ('{"cluster": {"worker": ["a:1"], "chief": ["b:1"], "ps": ["c:1"]}}', ["b:1", "a:1"]),
    ],
)
def test_the_environment_names_the_workers(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert devices._workers_of_environment() == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": [1]}', '{"cluster": {"worker": 3}}'])
def test_a_tf_config_of_another_shape_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG must be as TensorFlow has it"):
        devices.build_strategy(config_lib.SystemConfig())


def test_several_workers_need_someone_to_say_who_they_are(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"needs TF_CONFIG, or a start by Slurm's srun"):
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
def test_what_no_tpu_can_do_is_refused_before_a_tpu_is_asked_for(
    monkeypatch, settings, hosts, received
):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
    with pytest.raises(UserError) as raised:
        devices._connect_to_tpu(config_lib.SystemConfig(strategy="tpu", **settings))
    assert received in str(raised.value)


def test_a_tpu_that_is_not_there_is_told_of_in_one_sentence(program, tmp_path):
    finished = program("train.py", "--strategy=tpu", f"--workdir={tmp_path}")
    assert finished.returncode == 1
    line = finished.stderr.splitlines()[-1]
    assert line.startswith("train.py: --strategy=tpu found no TPU that it could start (")
    assert line.endswith("). Received: --tpu=local")
    assert "Traceback" not in finished.stderr


def test_only_the_chief_writes_and_a_single_process_is_it():
    strategy = tf.distribute.get_strategy()
    assert workers.is_chief(strategy)
    assert workers.worker_name(strategy) == "worker-0"
    assert workers.gather_over_workers(strategy, 7) == [7]


def test_more_replicas_than_the_cpu_was_split_into_are_refused():
    with pytest.raises(UserError, match="Received: a process whose CPU is split into 2"):
        devices.build_strategy(config_lib.SystemConfig(cpu_replicas=3))


def test_xla_on_several_processors_is_refused(two_replicas):
    del two_replicas  # it must be made first
    settings = config_lib.SystemConfig(strategy="mirrored", cpu_replicas=2, xla="true")
    with pytest.raises(UserError, match="--xla needs one replica"):
        devices.build_strategy(settings)


def test_the_replicas_and_the_devices_of_a_process_are_known(two_replicas):
    for strategy, count in ((tf.distribute.get_strategy(), 1), (two_replicas, 2)):
        assert devices.num_local_replicas(strategy) == count
        assert devices.device_type(strategy) == "CPU"
