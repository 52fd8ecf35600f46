"""SimCLR, MoCo v2, BYOL, SwAV, supervised: losses transcribed in NumPy, and stopped gradients."""

import numpy as np
import pytest
import tensorflow as tf
from method_runs import BATCH, PLAN, Run

from simsiam_tf.config import EncoderConfig, MethodConfig
from simsiam_tf.methods import build_method
from simsiam_tf.methods.base import Plan
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def project(model, views, target=None):
    """Returns z of each view by f, or by the momentum encoder `target`."""
    network = target or model
    return [z.numpy() for z in model.project(views, network.encoder, network.projector)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("predictor", ["none", "mlp"])
def test_simclr_contrasts_each_view_with_all_other_images(predictor):
    run = Run(method="simclr", predictor=predictor, stop_gradient=False, temperature=0.2)
    model, batch = run.model, run.batch(0)
    z = np.concatenate(project(model, batch["views"]))
    p = model.predictor(tf.constant(z), training=True, num_views=2).numpy()
    losses = []
    for anchor in range(2 * BATCH):
        others = [k for k in range(2 * BATCH) if k != anchor]
        logits = np.array([unit(p[anchor]) @ unit(z[k]) for k in others]) / 0.2
        losses.append(-log_softmax(logits)[others.index((anchor + BATCH) % (2 * BATCH))])
    loss, _ = model.compute_views_loss(batch)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-9)


def gradient_at(run, variables):
    """Returns the largest gradient of the loss in these variables."""
    with tf.GradientTape() as tape:
        loss, _ = run.model.compute_views_loss(run.model.with_positions(run.batch(0)))
    gradients = tape.gradient(loss, variables)
    return max(0 if gradient is None else np.abs(gradient).max() for gradient in gradients)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["simclr", "swav"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_decides_whether_a_gradient_reaches_the_targets(method, stop_gradient):
    run = Run(method=method, stop_gradient=stop_gradient)
    # The prediction is constant, so a gradient can only come through the target branch.
    run.model.predictor.linears[-1].kernel.assign(tf.zeros([8, 16], tf.float64))
    largest = gradient_at(run, run.model.projector.trainable_variables)
    assert (largest == 0) if stop_gradient else (largest > 1e-6)


@pytest.mark.usefixtures("float64")
def test_mocos_queries_are_contrasted_with_the_queue_which_both_views_keys_enter():
    run = Run(method="mocov2", queue_size=20, temperature=0.2, target_momentum=0.9)
    model, batch = run.model, run.batch(0)
    q = [unit(z) for z in project(model, batch["views"])]
    k = [unit(z) for z in project(model, batch["views"], model.target)]
    queue = model.queue.keys.numpy()
    losses = []
    for query, key in ((q[0], k[1]), (q[1], k[0])):
        positive = (query * key).sum(axis=1, keepdims=True)
        logits = np.concatenate([positive, query @ queue.T], axis=1) / 0.2
        losses.append(-log_softmax(logits)[:, 0].mean())
    assert float(run._step(batch)["loss"]) == pytest.approx(np.mean(losses), rel=1e-9)
    expected = np.concatenate([*k, queue])[:20]
    np.testing.assert_allclose(model.queue.keys.numpy(), expected, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_byols_loss_is_the_squared_distance_of_unit_vectors():
    run = Run(method="byol", projection_bn="hidden")
    model, batch = run.model, run.batch(0)
    for weight in model.target.projector.linears:  # f' and f must differ
        weight.kernel.assign(weight.kernel * 1.5 + 0.1)
    z = np.concatenate(project(model, batch["views"]))
    p1, p2 = np.split(model.predictor(tf.constant(z), training=True, num_views=2).numpy(), 2)
    target1, target2 = project(model, batch["views"], model.target)
    expected = sum(
        ((unit(p) - unit(t)) ** 2).sum(axis=1).mean() for p, t in ((p1, target2), (p2, target1))
    )
    loss, _ = model.compute_views_loss(batch)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["mocov2", "byol"])
def test_no_gradient_reaches_the_momentum_encoder_and_it_is_not_learned(method):
    run = Run(method=method)
    target = run.model.target.trainable_variables
    assert gradient_at(run, target) == 0
    assert gradient_at(run, run.model.learned_variables) > 0
    assert not {id(v) for v in target} & {id(v) for v in run.model.learned_variables}
    count = len(run.model.learned_variables)
    assert count + len(target) == len(run.model.trainable_variables)


@pytest.mark.usefixtures("float64")
def test_swavs_views_predict_each_others_codes():
    run = Run(method="swav", predictor="none", num_prototypes=6, sinkhorn_epsilon=0.1)
    model, batch = run.model, run.batch(0)
    vectors = model.prototypes.vectors.numpy()
    scores = [unit(z) @ vectors for z in project(model, batch["views"])]
    codes = []
    for score in scores:
        q = np.exp(score / 0.1)
        for _ in range(3):
            q = q / q.sum(axis=0)
            q = q / q.sum(axis=1, keepdims=True)
        codes.append(q)
    expected = [
        -(codes[1 - view] * log_softmax(scores[view] / 0.1)).sum(axis=1).mean() for view in (0, 1)
    ]
    loss, _ = model.compute_views_loss(batch)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-9)


def test_swavs_prototypes_keep_length_1_and_are_frozen_in_the_first_epoch():
    run = Run(method="swav", predictor="none", num_prototypes=6, weight_decay=0.0)
    start = run.model.prototypes.vectors.numpy()
    for step in range(4):
        batch = run.batch(step)
        batch["views"] = tuple(tf.cast(view, tf.float32) for view in batch["views"])
        run._step(batch)
        now = run.model.prototypes.vectors.numpy()
        np.testing.assert_allclose(np.linalg.norm(now, axis=0), 1, rtol=1e-6)
        moved = np.abs(now - start).max()
        assert (moved < 1e-6) if step < PLAN.steps_per_epoch else (moved > 1e-4)


@pytest.mark.usefixtures("float64")
def test_supervised_training_is_softmax_regression_on_the_features_of_one_view():
    run = Run(method="supervised")
    model, batch = run.model, run.batch(0)
    assert len(batch["views"]) == 1
    features = model.encoder(batch["views"][0], training=True).numpy()
    logits = features @ model.classifier.kernel.numpy() + model.classifier.bias.numpy()
    labels = batch["label"].numpy()
    loss, outputs = model.compute_views_loss(batch)
    expected = -log_softmax(logits)[np.arange(BATCH), labels].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    assert float(outputs["accuracy"]) == np.mean(logits.argmax(axis=1) == labels)


def test_supervised_training_without_labels_is_rejected():
    encoder = ResNet(EncoderConfig(backbone="resnet10", width=4, stem="cifar"), seed=0)
    plan = Plan(num_examples=24, num_classes=0, batch_size=8, epochs=1)
    with pytest.raises(UserError, match="--method=supervised needs a data set with labels"):
        build_method(MethodConfig(method="supervised"), encoder, 0, plan)
