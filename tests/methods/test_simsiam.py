import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torch_copy
from reference import Reference, load_weights

from simsiam_tf import objectives
from simsiam_tf.config import EncoderConfig, MethodConfig
from simsiam_tf.interop import naming
from simsiam_tf.methods import build_method
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.optimization import optimizers

TINY = MethodConfig(projection_dim=16, projection_hidden_dim=16, prediction_hidden_dim=8)


def build_model(config=TINY, backbone="resnet10", width=4, stem="cifar", seed=0):
    encoder = ResNet(EncoderConfig(backbone=backbone, width=width, stem=stem), seed)
    return build_method(config, encoder, seed)


def add_optimizer(model, rates=(0.05,), predictor_rate=0.05):
    optimizer = optimizers.SGD(
        optimizers.EpochRates(list(rates), steps_per_epoch=1),
        momentum=0.9,
        weight_decay=1e-4,
        constant_rate_variables=optimizers.indices(
            model.predictor_variables, model.learned_variables
        ),
        constant_rate=predictor_rate,
    )
    optimizer.build(model.learned_variables)
    model.compile(optimizer)


def random_views(batch=8, size=16):
    return tf.unstack(tf.random.stateless_normal([2, batch, size, size, 3], [0, 0]))


def build_reference_model(reference):
    settings = reference.settings
    config = MethodConfig(
        projection_dim=settings["dim"], prediction_hidden_dim=settings["pred_dim"]
    )
    model = build_model(config, settings["arch"], width=64, stem="imagenet")
    load_weights(model, reference)
    return model


def first_step(model, views):
    """Returns z1, z2, p1, p2 of a pair of views, and the gradient of every learned variable."""

    @tf.function(autograph=False)
    def step(x1, x2):
        with tf.GradientTape() as tape:
            loss, _ = model.compute_views_loss({"views": [x1, x2]})
        gradients = tape.gradient(loss, model.learned_variables)
        z = model.projector(
            model.encoder(tf.concat([x1, x2], 0), training=True, num_views=2),
            training=True,
            num_views=2,
        )
        p = model.predictor(z, training=True, num_views=2)
        z1, z2 = tf.split(z, 2)
        p1, p2 = tf.split(p, 2)
        return {"z1": z1, "z2": z2, "p1": p1, "p2": p2}, gradients

    outputs, gradients = step(*(tf.constant(view, keras.config.floatx()) for view in views))
    gradient_of = dict(zip(map(id, model.learned_variables), gradients, strict=True))
    names = {id(variable): name for name, variable in naming.model_variables(model).items()}
    return outputs, {names[key]: gradient for key, gradient in gradient_of.items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_outputs_and_every_gradient_equal_the_references(backbone):
    # The reference is the authors' PyTorch code, in float64.
    reference = Reference(backbone)
    model = build_reference_model(reference)
    outputs, gradients = first_step(model, reference.views()[0])
    for name, value in outputs.items():
        expected = reference.numbers[f"step0/{name}"]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9, err_msg=name)
    names = [key for key in reference.numbers if key.startswith("step0/grad_norm/")]
    assert {name.removeprefix("step0/grad_norm/") for name in names} == gradients.keys()
    for name, gradient in gradients.items():
        expected = reference.numbers[f"step0/grad_norm/{name}"]
        assert float(tf.norm(gradient)) == pytest.approx(expected, rel=1e-6, abs=1e-12), name


def test_outputs_in_float32_are_close_to_the_references():
    reference = Reference("resnet18")
    outputs, _ = first_step(build_reference_model(reference), reference.views()[0])
    for name, value in outputs.items():
        assert value.dtype == tf.float32
        np.testing.assert_allclose(value, reference.numbers[f"step0/{name}"], atol=2e-3)


@pytest.mark.long
@pytest.mark.usefixtures("float64")
def test_each_of_five_steps_of_resnet50_equals_pytorchs():
    # Five steps of this network amplify a difference of 1e-15 to 1e-3 (docs/parity.md), in PyTorch
    # as well as here. So each step starts with the weights and momenta of PyTorch's previous step.
    reference = Reference("resnet50")
    settings = reference.settings
    model = build_reference_model(reference)
    add_optimizer(model, settings["learning_rates"], settings["predictor_learning_rate"])
    variables = naming.model_variables(model)
    optimizer = model.optimizer
    velocities = dict(zip(map(id, model.learned_variables), optimizer.velocities, strict=True))
    state = {
        name: torch.from_numpy(naming.to_torch(variable.numpy()))
        for name, variable in variables.items()
    }
    train_step = tf.function(model.train_step, autograph=False)
    views = reference.views()
    steps = torch_copy.train(
        state,
        torch.from_numpy(views.transpose(0, 1, 2, 5, 3, 4).copy()),
        settings["learning_rates"],
        settings["predictor_learning_rate"],
    )
    losses = []
    for step, (loss, momenta) in enumerate(steps):
        losses.append(loss)
        got = train_step({"views": (views[step, 0], views[step, 1])})["loss"]
        assert float(got) == pytest.approx(loss, rel=1e-6), step
        for name, variable in variables.items():
            expected = naming.to_keras(state[name].numpy())
            difference = np.linalg.norm(variable.numpy() - expected)
            assert difference <= 1e-6 * np.linalg.norm(expected), (step, name)
            variable.assign(expected)
            if name in momenta:
                velocities[id(variable)].assign(naming.to_keras(momenta[name].numpy()))
    # The PyTorch copy of the network reproduces the reference, within the difference between two
    # runs of PyTorch.
    np.testing.assert_allclose(losses[:3], reference.numbers["losses"][:3], rtol=1e-6)


def test_the_loss_equals_the_papers_algorithm_1():
    model, (x1, x2) = build_model(), random_views()
    loss, _ = model.compute_views_loss({"views": [x1, x2]})

    # Algorithm 1, with a separate pass for each view.
    def f(x):
        return model.projector(model.encoder(x, training=True), training=True).numpy()

    def h(z):
        return model.predictor(z, training=True).numpy()

    def d(p, z):
        p, z = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (p, z))
        return -(p * z).sum(axis=1).mean()

    z1, z2 = f(x1), f(x2)
    assert float(loss) == pytest.approx(d(h(z1), z2) / 2 + d(h(z2), z1) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("symmetry", "pairs"),
    [
        ("symmetric", [(0, 1), (1, 0)]),
        ("asymmetric", [(0, 1)]),
        ("asymmetric_2x", [(0, 1), (2, 3)]),
    ],
)
@pytest.mark.parametrize("similarity", ["cosine", "cross_entropy"])
def test_pairs_and_similarity_follow_sections_4_5_and_4_6(symmetry, pairs, similarity):
    config = MethodConfig(
        projection_dim=16, prediction_hidden_dim=8, loss_symmetry=symmetry, similarity=similarity
    )
    model = build_model(config)
    views = tf.unstack(tf.random.stateless_normal([model.num_views, 8, 16, 16, 3], [0, 0]))
    z = [model.projector(model.encoder(x, training=True), training=True) for x in views]
    p = [model.predictor(view_z, training=True) for view_z in z]
    similarity = objectives.SIMILARITIES[similarity]
    expected = np.mean([similarity(p[i], z[j]) for i, j in pairs])
    loss, _ = model.compute_views_loss({"views": views})
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def gradient_at_the_target(stop_gradient):
    """Returns the largest gradient that reaches the projector through the target z."""
    config = MethodConfig(projection_dim=16, prediction_hidden_dim=8, stop_gradient=stop_gradient)
    model = build_model(config)
    # The predictor's output is constant, so a gradient can only come through the target branch.
    model.predictor.linears[-1].kernel.assign(tf.zeros([8, 16]))
    with tf.GradientTape() as tape:
        loss, _ = model.compute_views_loss({"views": random_views()})
    gradients = tape.gradient(loss, model.projector.trainable_variables)
    return max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients)


def test_no_gradient_reaches_the_target_branch():
    assert gradient_at_the_target(stop_gradient=True) == 0


def test_without_stop_gradient_the_target_branch_is_trained():
    assert gradient_at_the_target(stop_gradient=False) > 1e-4


def test_feature_std_is_the_mean_over_both_views_projections():
    model, views = build_model(), random_views()
    add_optimizer(model)
    stds = []
    for view in views:
        z = model.projector(model.encoder(view, training=True), training=True).numpy()
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        stds.append(unit.std(axis=0).mean() * np.sqrt(16))
    metrics = model.train_step({"views": views})
    assert float(metrics["feature_std"]) == pytest.approx(np.mean(stds), abs=1e-5)


def test_everything_except_the_projectors_last_bias_is_learned():
    model = build_model()
    learned = {id(variable) for variable in model.learned_variables}
    frozen = [
        name
        for name, variable in naming.model_variables(model).items()
        if id(variable) not in learned
    ]
    assert sorted(name for name in frozen if "running" not in name) == ["encoder.fc.6.bias"]


def test_call_returns_pooled_features_in_inference_mode():
    model, (x1, _) = build_model(), random_views()
    np.testing.assert_array_equal(model(x1), model.encoder(x1, training=False))
