"""One pass over the rows: loss, gradient and curvature of many logistic regressions at once, in numpy.

All folds share each pass. Rows are taken in tiles that stay in a core's cache, sorted by fold, so that a tile is
multiplied with the coefficients of exactly those fits that train on it, joined into one matrix; each thread has a tile
of its own. Products are in the rows' dtype, sums over many tiles in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..extract.device import available_cores

TILE_ROWS = 256  # with 512 float32 features half a megabyte: a core's second-level cache
FLUSH_TILES = 16  # float32 sums over more tiles than this go to float64
THREADS_FROM = 3_000_000  # multiplications a pass; smaller ones are done before a second thread has begun

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
    prepare : callable, optional
        Turns a block into what is fitted.
    """

    array: np.ndarray
    size: int
    prepare: Callable[[np.ndarray], np.ndarray] = lambda block: block

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return int(self.array.shape[0]), int(self.prepare(self.array[:1]).shape[1])

    @property
    def dtype(self) -> Float:
        """In which products are computed."""
        return np.dtype(np.float32)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the blocks in order."""
        for start in range(0, self.array.shape[0], self.size):
            block = np.asarray(self.prepare(np.asarray(self.array[start : start + self.size])), np.float32)
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
        The same for a fit to all rows; 1 where it is None.
    """

    rows: Rows
    target: np.ndarray
    fold: np.ndarray
    link: Link
    n_outputs: int
    class_weight: np.ndarray
    all_weight: np.ndarray | None = None

    @property
    def n_fits(self) -> int:
        """P."""
        return len(self.class_weight)

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


class Passes:
    """Passes over the rows of a task; use it as a context, which keeps its threads.

    Parameters
    ----------
    task : Task
    diagonal : bool, default False
        Keep only the diagonal of the features' second moment, where D is too large for the whole.
    """

    def __init__(self, task: Task, *, diagonal: bool = False) -> None:
        self.task = task
        self.count = 0
        n, width = task.rows.shape
        self._diagonal = diagonal
        large = n * width * task.n_outputs * task.n_fits >= THREADS_FROM
        self._threads = available_cores() if large else 1
        self._stack = contextlib.ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Passes:
        if self._threads > 1:
            from threadpoolctl import threadpool_limits

            # A tile for each thread, and each thread with one core for its products: the threads of a shared product
            # would wait for each other, and leave all that is no product to one core.
            self._stack.enter_context(threadpool_limits(1))
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self._threads, thread_name_prefix="pass"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, W: np.ndarray, active: np.ndarray, *, curvature: bool = False) -> Sums:
        """Compute loss and gradient of the active fits at coefficients W (P, K, D + 1); zeros for the others.

        Parameters
        ----------
        W : ndarray of shape (P, K, D + 1), dtype float64
        active : ndarray of shape (P,), dtype bool
        curvature : bool, default False
            Also sum up the curvature at W, averaged over the active fits.
        """
        self.count += 1
        joined = _Joined(W, active, self.task)
        total = _Accumulator(self.task, curvature, self._diagonal)
        for numbers, Z in self.task.rows.blocks():
            tiles = list(_tiles(numbers, Z, self.task.fold))
            for part in self._map(lambda mine: self._sum(mine, joined, curvature), tiles):
                total.add(part)
        return total.sums()

    def decide(self, W: np.ndarray) -> np.ndarray:
        """Return the logits (n, K) float64 of each row by the fit that did not train on it."""
        result = np.empty((self.task.rows.shape[0], self.task.n_outputs))
        for numbers, Z in self.task.rows.blocks():
            fold = self.task.fold[numbers]
            for fit in range(self.task.n_fits):
                mine = fold == fit
                weights = W[fit].astype(Z.dtype)
                result[numbers[mine]] = Z[mine] @ weights[:, :-1].T + weights[:, -1]
        return result

    def _map(self, work: Callable[[Sequence[_Tile]], _Accumulator], tiles: list[_Tile]) -> Iterator[_Accumulator]:
        if self._pool is None or len(tiles) < 2:
            yield work(tiles)
        else:
            # Which thread has which tiles never changes, so the same sums are added in the same order.
            yield from self._pool.map(work, [tiles[number :: self._threads] for number in range(self._threads)])

    def _sum(self, tiles: Sequence[_Tile], joined: _Joined, curvature: bool) -> _Accumulator:
        total = _Accumulator(self.task, curvature, self._diagonal)
        for number, tile in enumerate(tiles, 1):
            fits, weights, bias = joined.of(tile.fold)
            if len(fits):
                total.take(tile, fits, weights, bias)
            if number % FLUSH_TILES == 0:
                total.flush()
        total.flush()
        return total


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some rows of one fold."""

    fold: int
    numbers: np.ndarray
    Z: np.ndarray


def _tiles(numbers: np.ndarray, Z: np.ndarray, fold: np.ndarray) -> Iterator[_Tile]:
    """Cut a block into tiles of one fold each."""
    mine = fold[numbers]
    if (np.diff(mine) < 0).any():
        order = np.argsort(mine, kind="stable")
        numbers, Z, mine = numbers[order], Z[order], mine[order]
    ends = np.flatnonzero(np.append(np.diff(mine) != 0, True)) + 1
    start = 0
    for end in ends.tolist():
        for begin in range(start, end, TILE_ROWS):
            rows = slice(begin, min(begin + TILE_ROWS, end))
            yield _Tile(int(mine[begin]), numbers[rows], Z[rows])
        start = end


class _Joined:
    """Coefficients of those fits that train on the rows of a fold, as one matrix."""

    def __init__(self, W: np.ndarray, active: np.ndarray, task: Task) -> None:
        dtype = task.rows.dtype
        self._made: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for fold in range(-1, task.n_fits):
            fits = np.flatnonzero(active & (np.arange(task.n_fits) != fold))
            chosen = W[fits].astype(dtype)
            weights = np.ascontiguousarray(chosen[:, :, :-1]).reshape(-1, chosen.shape[2] - 1)
            self._made[fold] = fits, weights, chosen[:, :, -1:]

    def of(self, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the fits (p,), their weights (p * K, D) and their intercepts (p, K, 1)."""
        return self._made[fold]


class _Accumulator:
    """Sums over tiles: in the rows' dtype over a few of them, then in float64."""

    def __init__(self, task: Task, curvature: bool, diagonal: bool) -> None:
        width = task.rows.shape[1]
        self._task = task
        self._diagonal = diagonal
        self.loss = np.zeros(task.n_fits)
        self.gradient = np.zeros((task.n_fits, task.n_outputs, width + 1))
        self._recent = np.zeros(self.gradient.shape, task.rows.dtype)
        self.curved = curvature
        if curvature:
            self.weight = 0.0
            self.mean = np.zeros(width)
            self.second = np.zeros(width if diagonal else (width, width))
            self.outputs = np.zeros((task.n_outputs, task.n_outputs))

    def take(self, tile: _Tile, fits: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> None:
        """Add one tile to the sums of some fits."""
        task = self._task
        logits = (weights @ tile.Z.T).reshape(len(fits), task.n_outputs, len(tile.Z))
        logits += bias
        residual = _softmax if task.link == "softmax" else _sigmoid
        weight = _weights(task, fits, tile.numbers, logits.dtype)
        loss, slope, spread = residual(logits, task.target[tile.numbers], weight, self.curved)
        self.loss[fits] += loss
        # With a row a fit or a few columns a product is a sum; in general it is the second large product of a tile.
        gradient = slope.reshape(len(weights), -1) @ tile.Z
        self._recent[fits, :, :-1] += gradient.reshape(len(fits), task.n_outputs, -1)
        self._recent[fits, :, -1] += slope.sum(axis=2)
        if spread is not None:
            self._curve(tile.Z, *spread)

    def _curve(self, Z: np.ndarray, share: np.ndarray, outputs: np.ndarray) -> None:
        """Add what a tile says of the curvature: `share` (m,) of each row, and the factor (K, K) of the outputs."""
        root = np.sqrt(share)[:, None] * Z
        self.weight += float(share.sum(dtype=np.float64))
        self.mean += share @ Z
        self.second += (root * root).sum(axis=0) if self._diagonal else root.T @ root
        self.outputs += outputs

    def flush(self) -> None:
        """Move the recent sums to float64."""
        self.gradient += self._recent
        self._recent[:] = 0

    def add(self, other: _Accumulator) -> None:
        """Add what another thread has summed."""
        self.loss += other.loss
        self.gradient += other.gradient
        if self.curved:
            self.weight += other.weight
            self.mean += other.mean
            self.second += other.second
            self.outputs += other.outputs

    def sums(self) -> Sums:
        """Return the result."""
        return Sums(self.loss, self.gradient, self._curvature() if self.curved else None)

    def _curvature(self) -> Curvature:
        weight = max(self.weight, np.finfo(np.float64).tiny)
        mean = self.mean / weight
        square = mean * mean if self._diagonal else np.outer(mean, mean)
        trace = max(float(np.trace(self.outputs)), np.finfo(np.float64).tiny)
        return Curvature(self.weight, mean, self.second / weight - square, self.outputs / trace)


def _weights(task: Task, fits: np.ndarray, numbers: np.ndarray, dtype: Float) -> np.ndarray:
    """Return what each row counts, (p, 1, m), or for each label (p, K, m)."""
    table = task.class_weight[fits]
    if task.link == "softmax":
        return np.asarray(table[:, None, task.target[numbers]], dtype)
    present = task.target[numbers].T
    return np.asarray(np.where(present, table[:, :, 1:], table[:, :, :1]), dtype)


_Residual = tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]


def _softmax(logits: np.ndarray, y: np.ndarray, weight: np.ndarray, curved: bool) -> _Residual:
    """Return loss (p,), its slope (p, K, m) in the logits, which are overwritten, and what curves.

    The class of a row is left out of the sum over the others, so that where it is nearly certain, as it is for most
    rows under a weak penalty, neither ``-log p`` nor ``p - 1`` is the difference of two numbers near 1: in float32 it
    would have few digits or none.
    """
    columns = np.arange(len(y))
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[:, y, columns]
    np.exp(logits, out=logits)
    top = np.exp(own)
    logits[:, y, columns] = 0
    others = logits.sum(axis=1)
    total = others + top
    losses = (np.log1p(others + (top - 1)) - own) * weight[:, 0]
    spread = None
    if curved:
        spread = _softmax_spread(logits / total[:, None], others / total, top / total, y, weight)
    logits *= weight / total[:, None]
    logits[:, y, columns] = -others / total * weight[:, 0]
    return losses.sum(axis=1, dtype=np.float64), logits, spread


def _softmax_spread(
    proba: np.ndarray, wrong: np.ndarray, right: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``tr(diag(p) - p p')`` of each row, averaged over fits, and the sum of ``diag(p) - p p'``, (K, K).

    `proba` (p, K, m) has 0 for the class of the row, which has the probability `right`; `wrong` is all others.
    """
    share = ((2 * wrong - wrong * wrong - (proba * proba).sum(axis=1)) * weight[:, 0]).mean(axis=0)
    proba[:, y, np.arange(len(y))] = right
    product = ((proba * weight) @ proba.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    np.fill_diagonal(product, 0)  # rows add up to 0: what is left of 1 - p is not computed from p
    return np.maximum(share, 0), np.diag(product.sum(axis=1)) - product


def _sigmoid(logits: np.ndarray, Y: np.ndarray, weight: np.ndarray, curved: bool) -> _Residual:
    """Return loss (p,), its slope (p, K, m) in the logits, and what curves, of independent labels."""
    sign = np.where(Y.T, 1, -1).astype(logits.dtype)
    margin = logits * sign
    small = np.exp(-np.abs(margin))
    losses = (np.maximum(-margin, 0) + np.log1p(small)) * weight
    slope = -sign * weight * np.where(margin > 0, small, 1) / (1 + small)
    spread = None
    if curved:
        each = small / (1 + small) ** 2 * weight
        spread = each.mean(axis=0).sum(axis=0), np.diag(each.sum(axis=(0, 2), dtype=np.float64))
    return losses.sum(axis=(1, 2), dtype=np.float64), slope, spread
