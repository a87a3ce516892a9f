"""What a logistic regression is fitted on: rows, their labels and folds; and what a pass over them returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Link = Literal["softmax", "sigmoid"]
Float = np.dtype[np.floating[Any]]


class Rows(Protocol):
    """Rows of features that are read block by block."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows n and features D."""

    @property
    def dtype(self) -> Float:
        """In which products are computed."""

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield numbers of rows (m,) int64, and the rows (m, D), until all n were met once."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Rows of an array, in an order of their own.

    Attributes
    ----------
    Z : ndarray of shape (n, D), dtype float32 or float64
    numbers : ndarray of shape (n,), dtype int64
        Which row each of `Z` is to the caller.
    """

    Z: np.ndarray
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return self.Z.shape[0], self.Z.shape[1]

    @property
    def dtype(self) -> Float:
        """In which products are computed."""
        return np.dtype(self.Z.dtype)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all rows at once."""
        yield self.numbers, self.Z


@dataclass(frozen=True, slots=True)
class InBlocks:
    """Rows that are read anew in every pass, `size` at a time, from what can be sliced: a file mapped into memory, say.

    Attributes
    ----------
    array : object with ``shape`` (n, D) and slices
    size : int
        Rows a block; what is in memory at a time.
    """

    array: np.ndarray
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    @property
    def dtype(self) -> Float:
        """In which products are computed."""
        return np.dtype(np.float32)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the blocks in order."""
        for start in range(0, self.array.shape[0], self.size):
            block = np.asarray(self.array[start : start + self.size], np.float32)
            yield np.arange(start, start + len(block)), block


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be fitted: P fits that share rows, each without the rows of one fold.

    Attributes
    ----------
    rows : Rows
    target : ndarray of shape (n,), dtype int64, or (n, K), dtype bool
        Classes for the softmax link; which labels a row has for the sigmoid link, where K may be 1.
    fold : ndarray of shape (n,), dtype int64
        Fit p does without the rows whose fold is p; -1 for rows that all fits train on.
    link : {"softmax", "sigmoid"}
    n_outputs : int
        K.
    class_weight : ndarray of shape (P, K), or (P, K, 2) for the sigmoid link, dtype float64
        What a row counts, by its class; by the absence and presence of each label.
    all_weight : ndarray of shape (1, K), or (1, K, 2), dtype float64, optional
        The same for a fit to all rows; where it is None, 1 for all rows of an image together.
    n_views : int, default 1
        Rows ``i * n_views`` and so many after it are of image i and share its fold. The first of them alone is decided
        when it is held out.
    along_axes : bool, default False
        Features lie along the principal axes of the rows, where the second moment is nearly its diagonal.
    """

    rows: Rows
    target: np.ndarray
    fold: np.ndarray
    link: Link
    n_outputs: int
    class_weight: np.ndarray
    all_weight: np.ndarray | None = None
    n_views: int = 1
    along_axes: bool = False

    @property
    def n_fits(self) -> int:
        """P."""
        return len(self.class_weight)

    def decided_by(self, numbers: np.ndarray) -> np.ndarray:
        """Return which fit decides each of these rows, (m,) int64: -1 where none does."""
        return np.where(numbers % self.n_views, -1, self.fold[numbers])

    def totals(self) -> np.ndarray:
        """Return the sum of the weights of the rows that each fit trains on, (P,) float64.

        With the sigmoid link a row has a weight for each label; the sum is their mean over labels.
        """
        inside = self.fold != np.arange(self.n_fits)[:, None]
        if self.link == "softmax":
            return np.array([w[self.target[rows]].sum() for w, rows in zip(self.class_weight, inside, strict=True)])
        result = []
        for w, rows in zip(self.class_weight, inside, strict=True):
            positive = self.target[rows].sum(axis=0)
            result.append(float((w[:, 1] * positive + w[:, 0] * (rows.sum() - positive)).sum()) / self.n_outputs)
        return np.array(result)


@dataclass(frozen=True, slots=True)
class Curvature:
    """The second derivative of the summed loss, as a Kronecker product that comes near it.

    The Hessian is the sum over rows of ``(diag(p) - p p') x ((x, 1) (x, 1)')``; both factors are summed by themselves,
    as Martens and Grosse (2015, "Optimizing neural networks with Kronecker-factored approximate curvature") do.

    Attributes
    ----------
    total : float
        Sum over rows of ``s = tr(diag(p) - p p')``, averaged over fits.
    mean : ndarray of shape (D,), dtype float64
        Of the rows, weighted by s.
    second : ndarray of shape (D, D), or (D,) where only its diagonal is kept, dtype float64
        Covariance of the rows, weighted by s.
    outputs : ndarray of shape (K, K), dtype float64
        Sum of ``diag(p) - p p'`` over its trace.
    """

    total: float
    mean: np.ndarray
    second: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, slots=True)
class Sums:
    """What one pass found of each fit, summed over the rows that it trains on.

    Attributes
    ----------
    loss : ndarray of shape (P,), dtype float64
    gradient : ndarray of shape (P, K, D + 1), dtype float64
        The last column is that of the intercept.
    curvature : Curvature or None
    """

    loss: np.ndarray
    gradient: np.ndarray
    curvature: Curvature | None


def summed(several: Sequence[Sums]) -> Sums:
    """Return the sums over all rows, of those over some of them each."""
    loss = np.sum([one.loss for one in several], axis=0)
    gradient = several[0].gradient if len(several) == 1 else np.sum([one.gradient for one in several], axis=0)
    return Sums(loss, gradient, _joined([one.curvature for one in several if one.curvature is not None]))


def _joined(several: Sequence[Curvature]) -> Curvature | None:
    """Return the curvature of all rows: spreads around means of their own and the spread of those means add up."""
    if len(several) < 2:
        return several[0] if several else None
    shares = np.array([max(one.total, np.finfo(np.float64).tiny) for one in several])
    total = float(shares.sum())
    shares /= total
    mean = np.sum([share * one.mean for share, one in zip(shares, several, strict=True)], axis=0)
    second, outputs = np.zeros_like(several[0].second), np.zeros_like(several[0].outputs)
    for share, one in zip(shares, several, strict=True):
        apart = one.mean - mean
        second += share * (one.second + (apart * apart if second.ndim == 1 else np.outer(apart, apart)))
        outputs += share * one.outputs
    return Curvature(total, mean, second, outputs)


class PassesLike(Protocol):
    """What goes over the rows of a task, on a CPU or a GPU."""

    task: Task
    count: int
    pool: Executor | None

    def run(self, W: np.ndarray, active: np.ndarray, *, curvature: bool = False) -> Sums:
        """Compute loss and gradient of the active fits at coefficients W (P, K, D + 1); zeros for the others.

        Parameters
        ----------
        W : ndarray of shape (P, K, D + 1), dtype float64
        active : ndarray of shape (P,), dtype bool
        curvature : bool, default False
            Also sum up the curvature at W, averaged over the active fits.
        """

    def decide(self, W: np.ndarray) -> np.ndarray:
        """Return the logits (n, K) float64 of each image's first row by the fit that did not train on it.

        They are NaN where all fits did.
        """
