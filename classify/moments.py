"""Moments of features that are summed up block by block, and added up over several machines.

Numbers are taken from a first guess of their mean before they are squared, so that nothing is the difference of two
large sums; what several have summed is put together by the formulas of Pebay (2008, "Formulas for robust, one-pass
parallel computation of covariances and arbitrary-order statistical moments").
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

_NUMBERS = 1 << 18  # taken to float64 at a time: 2 MB, which a core's cache holds


@dataclass(frozen=True, slots=True)
class Moments:
    """Central moments of features.

    Attributes
    ----------
    count : int
        Rows n.
    mean : ndarray of shape (D,), dtype float64
    second, third, fourth : ndarray of shape (D,), dtype float64
        Sums over rows of the powers of what is left when the mean is taken away.
    """

    count: int
    mean: np.ndarray
    second: np.ndarray
    third: np.ndarray
    fourth: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the rows of both."""
        if not self.count or not other.count:
            return self if self.count else other
        a, b = self.count, other.count
        n, d = a + b, other.mean - self.mean
        second = self.second + other.second + d**2 * (a * b / n)
        third = self.third + other.third + d**3 * (a * b * (a - b) / n**2)
        third += 3 * d * (a * other.second - b * self.second) / n
        fourth = self.fourth + other.fourth + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
        fourth += 6 * d**2 * (a * a * other.second + b * b * self.second) / n**2
        fourth += 4 * d * (a * other.third - b * self.third) / n
        return Moments(n, self.mean + d * (b / n), second, third, np.maximum(fourth, 0))

    def unbiased(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, unbiased variance and the sampling variance of that, of each feature, (D,) float64."""
        n = self.count
        if n < 3:  # of two rows nothing tells how sure their variance is
            return self.mean, self.second, np.full_like(self.mean, np.inf)
        noise = n / (n - 1) ** 3 * np.maximum(self.fourth - self.second * self.second / n, 0)
        return self.mean, self.second / (n - 1), noise

    @classmethod
    def side_by_side(cls, several: Sequence[Moments]) -> Moments:
        """Return the moments of features that stand side by side."""
        names = ("mean", "second", "third", "fourth")
        return cls(several[0].count, *(np.concatenate([getattr(one, name) for one in several]) for name in names))


class MomentSums:
    """Sums of powers, which become `Moments`.

    Parameters
    ----------
    width : int
        D.
    pool : Executor, optional
        Threads that share a block.
    """

    def __init__(self, width: int, pool: Executor | None = None) -> None:
        self._count = 0
        self._guess: np.ndarray | None = None
        self._sums = np.zeros((4, width))
        self._pool = pool
        self._rows = max(1, _NUMBERS // width)

    def add(self, rows: np.ndarray) -> None:
        """Take in rows (m, D) float32."""
        if not len(rows):
            return
        if self._guess is None:
            self._guess = rows[: 4 * self._rows].mean(axis=0, dtype=np.float64)
        self._count += len(rows)
        pieces = [rows[start : start + self._rows] for start in range(0, len(rows), self._rows)]
        for sums in (self._pool.map if self._pool else map)(self._of, pieces):
            self._sums += sums

    def _of(self, rows: np.ndarray) -> np.ndarray:
        assert self._guess is not None
        left = rows - self._guess
        square = left * left
        one = np.ones(len(rows))
        return np.stack(
            [one @ left, one @ square, np.einsum("ij,ij->j", square, left), np.einsum("ij,ij->j", square, square)]
        )

    def moments(self) -> Moments:
        """Return what was found."""
        n = self._count
        if self._guess is None:
            return Moments(0, *np.zeros((4, self._sums.shape[1])))
        first, second, third, fourth = self._sums
        d = first / n  # from the guess to the mean
        return Moments(
            n,
            self._guess + d,
            np.maximum(second - n * d**2, 0),
            third - 3 * d * second + 2 * n * d**3,
            np.maximum(fourth - 4 * d * third + 6 * d**2 * second - 3 * n * d**4, 0),
        )
