import numpy as np
import pytest
import tensorflow as tf
from reference import Reference, load_weights, named_weights, to_torch

from simsiam_tf.config import EncoderConfig, MethodConfig
from simsiam_tf.methods import build_method
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.training import optimizers

TINY = MethodConfig(projection_dim=16, prediction_hidden_dim=8)


def build_model(config=TINY, backbone="resnet18", width=4, stem="cifar", seed=0):
    encoder = ResNet(EncoderConfig(backbone=backbone, width=width, stem=stem), seed)
    return build_method(config, encoder, seed)


def add_optimizer(model, rates=(0.05,), predictor_rate=0.05):
    optimizer = optimizers.SGD(
        optimizers.EpochRates(list(rates), steps_per_epoch=1),
        momentum=0.9,
        weight_decay=1e-4,
        constant_rate_variables=model.predictor_variables,
        constant_rate=predictor_rate,
    )
    optimizer.build(model.learned_variables)
    model.compile(optimizer=optimizer)


def random_views(batch=8, size=16):
    return tf.unstack(tf.random.stateless_normal([2, batch, size, size, 3], [0, 0]))


@pytest.mark.usefixtures("float64")
def test_five_training_steps_are_the_references():
    # The authors' PyTorch code on ResNet-18; only its momentum, coupled L2, per-view unbiased
    # statistics and fixed predictor rate together give these numbers.
    reference = Reference("resnet18")
    settings = reference.settings
    config = MethodConfig(
        projection_dim=settings["dim"], prediction_hidden_dim=settings["pred_dim"]
    )
    model = build_model(config, settings["arch"], width=64, stem="imagenet")
    load_weights(model, reference)
    assert len(named_weights(model)) == len(model.weights)
    add_optimizer(model, settings["learning_rates"], settings["predictor_learning_rate"])
    train_step = tf.function(model.train_step)
    views = reference.views()
    losses = [float(train_step({"views": (v[0], v[1])})["loss"]) for v in views]

    np.testing.assert_allclose(losses, reference.numbers["losses"], rtol=1e-6)
    for name, variable in named_weights(model).items():
        tensor = to_torch(variable.numpy())
        norm = reference.numbers[f"final/norm/{name}"]
        assert np.linalg.norm(tensor) == pytest.approx(norm, rel=1e-6), name
        first = reference.numbers[f"final/first/{name}"]
        np.testing.assert_allclose(tensor.ravel()[:4], first, rtol=1e-6, err_msg=name)
    features = model(views[0, 0])
    np.testing.assert_allclose(features, reference.numbers["final/eval_features"], rtol=1e-6)


def test_the_loss_is_the_papers_algorithm_1():
    model, (x1, x2) = build_model(), random_views()
    loss, _ = model.compute_views_loss([x1, x2])

    # Algorithm 1, each view by itself.
    def f(x):
        return model.projector(model.encoder(x, training=True), training=True).numpy()

    def h(z):
        return model.predictor(z, training=True).numpy()

    def d(p, z):
        p, z = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (p, z))
        return -(p * z).sum(axis=1).mean()

    z1, z2 = f(x1), f(x2)
    assert float(loss) == pytest.approx(d(h(z1), z2) / 2 + d(h(z2), z1) / 2, abs=1e-5)


def gradient_at_the_target(stop_gradient):
    """The largest gradient that reaches the target z through the loss alone."""
    config = MethodConfig(projection_dim=16, prediction_hidden_dim=8, stop_gradient=stop_gradient)
    model = build_model(config)
    # With a predictor whose output is a constant, only the target branch carries a gradient.
    model.predictor.linears[-1].kernel.assign(tf.zeros([8, 16]))
    with tf.GradientTape() as tape:
        loss, _ = model.compute_views_loss(random_views())
    gradients = tape.gradient(loss, model.projector.trainable_variables)
    return max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients)


def test_no_gradient_reaches_the_target_branch():
    assert gradient_at_the_target(stop_gradient=True) == 0


def test_without_stop_gradient_the_target_branch_is_trained():
    assert gradient_at_the_target(stop_gradient=False) > 1e-4


def test_feature_std_is_that_of_both_views_projections():
    model, views = build_model(), random_views()
    _, scalars = model.compute_views_loss(views)
    stds = []
    for view in views:
        z = model.projector(model.encoder(view, training=True), training=True).numpy()
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        stds.append(unit.std(axis=0).mean() * np.sqrt(16))
    assert float(scalars["feature_std"]) == pytest.approx(np.mean(stds), abs=1e-5)


def test_the_frozen_bias_is_not_learned_and_everything_else_is():
    model = build_model()
    learned = {id(variable) for variable in model.learned_variables}
    frozen = [
        name for name, variable in named_weights(model).items() if id(variable) not in learned
    ]
    assert sorted(name for name in frozen if "running" not in name) == ["encoder.fc.6.bias"]


def test_call_gives_pool_features_in_inference_mode():
    model, (x1, _) = build_model(), random_views()
    np.testing.assert_array_equal(model(x1), model.encoder(x1, training=False))


@pytest.mark.usefixtures("float64")
def test_two_replicas_train_as_one(two_replicas):
    views = np.random.default_rng(0).standard_normal((3, 2, 8, 16, 16, 3))
    single = build_model()
    add_optimizer(single, rates=(0.1, 0.05, 0.02))
    with two_replicas.scope():
        double = build_model()
        add_optimizer(double, rates=(0.1, 0.05, 0.02))

    @tf.function
    def step_of_one(x1, x2):
        return single.train_step({"views": (x1, x2)})

    @tf.function
    def step_of_two(x1, x2):
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            share = (tf.split(x1, 2), tf.split(x2, 2))
            return double.train_step({"views": tuple(tf.stack(x)[number] for x in share)})

        return two_replicas.run(replica)

    for x1, x2 in views:
        expected = step_of_one(x1, x2)
        metrics = step_of_two(x1, x2)
        for name, value in metrics.items():
            for local in two_replicas.experimental_local_results(value):
                assert float(local) == pytest.approx(float(expected[name]), rel=1e-10), name
    for ours, theirs in zip(double.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
