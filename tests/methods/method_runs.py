"""Steps of a method on fixed batches, for the tests of the methods."""

import dataclasses

import numpy as np
import tensorflow as tf

from simsiam_tf import schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.methods.base import Plan
from simsiam_tf.methods.build import build_model
from simsiam_tf.runs.checkpoints import Checkpoints

BATCH, IMAGES = 8, 24
PLAN = Plan(num_examples=IMAGES, num_classes=5, batch_size=BATCH, epochs=4)
SMALL = {
    "backbone": "resnet10",
    "width": 4,
    "stem": "cifar",
    "projection_dim": 16,
    "projection_hidden_dim": 16,
    "prediction_hidden_dim": 8,
    "batch_size": BATCH,
    "base_learning_rate": 1.0,
    "epochs": 4,
}


class Run:
    """A small model with the given settings on a strategy, and its steps on fixed batches."""

    def __init__(self, strategy=None, channels=3, **settings):
        self.strategy = strategy or tf.distribute.get_strategy()
        defaults = schema.defaults(PretrainConfig)
        config = schema.build(PretrainConfig, defaults | SMALL | settings)
        self.image_size = settings.get("image_size", 8)
        self.model, self.optimizer = build_model(
            config, self.strategy, dataclasses.replace(PLAN, channels=channels)
        )

    def batch(self, step):
        """Returns the global batch of a step, {name: tensor}; every call gives the same."""
        rng = np.random.default_rng(step % 3)
        shape = (self.model.num_views, BATCH, self.image_size, self.image_size, 3)
        return {
            "views": tuple(tf.constant(view) for view in rng.standard_normal(shape)),
            "label": tf.constant(rng.integers(0, 5, BATCH), tf.int32),
            "index": tf.range(BATCH, dtype=tf.int64) + BATCH * (step % 3),
        }

    def share(self, batch):
        """Returns this replica's share of a global batch."""
        context = tf.distribute.get_replica_context()
        count = self.strategy.num_replicas_in_sync
        replica_id = context.replica_id_in_sync_group
        return tf.nest.map_structure(
            lambda tensor: tf.stack(tf.split(tensor, count))[replica_id], batch
        )

    @tf.function(autograph=False)
    def _step(self, batch):
        results = self.strategy.run(lambda: self.model.train_step(self.share(batch)))
        return {
            name: self.strategy.experimental_local_results(value)[0]
            for name, value in results.items()
        }

    @tf.function(autograph=False)
    def _freeze(self, batch, offset):
        self.strategy.run(lambda: self.model.freeze_targets(self.share(batch), offset))

    def step(self, step, batch=None):
        if self.model.freeze_every and step % 3 % self.model.freeze_every == 0:
            for offset in range(self.model.freeze_every):
                self._freeze(self.batch(step + offset), tf.constant(offset))
        return self._step(batch or self.batch(step))

    def checkpoints(self, folder):
        return Checkpoints(str(folder), self.model, self.optimizer, bank=self.model.bank)

    def state(self):
        """Returns every array that training continues from, except the step counter."""
        count, *velocities = self.optimizer.variables
        assert count.name == "iteration"
        bank = list(self.model.bank.parts()) if self.model.bank else []
        return [variable.numpy() for variable in [*self.model.weights, *velocities]] + bank
