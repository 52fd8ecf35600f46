"""Methods and encoders are Keras models: compile, fit, save, load, summary."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY_RUN
from run_results import losses_of

import simsiam_tf as st
from simsiam_tf import flags, schema
from simsiam_tf.config import EncoderConfig, PretrainConfig
from simsiam_tf.export.keras_encoder import Encoder
from simsiam_tf.methods.base import Plan
from simsiam_tf.methods.build import build_model
from simsiam_tf.models.resnet import ResNet

SMALL = {
    "backbone": "resnet10", "width": 4, "stem": "cifar", "image_size": 16, "batch_size": 8,
    "projection_dim": 16, "projection_hidden_dim": 16, "prediction_hidden_dim": 8,
}  # fmt: skip
METHODS = {
    "simsiam": {"predictor": "fixed"},
    "simclr": {"predictor": "none", "stop_gradient": False},
    "mocov2": {"queue_size": 16, "optimizer": "lars", "exclude_norm_and_bias": True},
    "byol": {"optimizer": "lars", "exclude_norm_and_bias": True},
    "swav": {"predictor": "none", "num_prototypes": 6},
    "alternation": {"inner_steps": "2"},
    "supervised": {},
}


RATE = 0.05  # the higher it is, the faster training amplifies rounding


class Losses(keras.callbacks.Callback):
    """Collects the loss of each step."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(logs["loss"])


@pytest.fixture(scope="module")
def settings(tfds_dir):
    tiny = schema.flatten(flags.read(TINY_RUN, PretrainConfig))
    changed = {
        name: value for name, value in tiny.items()
        if value != schema.defaults(PretrainConfig)[name]
    }  # fmt: skip
    smaller = {"epochs": 1, "width": 4, "train_split": "train[:512]"}
    return changed | {"data_dir": tfds_dir, "base_learning_rate": RATE} | smaller


def test_fit_has_the_losses_of_the_program_under_either_strategy(
    settings, train_here, two_replicas, tmp_path
):
    smaller = ["--epochs=1", "--width=4", "--train_split=train[:512]"]
    flags_of_run = [f"--base_learning_rate={RATE}", "--log_every_steps=1", "--knn_every_epochs=0"]
    train_here(tmp_path, *TINY_RUN, *smaller, *flags_of_run)
    expected = losses_of(tmp_path)
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            model = st.build_model(**settings)
        losses = Losses()
        model.fit(st.load_views(**settings), callbacks=[losses], verbose=0)
        assert len(losses.found) == len(expected) == 8
        # The first steps differ in rounding only, which training then amplifies.
        np.testing.assert_allclose(losses.found[:5], expected[:5], atol=1e-4)
        np.testing.assert_allclose(losses.found, expected, atol=0.02)
        assert int(model.optimizer.iterations.numpy()) == 8


def test_fit_takes_an_optimizer_of_keras(settings, two_replicas):
    found = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            model = st.build_model(**settings)
            model.compile(optimizer=keras.optimizers.AdamW(1e-3))
        losses = Losses()
        model.fit(st.load_views(**settings).take(5), callbacks=[losses], verbose=0)
        found.append(losses.found)
    one, two = found
    np.testing.assert_allclose(two, one, atol=1e-3)
    assert len(set(one)) == 5


def built(method, **more):
    values = schema.defaults(PretrainConfig) | SMALL | METHODS[method] | {"method": method}
    config = schema.build(PretrainConfig, values | more)
    return build_model(config, tf.distribute.get_strategy(), Plan(32, 3, 8, 2))[0]


def step_of(model):
    views = tf.random.stateless_normal([model.num_views, 8, 16, 16, 3], [0, 0])
    data = {
        "views": tuple(tf.unstack(views)),
        "label": tf.range(8) % 3,
        "index": tf.range(8, dtype=tf.int64),
    }
    return float(model.train_step(data)["loss"])


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_goes_on_as_the_model_does(method, tmp_path):
    model = built(method)
    if not model.freeze_every:
        step_of(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.get_config() == model.get_config()
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for name in ("weights", "learned_variables"):
        pairs = zip(getattr(loaded, name), getattr(model, name), strict=True)
        assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    pairs = zip(loaded.optimizer.variables, model.optimizer.variables, strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    if not model.freeze_every:  # frozen targets belong to the loop
        assert step_of(loaded) == step_of(model)


def test_weights_are_saved_and_counted_and_the_summary_names_the_parts(tmp_path, capsys):
    model, other = built("simsiam"), built("simsiam", seed=1)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert model.count_params() == sum(value.size for value in model.get_weights())
    model.summary()
    text = capsys.readouterr().out
    for name in ("resnet10", "projector", "predictor"):
        assert name in text


@pytest.fixture
def encoder():
    # Another test of this process may have asked for deterministic operations, which need a seed.
    keras.utils.set_random_seed(0)
    network = EncoderConfig(backbone="resnet10", width=4, stem="cifar")
    return Encoder(ResNet(network, seed=0), image_size=16, crop_ratio=1.0)


def images_of(count):
    return np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_an_encoder_is_a_layer_of_a_classifier_which_is_saved_and_loaded(encoder, tmp_path):
    images, labels = images_of(16), np.arange(16) % 2
    before = encoder.get_weights()
    classifier = keras.Sequential([encoder, keras.layers.Dense(2)])
    classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    classifier.fit(images, labels, batch_size=8, verbose=0)
    changed = [(old != new).any() for old, new in zip(before, encoder.get_weights(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    classifier.save(tmp_path / "classifier.keras")
    code = "import keras, simsiam_tf.api; keras.saving.load_model('classifier.keras').summary()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded(images), classifier(images))
    assert loaded.layers[0].get_config() == encoder.get_config()


def test_a_frozen_encoder_stays_as_it_is(encoder):
    encoder.trainable = False
    before = encoder.get_weights()
    classifier = keras.Sequential([encoder, keras.layers.Dense(2)])
    classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    classifier.fit(images_of(16), np.arange(16) % 2, batch_size=8, verbose=0)
    for old, new in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_mixed_precision_survives_saving(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = built("simsiam", precision="mixed_bfloat16")
    finally:
        keras.config.set_dtype_policy("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.encoder.compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
