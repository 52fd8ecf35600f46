import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import DataConfig, EncoderConfig
from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.data.pixels import RGB
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import finetune, linear
from simsiam_tf.evaluation.config import FinetuneConfig
from simsiam_tf.export import saved_model
from simsiam_tf.models.resnet import ResNet
from simsiam_tf.schema import UserError

SIZE = 16  # a last stage of one pixel would lose some gradients in batch normalization
ENCODER = EncoderConfig(backbone="resnet10", width=4, stem="cifar")


@pytest.fixture
def colours(red_and_blue):
    return red_and_blue(noise=200, tint=40)


def train(source, strategy=None, encoder=None, **settings):
    """The fine-tuned encoder, and the classifier of images."""
    strategy = strategy or tf.distribute.get_strategy()
    if encoder is None:
        with strategy.scope():
            encoder = ResNet(ENCODER, seed=0)
    config = FinetuneConfig(**{"finetune_epochs": 2, "finetune_batch_size": 8} | settings)
    view = views.build_linear_view(SIZE, 0.5, 0.5)
    quarantine = Quarantine(source, DataConfig())
    return encoder, finetune.train(strategy, encoder, source, view, config, 0, quarantine)


def weights_of(encoder, classify):
    """All weights and statistics of the encoder, and the logits of two images."""
    images = tf.constant([[200.0, 50, 50], [50, 50, 200]])[:, tf.newaxis, tf.newaxis]
    images = tf.tile(images, [1, SIZE, SIZE, 1])
    return [*encoder.get_weights(), classify(images).numpy()]


def test_a_separable_problem_is_learned(colours):
    *_, logits = weights_of(*train(colours, finetune_epochs=15))
    assert logits.argmax(axis=1).tolist() == [1, 0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("head_learning_rate", [0.0, 0.5])
def test_two_replicas_train_the_weights_of_one(colours, two_replicas, head_learning_rate):
    settings = {
        "finetune_weight_decay": 1e-3,
        "finetune_head_learning_rate": head_learning_rate,
    }
    one = weights_of(*train(colours, **settings))
    two = weights_of(*train(colours, two_replicas, **settings))
    assert len(one) == 61
    for first, second in zip(one, two, strict=True):
        assert first.dtype == "float64"
        np.testing.assert_allclose(second, first, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("replicas", [1, 2])
def test_fine_tuning_changes_every_weight_and_statistic_of_an_exported_encoder(
    colours, two_replicas, replicas, tmp_path, pretrain_config
):
    config = pretrain_config(backbone="resnet10", width=4, stem="cifar", image_size=SIZE)
    exported = ResNet(config.encoder, seed=3)
    for variable in exported.trainable_variables:
        if not variable.numpy().any() and variable.name == "gamma":
            variable.assign(
                tf.ones_like(variable)
            )  # a zero scale would stop all gradients before it
    saved_model.save(exported, config, str(tmp_path / "encoder"), {})
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        encoder, _ = saved_model.load_backbone(str(tmp_path / "encoder"))
    before = encoder.get_weights()
    train(colours, strategy, encoder, finetune_epochs=1, finetune_learning_rate=1.0)
    names = [variable.path for variable in encoder.weights]
    for name, old, new in zip(names, before, encoder.get_weights(), strict=True):
        assert np.isfinite(new).all(), name
        assert (old != new).any(), name


def test_one_step_follows_the_definition_of_sgd(colours):
    # One batch of all images: w ← w − η·(g + λw), with the statistics of the batch.
    learning_rate, head_learning_rate, weight_decay = 0.3, 1.7, 0.01
    encoder, classify = train(
        colours,
        finetune_epochs=1,
        finetune_batch_size=64,
        finetune_learning_rate=learning_rate * 256 / 40,
        finetune_head_learning_rate=head_learning_rate * 256 / 40,
        finetune_weight_decay=weight_decay,
    )
    expected = ResNet(ENCODER, seed=0)
    head = linear.build_classifier(expected.feature_dim, 2, 0)
    (batch,) = pipeline.training_batches(
        colours, views.build_linear_view(SIZE, 0.5, 0.5), batch_size=40, seed=0, first_step=0,
        last_step=1,
    )  # fmt: skip
    images = RGB.normalize(tf.cast(batch["views"][0], tf.float32) / 255)
    with tf.GradientTape(persistent=True) as tape:
        log_softmax = tf.nn.log_softmax(head(expected(images, training=True)))
        loss = -tf.reduce_mean(tf.gather(log_softmax, batch["label"], batch_dims=1))
    updates = [
        (variable, eta, tape.gradient(loss, variable))
        for layer, eta in ((expected, learning_rate), (head, head_learning_rate))
        for variable in layer.trainable_variables
    ]
    for variable, eta, gradient in updates:
        variable.assign_sub(eta * (gradient + weight_decay * variable))
    for ours, theirs in zip(encoder.weights, expected.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=ours.path)
    images = tf.random.stateless_uniform([3, SIZE, SIZE, 3], [0, 0], 0, 255)
    served = head(expected(RGB.normalize(images / 255), training=False))
    np.testing.assert_allclose(classify(images), served, rtol=1e-3, atol=1e-4)


def test_the_same_seed_trains_the_same_weights(colours):
    first, second = (weights_of(*train(colours, finetune_epochs=1)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"finetune_batch_size": 9}, "--finetune_batch_size must be divisible by the 2 .*: 9"),
        ({"finetune_learning_rate": 1e30}, "not finite in epoch 1; lower --finetune_learning_rate"),
    ],
)
def test_an_uneven_batch_and_a_diverging_loss_are_refused(colours, two_replicas, settings, match):
    with pytest.raises(UserError, match=match):
        train(colours, two_replicas, **settings)


def test_fewer_images_than_replicas_are_refused(colours, two_replicas):
    with pytest.raises(UserError, match=r"--label_fraction must leave an image .*leaves 1"):
        train(datasets.subset(colours, np.array([3])), two_replicas)


def test_a_batch_larger_than_the_images_is_shared_evenly(colours, two_replicas, caplog):
    caplog.set_level("INFO", logger="absl")
    source = datasets.subset(colours, np.arange(17))
    train(source, two_replicas, finetune_batch_size=256, finetune_epochs=1)
    assert "The batch is 16 of the 17 labelled images" in caplog.text


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.1, [10, 2, 1, 1]), (1.0, [100, 20, 3, 1]), (1e-9, [1, 1, 1, 1])]
)
def test_a_share_of_each_class_is_chosen_and_at_least_one_image(fraction, counts):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4], [100, 20, 3, 1]))
    chosen = finetune.choose_labelled(labels, fraction, seed=0)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.bincount(labels[chosen], minlength=5)[[0, 1, 2, 4]].tolist() == counts


def test_the_choice_depends_on_the_seed():
    labels = np.repeat(np.arange(5), 40)
    first, again, other = (finetune.choose_labelled(labels, 0.1, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # The choice is random, not the first images of each class.
    assert first.tolist() != [40 * label + number for label in range(5) for number in range(4)]


@pytest.mark.parametrize(("fraction", "epochs"), [(0.01, 60), (0.1, 30), (1.0, 30)])
def test_the_flag_overrides_the_protocols_number_of_epochs(fraction, epochs):
    assert FinetuneConfig(label_fraction=fraction).num_epochs == epochs
    assert FinetuneConfig(label_fraction=fraction, finetune_epochs=7).num_epochs == 7
