"""Standardised features turned to the principal axes of the rows, where a logistic regression is a smaller problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .search import solver_dtype

_BLOCK_NUMBERS = 4 << 20  # that are taken to float64 at a time


@dataclass(frozen=True, slots=True)
class Turned:
    """What a logistic regression is fitted on.

    Attributes
    ----------
    Z : ndarray of shape (n, r), dtype float32 or float64
    along_axes : bool
        Whether features were turned; their second moment is diagonal then.
    back : callable
        Takes coefficients (K, r) to those of the features, (K, D) float64.
    """

    Z: np.ndarray
    along_axes: bool
    back: Callable[[np.ndarray], np.ndarray]

    def straight(self, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (K, D) and intercepts (K,) on the features, of a solution (K, r + 1)."""
        return self.back(W[:, :-1]), W[:, -1]


def turned(Z: np.ndarray, n_images: int) -> Turned:
    """Turn features to the principal axes of the rows where images are fewer than features; leave them otherwise.

    The minimum of a loss of ``Z w`` with an L2 penalty on ``w`` lies in the row space of Z (the representer theorem;
    Hastie and Tibshirani 2004, "Efficient quadratic regularization for expression arrays"), so with fewer rows than
    features the problem along the axes of that space is the same one, and smaller. With as many rows or more, as
    several views an image make them, it is as large, but its second moment is still diagonal, and the solver need not
    turn to it anew for each C.

    The axes are found by the smaller of the two Gram matrices, in float64: a fraction of the time of a singular value
    decomposition, for which axes are given up along which rows spread a millionth as far as along the first, or less.
    Standardised features have nothing but rounding there.

    Parameters
    ----------
    Z : ndarray of shape (n * V, D), dtype float32
    n_images : int
        n.
    """
    dtype, width = solver_dtype(Z), Z.shape[1]
    if n_images >= width:
        return Turned(Z.astype(dtype, copy=False), False, lambda coef: coef)
    if len(Z) < width:
        left, spread = _principal(Z)
        return Turned((left * spread).astype(dtype), True, lambda coef: _combined((coef / spread) @ left.T, Z))
    axes = _principal(Z.T)[0].astype(dtype)
    return Turned(Z.astype(dtype, copy=False) @ axes, True, lambda coef: coef @ axes.T)


def _principal(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left singular vectors (n, r) float64 of Z (n, D), and how far columns spread along each, (r,)."""
    gram = np.zeros((len(Z), len(Z)))
    for columns in _blocks(Z):
        block = Z[:, columns].astype(np.float64)
        gram += block @ block.T
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(Z) * np.finfo(np.float64).eps * values[-1]
    kept[-1] = True  # of rows that are all the same
    return vectors[:, kept], np.sqrt(np.maximum(values[kept], np.finfo(np.float64).tiny))


def _combined(shares: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """Return sums (K, D) float64 of rows (n, D), each times its share (K, n)."""
    result = np.empty((len(shares), Z.shape[1]))
    for columns in _blocks(Z):
        result[:, columns] = shares @ Z[:, columns].astype(np.float64)
    return result


def _blocks(Z: np.ndarray) -> list[slice]:
    """Divide columns into blocks of a bounded number of numbers."""
    size = max(1, _BLOCK_NUMBERS // len(Z))
    return [slice(start, start + size) for start in range(0, Z.shape[1], size)]
