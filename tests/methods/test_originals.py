"""SwAV, MoCo and SimCLR against numbers that their authors' own code computed.

tests/fixtures/official_siblings.npz has the results of facebookresearch/swav, facebookresearch/moco
and google-research/simclr (tf2) for fixed inputs, in float64 except for SimCLR.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from simsiam_tf import objectives, schema
from simsiam_tf.config import MethodConfig
from simsiam_tf.methods.base import Plan
from simsiam_tf.methods.mocov2 import MocoV2
from simsiam_tf.optimization.optimizers import SGD


@pytest.fixture(scope="module")
def official():
    with np.load(ROOT / "tests" / "fixtures" / "official_siblings.npz") as numbers:
        return dict(numbers)


@pytest.mark.parametrize(
    ("name", "epsilon", "iterations"), [("eps0.05_it3", 0.05, 3), ("eps0.5_it10", 0.5, 10)]
)
def test_swavs_codes_loss_and_gradients_are_those_of_its_code(official, name, epsilon, iterations):
    z1, z2 = tf.constant(official["z1"]), tf.constant(official["z2"])
    prototypes = tf.math.l2_normalize(tf.constant(official["prototypes"]), axis=0)
    with tf.GradientTape() as tape:
        tape.watch([z1, z2, prototypes])
        scores1, scores2 = (tf.math.l2_normalize(z, axis=1) @ prototypes for z in (z1, z2))
        codes1, codes2 = (
            tf.stop_gradient(objectives.sinkhorn(scores, epsilon, iterations))
            for scores in (scores1, scores2)
        )
        loss = objectives.swapped_prediction(codes2, scores1, 0.1) / 2
        loss += objectives.swapped_prediction(codes1, scores2, 0.1) / 2
    found = dict(
        zip(
            ("grad_z1", "grad_z2", "grad_prototypes"),
            tape.gradient(loss, [z1, z2, prototypes]),
            strict=True,
        ),
        codes1=codes1,
        codes2=codes2,
        loss=loss,
    )
    for key, value in found.items():
        np.testing.assert_allclose(value, official[f"swav/{name}/{key}"], rtol=0, atol=1e-12)


class Linear(keras.layers.Layer):
    """A bias-free linear layer in place of a network: f takes the queries, f' the keys."""

    feature_dim = 16

    def __init__(self, weight, column=0):
        super().__init__()
        self.column = column  # of the two vectors that each image carries
        self.kernel = self.add_weight(shape=weight.shape, initializer="zeros")
        self.kernel.assign(weight)
        self.built = True

    def call(self, images, training=False, num_views=1):
        return images[:, self.column] @ self.kernel

    def copy(self):
        return Linear(self.kernel.numpy(), column=1)


class Identity(keras.layers.Layer):
    def call(self, features, training=False, num_views=1):
        return features


def pairs_of(queries, keys):
    """Two views of six images each, with the pairs of queries and keys of twelve.

    The loss compares the query of a view with the key of the other view. So the two views of an
    image carry two queries, and each other's keys.
    """
    first, second = np.arange(6), np.arange(6, 12)
    views = [
        np.stack([queries[own], keys[other]], axis=1)
        for own, other in ((first, second), (second, first))
    ]
    return tuple(tf.constant(view) for view in views)


@pytest.mark.usefixtures("float64")
def test_three_steps_of_moco_v2_are_those_of_mocos_code(official):
    settings = schema.defaults(MethodConfig) | {
        "method": "mocov2", "temperature": 0.2, "target_momentum": 0.99, "queue_size": 36,
        "projection_dim": 16, "target_momentum_schedule": "constant",
    }  # fmt: skip
    plan = Plan(num_examples=18, num_classes=0, batch_size=6, epochs=1)
    encoder = Linear(official["moco/weight0"].T)  # PyTorch's layout is [out, in]
    model = MocoV2(schema.build(MethodConfig, settings), encoder, 0, plan)
    model.projector = model.target.projector = Identity()
    model.queue.keys.assign(official["moco/queue0"][::-1])  # there the first ones leave first
    model.compile(SGD(0.5, 0.9, 1e-4))
    model.optimizer.build(model.learned_variables)
    for step, (queries, keys) in enumerate(official["moco/x"]):
        expected = {
            name: official[f"moco/step{step}/{name}"]
            for name in ("loss", "key_weight", "query_weight", "queue")
        }
        key_weight = model.target.encoder.kernel.numpy().T
        np.testing.assert_allclose(key_weight, expected["key_weight"], rtol=0, atol=1e-12)
        metrics = model.train_step({"views": pairs_of(queries, keys)})
        assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=0, abs=1e-12)
        weight = encoder.kernel.numpy().T
        np.testing.assert_allclose(weight, expected["query_weight"], rtol=0, atol=1e-12)
        found, queue = (
            sorted(map(tuple, of)) for of in (model.queue.keys.numpy(), expected["queue"])
        )
        np.testing.assert_allclose(found, queue, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclrs_loss_and_gradient_are_those_of_its_code(official, temperature):
    z = tf.constant(np.stack([official["z1"], official["z2"]]), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = objectives.nt_xent(z, z, tf.range(12), temperature)
    gradient = tf.reshape(tape.gradient(loss, z), [24, 16])
    expected = {key: official[f"simclr/T{temperature}/{key}"] for key in ("loss", "grad_z")}
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-6)
    np.testing.assert_allclose(gradient, expected["grad_z"], rtol=0, atol=1e-6)
