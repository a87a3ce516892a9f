"""The nearest embeddings of each embedding, by angle, without keeping all distances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .preparation import of_length_one

BLOCK_ROWS = 256  # rows that are compared at a time, which bounds the memory beside the embeddings


def nearest(
    X: np.ndarray, reference: np.ndarray, k: int, own: np.ndarray | None = None, kin: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield the k nearest reference rows of each row, block by block.

    Parameters
    ----------
    X : ndarray of shape (n, D), dtype float32
        Embeddings of any length; they are normalised here.
    reference : ndarray of shape (r, D), dtype float32
        Of length 1.
    k : int
        At most r.
    own : ndarray of shape (n,), dtype int, optional
        Group of each row.
    kin : ndarray of shape (r,), dtype int, optional
        Group of each reference row; those of a row's own group are no neighbours of it.

    Yields
    ------
    rows : slice
    distance : ndarray of shape (m, k), dtype float32
        Euclidean distances between rows of length 1, 0 to 2, the nearest first; infinite where fewer than k are left.
    place : ndarray of shape (m, k), dtype int64
        Rows of `reference`.
    """
    for start in range(0, len(X), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        squared = 2 - 2 * (of_length_one(X[rows]) @ reference.T)
        if own is not None and kin is not None:
            squared[own[rows][:, None] == kin] = np.inf
        place = np.argpartition(squared, k - 1, axis=1)[:, :k] if k < squared.shape[1] else _every(squared)
        found = np.take_along_axis(squared, place, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        distance = np.sqrt(np.maximum(np.take_along_axis(found, order, axis=1), 0))
        yield rows, distance, np.take_along_axis(place, order, axis=1)


def _every(squared: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(squared.shape[1]), squared.shape)


def references(y: np.ndarray, most: int, random_state: int = 0) -> np.ndarray:
    """Choose at most `most` rows to stand for all, as many of each class as there are of the rarest where it must be.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
        Labels.
    most : int
        With fewer rows than that, all are taken.
    random_state : int, default 0

    Returns
    -------
    ndarray of shape (m,), dtype int64
        Sorted.
    """
    if len(y) <= most:
        return np.arange(len(y))
    # The first of each class in a random order, then the second of each, and so on.
    order = np.random.default_rng(random_state).permutation(len(y))
    by_class = order[np.argsort(y[order], kind="stable")]
    _, start, count = np.unique(y[by_class], return_index=True, return_counts=True)
    turn = np.arange(len(y)) - np.repeat(start, count)
    return np.sort(by_class[np.argsort(turn, kind="stable")[:most]])
