import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from simsiam_tf.evaluation import probe
from simsiam_tf.evaluation.config import ProbeConfig
from simsiam_tf.schema import UserError

CLASSES = 3
PAIRS = [(0.5, 0.0), (0.1, 0.01), (0.02, 0.1)]


def data(count=90, dimension=5, seed=0):
    """Features of three overlapping classes; each feature has its own offset and scale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(7).standard_normal((CLASSES, dimension))
    features = centres[labels] + rng.standard_normal((count, dimension))
    scales, offsets = 10.0 ** np.arange(-2, dimension - 2), np.arange(dimension)
    return (features * scales + offsets).astype("float32"), labels.astype("int32")


def standardized(features):
    return (features - features.mean(axis=0)) / features.std(axis=0)


def train(features, labels, pairs=PAIRS, classes=CLASSES, **settings):
    config = ProbeConfig(**{"probe_epochs": 10, "probe_batch_size": 1000} | settings)
    indices = np.arange(len(features))
    return probe.train_heads(features, labels, indices, classes, pairs, config, seed=0)


def slow_head(features, labels, learning_rate, weight_decay, num_steps):
    """The scores by the definition of SGD with momentum; each batch has all images."""
    inputs = standardized(features.astype("float64"))
    target = np.eye(CLASSES)[labels]
    kernel, bias = np.zeros((inputs.shape[1], CLASSES)), np.zeros(CLASSES)
    kernel_velocity, bias_velocity = np.zeros_like(kernel), np.zeros_like(bias)
    for step in range(num_steps):
        power = np.exp(inputs @ kernel + bias)
        error = power / power.sum(axis=1, keepdims=True) - target
        kernel_velocity = 0.9 * kernel_velocity + inputs.T @ error / len(inputs)
        kernel_velocity += weight_decay * kernel
        bias_velocity = 0.9 * bias_velocity + error.mean(axis=0)
        eta = learning_rate * (1 + np.cos(np.pi * step / num_steps)) / 2
        kernel -= eta * kernel_velocity
        bias -= eta * bias_velocity
    return inputs @ kernel + bias


def test_the_heads_follow_the_definition_for_raw_features():
    features, labels = data()
    kernels, biases = train(features, labels)
    for kernel, bias, pair in zip(kernels, biases, PAIRS, strict=True):
        expected = slow_head(features, labels, *pair, num_steps=10)
        np.testing.assert_allclose(features @ kernel + bias, expected, rtol=1e-3, atol=1e-3)


def test_heads_trained_at_once_equal_heads_trained_alone():
    features, labels = data()
    kernels, biases = train(features, labels, probe_batch_size=16)
    for head, pair in enumerate(PAIRS):
        kernel, bias = train(features, labels, [pair], probe_batch_size=16)
        np.testing.assert_allclose(kernels[head], kernel[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(biases[head], bias[0], rtol=1e-4, atol=1e-5)


def test_a_diverging_head_does_not_change_the_others():
    features, labels = data()
    kernels, _ = train(features, labels, [(1e30, 0.5), *PAIRS], probe_epochs=20)
    assert not np.isfinite(kernels[0]).all()
    np.testing.assert_allclose(
        kernels[1:], train(features, labels, probe_epochs=20)[0], rtol=1e-4, atol=1e-6
    )


def test_a_converged_head_equals_scikit_learns_logistic_regression():
    features, labels = data(count=300)
    weight_decay = 0.01
    kernel, bias = train(features, labels, [(1.0, weight_decay)], probe_epochs=500)
    # scikit-learn adds the penalty ‖w‖² / 2C to the sum of the losses, not to their mean.
    peer = LogisticRegression(C=1 / (weight_decay * len(features)), tol=1e-8, max_iter=1000)
    peer.fit(standardized(features), labels)
    ours = features @ kernel[0] + bias[0]
    ours -= ours.mean(axis=1, keepdims=True)  # only differences between classes matter
    expected = peer.decision_function(standardized(features))
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_a_feature_that_is_constant_up_to_rounding_changes_nothing():
    features, labels = data()
    constant = np.full((len(features), 1), 1234.5678, np.float32)
    constant[labels == 0] = np.nextafter(constant[0], np.float32(np.inf))
    kernel, bias = train(np.concatenate([features, constant], axis=1), labels)
    expected_kernel, expected_bias = train(features, labels)
    np.testing.assert_array_equal(kernel[:, -1], 0)
    np.testing.assert_allclose(kernel[:, :-1], expected_kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-3, atol=1e-4)


def choose(features, labels, seed=0, **settings):
    config = ProbeConfig(**{"probe_epochs": 5} | settings)
    return probe.train_classifier(features, labels, CLASSES, config, seed)


def test_the_best_head_on_the_held_out_part_is_trained_again_on_all_images(monkeypatch):
    features, labels = data()
    trained = []
    original = probe.train_heads

    def spy(features, labels, indices, num_classes, pairs, config, seed):
        heads = original(features, labels, indices, num_classes, pairs, config, seed)
        trained.append((set(indices.tolist()), pairs, heads))
        return heads

    monkeypatch.setattr(probe, "train_heads", spy)
    classifier = choose(features, labels, probe_epochs=60, probe_held_out=0.2)
    (rest, grid, (kernels, biases)), (everything, chosen, (kernel, bias)) = trained
    assert len(rest) == 72
    assert everything == set(range(90))
    assert len(grid) == len(probe.LEARNING_RATES) * len(probe.WEIGHT_DECAYS)
    held_out = sorted(everything - rest)
    scores = features[held_out] @ kernels + biases[:, np.newaxis]
    shifted = scores - scores.max(axis=2, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    cross_entropy = -log_softmax[:, range(len(held_out)), labels[held_out]].mean(axis=1)
    best = cross_entropy.argmin()
    assert chosen == [grid[best]]
    top1 = 100 * (scores.argmax(axis=2) == labels[held_out]).mean(axis=1)
    assert classifier.held_out_top1 == pytest.approx(top1[best])
    assert best != top1.argmax()  # accuracy would choose another head
    assert chosen == [(classifier.learning_rate, classifier.weight_decay)]
    np.testing.assert_array_equal(classifier(features), features @ kernel[0] + bias[0])


@pytest.mark.parametrize("block", [7, 4096])
def test_each_head_is_judged_by_its_own_scores_on_all_given_images(monkeypatch, block):
    monkeypatch.setattr(probe, "_ROWS_JUDGED_AT_ONCE", block)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 6)).astype("float32")
    labels = rng.integers(0, 1000, 50).astype("int32")
    kernels = rng.standard_normal((3, 6, 1000)).astype("float32")
    biases = rng.standard_normal((3, 1000)).astype("float32")
    biases[0, labels[:25]] += 5
    kernels[2] = np.nan
    indices = np.arange(0, 50, 2)
    cross_entropies, top1s = probe.judge_heads(features, labels, indices, kernels, biases)
    scores = features[indices] @ kernels[:2].astype("float64") + biases[:2, np.newaxis]
    log_softmax = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    expected = -log_softmax[:, range(len(indices)), labels[indices]].mean(axis=1)
    np.testing.assert_allclose(cross_entropies[:2], expected, rtol=1e-5)
    assert cross_entropies[2] == np.inf
    expected = 100 * (scores.argmax(axis=2) == labels[indices]).mean(axis=1)
    np.testing.assert_allclose(top1s[:2], expected)
    assert top1s[0] > 0


def test_memory_holds_the_scores_of_one_head_at_a_time():
    heads, rows, classes = 21, 3000, 1000
    features, labels = np.ones((rows, 4), "float32"), np.zeros(rows, "int32")
    kernels, biases = np.zeros((heads, 4, classes), "float32"), np.zeros((heads, classes))
    tracemalloc.start()
    probe.judge_heads(features, labels, np.arange(rows), kernels, biases.astype("float32"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    scores_of_one_head = rows * classes * 4
    assert scores_of_one_head < peak < 4 * scores_of_one_head


def test_a_diverged_head_is_not_chosen(monkeypatch):
    features, labels = data()
    original = probe.train_heads

    def spy(*arguments):
        kernel, bias = original(*arguments)
        kernel[:-1] = np.nan
        return kernel, bias

    monkeypatch.setattr(probe, "train_heads", spy)
    classifier = choose(features, labels)
    assert classifier.learning_rate == probe.LEARNING_RATES[-1]
    assert classifier.weight_decay == probe.WEIGHT_DECAYS[-1]


def test_the_number_of_steps_at_once_does_not_change_the_heads(monkeypatch):
    features, labels = data()
    together = train(features, labels, probe_batch_size=4)
    monkeypatch.setattr(probe, "_STEPS_AT_ONCE", 3)
    apart = train(features, labels, probe_batch_size=4)
    for first, second in zip(together, apart, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


def test_the_held_out_images_depend_on_the_seed(monkeypatch):
    features, labels = data()
    trained = []

    def spy(features, labels, indices, num_classes, pairs, config, seed):
        trained.append(set(indices.tolist()))
        shape = (len(pairs), features.shape[1], num_classes)
        return np.zeros(shape), np.zeros((shape[0], shape[2]))

    monkeypatch.setattr(probe, "train_heads", spy)
    for seed in (0, 0, 1):
        choose(features, labels, seed)
    first, again, other = trained[::2]
    assert first == again != other


def test_new_images_are_classified_as_well_as_by_logistic_regression():
    classifier = choose(*data(count=600), probe_epochs=30)
    features, labels = data(count=600, seed=1)
    peer = LogisticRegression().fit(standardized(data(count=600)[0]), data(count=600)[1])
    expected = peer.score(standardized(features), labels)
    assert np.mean(classifier(features).argmax(axis=1) == labels) > expected - 0.02


def test_a_single_training_image_is_refused():
    with pytest.raises(UserError, match=r"two training images or more\. Received: 1"):
        choose(*data(count=1))


def test_two_training_images_are_enough():
    assert choose(*data(count=2))(np.zeros((4, 5))).shape == (4, CLASSES)
