"""Embeddings in two dimensions, to be looked at."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import dataclass

import numpy as np

from ...errors import MissingExtraError, UsageError

METHODS = ("pca", "umap")
_FIT_ON = 10_000  # rows, of which principal axes are learnt: two axes need no more
_BLOCK = 1 << 24  # numbers that are projected at a time
_LEAST_FOR_UMAP = 4
_NEIGHBOURS = 15


@dataclass(frozen=True, slots=True)
class Projection:
    """Embeddings in two dimensions.

    Attributes
    ----------
    points : ndarray of shape (n, 2), dtype float32
    method : {"pca", "umap"}
    explained : tuple of (float, float) or None
        Shares of the variance that the two axes hold, 0 to 1; None where the axes mean nothing, as in UMAP.
    """

    points: np.ndarray
    method: str
    explained: tuple[float, float] | None


def project(X: np.ndarray, method: str = "pca", seed: int = 0) -> Projection:
    """Lay out embeddings in two dimensions; the same for the same rows and seed.

    Parameters
    ----------
    X : ndarray of shape (n, D), dtype float32
        Finite. Beyond 10,000 rows PCA learns its axes of so many of them, drawn by `seed`, and the time grows with n
        by one pass over the rows; UMAP takes about a minute for 10,000 rows on two cores.
    method : {"pca", "umap"}, default "pca"
        The plane of largest variance, or UMAP (McInnes, Healy and Melville 2018), which keeps neighbours together and
        whose distances between groups mean little. Fewer than 4 rows are laid out by PCA in any case.
    seed : int, default 0

    Raises
    ------
    MissingExtraError
        UMAP is not installed.
    UsageError
        `method` is none of the two.
    """
    if method not in METHODS:
        raise UsageError(f"--projection must be one of {', '.join(METHODS)}, and is {method!r}")
    if method == "umap":
        _require_umap()
        if len(X) >= _LEAST_FOR_UMAP:
            return Projection(_umap(X, seed), method, None)
    return _principal_plane(X, seed)


def _principal_plane(X: np.ndarray, seed: int) -> Projection:
    sample = X if len(X) <= _FIT_ON else X[_drawn(len(X), seed)]
    mean = sample.mean(axis=0, dtype=np.float64) if len(X) else np.zeros(X.shape[1])
    axes, explained = _axes(sample - mean.astype(np.float32))
    points = np.empty((len(X), 2), np.float32)
    block = max(1, _BLOCK // max(1, X.shape[1]))
    for start in range(0, len(X), block):
        points[start : start + block] = (X[start : start + block] - mean.astype(np.float32)) @ axes
    return Projection(points, "pca", explained)


def _drawn(n: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(n, _FIT_ON, replace=False))


def _axes(Z: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the two principal axes (D, 2) float32 of centred rows, and their shares of the variance.

    By the smaller of the two Gram matrices. An axis that the rows do not have is zero. Of the two directions of an
    axis the one is taken in which its largest coefficient is positive, as in scikit-learn.
    """
    axes = np.zeros((Z.shape[1], 2))
    wide = Z.shape[1] > len(Z)
    gram = (Z @ Z.T if wide else Z.T @ Z).astype(np.float64)
    if not gram.size or not gram.trace() > 0:
        return axes.astype(np.float32), (0.0, 0.0)
    values, vectors = np.linalg.eigh(gram)
    total, shares = gram.trace(), [0.0, 0.0]
    for number, (value, vector) in enumerate(zip(values[:-3:-1], vectors[:, :-3:-1].T, strict=True)):
        if value <= 1e-7 * values[-1]:
            break
        axis = Z.T @ vector / np.sqrt(value) if wide else vector
        axes[:, number] = axis * np.sign(axis[np.abs(axis).argmax()])
        shares[number] = float(value / total)
    return axes.astype(np.float32), (shares[0], shares[1])


def _require_umap() -> None:
    if importlib.util.find_spec("umap") is None:
        raise MissingExtraError(
            'a projection by UMAP needs umap-learn, which is not installed; run `pip install "headstart[umap]"`, or'
            " pass --projection pca"
        )


def _umap(X: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, of TensorFlow that is not there, and that a seed means one thread
        logging.getLogger("numba").setLevel(logging.WARNING)
        import umap

        neighbours = min(_NEIGHBOURS, len(X) - 1)
        start = "spectral" if len(X) > 2 * neighbours else "random"
        laid = umap.UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(X)
    return np.asarray(laid, np.float32)
