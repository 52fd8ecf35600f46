"""What holds for every method: replicas, resuming, void steps."""

import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.methods import METHODS
from simsiam_tf.methods.base import Plan
from simsiam_tf.training import pretrain
from simsiam_tf.training.checkpoints import Checkpoints

BATCH, IMAGES = 8, 24
PLAN = Plan(num_examples=IMAGES, num_classes=5, batch_size=BATCH, epochs=4)

SETTINGS = {
    "simsiam": {},
    "simclr": {"predictor": "none", "stop_gradient": False},
    "mocov2": {"projection_bn": "none", "queue_size": 20},
    "byol": {"projection_bn": "hidden"},
    "swav": {"predictor": "none", "num_prototypes": 6},
    "alternation": {"inner_steps": "3"},
    "alternation, average": {"eta_momentum": 0.8, "predictor": "none"},
    "supervised": {},
}
assert {name.split(",")[0] for name in SETTINGS} == METHODS.keys()


class Run:
    """A model on a strategy, and its steps on fixed batches."""

    def __init__(self, config, strategy):
        self.strategy = strategy
        self.model, optimizer = pretrain.build_model(config, strategy, PLAN)
        self.optimizer = optimizer

    def batch(self, step):
        """The batch of a step: {name: array}, the same whoever asks."""
        rng = np.random.default_rng(step % 3)
        shape = (self.model.num_views, BATCH, 8, 8, 3)
        return {
            "views": tuple(tf.constant(view) for view in rng.standard_normal(shape)),
            "label": tf.constant(rng.integers(0, 5, BATCH), tf.int32),
            "index": tf.range(BATCH, dtype=tf.int64) + BATCH * (step % 3),
        }

    def share(self, batch):
        context = tf.distribute.get_replica_context()
        count = self.strategy.num_replicas_in_sync
        number = context.replica_id_in_sync_group
        return tf.nest.map_structure(lambda rows: tf.stack(tf.split(rows, count))[number], batch)

    @tf.function
    def _step(self, batch):
        results = self.strategy.run(lambda: self.model.train_step(self.share(batch)))
        return {
            name: self.strategy.experimental_local_results(value)[0]
            for name, value in results.items()
        }

    @tf.function
    def _hold(self, batch, place):
        self.strategy.run(lambda: self.model.hold_targets(self.share(batch), place))

    def step(self, step, batch=None):
        if self.model.hold_every and step % 3 % self.model.hold_every == 0:
            for place in range(self.model.hold_every):
                self._hold(self.batch(step + place), tf.constant(place))
        return self._step(batch or self.batch(step))

    def checkpoints(self, folder):
        return Checkpoints(str(folder), self.model, self.optimizer, bank=self.model.bank)

    def state(self):
        """Every number that training goes on from, but for the count of steps."""
        count, *velocities = self.optimizer.variables
        assert count.name == "iteration"
        bank = list(self.model.bank.parts()) if self.model.bank else []
        return [variable.numpy() for variable in [*self.model.weights, *velocities]] + bank


@pytest.fixture
def config_of(pretrain_config):
    def config(name):
        return pretrain_config(
            method=name.split(",")[0], backbone="resnet10", width=4, stem="cifar",
            projection_dim=16, projection_hidden_dim=16, prediction_hidden_dim=8,
            batch_size=BATCH, base_learning_rate=1.0, epochs=4, **SETTINGS[name],
        )  # fmt: skip

    return config


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SETTINGS)
def test_two_replicas_train_as_one_and_a_resumed_run_as_one_that_went_on(
    name, config_of, two_replicas, tmp_path
):
    config = config_of(name)
    one = Run(config, tf.distribute.get_strategy())
    two = Run(config, two_replicas)
    for step in range(4):
        expected, metrics = one.step(step), two.step(step)
        for key, value in expected.items():
            assert float(metrics[key]) == pytest.approx(float(value), rel=1e-7), (step, key)
        assert 0 < float(expected["feature_std"]) < 1.3
        if step == 1:
            one.checkpoints(tmp_path).save(2)
    for ours, theirs in zip(two.state(), one.state(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)

    end = one.state()
    assert one.checkpoints(tmp_path).restore() == 2
    for step in (2, 3):
        metrics = one.step(step)
    assert float(metrics["loss"]) == float(expected["loss"])
    for ours, theirs in zip(one.state(), end, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    spoilt = one.batch(0)
    spoilt["views"] = tuple(view + float("nan") for view in spoilt["views"])
    before = one.state()
    assert float(one._step(spoilt)["void"]) == 1
    for ours, theirs in zip(one.state(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_encoders_weights_are_the_first(name, config_of):
    # `train.py --export` restores no more of a checkpoint.
    model = Run(config_of(name), tf.distribute.get_strategy()).model
    encoder = model.encoder.weights
    assert [id(weight) for weight in model.weights[: len(encoder)]] == [*map(id, encoder)]
