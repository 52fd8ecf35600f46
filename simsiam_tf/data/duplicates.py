"""Finds images that are there more than once: the same bytes, or nearly the same picture."""

import itertools
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

MAX_DISTANCE = 4  # bits of 64 in which the hashes of near duplicates differ at most
_MAX_COLOR_DIFFERENCE = 4  # mean difference of the 4x4 colours of near duplicates, of 255 levels
_NUM_BLOCKS = 6
_MAX_NEIGHBOURS = 64  # in a bucket, with which a hash is compared


def exact_groups(records: np.ndarray) -> list[np.ndarray]:
    """Returns the groups of images whose files have the same bytes, the largest group first.

    Args:
      records: `[n]` of `census.RECORD`.

    Returns:
      The indices of each group's images in `records`, int64, two or more.
    """
    digests = records["digest"]
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    is_new = np.any(digests[order][1:] != digests[order][:-1], axis=1)
    ids = np.zeros(len(records), np.int64)
    ids[order] = np.concatenate([[0], np.cumsum(is_new)])[: len(records)]
    return _groups(ids)


def near_groups(records: np.ndarray) -> list[np.ndarray]:
    """Returns the groups of images that look alike but differ in their bytes, the largest first.

    A pair looks alike if its perceptual hashes differ in at most `MAX_DISTANCE` bits and its
    colours agree. A group connects pairs that share an image. Of exact duplicates only the first
    one takes part.

    Time and memory grow with n, not with its square: two of six blocks of the hashes of such a pair
    are equal, because four different bits reach four blocks at most (Manku et al., "Detecting
    near-duplicates for web crawling", 2007). So hashes are sorted by each pair of blocks, and
    compared with their next neighbours in that order. Where more than 64 images share a pair of
    blocks, some pairs of a group may be missed.

    Args:
      records: `[n]` of `census.RECORD`, all readable.

    Returns:
      The indices of each group's images in `records`, int64, two or more.
    """
    is_first = np.ones(len(records), bool)
    for group in exact_groups(records):
        is_first[group[1:]] = False
    places = np.flatnonzero(is_first)
    hashes, colors = records["hash"][places], records["colors"][places]
    ids = np.arange(len(places))
    for blocks in itertools.combinations(range(_NUM_BLOCKS), 2):
        for first, second in _candidates(hashes, blocks):
            is_new = ids[first] != ids[second]
            first, second = first[is_new], second[is_new]
            is_close = np.bitwise_count(hashes[first] ^ hashes[second]) <= MAX_DISTANCE
            first, second = first[is_close], second[is_close]
            difference = np.abs(colors[first].astype(np.int16) - colors[second]).mean(axis=1)
            is_alike = difference <= _MAX_COLOR_DIFFERENCE
            ids = _merged(ids, first[is_alike], second[is_alike])
    return [places[group] for group in _groups(ids)]


def _candidates(
    hashes: np.ndarray, blocks: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs whose hashes agree in two blocks, as two columns."""
    bounds = np.linspace(0, 64, _NUM_BLOCKS + 1).astype(int).tolist()
    mask = np.uint64(sum((1 << bounds[block + 1]) - (1 << bounds[block]) for block in blocks))
    # The rest of the hash is a second key, so that equal hashes are neighbours.
    order = np.lexsort((hashes, hashes & mask))
    keys = hashes[order] & mask
    for step in range(1, min(_MAX_NEIGHBOURS + 1, len(order))):
        at = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(at):
            return
        yield order[at], order[at + step]


def _merged(ids: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the group of each image after joining the groups of some pairs of images."""
    if not len(first):
        return ids
    first, second = ids[first], ids[second]
    shape = len(ids), len(ids)
    graph = sparse.coo_matrix((np.ones(len(first), bool), (first, second)), shape)
    _, joined = csgraph.connected_components(graph, directed=False)
    return joined[ids]


def _groups(ids: np.ndarray) -> list[np.ndarray]:
    """Returns the indices that share an id, two or more, the largest group first."""
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(ids)))
    several = np.flatnonzero(sizes > 1)
    several = several[np.argsort(-sizes[several], kind="stable")]
    return [order[starts[at] : starts[at] + sizes[at]] for at in several]
