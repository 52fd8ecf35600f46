import keras
import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.evaluation import encoding
from simsiam_tf.export import saved_model


def images_of(count):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


class Encoder:
    """A fully connected layer on the pixels; it records its calls."""

    def __init__(self):
        self.layer = keras.layers.Dense(5, kernel_initializer=keras.initializers.GlorotUniform(0))
        self.layer.build((None, 8 * 8 * 3))
        self.replicas = []  # the replica of each call or trace
        self.sizes = []  # the batch size of each call; None if traced with a free size

    def __call__(self, images):
        assert images.dtype == tf.float32
        self.sizes.append(images.shape[0])
        context = tf.distribute.get_replica_context()
        self.replicas.append(int(tf.get_static_value(context.replica_id_in_sync_group)))
        return self.layer(tf.reshape(images / 255, [-1, 8 * 8 * 3]))


def test_a_batch_is_encoded_in_pieces_on_one_device():
    encoder = Encoder()
    encode = encoding.on_all_replicas(tf.distribute.get_strategy(), encoder, 4)
    found = encode(tf.constant(images_of(11)))
    assert encoder.sizes == [4, 4, 3]
    expected = encoder(tf.cast(images_of(11), tf.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_one_piece_is_encoded_unchanged():
    encode = encoding.on_all_replicas(tf.distribute.get_strategy(), lambda images: images, 4)
    images = tf.random.stateless_uniform([4, 8, 8, 3], [0, 0])
    np.testing.assert_array_equal(encode(images), images)


@pytest.mark.parametrize("count", [1, 2, 6, 9, 11])  # 6 is one piece; 1, 9 and 11 are odd
def test_two_replicas_give_the_features_of_one_for_every_remainder(two_replicas, count):
    images = tf.constant(images_of(count))
    expected = Encoder()(tf.cast(images, tf.float32))
    with two_replicas.scope():
        encoder = Encoder()
    found = encoding.on_all_replicas(two_replicas, encoder, 6)(images)
    assert found.shape == (count, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert set(encoder.replicas) == {0, 1}
    assert set(encoder.sizes) <= {1, 2, 3, None}  # no replica had a whole piece


def test_two_replicas_encode_by_a_saved_model_of_another_program(two_replicas, tmp_path):
    module = tf.Module()
    module.scale = tf.Variable(3.0)
    module.serve = tf.function(
        lambda images: {"features": module.scale * tf.reshape(images, [-1, 8 * 8 * 3])},
        [tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")],
    )
    tf.saved_model.save(module, str(tmp_path), {"serving_default": module.serve})
    with two_replicas.scope():
        encode, _ = saved_model.load(str(tmp_path))
    found = encoding.on_all_replicas(two_replicas, encode, 4)(tf.constant(images_of(7)))
    np.testing.assert_array_equal(found, 3.0 * images_of(7).reshape(7, -1))
