import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.models.bank import Bank


def on_replicas(strategy, function, *columns, xla=False):
    """Runs `function` with each replica's row of the columns; results by replica."""

    @tf.function
    def run(*columns):
        @tf.function(jit_compile=True if xla else None)
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return function(*(column[number] for column in columns))

        return strategy.run(replica)

    results = run(*map(tf.constant, columns))
    if results is not None:
        return [one.numpy() for one in strategy.experimental_local_results(results)]
    return None


@pytest.mark.parametrize(("num_replicas", "xla"), [(1, False), (1, True), (2, False)])
def test_rows_are_found_again_whichever_replica_holds_or_asks_for_them(
    num_replicas, xla, two_replicas
):
    strategy = two_replicas if num_replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        bank = Bank(7, [2, 3], "float32")
    slow = np.zeros([7, 2, 3], "float32")
    rng = np.random.default_rng(0)
    for rows in ([[0, 6, 3], [5, 1, 2]], [[4, 5, 6], [-1, 0, -1]]):
        values = rng.standard_normal((2, 3, 2, 3)).astype("float32")
        for of_replica, new in list(zip(np.array(rows), values, strict=True))[:num_replicas]:
            for row, value in zip(of_replica, new, strict=True):
                if row >= 0:
                    slow[row] = value
        on_replicas(strategy, bank.update, np.array(rows, "int64"), values, xla=xla)
        asked = np.array([[6, 0, 5], [1, 4, 6]])
        found = on_replicas(strategy, bank.lookup, asked, xla=xla)
        assert len(found) == num_replicas
        for one, wanted in zip(found, asked, strict=False):
            np.testing.assert_array_equal(one, slow[wanted])
    np.testing.assert_array_equal(np.concatenate(list(bank.parts())), slow)


def test_a_bank_of_one_replica_is_restored_on_two(two_replicas):
    values = np.random.default_rng(1).standard_normal((2500, 3)).astype("float32")
    one = Bank(2500, [3], "float32")
    one.restore(values)
    with two_replicas.scope():
        two = Bank(2500, [3], "float32")
    two.restore(np.concatenate(list(one.parts())))
    assert two.rows_each == 1250
    np.testing.assert_array_equal(np.concatenate(list(two.parts())), values)


def test_rows_are_set_by_xla_alone():
    # TensorFlow's operation has no deterministic kernel for GPUs: the bank would visit the host.
    bank = Bank(7, [3], "float32")

    @tf.function
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


def test_the_size_and_the_place_of_a_bank_are_said_before_it_is_there(caplog, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    caplog.set_level("INFO", logger="absl")
    monkeypatch.setattr(tf, "Variable", no_memory)
    with pytest.raises(MemoryError):
        Bank(249_999, [2, 100], "float32")
    expected = "Targets of 249999 images: 0.2 GB on each of 1 replica(s), in the memory of the CPU"
    assert expected in caplog.text
