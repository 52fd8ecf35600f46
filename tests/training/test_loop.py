"""The authors' five steps through the real path: strategy, loop, optimizer, train step."""

import numpy as np
import pytest
import tensorflow as tf
from reference import Reference, load_weights

from simsiam_tf.interop import naming
from simsiam_tf.training import loop, optimizers, pretrain


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
    model, optimizer = pretrain.build_model(config, strategy, steps_per_epoch=1)
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
            first_step=0,
            loop_end=lambda done: min(done + steps_per_loop, num_steps),
        )
    )

    losses = [step.metrics["loss"] for step in steps]
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
