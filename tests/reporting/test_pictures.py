"""Pictures: neighbours by cosine, the map by t-SNE, images as data URLs."""

import base64

import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.reporting import pictures
from simsiam_tf.schema import UserError


def normalized(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_neighbours_have_the_largest_cosines_and_exclude_the_query():
    angles = np.radians([0, 50, 10, 180, 30])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found, cosines = pictures.nearest(features, np.array([0, 3]), 3)
    np.testing.assert_array_equal(found, [[2, 4, 1], [1, 4, 2]])
    np.testing.assert_allclose(cosines[0], np.cos(np.radians([10, 30, 50])))


def test_all_other_images_are_neighbours_if_there_are_fewer_than_k():
    found, _ = pictures.nearest(np.eye(3), np.array([1]), 5)
    assert sorted(found[0]) == [0, 2]


def test_the_nearest_image_in_the_map_is_of_the_same_cluster():
    generator = np.random.default_rng(0)
    centres = np.eye(3, 16)
    labels = np.arange(60) % 3
    features = normalized(centres[labels] + 0.05 * generator.normal(size=(60, 16)))
    coordinates = pictures.layout(features.astype(np.float32))
    assert coordinates.shape == (60, 2)
    distances = np.linalg.norm(coordinates[:, np.newaxis] - coordinates, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_a_map_of_identical_features_is_refused():
    with pytest.raises(UserError, match="same features"):
        pictures.layout(np.full([20, 4], 0.5, np.float32))


def test_a_map_of_fewer_than_eight_images_is_refused():
    with pytest.raises(UserError, match=r"8 images or more\. Received: 7"):
        pictures.layout(np.eye(7, dtype=np.float32))
    assert pictures.layout(np.eye(8, dtype=np.float32)).shape == (8, 2)


def decode(url):
    start, content = url.split(",")
    return start, tf.io.decode_image(base64.b64decode(content)).numpy()


def test_a_small_image_is_encoded_as_png_and_a_large_one_as_jpeg():
    image = np.random.default_rng(0).integers(0, 256, [16, 32, 3], np.uint8)
    start, found = decode(pictures.data_url(image))
    assert start == "data:image/png;base64"
    np.testing.assert_array_equal(found, image)
    start, found = decode(pictures.data_url(np.full([96, 96, 3], 77, np.uint8)))
    assert start == "data:image/jpeg;base64"
    np.testing.assert_allclose(found, 77, atol=2)
