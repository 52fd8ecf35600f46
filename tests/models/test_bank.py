import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.models.bank import Bank


def on_replicas(strategy, function, *columns):
    """Runs `function` with each replica's row of the columns; results by replica."""

    @tf.function
    def run(*columns):
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return function(*(column[number] for column in columns))

        return strategy.run(replica)

    results = run(*map(tf.constant, columns))
    if results is not None:
        return [one.numpy() for one in strategy.experimental_local_results(results)]
    return None


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_rows_are_found_again_whichever_replica_holds_or_asks_for_them(num_replicas, two_replicas):
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
        on_replicas(strategy, bank.update, np.array(rows, "int64"), values)
        asked = np.array([[6, 0, 5], [1, 4, 6]])
        found = on_replicas(strategy, bank.lookup, asked)
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
