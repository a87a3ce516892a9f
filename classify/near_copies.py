"""Which pictures of a dataset are copies of each other, byte for byte or nearly: resized, mirrored, recompressed.

Two pictures are near copies where their perceptual hashes differ in few bits, as they are or with one of them mirrored,
and their embeddings agree, too. The hash knows nothing of what a picture shows and the network little of where it shows
it, so that what deceives the one seldom deceives the other. Copies of copies are in one group.

Embeddings are compared by the cosine after the mean of the dataset has been taken away. Cosines as they are depend on
the network: those of one without training all lie above 0.94, those of a trained one around 0.4. Without the mean,
pictures that have nothing to do with each other lie around 0 in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..extract.phash import FLAT, MIRROR, UNKNOWN, mirrored
from .preparation import of_length_one

# Chosen on photographs of ants and bees and on copies planted among them; benchmarks/near_copies.py does the same.
# A copy that is mirrored, resized, recompressed, cropped by 5 % and brightened at once is 5 bits away at the median and
# 10 at most; its cosine is 0.71, and seldom below 0.5. One that lost 5 % on two sides is 10 bits away, its cosine 0.91.
# Of 30 thousand pairs of different photographs the nearest are 15 bits apart; one in a hundred has a cosine above 0.44,
# one in ten thousand above 0.65. So the farther two hashes are apart, the more the embeddings have to agree.
MAX_DISTANCE = 13
MIN_COSINE, MIN_COSINE_PER_BIT = 0.4, 0.025
# Where all pictures look alike more is asked for: the distance (1 less the cosine) of two copies must be less than this
# share of that to the fifth nearest other picture, less for each bit. Of the photographs' copies 92 to 100 in a hundred
# are, of each kind but those cut in a corner; of 148 pairs of different handwritten digits that pass all else, 7.
AROUND, MOST_OF_AROUND, MOST_OF_AROUND_PER_BIT, MOST_AROUND = 5, 0.9, 0.04, 4096
# Comparing all pairs of so many takes seconds, and four times that for twice as many.
MAX_COMPARED = 50_000
# A group of more pictures than both of these shows that the pictures of this set look alike, not that they are copies.
LARGEST_GROUP, LARGEST_SHARE = 10, 0.01
# A hash that so many others are close to is evidence of nothing, and pairs of such would be as many as all pairs.
MOST_NEIGHBOURS = 100
_ROWS, _COLUMNS = 64, 4096  # pairs that are compared at once: what the processor's second cache holds
_PAIRS = 1024  # whose embeddings are taken at once


@dataclass(frozen=True, slots=True)
class NearCopies:
    """The groups of pictures that are copies of each other.

    Attributes
    ----------
    group : ndarray of shape (n,), dtype int64
        Equal for exact and near copies; numbered from 0 in the order of their first pictures.
    pairs : ndarray of shape (m, 2), dtype int64
        The near copies that were found, the smaller row first; of each of the pictures the first with its bytes. Those
        of refused groups are not among them.
    refused : list of ndarray of int64
        The rows of each group that was too large to be one. Its pictures are grouped by their bytes alone.
    compared : bool
        Whether pictures were compared. False where they are too many: then all groups are by bytes alone.
    without_hash : int
        Different pictures that had no part in it, for nobody knows their hash.
    flat : int
        Different pictures that had no part in it, for they show too little.
    crowded : int
        Different pictures that had no part in it, for too many others have a hash like theirs.
    """

    group: np.ndarray
    pairs: np.ndarray
    refused: list[np.ndarray] = field(default_factory=list)
    compared: bool = True
    without_hash: int = 0
    flat: int = 0
    crowded: int = 0


def near_copies(phash: np.ndarray, X: np.ndarray, digest: np.ndarray, *, exhaustive: bool = False) -> NearCopies:
    """Find the groups of pictures that are copies of each other, byte for byte or nearly.

    All pairs are compared, a nanosecond and a half each: two seconds for 50,000 pictures. Memory beyond the arguments
    is some 50 bytes a picture and 60 a pair that is found. A group counts as too large from eleven different pictures
    that are more than 1 % of all.

    The mean that is taken from the embeddings is that of the set, so of a set of a few pictures, all of them copies of
    one, nothing can be said.

    Parameters
    ----------
    phash : ndarray of shape (n,), dtype uint64
        Perceptual hashes, as `headstart.extract.features.Features.phash` has them; 0 where not known.
    X : ndarray of shape (n, D), dtype float32
        Embeddings.
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of each file.
    exhaustive : bool, default False
        Compare pictures also where there are more than 50,000 different ones: 16 times the time for 200,000.

    Returns
    -------
    NearCopies
    """
    _, first, member = np.unique(_words(digest), return_index=True, return_inverse=True)
    hashes = np.zeros(len(first), np.uint64)
    np.maximum.at(hashes, member.reshape(-1), phash)
    usable = np.flatnonzero(hashes > FLAT)
    by_bytes = NearCopies(
        _numbered(first[member]),
        np.zeros((0, 2), np.int64),
        compared=False,
        without_hash=int((hashes == UNKNOWN).sum()),
        flat=int((hashes == FLAT).sum()),
    )
    if len(usable) > MAX_COMPARED and not exhaustive:
        return by_bytes
    order = usable[np.argsort(first[usable])]
    pairs, crowded = _confirmed(hashes[order], X, first[order])
    # From here on a picture is known by the first row with its bytes.
    root = _components(len(phash), pairs)[first[member]]
    refused = _too_large(root, first)
    kept = ~np.isin(root, refused)
    return replace(
        by_bytes,
        group=_numbered(np.where(kept, root, first[member])),
        pairs=pairs[kept[pairs[:, 0]]],
        refused=[np.flatnonzero(root == one) for one in refused],
        compared=True,
        crowded=crowded,
    )


def _words(digest: np.ndarray) -> np.ndarray:
    """Return digests as one value each, (n,)."""
    return np.ascontiguousarray(digest).view("V32").reshape(-1)


def _numbered(root: np.ndarray) -> np.ndarray:
    """Return groups, each named by its first row, by numbers from 0."""
    return np.asarray(np.unique(root, return_inverse=True)[1].reshape(-1), np.int64)


def _too_large(root: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the groups of too many different pictures, given the first row of each picture."""
    groups, sizes = np.unique(root[first], return_counts=True)
    return np.asarray(groups[(sizes > LARGEST_GROUP) & (sizes > LARGEST_SHARE * len(first))])


def _components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return for each of `count` rows the smallest that it is connected to by pairs, (count,) int64.

    Each round hangs the root of one side of a pair below the smaller root of the other, then shortens all paths: that
    of Y. Shiloach and U. Vishkin, "An O(log n) parallel connectivity algorithm", 1982.
    """
    root = np.arange(count)
    while True:
        left, right = root[pairs[:, 0]], root[pairs[:, 1]]
        if (left == right).all():
            return root
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while (root[root] != root).any():
            root = root[root]


# Pairs


def _confirmed(hashes: np.ndarray, X: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the pairs of rows that are near copies, (m, 2) int64, and how many pictures are crowded.

    Parameters
    ----------
    hashes : ndarray of shape (k,), dtype uint64
        Of the pictures to compare.
    X : ndarray of shape (n, D), dtype float32
    rows : ndarray of shape (k,), dtype int64
        The row of `X` of each, ascending.
    """
    if not len(rows):
        return np.zeros((0, 2), np.int64), 0
    sums = [
        X[rows[start : start + _ROWS * _ROWS]].sum(axis=0, dtype=np.float64)
        for start in range(0, len(rows), _ROWS * _ROWS)
    ]
    mean = (np.sum(sums, axis=0) / len(rows)).astype(np.float32)
    neighbours = np.zeros(len(hashes), np.int64)
    most = max(MOST_NEIGHBOURS, int(LARGEST_SHARE * len(hashes)))
    found = [np.zeros((0, 2), np.int64)]
    for pairs in _close(hashes, neighbours, most):
        for start in range(0, len(pairs), _PAIRS):
            some = pairs[start : start + _PAIRS]
            found.append(some[_cosines(X, mean, rows[some]) >= _least_cosine(hashes[some])])
    together = np.concatenate(found)
    crowded = neighbours > most
    together = together[~crowded[together].any(axis=1)]
    return rows[together[_stand_out(hashes, X, mean, rows, together)]], int(crowded.sum())


def _stand_out(hashes: np.ndarray, X: np.ndarray, mean: np.ndarray, rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return which pairs are much closer to each other than to the pictures around them, (m,) bool.

    Where all pictures of a class look alike, drawings or scans say, both hashes and embeddings of different ones agree.
    A copy is closer still than the fifth nearest of the pictures that no hash takes for a copy.
    """
    if not len(pairs):
        return np.zeros(0, bool)
    members, place = np.unique(pairs, return_inverse=True)
    around = _cosine_around(hashes, X, mean, rows, members)[place.reshape(pairs.shape)].max(axis=1)
    cosines = np.concatenate(
        [_cosines(X, mean, rows[pairs[start : start + _PAIRS]]) for start in range(0, len(pairs), _PAIRS)]
    )
    share = MOST_OF_AROUND - MOST_OF_AROUND_PER_BIT * _bits(hashes[pairs])
    return np.asarray(1 - cosines <= share * (1 - around))


def _cosine_around(
    hashes: np.ndarray, X: np.ndarray, mean: np.ndarray, rows: np.ndarray, members: np.ndarray
) -> np.ndarray:
    """Return the cosine of some pictures to the fifth nearest that is no candidate for a copy of it, (m,) float64.

    It is sought among 4,096 pictures evenly spread over all, nearer the front of them the fewer of all those are; -1
    where there are not so many.
    """
    step = -(-len(rows) // MOST_AROUND)
    others = np.arange(0, len(rows), step)
    rank = max(1, round(AROUND / step))
    result = np.full(len(members), -1.0)
    if len(others) <= rank:
        return result
    reference = of_length_one(X[rows[others]] - mean)
    halves = [(some.astype(np.uint32), (some >> np.uint64(32)).astype(np.uint32)) for some in (hashes, hashes[others])]
    for start in range(0, len(members), _ROWS):
        mine = members[start : start + _ROWS]
        cosines = of_length_one(X[rows[mine]] - mean) @ reference.T
        cosines[_distance(halves[0][0][mine], halves[0][1][mine], *halves[1]) <= MAX_DISTANCE] = -1
        result[start : start + _ROWS] = np.partition(cosines, -rank, axis=1)[:, -rank]
    return result


def _cosines(X: np.ndarray, mean: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the cosines of pairs of embeddings, the mean taken away, (m,) float32; 0 where one is the mean."""
    left, right = X[pairs[:, 0]] - mean, X[pairs[:, 1]] - mean
    scale = np.sqrt(np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right))
    cosines: np.ndarray = np.einsum("ij,ij->i", left, right) / np.where(scale > 0, scale, 1)
    return cosines


def _least_cosine(pairs: np.ndarray) -> np.ndarray:
    """Return from which cosine on pairs of hashes, (m, 2) uint64, are of near copies, (m,) float64."""
    return np.asarray(MIN_COSINE + MIN_COSINE_PER_BIT * _bits(pairs))


def _bits(pairs: np.ndarray) -> np.ndarray:
    """Return in how many bits pairs of hashes, (m, 2) uint64, differ, or mirrored ones where those are fewer, (m,)."""
    plain = pairs[:, 0] ^ pairs[:, 1]
    return np.asarray(np.minimum(np.bitwise_count(plain), np.bitwise_count(mirrored(plain))))


def _close(hashes: np.ndarray, neighbours: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield all pairs of hashes that are close, (m, 2) int64 with the smaller place first, block by block.

    Places with more than `most` close ones are left out as soon as that is known: of the first of a pair it is by the
    time that the pair is yielded, of the second when all is through.

    Parameters
    ----------
    hashes : ndarray of shape (k,), dtype uint64
    neighbours : ndarray of shape (k,), dtype int64
        Zeros; how many each is close to is added up in it.
    most : int
    """
    same, flipped = hashes.astype(np.uint32), (hashes >> np.uint64(32)).astype(np.uint32)
    assert int(MIRROR) == 0xFFFFFFFF << 32, "the halves of a hash: bits that a mirror leaves, and bits that it flips"
    for top in range(0, len(hashes), _ROWS):
        mine, block = slice(top, top + _ROWS), []
        for left in range(top, len(hashes), _COLUMNS):
            theirs = slice(left, left + _COLUMNS)
            close = _distance(same[mine], flipped[mine], same[theirs], flipped[theirs]) <= MAX_DISTANCE
            if left == top:
                close = np.triu(close, 1)
            if not close.any():
                continue
            neighbours[mine] += close.sum(axis=1)
            neighbours[theirs] += close.sum(axis=0)
            close[neighbours[mine] > most] = False
            block.append(np.argwhere(close) + np.array([top, left]))
        if block:
            pairs = np.concatenate(block)
            yield pairs[neighbours[pairs[:, 0]] <= most]


def _distance(same: np.ndarray, flipped: np.ndarray, same_2: np.ndarray, flipped_2: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes differ, or mirrored ones where those are fewer, (r, c) uint8.

    Parameters
    ----------
    same, flipped : ndarray of shape (r,), dtype uint32
        Bits of a hash that a mirror leaves, and bits that it flips.
    same_2, flipped_2 : ndarray of shape (c,), dtype uint32
    """
    odd: np.ndarray = np.bitwise_count(flipped[:, None] ^ flipped_2)
    np.minimum(odd, 32 - odd, out=odd)
    odd += np.bitwise_count(same[:, None] ^ same_2)
    return odd
