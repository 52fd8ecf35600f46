"""The health monitor: its numbers against NumPy, on one replica and on two."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.data import views
from simsiam_tf.training import assembly, health, loop
from simsiam_tf.training.run_log import RunLog

SMALL = {
    "image_size": 8, "backbone": "resnet10", "width": 4, "stem": "cifar", "projection_dim": 6,
    "projection_hidden_dim": 8, "prediction_hidden_dim": 4, "batch_size": 8, "epochs": 3,
}  # fmt: skip


@pytest.fixture
def parts_of(red_and_blue, pretrain_config, tmp_path):
    source = red_and_blue(noise=100, tint=40)

    def assemble(strategy=None, **settings):
        config = pretrain_config(workdir=str(tmp_path / "run"), **SMALL | settings)
        return assembly.assemble(config, strategy or tf.distribute.get_strategy(), source)

    return assemble


def slow_alignment(x, y):
    pairs = zip(x, y, strict=True)
    return np.mean([np.sum((unit(a) - unit(b)) ** 2) for a, b in pairs])


def unit(x):
    return x / max(np.linalg.norm(x), 1e-6)  # an image may have features of zero


def slow_rank(x):
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(x.T.astype(float))), 0))
    p = values[values > 1e-9] / values.sum()
    return np.exp(-np.sum(p * np.log(p)))


def test_the_numbers_are_those_of_the_features_and_projections_of_two_views(parts_of):
    parts = parts_of()
    sample = health.Sample(parts, heldout=parts.quarantine.source)
    values, singular_values = sample.measure()
    assert len(sample.views[""][0]) == 40  # all of the images
    features, z = [], []
    for view in sample.views[""]:
        (images,) = views.prepare({"views": (view,)}, parts.quarantine.source.pixels)
        features.append(parts.model.encoder(images, training=False))
        z.append(parts.model.projector(features[-1], training=False).numpy())
        features[-1] = features[-1].numpy()
    assert not np.array_equal(features[0], features[1])
    expected = {
        "alignment": slow_alignment(*features),
        "effective_rank": slow_rank(features[0]),
        "z_alignment": slow_alignment(*z),
        "z_effective_rank": slow_rank(z[0]),
        "heldout_z_alignment": slow_alignment(*z),  # of the same images
    }
    assert values == pytest.approx(expected, rel=1e-3)
    centred = features[0] - features[0].mean(axis=0)
    assert np.sum(singular_values**2) == pytest.approx(np.sum(centred**2) / 40, rel=1e-4)


def test_two_replicas_measure_what_one_measures(parts_of, two_replicas):
    one, two = (health.Sample(parts_of(each), None).measure()[0] for each in (None, two_replicas))
    assert one == pytest.approx(two, rel=1e-4)
    assert "heldout_z_alignment" not in one


def test_views_of_the_device_are_measured_as_those_of_the_host(parts_of):
    on_host = health.Sample(parts_of(), None).measure()[0]
    assert health.Sample(parts_of(augment_on="device"), None).measure()[0] == on_host


def test_a_method_without_a_projector_has_only_features(parts_of):
    values, _ = health.Sample(parts_of(method="supervised"), None).measure()
    assert values.keys() == {"alignment", "effective_rank"}


def test_collapsed_features_have_rank_zero(parts_of):
    parts = parts_of()
    for variable in parts.model.encoder.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    values, _ = health.Sample(parts, None).measure()
    assert (values["effective_rank"], values["alignment"]) == (0, 0)


def test_a_new_run_is_measured_before_training_then_every_few_epochs_and_at_the_end(
    parts_of, tmp_path
):
    parts = parts_of()
    plan = dataclasses.replace(parts.plan, num_examples=32)
    (tmp_path / "run").mkdir()
    for restored_step, steps in ((None, [0, 8, 12]), (8, [0, 8, 12])):
        log = RunLog(str(tmp_path / "run"), plan, restored_step)
        with log:
            monitor = health.Health(log, health.Sample(parts, None), every_epochs=2)
            done = range((restored_step or 0) + 1, 13)
            loop.call_back(map(step_of, done), [monitor], keras.Model(), plan.steps_per_epoch)
        assert [line["step"] for line in log.lines if "effective_rank" in line] == steps


def step_of(number):
    return loop.Step(
        {"loss": 0.0, "feature_std": 1.0, "skipped": 0.0}, number=number, indices=[], seconds=1,
        waited=0, processor_seconds=1, flops=1, stopping=False,
    )  # fmt: skip


def test_held_out_images_are_those_of_the_other_split(red_and_blue, pretrain_config, tmp_path):
    train = red_and_blue(noise=100, tint=40)
    config = pretrain_config(dataset="folder", data_dir=str(tmp_path))
    assert health.load_heldout(config, train) is None
    other = tmp_path / "test" / "red" / "1.png"
    tf.io.gfile.makedirs(str(other.parent))
    other.write_bytes((tmp_path / "train" / "red" / "1.png").read_bytes())
    assert health.load_heldout(config, train).num_examples == 1
