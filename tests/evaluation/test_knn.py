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
def test_votes_are_those_of_the_definition(k):
    bank, bank_labels, queries, _ = data()
    votes = knn.class_votes(bank, bank_labels, queries, 4, k, 0.1)
    np.testing.assert_allclose(votes, slow_votes(bank, bank_labels, queries, 4, k, 0.1), rtol=1e-3)


def test_more_neighbours_than_the_bank_has_are_all_of_it():
    bank, bank_labels, queries, _ = data()
    votes = knn.class_votes(bank, bank_labels, queries, 4, 1000, 0.1)
    np.testing.assert_array_equal(votes, knn.class_votes(bank, bank_labels, queries, 4, 50, 0.1))


def test_the_block_size_does_not_show(monkeypatch):
    bank, bank_labels, queries, _ = data()
    whole = knn.class_votes(bank, bank_labels, queries, 4, 5, 0.1)
    monkeypatch.setattr(knn, "_BLOCK", 7)
    blocks = knn.class_votes(bank, bank_labels, queries, 4, 5, 0.1)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)


def test_a_query_that_is_in_the_bank_is_its_own_nearest_neighbour():
    bank, bank_labels, _, _ = data()
    votes = knn.class_votes(bank, bank_labels, 3 * bank, 4, 1, 0.1)
    assert knn.top_k_accuracy(votes, bank_labels, 1) == 100


def test_top_k_accuracy_counts_labels_among_the_k_highest():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.9, 0.0, 0.1]])
    labels = np.array([1, 1, 0, 1])
    assert knn.top_k_accuracy(scores, labels, 1) == 25
    assert knn.top_k_accuracy(scores, labels, 2) == 50
    assert knn.top_k_accuracy(scores, labels, 3) == 100
