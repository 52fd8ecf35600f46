import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.models import heads


def dims(mlp):
    return [tuple(linear.kernel.shape) for linear in mlp.linears]


def test_the_projector_is_as_wide_as_the_features_and_ends_in_bn_without_affine():
    projector = heads.build_projector(MethodConfig(projection_dim=32), input_dim=16, seed=0)
    assert dims(projector) == [(16, 16), (16, 16), (16, 32)]
    assert [norm.affine for norm in projector.norms] == [True, True, False]
    assert [linear.use_bias for linear in projector.linears] == [False, False, True]


def test_the_projectors_layers_and_hidden_width_are_settings():
    config = MethodConfig(projection_dim=32, projection_layers=2, projection_hidden_dim=24)
    assert dims(heads.build_projector(config, input_dim=16, seed=0)) == [(16, 24), (24, 32)]


def test_the_predictor_is_a_bottleneck_without_bn_at_its_end():
    predictor = heads.build_predictor(
        MethodConfig(projection_dim=32, prediction_hidden_dim=8), seed=0
    )
    assert dims(predictor) == [(32, 8), (8, 32)]
    assert len(predictor.norms) == 1
    assert [linear.use_bias for linear in predictor.linears] == [False, True]


def test_the_projectors_last_layer_has_a_bias_that_is_not_trained():
    projector = heads.build_projector(MethodConfig(projection_dim=32), input_dim=16, seed=0)
    bias = projector.linears[-1].bias
    assert np.abs(bias.numpy()).max() > 0
    assert all(variable is not bias for variable in projector.trainable_variables)


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_linear_layers_start_uniform_within_one_over_root_fan_in(name):
    # torch.nn.Linear draws both its weight and its bias from this distribution.
    predictor = heads.build_predictor(
        MethodConfig(projection_dim=4096, prediction_hidden_dim=64), seed=1
    )
    values = getattr(predictor.linears[1], name).numpy()
    bound = 1 / np.sqrt(64)
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.99 * bound
    assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


def test_hidden_layers_end_in_relu_and_the_output_does_not():
    config = MethodConfig(projection_dim=8, prediction_hidden_dim=4)
    predictor = heads.build_predictor(config, seed=0)
    z = tf.random.stateless_normal([6, 8], [0, 0])
    hidden = tf.nn.relu(predictor.norms[0](z @ predictor.linears[0].kernel, training=True))
    expected = hidden @ predictor.linears[1].kernel + predictor.linears[1].bias
    np.testing.assert_allclose(predictor(z, training=True), expected, rtol=1e-5, atol=1e-6)
    assert np.min(expected) < 0


@pytest.mark.parametrize(
    ("norm", "affine", "biases"),
    [
        ("none", [], [True, True, True]),
        ("hidden", [True, True], [False, False, True]),
        ("all", [True, True, False], [False, False, True]),
        ("all_affine", [True, True, True], [False, False, True]),
    ],
)
def test_batch_normalization_in_the_projector_follows_table_3(norm, affine, biases):
    config = MethodConfig(projection_dim=32, projection_bn=norm)
    projector = heads.build_projector(config, input_dim=16, seed=0)
    assert [layer.affine for layer in projector.norms] == affine
    assert [linear.use_bias for linear in projector.linears] == biases
    # A bias that BN cancels is not trained.
    assert projector.linears[-1].bias.trainable == (len(affine) < 3)


@pytest.mark.parametrize(
    ("norm", "affine"), [("none", []), ("hidden", [True]), ("all", [True] * 2)]
)
def test_batch_normalization_in_the_predictor_follows_table_3(norm, affine):
    config = MethodConfig(projection_dim=32, prediction_hidden_dim=8, prediction_bn=norm)
    predictor = heads.build_predictor(config, seed=0)
    assert [layer.affine for layer in predictor.norms] == affine


def test_predictor_none_is_the_identity():
    predictor = heads.build_predictor(MethodConfig(predictor="none"), seed=0)
    z = tf.random.stateless_normal([6, 8], [0, 0])
    np.testing.assert_array_equal(predictor(z, training=True, num_views=2), z)
    assert not predictor.weights


def test_a_fixed_predictor_has_the_weights_of_a_learned_one_and_trains_none():
    config = {"projection_dim": 32, "prediction_hidden_dim": 8}
    fixed = heads.build_predictor(MethodConfig(predictor="fixed", **config), seed=3)
    learned = heads.build_predictor(MethodConfig(**config), seed=3)
    assert not fixed.trainable_variables
    np.testing.assert_array_equal(fixed.linears[0].kernel, learned.linears[0].kernel)
    z = tf.random.stateless_normal([6, 32], [0, 0])
    np.testing.assert_array_equal(fixed(z, training=True), learned(z, training=True))
