"""Embeddings in two dimensions, to be looked at."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np

from ...errors import MissingExtraError, UsageError

METHODS = ("pca", "umap")
_FIT_ON = 10_000  # rows, of which principal axes are learnt: two axes need no more
_BLOCK = 1 << 24  # numbers that are projected at a time
_LEAST_FOR_UMAP = 4
_NEIGHBOURS = 15
_COMPONENTS = 50
_NOTHING = 1e-7  # of the largest variance: what rounding leaves of an axis that the rows do not have


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
        by one pass over the rows. UMAP takes 12 s of one core for 3,000 rows and 52 s for 10,000, and 17 s before
        that to compile itself.
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
    points, shares = _principal(X, 2, seed)
    return Projection(points, "pca", (shares[0], shares[1]))


def _principal(X: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, list[float]]:
    """Return rows on their first principal axes (n, count) float32, and the share of the variance that each holds."""
    sample = X if len(X) <= _FIT_ON else X[_drawn(len(X), seed)]
    mean = (sample.mean(axis=0, dtype=np.float64) if len(X) else np.zeros(X.shape[1])).astype(np.float32)
    axes, shares = _axes(sample - mean, count)
    points = np.empty((len(X), count), np.float32)
    block = max(1, _BLOCK // max(1, X.shape[1]))
    for start in range(0, len(X), block):
        points[start : start + block] = (X[start : start + block] - mean) @ axes
    return points, shares


def _drawn(n: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(n, _FIT_ON, replace=False))


def _axes(Z: np.ndarray, count: int) -> tuple[np.ndarray, list[float]]:
    """Return the first principal axes (D, count) float32 of centred rows, and the share of the variance of each.

    By the smaller of the two Gram matrices. An axis that the rows do not have is zero. Of the two directions of an
    axis the one is taken in which its largest coefficient is positive, as in scikit-learn.
    """
    axes, shares = np.zeros((Z.shape[1], count)), [0.0] * count
    wide = Z.shape[1] > len(Z)
    gram = (Z @ Z.T if wide else Z.T @ Z).astype(np.float64)
    total = float(gram.trace())
    if not total > 0:
        return axes.astype(np.float32), shares
    values, vectors = np.linalg.eigh(gram)
    for number, (value, vector) in enumerate(zip(values[::-1], vectors.T[::-1], strict=True)):
        if number == count or value <= _NOTHING * values[-1]:
            break
        axis = Z.T @ vector / np.sqrt(value) if wide else vector
        axes[:, number] = axis * np.sign(axis[np.abs(axis).argmax()])
        shares[number] = float(value / total)
    return axes.astype(np.float32), shares


def _require_umap() -> None:
    if importlib.util.find_spec("umap") is None:
        raise MissingExtraError(
            'a projection by UMAP needs umap-learn, which is not installed; run `pip install "headstart[umap]"`, or'
            " pass --projection pca"
        )


def _umap(X: np.ndarray, seed: int) -> np.ndarray:
    """Lay rows out by UMAP, from their principal components: neighbours are found in less time, and are the same."""
    reduced = _principal(X, min(_COMPONENTS, X.shape[1]), seed)[0]
    with warnings.catch_warnings():
        # Of numba, of TensorFlow that is not there, of a seed that means one thread.
        warnings.simplefilter("ignore")
        import umap

        neighbours = min(_NEIGHBOURS, len(X) - 1)
        start = "spectral" if len(X) > 2 * neighbours else "random"
        laid = umap.UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(reduced)
    return np.asarray(laid, np.float32)
