"""What a run used, and what it is measured against."""

import pytest
import tensorflow as tf

from simsiam_tf.training import meter


def test_rates_are_those_of_the_steps_together(monkeypatch):
    usage = sum(
        [
            meter.Usage(64, 0.0, 0.25, 1.0, 3e9),
            meter.Usage(64, 0.0, 0.75, 3.0, 3e9),
            meter.Usage(seconds=4),
        ],
        meter.Usage(),
    )
    monkeypatch.setattr(meter.psutil, "cpu_count", lambda: 2)
    assert usage.rates(peak=6e9) == {
        "images_per_second": 32.0,
        "input_wait_fraction": 0.25,
        "processor_use": 0.5,
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


def rates(waiting, processors=0.97):
    return dict(zip(meter.RATES, (10.0, waiting, processors, 0.43), strict=True))


def limit(waiting, processors=0.97, on_cpu=False, augment_on="host"):
    return meter.what_limits(
        rates(waiting, processors), peak=93e9, on_cpu=on_cpu, augment_on=augment_on
    )


def test_a_run_that_hardly_waits_is_limited_by_its_step():
    assert limit(0.01) == (
        "The training step limits this run: it waited for images 1% of the time and reached 43% of "
        "the 93 GFLOP/s that matrix products reach on these devices"
    )


def test_a_run_that_waits_for_a_fifth_of_the_time_is_told_what_faster_input_could_gain():
    sentence = limit(0.21, on_cpu=True)
    assert sentence.startswith("The training step takes 79% of the time of this run")
    assert "more than 1.3 times as fast" in sentence


def test_only_more_than_half_of_the_time_is_a_limit_by_the_input():
    assert limit(0.5).startswith("The training step takes 50%")
    assert limit(0.6).startswith("The input limits this run: the devices waited for images 60%")
    assert "more than 2.5 times" in limit(0.6)
    assert "more than 91 times" in limit(0.989)
    assert "more than 100 times" in limit(1.0)


@pytest.mark.parametrize(
    ("situation", "advice"),
    [
        ({}, "more of them would help, or --augment_on=device"),
        ({"augment_on": "device"}, "more of them would help"),
        ({"on_cpu": True}, "share, were busy 97% of the time: more of them would help"),
        (
            {"processors": 0.5},
            "more of them would not help; the reading of the files may be the limit",
        ),
        ({"processors": 0.5, "on_cpu": True}, "share, were busy 50% of the time"),
    ],
)
def test_the_advice_is_what_the_use_of_the_processors_supports(situation, advice):
    assert limit(0.6, **situation).endswith(advice)


def test_device_augmentation_is_never_advised_to_a_run_that_has_it_or_shares_its_processors():
    for waiting in (0.05, 0.21, 0.6, 1.0):
        assert "augment_on" not in limit(waiting, on_cpu=True)
        assert "augment_on" not in limit(waiting, augment_on="device")
