import numpy as np
import pytest

from simsiam_tf.evaluation import knn


def data(seed=0, bank=50, queries=30, dimension=6, classes=4):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((bank, dimension)).astype("float32"),
        rng.integers(0, classes, bank),
        rng.standard_normal((queries, dimension)).astype("float32"),
        rng.integers(0, classes, queries),
    )


def slow_votes(bank, bank_labels, queries, num_classes, k, temperature):
    """The definition, query by query: the k most similar vote with exp(cosine / temperature)."""
    votes = np.zeros((len(queries), num_classes))
    for row, query in enumerate(queries):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        for index in np.argsort(-cosine)[:k]:
            votes[row, bank_labels[index]] += np.exp(cosine[index] / temperature)
    return votes


@pytest.mark.parametrize("k", [1, 7, 50])
def test_votes_follow_the_definition(k):
    bank, bank_labels, queries, _ = data()
    votes = knn.class_votes(bank, bank_labels, queries, 4, k, 0.1)
    np.testing.assert_allclose(votes, slow_votes(bank, bank_labels, queries, 4, k, 0.1), rtol=1e-3)


def test_all_of_a_bank_smaller_than_k_votes():
    bank, bank_labels, queries, _ = data()
    votes = knn.class_votes(bank, bank_labels, queries, 4, 1000, 0.1)
    np.testing.assert_array_equal(votes, knn.class_votes(bank, bank_labels, queries, 4, 50, 0.1))


@pytest.mark.parametrize(
    ("bank", "queries", "classes", "k"),
    [
        (64, 14, 4, 3),  # complete blocks of complete groups
        (50, 30, 4, 3),  # incomplete blocks and groups
        (50, 30, 4, 9),  # more neighbours than a block has groups
        (50, 30, 4, 40),  # more neighbours than a block has rows
        (65, 30, 4, 2),  # the last block has one row
        (50, 1, 4, 3),
        (50, 30, 1, 3),
        (1, 30, 4, 3),
    ],
)
def test_blocks_and_groups_do_not_change_the_votes(monkeypatch, bank, queries, classes, k):
    monkeypatch.setattr(knn, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(knn, "_BANK_BLOCK", 32)
    monkeypatch.setattr(knn, "_GROUP", 4)
    bank, bank_labels, queries, _ = data(bank=bank, queries=queries, classes=classes)
    votes = knn.class_votes(bank, bank_labels, queries, classes, k, 0.1)
    expected = slow_votes(bank, bank_labels, queries, classes, k, 0.1)
    np.testing.assert_allclose(votes, expected, rtol=1e-3)


def test_the_padding_of_the_last_group_is_never_a_neighbour():
    # All cosines are negative, so a padding of zeros would win.
    bank, bank_labels, _, _ = data(bank=1001)
    queries = -bank.mean(axis=0, keepdims=True) - 10
    votes = knn.class_votes(bank + 10, bank_labels, queries, 4, 5, 0.1)
    expected = slow_votes(bank + 10, bank_labels, queries, 4, 5, 0.1)
    np.testing.assert_allclose(votes, expected, rtol=1e-3)


@pytest.mark.parametrize("k", [1, 3, 5, 11, 40])
def test_of_equal_neighbours_the_first_of_the_bank_vote(monkeypatch, k):
    # Small integers have equal cosines in float32 too, and the k-th neighbour is one of several.
    monkeypatch.setattr(knn, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(knn, "_BANK_BLOCK", 16)
    monkeypatch.setattr(knn, "_GROUP", 4)
    rng = np.random.default_rng(0)
    bank = np.eye(4, dtype="float32")[rng.integers(0, 4, 60)]
    bank_labels = rng.integers(0, 3, 60)
    queries = np.eye(4, dtype="float32")
    expected = np.zeros((4, 3))
    for row, query in enumerate(queries):
        cosine = bank @ query
        for index in np.argsort(-cosine, kind="stable")[:k]:
            expected[row, bank_labels[index]] += np.exp(cosine[index] / 0.1)
    votes = knn.class_votes(bank, bank_labels, queries, 3, k, 0.1)
    np.testing.assert_allclose(votes, expected, rtol=1e-5)


def test_each_of_equal_neighbours_votes_once():
    votes = knn.class_votes(np.ones((1000, 3)), np.zeros(1000, int), np.ones((2, 3)), 1, 10, 1.0)
    np.testing.assert_allclose(votes, np.full((2, 1), 10 * np.e), rtol=1e-6)


def test_memory_depends_on_the_blocks_and_not_on_the_bank(new_program):
    code = """
import resource
import numpy as np
from simsiam_tf.evaluation import knn

knn._BANK_BLOCK = 4096
queries = np.ones((1024, 4), np.float32)
bank = np.random.default_rng(0).standard_normal((200_000, 4)).astype(np.float32)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
knn.class_votes(bank[:8192], np.zeros(8192, int), queries, 1, 10, 0.1)
before = peak()
knn.class_votes(bank, np.zeros(200_000, int), queries, 1, 10, 0.1)
print(peak() - before)
"""
    finished = new_program("-c", code)
    # All cosines at once would take 780 MB; a block of them takes 16 MB.
    assert float(finished.stdout) < 100, finished.stderr


def test_a_query_from_the_bank_is_its_own_nearest_neighbour():
    bank, bank_labels, _, _ = data()
    votes = knn.class_votes(bank, bank_labels, 3 * bank, 4, 1, 0.1)
    assert knn.top_k_accuracy(votes, bank_labels, 1) == 100


def test_top_k_accuracy_counts_labels_among_the_k_highest():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.9, 0.0, 0.1]])
    labels = np.array([1, 1, 0, 1])
    assert knn.top_k_accuracy(scores, labels, 1) == 25
    assert knn.top_k_accuracy(scores, labels, 2) == 50
    assert knn.top_k_accuracy(scores, labels, 3) == 100
