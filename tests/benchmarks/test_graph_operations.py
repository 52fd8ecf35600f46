"""Counts of the operations that a step launches outside XLA; GPUs have a kernel for each."""

import pytest
import tensorflow as tf
from benchmark_modules import SMALL, ahead_of_time, graph_operations

from simsiam_tf.methods import METHODS

NETWORK = SMALL | {"image_size": 16}
METHOD_FLAGS = {"mocov2": {"queue_size": 16}, "swav": {"num_prototypes": 8}}


@pytest.mark.parametrize("method", METHODS)
def test_every_operation_of_a_step_has_a_kernel_for_gpus(method, pretrain_config):
    config = pretrain_config(
        **NETWORK, method=method, augment_on="device", **METHOD_FLAGS.get(method, {})
    )
    step, specs = ahead_of_time.build_step(config, tf.distribute.get_strategy(), 8, num_examples=32)
    graph = tf.function(step, autograph=False).get_concrete_function(specs).graph
    found = list(graph_operations.launched_operations(graph))
    assert len([one for one in found if one.type == "Conv2D"]) >= 12
    on_the_host = {one.type for one in found if not graph_operations.has_gpu_kernel(one)}
    assert on_the_host <= {"Split"}  # splits integer labels into the parts of a batch


def test_counts_of_a_known_step():
    weight = tf.Variable(tf.ones([3, 3, 2, 2]))

    @tf.function(jit_compile=True, autograph=False)
    def piece(x):
        return tf.nn.relu(x) * 2 + 1

    @tf.function(autograph=False)
    def called(x):
        return tf.exp(x)

    def step(batch):
        x = batch["views"]  # [4, 6, 6, 2]
        x = tf.nn.conv2d(x, tf.cast(weight, tf.bfloat16), 1, "SAME")  # a cast of a weight
        x = tf.cast(x, tf.float32)  # a cast of an activation
        x = piece(called(x))
        x = tf.reshape(x, tf.shape(x) // 1)  # not counted: sizes are known at tracing
        tf.sin(x)  # not counted: nothing needs the result
        return tf.numpy_function(lambda x: x, [x], tf.float32)

    specs = {"views": tf.TensorSpec([4, 6, 6, 2], tf.bfloat16)}
    counts = graph_operations.count(tf.distribute.get_strategy(), step, specs)
    assert dict(counts.by_type) == {
        "Cast": 2, "Conv2D": 1, "Exp": 1, "compiled by XLA": 1, "PyFunc": 1,
    }  # fmt: skip
    assert (counts.launched, counts.compiled_pieces, counts.host_waits) == (6, 1, 1)
    assert (counts.casts, counts.other_casts) == (1, 1)
    assert (counts.collectives, counts.broadcasts) == (0, 0)


def test_collectives_and_broadcasts_of_two_replicas(two_replicas):
    with two_replicas.scope():
        one_for_all = tf.Variable(
            0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )

    def step(batch):
        context = tf.distribute.get_replica_context()
        total = context.all_reduce("SUM", tf.reduce_sum(batch["views"]))
        one_for_all.assign(total)
        return total

    counts = graph_operations.count(two_replicas, step, {"views": tf.TensorSpec([4], tf.float32)})
    assert counts.collectives == 1
    assert counts.broadcasts == 0.5  # one tensor to one other device
    assert counts.host_waits == 0


def test_the_program_prints_its_table(new_program):
    flags = [f"--{name}={value}" for name, value in NETWORK.items()]
    finished = new_program("benchmarks/ahead_of_time.py", "--target=graph", "--breakdown", *flags)
    assert finished.returncode == 0, finished.stderr
    head, _, row, *_ = finished.stdout.splitlines()
    cells = dict(zip(head.split("|")[1:-1], row.split("|")[1:-1], strict=True))
    assert int(cells[" launched operations "].replace(",", "")) > 100
    assert " functions compiled by XLA " in cells
    assert "| Conv2D |" in finished.stdout
