import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf import config as config_lib
from simsiam_tf import distribution
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
    results = on_each(two_replicas, lambda number: distribution.mean_over_replicas(number * [2, 4]))
    assert [list(result) for result in results] == [[1, 2], [1, 2]]


def test_gather_over_replicas_keeps_their_order_and_a_static_shape(two_replicas):
    def gather(number):
        gathered = distribution.gather_over_replicas(tf.stack([number, number + 10]))
        assert gathered.shape == (2, 2)
        return gathered

    for result in on_each(two_replicas, gather):
        np.testing.assert_array_equal(result, [[0, 10], [1, 11]])


def test_one_replica_talks_to_nobody():
    value = tf.constant([1.0, 2.0])
    assert distribution.num_replicas() == 1
    assert distribution.mean_over_replicas(value) is value
    np.testing.assert_array_equal(distribution.gather_over_replicas(value), [[1, 2]])


def test_one_device_with_replicas_is_refused():
    with pytest.raises(UserError, match="--strategy=mirrored"):
        distribution.build_strategy(config_lib.SystemConfig(strategy="default", cpu_replicas=2))


def test_more_replicas_than_the_cpu_was_split_into_are_refused():
    with pytest.raises(UserError, match="Received: a process whose CPU is split into 2"):
        distribution.build_strategy(config_lib.SystemConfig(cpu_replicas=3))
