"""What a run used, and what it is measured against."""

import pytest
import tensorflow as tf

from simsiam_tf.training import meter


def test_rates_are_those_of_the_steps_together():
    usage = sum(
        [meter.Usage(64, 0.0, 0.25, 3e9), meter.Usage(64, 0.0, 0.75, 3e9), meter.Usage(seconds=4)],
        meter.Usage(),
    )
    assert usage.rates(peak=6e9) == {
        "images_per_second": 32.0,
        "input_wait_fraction": 0.25,
        "model_flop_utilization": 0.25,
    }


def test_operations_outside_of_the_step_and_elementwise_ones_do_not_count():
    with tf.Graph().as_default() as graph:
        a, b = tf.zeros([3, 5]), tf.zeros([7, 5])
        tf.identity(tf.matmul(a, b, transpose_b=True))
        assert meter.count_flops(graph.get_operations()) == 0
        with tf.name_scope(meter.SCOPE):
            tf.nn.relu(a + 1)
            assert meter.count_flops(graph.get_operations()) == 0
            product = tf.matmul(a, b, transpose_b=True)
            assert meter.count_flops(graph.get_operations()) == 0  # nobody reads it
            tf.identity(product)
            assert meter.count_flops(graph.get_operations()) == 2 * 3 * 5 * 7
            tf.identity(tf.matmul(a, a, transpose_a=True))
            assert meter.count_flops(graph.get_operations()) == 2 * 3 * 5 * 7 + 2 * 5 * 3 * 5


def test_the_peak_counts_every_replica(two_replicas, monkeypatch):
    monkeypatch.setattr(meter, "_seconds_of_product", lambda strategy, size: 0.5)
    assert meter.measure_peak(tf.distribute.get_strategy()) == 2 * 512**3 / 0.5
    assert meter.measure_peak(two_replicas) == 2 * 2 * 512**3 / 0.5


def test_products_are_timed_on_each_replica(two_replicas):
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        assert 0 < meter._seconds_of_product(strategy, 64) < 60


@pytest.mark.parametrize(("fraction", "limit"), [(0.5, "input"), (0.01, "training step")])
def test_one_sentence_says_what_limits_a_run(fraction, limit):
    rates = dict(zip(meter.RATES, (10.0, fraction, 0.43), strict=True))
    sentence = meter.what_limits(rates, peak=93e9)
    assert sentence.startswith(f"The {limit} limits this run")
    assert f"{fraction:.0%}" in sentence
    assert ("43% of the 93 GFLOP/s" in sentence) == (limit == "training step")
