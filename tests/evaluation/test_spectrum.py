import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf.config import DataConfig
from simsiam_tf.data import datasets, views
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import spectrum


def data(count=60, dimension=7, seed=0):
    """Features of very different scales with a mean away from zero, like features after a ReLU."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, dimension)) * 10.0 ** (-np.arange(dimension) / 2) + 1
    return features.astype("float32")


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def slow_singular_values(features):
    features = features.astype("float64")
    return np.linalg.svd(features - features.mean(axis=0), compute_uv=False)


def slow_rankme(features):
    """RankMe from an SVD: Garrido et al. 2023, equation 1, with the epsilon of the paper."""
    sigma = np.linalg.svd(features.astype("float64"), compute_uv=False)
    p = sigma / np.sum(np.abs(sigma)) + 1e-7
    return np.exp(-sum(value * np.log(value) for value in p))


def slow_uniformity(features):
    """Wang & Isola 2020, figure 5: `pdist(x).pow(2).mul(-2).exp().mean().log()`."""
    x = unit(features.astype("float64"))
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    return np.log(np.mean([np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs]))


@pytest.fixture(params=[4096, 16, 7])
def block(request, monkeypatch):
    """Block sizes, none of which may change a result."""
    monkeypatch.setattr(spectrum, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("shape", [(60, 7), (5, 7), (7, 7), (2, 3)])
def test_the_singular_values_equal_those_of_an_svd_of_the_centred_features(shape):
    features = data(*shape)
    _, covariance = spectrum.moments(features)
    found = spectrum.singular_values(covariance, len(features))
    expected = slow_singular_values(features)
    assert found.shape == (min(shape),)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7 * expected[0])


@pytest.mark.usefixtures("block")
def test_the_summary_follows_the_definitions():
    features = data()
    found = spectrum.summarize(features)
    assert found["rankme"] == pytest.approx(slow_rankme(features), rel=1e-5)
    centred = features - features.mean(axis=0, dtype="float64")
    assert found["effective_rank"] == pytest.approx(slow_rankme(centred), rel=1e-5)
    assert found["uniformity"] == pytest.approx(slow_uniformity(features), rel=1e-4)
    np.testing.assert_allclose(found["channel_std"], centred.std(axis=0), rtol=1e-6)
    of_unit = unit(features.astype("float64")).std(axis=0).mean() * np.sqrt(7)
    assert found["feature_std"] == pytest.approx(of_unit, rel=1e-4)
    assert found["num_constant_channels"] == 0


def test_the_effective_rank_counts_directions_of_equal_weight():
    assert spectrum.effective_rank(np.ones(6)) == pytest.approx(6, rel=1e-4)
    assert spectrum.effective_rank(np.array([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2, rel=1e-4)
    assert spectrum.effective_rank(np.array([3.0])) == pytest.approx(1, rel=1e-4)
    assert spectrum.effective_rank(np.zeros(3)) == 0


def test_the_spectrum_shows_partial_collapse_that_the_std_hides():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((2000, 32)).astype("float32")
    # Features in a plane, rotated into all channels: every channel still varies.
    plane = spread[:, :2] @ np.linalg.qr(rng.standard_normal((32, 32)))[0][:2].astype("float32")
    healthy, collapsed = spectrum.summarize(spread), spectrum.summarize(plane)
    assert healthy["feature_std"] > 0.99
    assert collapsed["feature_std"] > 0.8
    assert healthy["effective_rank"] > 31
    assert collapsed["effective_rank"] < 2.01
    assert healthy["uniformity"] < -3.5 < -2.5 < collapsed["uniformity"]


def test_complete_collapse_is_reported():
    found = spectrum.summarize(np.full((10, 4), 1234.5678, "float32"))
    assert (found["effective_rank"], found["num_constant_channels"]) == (0, 4)
    assert found["rankme"] == pytest.approx(1, rel=1e-3)
    assert found["uniformity"] == pytest.approx(0, abs=1e-5)
    assert found["feature_std"] == pytest.approx(0, abs=1e-3)


def test_alignment_is_the_mean_squared_distance_of_unit_features():
    x, y = data(seed=1), data(seed=2)
    expected = np.mean(np.sum((unit(x) - unit(y)) ** 2, axis=1))
    assert float(spectrum.alignment(x, 3 * y)) == pytest.approx(expected, rel=1e-5)
    assert float(spectrum.alignment(x, -x)) == pytest.approx(4, rel=1e-5)


@pytest.fixture
def source(tmp_path):
    """11 images of noise in a folder without classes."""
    rng = np.random.default_rng(0)
    for number in range(11):
        image = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        tf.io.write_file(str(tmp_path / f"{number}.png"), tf.io.encode_png(image))
    return datasets.load("folder", str(tmp_path), "train")


def crops_alignment(source, encode, crop_min_area, batch_size=4, seed=0):
    view = views.build_linear_view(8, crop_min_area, 0)
    quarantine = Quarantine(source, DataConfig())
    return spectrum.alignment_of_crops(encode, source, view, batch_size, seed, quarantine)


def pixels(images):
    return tf.cast(tf.reshape(images, [len(images), -1]), tf.float32) - 127


def test_two_crops_of_an_image_differ_and_depend_on_the_seed(source):
    first, again, other = (crops_alignment(source, pixels, 0.2, seed=seed) for seed in (0, 0, 1))
    assert 0.1 < first < 4
    assert first == again != other


def test_crops_of_the_whole_image_are_aligned(source):
    # The aspect ratio of a crop is still random; the mean colour hardly depends on it.
    def mean_colour(images):
        return tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2))

    assert crops_alignment(source, mean_colour, 1.0) < 1e-2


def test_only_complete_batches_are_encoded(source):
    batches = []

    def encode(images):
        batches.append(images)
        return pixels(images)

    crops_alignment(source, encode, 0.2)
    assert [len(images) for images in batches] == [4] * 4  # two views of 8 of the 11 images
    batches.clear()
    crops_alignment(source, encode, 0.2, batch_size=100)
    assert [len(images) for images in batches] == [11, 11]
