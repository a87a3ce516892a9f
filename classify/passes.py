"""One pass over the rows: loss, gradient and curvature of many logistic regressions at once, in numpy.

All folds share each pass. Rows are taken in tiles that stay in a core's cache, sorted by fold, so that a tile is
multiplied with the coefficients of exactly those fits that train on it, joined into one matrix; each thread has a tile
of its own. Products are in the rows' dtype, sums over many tiles in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..extract.device import available_cores
from .losses import sigmoid_loss, softmax_loss
from .task import Curvature, Float, PassesLike, Sums, Task
from .threads import one_thread_each

TILE_ROWS = 256  # with 512 float32 features half a megabyte: a core's second-level cache
FLUSH_TILES = 16  # float32 sums over more tiles than this go to float64
WHOLE_CURVATURE_UP_TO = 4096  # features; the eigenvectors of a larger second moment would cost more than they save
# Rows a feature by which the curvature is known well enough: it shapes steps, and not where they end. Its product is
# the one that grows with the square of the features, so of more rows some tiles, evenly chosen, stand for all.
CURVED_ROWS = 100
_GPU_FROM = 2e10  # floating-point operations a pass: a tenth of a second and more on a CPU, and there are hundreds
THREADS_FROM = 3_000_000  # multiplications a pass; smaller ones are done before a second thread has begun


def passes_over(
    task: Task, device: str = "auto", threads: int | None = None
) -> contextlib.AbstractContextManager[PassesLike]:
    """Return what goes over the rows of a task, on the device that suits it.

    Parameters
    ----------
    task : Task
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" is an NVIDIA GPU where there is one and the work is long enough for it to repay loading torch.
    threads : int, optional
        At most so many on a CPU; one a core where it is None.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu or cuda, and is {device!r}")
    n, width = task.rows.shape
    numbers = float(n * width * task.n_outputs * task.n_fits)
    # Eigenvectors of the second moment cost its width's third power at each C; along principal axes they save a fifth
    # of the passes at most. Views have no say in it, so that equal ones are fitted by the same steps as one.
    dear = task.along_axes and width**3 * task.n_views > numbers
    diagonal = width > WHOLE_CURVATURE_UP_TO or dear
    work = 4.0 * numbers
    if device == "cuda" or (device == "auto" and work > _GPU_FROM and _has_gpu()):
        from .torch_passes import TorchPasses

        return TorchPasses(task, "cuda", diagonal=diagonal)
    return Passes(task, diagonal=diagonal, threads=threads)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class Passes:
    """Passes over the rows of a task; use it as a context, which keeps its threads.

    Parameters
    ----------
    task : Task
    diagonal : bool, default False
        Keep only the diagonal of the features' second moment, where D is too large for the whole.
    threads : int, optional
        At most so many; one a core where it is None.
    """

    def __init__(self, task: Task, *, diagonal: bool = False, threads: int | None = None) -> None:
        self.task = task
        self.count = 0
        n, width = task.rows.shape
        self._diagonal = diagonal
        self._curved_every = max(1, n // (CURVED_ROWS * width))
        large = n * width * task.n_outputs * task.n_fits >= THREADS_FROM
        self._threads = (threads or available_cores()) if large else 1
        self._stack = contextlib.ExitStack()
        self.pool: Executor | None = None

    def __enter__(self) -> Passes:
        if self._threads > 1:
            # A tile for each thread, and each thread with one core for its products: the threads of a shared product
            # would wait for each other, and leave all that is no product to one core.
            self._stack.enter_context(one_thread_each())
            self.pool = self._stack.enter_context(ThreadPoolExecutor(self._threads, thread_name_prefix="pass"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, W: np.ndarray, active: np.ndarray, *, curvature: bool = False) -> Sums:
        """Compute loss and gradient of the active fits, as `PassesLike` says."""
        self.count += 1
        joined = _Joined(W, active, self.task)
        total = _Accumulator(self.task, curvature, self._diagonal)
        for numbers, Z in self.task.rows.blocks():
            tiles = list(_tiles(numbers, Z, self.task.fold))
            for part in self._map(lambda mine: self._sum(mine, joined, curvature), tiles):
                total.add(part)
        return total.sums(int(active.sum()))

    def decide(self, W: np.ndarray) -> np.ndarray:
        """Return the logits (n, K) float64 of each image's first row by the fit that did not train on it."""
        n_views = self.task.n_views
        result = np.full((self.task.rows.shape[0] // n_views, self.task.n_outputs), np.nan)
        for numbers, Z in self.task.rows.blocks():
            decided_by = self.task.decided_by(numbers)
            for fit in range(self.task.n_fits):
                mine = decided_by == fit
                weights = W[fit].astype(Z.dtype)
                result[numbers[mine] // n_views] = Z[mine] @ weights[:, :-1].T + weights[:, -1]
        return result

    def _map(self, work: Callable[[Sequence[_Tile]], _Accumulator], tiles: list[_Tile]) -> Iterator[_Accumulator]:
        if self.pool is None or len(tiles) < 2:
            yield work(tiles)
        else:
            # Which thread has which tiles never changes, so the same sums are added in the same order.
            yield from self.pool.map(work, [tiles[number :: self._threads] for number in range(self._threads)])

    def _sum(self, tiles: Sequence[_Tile], joined: _Joined, curvature: bool) -> _Accumulator:
        total = _Accumulator(self.task, curvature, self._diagonal)
        for number, tile in enumerate(tiles):
            fits, weights, bias = joined.of(tile.fold)
            if len(fits):
                total.take(tile, fits, weights, bias, curved=curvature and number % self._curved_every == 0)
            if number % FLUSH_TILES == FLUSH_TILES - 1:
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
    """Cut a block into tiles of one fold each; rows are moved only where their folds change all the time."""
    mine = fold[numbers]
    if np.count_nonzero(np.diff(mine)) * TILE_ROWS > len(mine):
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
            self.rows = self.curved_rows = 0
            self.weight = 0.0
            self.mean = np.zeros(width)
            self.second = np.zeros(width if diagonal else (width, width))
            self.outputs = np.zeros((task.n_outputs, task.n_outputs))

    def take(self, tile: _Tile, fits: np.ndarray, weights: np.ndarray, bias: np.ndarray, *, curved: bool) -> None:
        """Add one tile to the sums of some fits, and to those of the curvature where it is one that counts there."""
        task = self._task
        logits = (weights @ tile.Z.T).reshape(len(fits), task.n_outputs, len(tile.Z))
        logits += bias
        residual = softmax_loss if task.link == "softmax" else sigmoid_loss
        weight = _weights(task, fits, tile.numbers, logits.dtype)
        loss, slope, spread = residual(logits, task.target[tile.numbers], weight, curved)
        self.loss[fits] += loss
        # With a row a fit or a few columns a product is a sum; in general it is the second large product of a tile.
        gradient = slope.reshape(len(weights), -1) @ tile.Z
        self._recent[fits, :, :-1] += gradient.reshape(len(fits), task.n_outputs, -1)
        self._recent[fits, :, -1] += slope.sum(axis=2)
        if self.curved:
            self.rows += len(fits) * len(tile.Z)
        if spread is not None:
            self.curved_rows += len(fits) * len(tile.Z)
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
            self.rows += other.rows
            self.curved_rows += other.curved_rows
            self.weight += other.weight
            self.mean += other.mean
            self.second += other.second
            self.outputs += other.outputs

    def sums(self, n_fits: int) -> Sums:
        """Return the result for so many fits."""
        return Sums(self.loss, self.gradient, self._curvature(n_fits) if self.curved else None)

    def _curvature(self, n_fits: int) -> Curvature:
        weight = max(self.weight, np.finfo(np.float64).tiny)
        mean = self.mean / weight
        square = mean * mean if self._diagonal else np.outer(mean, mean)
        trace = max(float(np.trace(self.outputs)), np.finfo(np.float64).tiny)
        of_all = self.weight * self.rows / max(1, self.curved_rows)
        return Curvature(of_all / n_fits, mean, self.second / weight - square, self.outputs / trace)


def _weights(task: Task, fits: np.ndarray, numbers: np.ndarray, dtype: Float) -> np.ndarray:
    """Return what each row counts, (p, 1, m), or for each label (p, K, m)."""
    table = task.class_weight[fits]
    if task.link == "softmax":
        return np.asarray(table[:, None, task.target[numbers]], dtype)
    present = task.target[numbers].T
    return np.asarray(np.where(present, table[:, :, 1:], table[:, :, :1]), dtype)
