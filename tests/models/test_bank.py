import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.models.bank import Bank


def on_replicas(strategy, function, *columns, xla=False):
    """Runs `function` on each replica with its row of every column; returns their results."""

    @tf.function(autograph=False)
    def run(*columns):
        @tf.function(jit_compile=True if xla else None, autograph=False)
        def replica():
            replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
            return function(*(column[replica_id] for column in columns))

        return strategy.run(replica)

    results = run(*map(tf.constant, columns))
    if results is not None:
        return [result.numpy() for result in strategy.experimental_local_results(results)]
    return None


@pytest.mark.parametrize(("num_replicas", "xla"), [(1, False), (1, True), (2, False)])
def test_every_replica_reads_the_rows_that_any_replica_has_set(num_replicas, xla, two_replicas):
    strategy = two_replicas if num_replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        bank = Bank(7, [2, 3], "float32")
    expected = np.zeros([7, 2, 3], "float32")
    rng = np.random.default_rng(0)
    for indices in ([[0, 6, 3], [5, 1, 2]], [[4, 5, 6], [-1, 0, -1]]):
        values = rng.standard_normal((2, 3, 2, 3)).astype("float32")
        for replica in range(num_replicas):
            for index, value in zip(indices[replica], values[replica], strict=True):
                if index >= 0:
                    expected[index] = value
        on_replicas(strategy, bank.update, np.array(indices, "int64"), values, xla=xla)
        requested = np.array([[6, 0, 5], [1, 4, 6]])
        results = on_replicas(strategy, bank.lookup, requested, xla=xla)
        assert len(results) == num_replicas
        for result, wanted in zip(results, requested, strict=False):
            np.testing.assert_array_equal(result, expected[wanted])
    np.testing.assert_array_equal(np.concatenate(list(bank.parts())), expected)


def test_a_bank_of_one_replica_is_restored_on_two(two_replicas):
    values = np.random.default_rng(1).standard_normal((2500, 3)).astype("float32")
    one = Bank(2500, [3], "float32")
    one.restore(values)
    with two_replicas.scope():
        two = Bank(2500, [3], "float32")
    two.restore(np.concatenate(list(one.parts())))
    assert two.rows_per_replica == 1250
    np.testing.assert_array_equal(np.concatenate(list(two.parts())), values)


def test_only_xla_sets_rows():
    # TensorFlow's operation has no deterministic kernel for GPUs: it would copy the bank to the
    # host.
    bank = Bank(7, [3], "float32")

    @tf.function(autograph=False)
    def update():
        bank.update(tf.constant([2], tf.int64), tf.ones([1, 3]))

    graph = update.get_concrete_function().graph
    functions = graph.as_graph_def().library.function
    scattering = [
        function
        for function in functions
        if any(node.op == "ResourceScatterUpdate" for node in function.node_def)
    ]
    assert "ResourceScatterUpdate" not in {operation.type for operation in graph.get_operations()}
    assert len(scattering) == 1
    assert scattering[0].attr["_XlaMustCompile"].b


def test_the_size_and_device_of_a_bank_are_logged_before_its_allocation(caplog, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    caplog.set_level("INFO", logger="absl")
    monkeypatch.setattr(tf, "Variable", no_memory)
    with pytest.raises(MemoryError):
        Bank(249_999, [2, 100], "float32")
    expected = "Targets of 249999 images: 0.2 GB on each of 1 replica(s), in the memory of the CPU"
    assert expected in caplog.text
