"""Compares the kNN evaluation with faiss-cpu's flat index (IndexFlatIP), which is also exact.

    pip install -r benchmarks/requirements.txt
    python benchmarks/knn.py

Both sides compute votes from features in memory. This project's side is `knn.class_votes`. The side
of faiss fills and searches an index, and NumPy normalises the features and counts the votes. The
sides alternate in one run. The program also reports the number of differing votes, and the peak
memory of this project's side for this feature bank and for larger ones. It takes two minutes on two
cores.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import simsiam_tf  # noqa: F401 (chooses oneDNN before TensorFlow loads)

import faiss  # isort: skip
import numpy as np

from simsiam_tf.evaluation import knn

TEMPERATURE = 0.1


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--bank", type=int, default=50_000, help="number of features in the bank")
    parser.add_argument(
        "--queries", type=int, default=10_000, help="number of features to classify"
    )
    parser.add_argument("--features", type=int, default=512, help="length of a feature")
    parser.add_argument("--classes", type=int, default=10, help="number of classes")
    parser.add_argument("--k", type=int, default=200, help="number of neighbours that vote")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    parser.add_argument("--output", help="JSON file for the result")
    options = parser.parse_args(arguments)

    megabytes = peak_memory(options)
    problem = make_problem(options, options.bank, options.queries)
    peers = {"ours": ours, "faiss": with_faiss}
    # The first call is the warm-up and is not measured.
    votes = {name: vote(*problem, options.classes, options.k) for name, vote in peers.items()}
    difference = np.abs(votes["ours"] - votes["faiss"]).max(axis=1)
    num_differing = int(np.sum(difference > 1e-4 * votes["faiss"].sum(axis=1)))
    seconds = {name: [] for name in peers}
    for _ in range(options.repeats):
        for name, vote in peers.items():
            started = time.perf_counter()
            vote(*problem, options.classes, options.k)
            seconds[name].append(time.perf_counter() - started)
    ratios = [ours / peer for ours, peer in zip(*seconds.values(), strict=True)]

    print(
        f"{options.queries} queries, bank of {options.bank} x {options.features}, "
        f"k = {options.k}, {options.repeats} measurements of each side\n\n"
        "| | median | least | most |\n"
        "|---|---|---|---|"
    )
    for name, values in (seconds | {"ours / faiss": ratios}).items():
        unit = "" if "/" in name else " s"
        row = [f"{value:.2f}{unit}" for value in (np.median(values), min(values), max(values))]
        print(f"| {name} | {' | '.join(row)} |")
    print(
        f"\nThe votes of {num_differing} queries differ by more than rounding. This happens if the "
        "k-th neighbour and the next one are equally near.\nMemory besides the feature bank:"
    )
    for size, value in megabytes.items():
        print(f"{value} MB for a bank of {size}")
    if options.output:
        result = {
            "options": vars(options),
            "seconds": seconds,
            "ratio": float(np.median(ratios)),
            "queries_whose_votes_differ": num_differing,
            "megabytes_besides_the_bank": megabytes,
        }
        Path(options.output).write_text(json.dumps(result) + "\n", encoding="utf-8")


def make_problem(options, bank, queries):
    """Returns random features of a bank, their labels, and random features of queries."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((bank, options.features), np.float32),
        rng.integers(0, options.classes, bank),
        rng.standard_normal((queries, options.features), np.float32),
    )


def ours(bank, bank_labels, queries, classes, k):
    return knn.class_votes(bank, bank_labels, queries, classes, k, TEMPERATURE).numpy()


def with_faiss(bank, bank_labels, queries, classes, k):
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(normalized(bank))
    cosine, nearest = index.search(normalized(queries), min(k, len(bank)))
    cells = np.arange(len(queries))[:, None] * classes + bank_labels[nearest]
    weights = np.exp(cosine / TEMPERATURE)
    votes = np.bincount(cells.ravel(), weights.ravel(), len(queries) * classes)
    return votes.reshape(len(queries), classes)


def normalized(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def peak_memory(options):
    """Returns {size of the bank: peak MB besides the bank} of this project's side."""
    sizes = [factor * options.bank for factor in (1, 2, 4, 8)]
    # Each size needs a new process, because a process keeps its peak.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(_peak_memory, [(options, size) for size in sizes], chunksize=1)
    return dict(zip(sizes, peaks, strict=True))


def _peak_memory(options, size):
    bank, bank_labels, queries = make_problem(options, size, min(options.queries, 1024))
    few = slice(2 * options.k)
    # The memory that TensorFlow takes at its first call does not count.
    ours(bank[few], bank_labels[few], queries[few], options.classes, options.k)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(bank, bank_labels, queries, options.classes, options.k)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


if __name__ == "__main__":
    main(sys.argv[1:])
