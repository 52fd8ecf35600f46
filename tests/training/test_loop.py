"""The authors' five steps through the real path: strategy, loop, optimizer, train step."""

import hand_count
import numpy as np
import pytest
import tensorflow as tf
from reference import Reference, load_weights

from simsiam_tf.config import ViewsConfig
from simsiam_tf.data import views
from simsiam_tf.interop import naming
from simsiam_tf.methods.build import build_model
from simsiam_tf.optimization import optimizers
from simsiam_tf.training import loop


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("num_replicas", "steps_per_loop"), [(1, 1), (2, 3)])
def test_five_steps_of_the_loop_are_the_references(
    num_replicas, steps_per_loop, two_replicas, pretrain_config
):
    # Only the reference's momentum, coupled L2, per-view unbiased statistics over all replicas and
    # fixed predictor rate together give these numbers.
    reference = Reference("resnet18")
    settings, numbers = reference.settings, reference.numbers
    strategy = two_replicas if num_replicas == 2 else tf.distribute.get_strategy()
    config = pretrain_config(
        backbone=settings["arch"],
        projection_dim=settings["dim"],
        prediction_hidden_dim=settings["pred_dim"],
        batch_size=settings["batch"],
        weight_decay=settings["weight_decay"],
        momentum=settings["momentum"],
        base_learning_rate=settings["predictor_learning_rate"] * 256 / settings["batch"],
    )
    model, optimizer = build_model(config, strategy)
    # The fixture's rates are no cosine; everything else is as a run has it.
    optimizer._learning_rate = optimizers.EpochRates(settings["learning_rates"], 1)
    load_weights(model, reference)

    pairs = reference.views()  # [steps, views, batch, ...]
    num_steps, _, batch_size = pairs.shape[:3]
    samples = pairs.swapaxes(1, 2).reshape(
        num_steps * batch_size, *pairs.shape[1:2], *pairs.shape[3:]
    )
    data = tf.data.Dataset.from_tensor_slices(samples).enumerate()
    data = data.map(lambda index, views: {"views": tuple(tf.unstack(views)), "index": index})
    data = data.batch(batch_size // num_replicas, drop_remainder=True)
    steps = list(
        loop.run_steps(
            strategy,
            model,
            strategy.distribute_datasets_from_function(lambda context: data),
            lambda batch: batch["views"],
            replica_batch_size=batch_size // num_replicas,
            first_step=0,
            loop_end=lambda done: min(done + steps_per_loop, num_steps),
        )
    )

    losses = [step["loss"] for step in steps]
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert [step.indices[0] for step in steps] == [batch_size * step for step in range(5)]
    np.testing.assert_allclose(losses, numbers["losses"], rtol=1e-6)
    for name, variable in naming.model_variables(model).items():
        tensor = naming.to_torch(variable.numpy())
        assert np.linalg.norm(tensor) == pytest.approx(numbers[f"final/norm/{name}"], rel=1e-6), (
            name
        )
        np.testing.assert_allclose(
            tensor.ravel()[:4], numbers[f"final/first/{name}"], rtol=1e-6, err_msg=name
        )
    features = model(tf.constant(reference.views()[0, 0]))
    np.testing.assert_allclose(features, numbers["final/eval_features"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("arrivals", "took", "waited"),
    [
        ([0, 0, 0, 0], 8, 0),  # every batch was there
        ([3, 5, 7, 9], 11, 3),  # steps of 2: the devices waited for the first batch alone
        ([0, 1, 2, 3], 20, 0),  # the host waits for batches, the devices have steps left to do
        ([1, 4, 7], 8, 5),  # steps of 1: for each of the batches
        ([2], 6, 2),
    ],
)
def test_the_devices_wait_only_where_no_step_is_left_to_do(arrivals, took, waited):
    assert loop._waiting(np.array(arrivals, float), took) == pytest.approx(waited)


def losses_of_a_run(pretrain_config, num_steps, xla):
    """The losses of a small network with augmentation on the device, and how often it was traced
    after each step."""
    config = pretrain_config(
        backbone="resnet10", width=4, stem="cifar", projection_dim=16, projection_hidden_dim=16,
        prediction_hidden_dim=8, batch_size=8, image_size=16,
    )  # fmt: skip
    strategy = tf.distribute.get_strategy()
    model, _ = build_model(config, strategy)
    make = views.build_views(ViewsConfig(image_size=16, augment_on="device"), 2)

    def example(index):
        image = tf.random.stateless_uniform([20, 24, 3], [1, index], 0, 256, tf.int32)
        return make(tf.cast(image, tf.uint8), tf.stack([2, index])) | {"index": index}

    data = tf.data.Dataset.range(8 * num_steps, output_type=tf.int32).map(example)
    data = data.map(lambda batch: batch | {"index": tf.cast(batch["index"], tf.int64)})
    traces = []

    def prepare(batch):
        traces.append(batch)
        return views.prepare(batch)

    steps = loop.run_steps(
        strategy,
        model,
        data.batch(8, drop_remainder=True),
        prepare,
        replica_batch_size=8,
        first_step=0,
        loop_end=lambda done: min(done + 1, num_steps),
        xla=xla,
    )
    losses, counts = [], []
    for step in steps:
        losses.append(step["loss"])
        counts.append(len(traces))
    return losses, counts


def test_a_step_compiled_by_xla_has_the_same_losses_and_is_traced_once(pretrain_config):
    plain, _ = losses_of_a_run(pretrain_config, 5, xla=False)
    compiled, counts = losses_of_a_run(pretrain_config, 5, xla=True)
    np.testing.assert_allclose(compiled, plain, atol=1e-5, rtol=0)  # cosines, some near zero
    assert len(set(counts[1:])) == 1


@pytest.mark.usefixtures("float64")
def test_a_step_compiled_by_xla_has_the_same_losses_in_float64(pretrain_config):
    plain, _ = losses_of_a_run(pretrain_config, 5, xla=False)
    compiled, _ = losses_of_a_run(pretrain_config, 5, xla=True)
    np.testing.assert_allclose(compiled, plain, rtol=1e-10)
    assert len(set(plain)) == 5


def test_a_step_knows_its_arithmetic(pretrain_config):
    config = pretrain_config(
        backbone="resnet10",
        width=8,
        stem="cifar",
        projection_dim=16,
        prediction_hidden_dim=32,
        batch_size=8,
    )
    strategy = tf.distribute.get_strategy()
    model, _ = build_model(config, strategy)
    pairs = np.random.default_rng(0).normal(size=[8, 2, 16, 16, 3]).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices(pairs).enumerate()
    data = data.map(lambda index, pair: {"views": tuple(tf.unstack(pair)), "index": index})
    for xla in (False, True):
        (step,) = loop.run_steps(
            strategy,
            model,
            data.batch(8, drop_remainder=True),
            lambda batch: batch["views"],
            replica_batch_size=8,
            first_step=0,
            loop_end=lambda done: 1,
            xla=xla,
        )
        assert step.flops == 2 * 8 * hand_count.flops_of_image("cifar", 16)
