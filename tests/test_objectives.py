import numpy as np
import pytest
import tensorflow as tf

from simsiam_tf import objectives


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def test_negative_cosine_similarity_equals_the_papers_equation_1():
    p, z = random(5, 7), random(5, 7) + 1
    # Equation 1, for each row.
    slow = [-(a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)) for a, b in zip(p, z, strict=True)]
    assert float(objectives.negative_cosine_similarity(p, z)) == pytest.approx(np.mean(slow), 1e-12)


def test_negative_cosine_similarity_is_minus_one_for_parallel_vectors():
    z = random(4, 6)
    assert float(objectives.negative_cosine_similarity(3 * z, z)) == pytest.approx(-1, 1e-12)


def test_negative_cosine_similarity_does_not_stop_gradients():
    p, z = tf.constant(random(3, 4)), tf.constant(random(3, 4) - 1)
    with tf.GradientTape() as tape:
        tape.watch([p, z])
        loss = objectives.negative_cosine_similarity(p, z)
    for gradient in tape.gradient(loss, [p, z]):
        assert np.abs(gradient).max() > 1e-3


def moments(z):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return unit.mean(axis=0), (unit**2).mean(axis=0), unit


def test_feature_std_is_the_mean_channel_std_of_unit_vectors_times_root_d():
    mean, mean_square, unit = moments(random(64, 10) + 0.5)
    expected = unit.std(axis=0).mean() * np.sqrt(10)
    assert float(objectives.feature_std(mean, mean_square)) == pytest.approx(expected, 1e-9)


def test_feature_std_is_about_one_for_gaussian_features_and_zero_for_a_point():
    spread = float(objectives.feature_std(*moments(random(4096, 128))[:2]))
    collapsed = float(objectives.feature_std(*moments(np.ones((16, 128)))[:2]))
    assert spread == pytest.approx(1, abs=0.01)
    assert collapsed == pytest.approx(0, abs=1e-6)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_cross_entropy_similarity_equals_section_4_5s():
    p, z = random(5, 7), random(5, 7) + 1
    slow = [-(softmax(b) * np.log(softmax(a))).sum() for a, b in zip(p, z, strict=True)]
    assert float(objectives.cross_entropy_similarity(p, z)) == pytest.approx(np.mean(slow), 1e-12)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_nt_xent(z, temperature):
    """SimCLR's algorithm 1, for z [2N, D] whose rows 2k-1 and 2k belong to one image."""
    count = len(z)
    s = [[unit(z[i]) @ unit(z[j]) for j in range(count)] for i in range(count)]

    def loss(i, j):
        others = sum(np.exp(s[i][k] / temperature) for k in range(count) if k != i)
        return -np.log(np.exp(s[i][j] / temperature) / others)

    return np.mean([loss(k, k ^ 1) for k in range(count)])


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_simclrs_algorithm_1(temperature):
    views = random(2, 6, 5)
    got = objectives.nt_xent(
        tf.constant(views), tf.constant(views), tf.range(6), temperature=temperature
    )
    interleaved = views.transpose(1, 0, 2).reshape(12, 5)
    assert float(got) == pytest.approx(slow_nt_xent(interleaved, temperature), 1e-10)


def test_the_mean_nt_xent_of_the_replicas_shares_equals_that_of_the_batch():
    views = tf.constant(random(2, 6, 5))
    whole = objectives.nt_xent(views, views, tf.range(6), 0.2)
    shares = [
        objectives.nt_xent(views[:, start : start + 3], views, tf.range(start, start + 3), 0.2)
        for start in (0, 3)
    ]
    assert float(sum(shares) / 2) == pytest.approx(float(whole), 1e-12)


def test_info_nce_equals_mocos_equation_1():
    q, k, negatives = random(4, 5), random(4, 5) + 0.5, unit(random(7, 5))
    slow = []
    for query, key in zip(unit(q), unit(k), strict=True):
        logits = np.array([query @ key, *(query @ other for other in negatives)]) / 0.2
        slow.append(-np.log(softmax(logits)[0]))
    got = objectives.info_nce(q, k, tf.constant(negatives), temperature=0.2)
    assert float(got) == pytest.approx(np.mean(slow), 1e-10)


def slow_sinkhorn(scores, epsilon, iterations):
    """SwAV's appendix A.1, without logarithms; the rows are prototypes, the columns samples."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    num_prototypes, num_samples = q.shape
    for _ in range(iterations):
        for row in range(num_prototypes):
            q[row] /= q[row].sum() * num_prototypes
        for column in range(num_samples):
            q[:, column] /= q[:, column].sum() * num_samples
    return (q * num_samples).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_equals_swavs_algorithm(iterations):
    scores = np.tanh(random(12, 5))
    got = objectives.sinkhorn(tf.constant(scores), 0.05, iterations).numpy()
    np.testing.assert_allclose(got, slow_sinkhorn(scores, 0.05, iterations), rtol=1e-9)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-12)


def test_sinkhorn_converges_to_equal_use_of_all_prototypes():
    codes = objectives.sinkhorn(tf.constant(random(12, 4)), 0.5, 200).numpy()
    np.testing.assert_allclose(codes.sum(axis=0), 3, rtol=1e-9)


def test_swapped_prediction_is_the_cross_entropy_of_codes_and_scores():
    codes, scores = np.abs(random(6, 4)), random(6, 4)
    codes /= codes.sum(axis=1, keepdims=True)
    slow = [-(c * np.log(softmax(s / 0.1))).sum() for c, s in zip(codes, scores, strict=True)]
    got = objectives.swapped_prediction(tf.constant(codes), tf.constant(scores), 0.1)
    assert float(got) == pytest.approx(np.mean(slow), 1e-10)
