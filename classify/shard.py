"""A share of the training rows, and all that is ever asked of it: sums, of which every answer is small.

A fit by blocks has one shard, in its own process; a fit over workers has one on each. Rows are read from the cache
twice: to learn how features are standardised, and to put them aside standardised, in memory where they fit or in a
scratch file, from which each pass reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from ..cache.store import FeatureStore
from ..errors import TrainingError
from ..extract.device import available_cores
from ..extract.memory import give_back_memory
from .budget import block_rows_for, evaluation_bytes, reading_bytes
from .metrics import log_loss
from .mini_batches import Dealer, Dealing
from .moments import Moments, MomentSums
from .multilabel import binary_log_loss
from .network import sigmoid, softmax
from .passes import passes_over
from .preparation import of_length_one
from .scratch import Table
from .search import both_rows
from .share import HeldRows, Problem, Share, Survey
from .stored import StoredRows, largest_part, piece_rows
from .task import Sums, Task
from .views import of_rows

_PIECE_ROWS = 8192  # that are scored at a time
_FEW_CLASSES, _SUMMED_ROWS = 32, 2048  # whose sums are products: in float32 over so many rows
Work = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""Of labels, folds and held-out logits (m, K) float64 of some images; what it returns is added up."""


@dataclass(slots=True)
class Shard:
    """See `Share`. Its methods are called in the order in which they stand here."""

    share: Share
    problem: Problem | None = None
    _tasks: dict[bool, Task] = field(default_factory=dict)
    _dealer: Dealer | None = None
    _decided: Table | None = None
    _images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def granted(self) -> int:
        """Return the bytes that it may take: where nobody said, what the worker has free when it is hired."""
        return self.share.memory

    def survey(self, n_classes: int, l2_norm: bool) -> Survey:
        """Read all rows once, every byte checked.

        Parameters
        ----------
        n_classes : int
            K; 0 where sums by class are of no interest.
        l2_norm : bool
            Whether each space's columns are divided by their length.

        Raises
        ------
        TrainingError
            The embeddings hold NaN or infinity.
        """
        stored, n_views = self._stored(), self.share.views.count
        class_sums = np.zeros((n_classes, stored.width))
        picked = np.empty((len(self.share.picked), stored.width), np.float32)
        found: list[tuple[Moments, Moments]] = []
        with ThreadPoolExecutor(self.share.threads or available_cores(), thread_name_prefix="survey") as pool:
            for place, columns in enumerate(stored.columns()):
                width = columns.stop - columns.start
                raw, even = MomentSums(width, pool), MomentSums(width, pool)
                for numbers, rows in stored.blocks(place):
                    if not np.isfinite(rows).all():
                        raise TrainingError(
                            "the embeddings hold NaN or infinity; run `headstart extract` with --store-dtype float32"
                        )
                    plain = numbers % n_views == 0
                    images, rows = numbers[plain] // n_views, rows if plain.all() else rows[plain]
                    raw.add(rows)
                    if l2_norm:
                        even.add(of_length_one(rows))
                    if n_classes:
                        _add_by_class(class_sums[:, columns], rows, self.share.target[images])
                    self._pick(picked[:, columns], images, rows)
                found.append((raw.moments(), (even if l2_norm else raw).moments()))
        give_back_memory()
        as_they_come, prepared = (Moments.side_by_side(several) for several in zip(*found, strict=True))
        return Survey(prepared, as_they_come, class_sums, picked)

    def hold(self, mean: np.ndarray, scale: np.ndarray, l2_norm: bool, n_fits: int, n_outputs: int) -> None:
        """Read all rows a second time, and put them aside standardised.

        Parameters
        ----------
        mean, scale : ndarray of shape (D,), dtype float32
        l2_norm : bool
        n_fits, n_outputs : int
            Of the passes to come, which take memory too.
        """
        stored = self._stored()
        beside = max(
            evaluation_bytes(n_fits, n_outputs, stored.width, self.share.threads),
            reading_bytes(largest_part(stored.store, stored.spaces)),
        )
        room = self.share.memory - beside
        table = Table(len(stored), stored.width, in_memory=4 * len(stored) * stored.width <= room)
        # When passes begin, nothing of the cache is read any more.
        room = self.share.memory - evaluation_bytes(n_fits, n_outputs, stored.width, self.share.threads)
        size = len(stored) if table.in_memory else block_rows_for(stored.width, room)
        rows = HeldRows(table, np.empty(len(stored), np.int64), max(1, size))
        place_of = np.empty(len(stored), np.int64) if len(stored.spaces) > 1 else None
        for place, columns in enumerate(stored.columns()):
            done = 0
            for numbers, values in self._by_fold(stored, place):
                prepared = of_length_one(values) if l2_norm else values
                prepared = np.asarray((prepared - mean[columns]) / scale[columns], np.float32)
                if place == 0:
                    rows.numbers[done : done + len(numbers)] = numbers
                if place_of is None:
                    table.put(done, prepared)
                else:
                    if place == 0:
                        place_of[numbers] = np.arange(done, done + len(numbers))
                    table.put_columns(place_of[numbers], columns.start, prepared)
                done += len(numbers)
        give_back_memory()
        self._set_rows(rows)

    def gram(self) -> np.ndarray:
        """Return the products ``Z.T @ Z`` (D, D) float64 of view 0 of all images."""
        total = np.zeros((self.rows.shape[1],) * 2)
        for numbers, Z in self.rows.blocks():
            plain = Z if self.share.views.count == 1 else Z[numbers % self.share.views.count == 0]
            for start in range(0, len(plain), 4096):
                piece = plain[start : start + 4096]
                total += piece.T @ piece
        return total

    def project(self, axes: np.ndarray) -> None:
        """Put the rows' coordinates along axes (D, r) float32 aside in place of the rows."""
        before = self.rows
        table = Table(len(before.table), axes.shape[1], in_memory=before.table.in_memory)
        for start, Z in before.table.blocks(before.size):
            table.put(start, Z @ axes)
        before.table.close()
        self._set_rows(HeldRows(table, before.numbers, before.size))

    def begin(self, problem: Problem) -> None:
        """Say what the rows are to be fitted to."""
        self.problem = problem
        share, n_views = self.share, self.share.views.count
        target, fold = (of_rows(each, n_views) for each in (share.target, share.fold))
        if problem.link == "sigmoid" and target.ndim == 1:
            target = (target == 1)[:, None]
        task = Task(self.rows, target, fold, problem.link, problem.n_outputs, problem.class_weight, n_views=n_views)
        alone = replace(task, fold=np.broadcast_to(np.int64(-1), fold.shape), class_weight=problem.all_weight)
        self._tasks = {True: task, False: alone}

    def run(self, W: np.ndarray, active: np.ndarray, curvature: bool, folds: bool) -> Sums:
        """Return loss and gradient over all rows, as `Passes.run`; of the fits to all but one fold each, or to all."""
        with passes_over(self._tasks[folds], self.share.device, self.share.threads) as passes:
            return passes.run(W, active, curvature=curvature)

    def deal(self, dealing: Dealing) -> None:
        """Say how the rows are dealt to mini-batches."""
        self._dealer = Dealer(self.share, self.rows, dealing)

    def step(self, epoch: int, step: int, steps: int, W: np.ndarray, folds: bool) -> dict[str, np.ndarray]:
        """Return what the rows of one mini-batch say, see `Dealer.step`."""
        assert self._dealer is not None
        return self._dealer.step(epoch, step, steps, W, folds)

    def losses(self, W: np.ndarray) -> np.ndarray:
        """Return the log loss of each fold's own images by the fit without them, summed, (P,) float64."""
        total = np.zeros(len(W))
        for images, fit, Z in self._held_out():
            total[fit] += len(images) * self._mean_loss(self.share.target[images], _logits(Z, W[fit]))
        return total

    def judge(self, several: np.ndarray) -> dict[str, np.ndarray]:
        """Return of several sets of fits (S, P, K, r + 1) to classes the ``loss``, as `losses`, and the ``right``."""
        found = {name: np.zeros(several.shape[:2]) for name in ("loss", "right")}
        for images, fit, Z in self._held_out():
            y = self.share.target[images]
            for number, W in enumerate(several[:, fit]):
                logits = _logits(Z, W)
                found["loss"][number, fit] += len(images) * self._mean_loss(y, logits)
                found["right"][number, fit] += (logits.argmax(axis=1) == y).sum()
        return found

    def keep(self, W: np.ndarray) -> None:
        """Keep the logits of each image by the fit that did not train on it, for `reduce` and `columns`."""
        if self._decided is not None:
            self._decided.close()
        n = int((self.share.fold >= 0).sum())
        small = 4 * n * W.shape[1] <= self.share.memory // 8
        self._decided, self._images = Table(n, W.shape[1], in_memory=small), np.empty(n, np.int64)
        done = 0
        for images, fit, Z in self._held_out():
            self._decided.put(done, _logits(Z, W[fit]))
            self._images[done : done + len(images)] = images
            done += len(images)

    def reduce(self, work: Work) -> dict[str, np.ndarray]:
        """Return what some work finds in the logits that were kept, added up."""
        assert self._decided is not None
        total: dict[str, np.ndarray] = {}
        for start, logits in self._decided.blocks(piece_rows(2 * self._decided.shape[1])):
            images = self._images[start : start + len(logits)]
            found = work(self.share.target[images], self.share.fold[images], logits.astype(np.float64))
            total = {name: total.get(name, 0) + value for name, value in found.items()}
        return total

    def columns(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return some columns (n, w) float32 of the logits that were kept, and the labels there (n, w) bool."""
        assert self._decided is not None
        values = self._decided.columns(start, stop, piece_rows(self._decided.shape[1]))
        return values, self.share.target[self._images, start:stop]

    def true_probabilities(self, temperature: float) -> np.ndarray:
        """Return what the logits that were kept give the true classes, (n,) float64."""
        assert self._decided is not None
        found = np.empty(len(self._decided))
        for start, logits in self._decided.blocks(piece_rows(2 * self._decided.shape[1])):
            proba = softmax(both_rows(logits.astype(np.float64), 1) / temperature)
            y = self.share.target[self._images[start : start + len(logits)]]
            found[start : start + len(logits)] = proba[np.arange(len(y)), y]
        return found

    def class_means(self, n_fits: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sums (P, K, r) float64 of the rows of each class in each fold, and their numbers (P, K).

        Where there are no folds P is 1 and all rows are in it.
        """
        sums, counts = np.zeros((n_fits, n_classes, self.rows.shape[1])), np.zeros((n_fits, n_classes), np.int64)
        for numbers, Z in self.rows.blocks():
            images = numbers // self.share.views.count
            flat = np.maximum(self.share.fold[images], 0) * n_classes + self.share.target[images]
            for start in range(0, len(Z), 4096):
                piece = slice(start, start + 4096)
                _add_by_class(sums.reshape(-1, Z.shape[1]), Z[piece], flat[piece])
            counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
        return sums, counts

    def right(self, W: np.ndarray, temperature: float, thresholds: np.ndarray | None) -> int:
        """Count the images that a fit (K, r + 1) gets right: the class, or all labels at their thresholds."""
        total, n_views = 0, self.share.views.count
        for numbers, Z in self.rows.blocks():
            if n_views > 1:
                plain = numbers % n_views == 0
                numbers, Z = numbers[plain], Z[plain]
            for start in range(0, len(Z), _PIECE_ROWS):
                target = self.share.target[numbers[start : start + _PIECE_ROWS] // n_views]
                logits = _logits(Z[start : start + _PIECE_ROWS], W)
                if thresholds is None:
                    total += int((logits.argmax(axis=1) == target).sum())
                else:
                    given = sigmoid(logits.astype(np.float64) / temperature) >= thresholds
                    total += int((given == target).all(axis=1).sum())
        return total

    def blocks_a_pass(self) -> int:
        """Return into how many blocks a pass divides the rows."""
        return -(-len(self.rows.table) // self.rows.size)

    def put_aside(self) -> int:
        """Return the bytes of the rows that lie in a scratch file; 0 where they are in memory."""
        return 0 if self.rows.table.in_memory else self.rows.table.nbytes

    def close(self) -> None:
        """Let memory and disk go."""
        for table in (self._decided, self._rows.table if self._rows is not None else None):
            if table is not None:
                table.close()
        self._tasks, self._dealer = {}, None

    _rows: HeldRows | None = None

    @property
    def rows(self) -> HeldRows:
        """The rows that were put aside."""
        assert self._rows is not None
        return self._rows

    def _set_rows(self, rows: HeldRows) -> None:
        self._rows = rows

    def _stored(self) -> StoredRows:
        share = self.share
        return StoredRows(FeatureStore(share.root), share.spaces, share.digest, share.views)

    def _by_fold(self, stored: StoredRows, place: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of stored rows sorted by fold, which passes cut into tiles of one fold each."""
        for numbers, rows in stored.blocks(place):
            fold = self.share.fold[numbers // stored.views.count]
            if (np.diff(fold) < 0).any():
                order = np.argsort(fold, kind="stable")
                numbers, rows = numbers[order], rows[order]
            yield numbers, rows

    def _pick(self, picked: np.ndarray, images: np.ndarray, rows: np.ndarray) -> None:
        """Take the embeddings that were asked for."""
        wanted = self.share.picked
        if not len(wanted):
            return
        place = np.minimum(np.searchsorted(wanted, images), len(wanted) - 1)
        there = wanted[place] == images
        picked[place[there]] = rows[there]

    def _held_out(self) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield images (m,), the fit that did not train on them, and view 0 of each (m, r)."""
        task = self._tasks[True]
        for numbers, Z in task.rows.blocks():
            decided_by = task.decided_by(numbers)
            for fit in range(task.n_fits):
                mine = np.flatnonzero(decided_by == fit)
                for start in range(0, len(mine), _PIECE_ROWS):
                    some = mine[start : start + _PIECE_ROWS]
                    yield numbers[some] // task.n_views, fit, Z[some]

    def _mean_loss(self, target: np.ndarray, logits: np.ndarray) -> float:
        if target.ndim == 2:
            return binary_log_loss(target, sigmoid(logits.astype(np.float64)))
        return log_loss(target, softmax(both_rows(logits.astype(np.float64), 1)))


def _logits(Z: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Return logits (m, K) float32 of rows (m, r) by a fit (K, r + 1)."""
    weight = W.astype(Z.dtype)
    return np.asarray(Z @ weight[:, :-1].T + weight[:, -1])


def _add_by_class(sums: np.ndarray, rows: np.ndarray, y: np.ndarray) -> None:
    """Add rows (m, d) to the sums (K, d) float64 of their classes."""
    if len(sums) <= _FEW_CLASSES:
        labels = np.arange(len(sums))[:, None]
        for start in range(0, len(rows), _SUMMED_ROWS):
            piece = slice(start, start + _SUMMED_ROWS)
            sums += (y[piece] == labels).astype(np.float32) @ rows[piece]
        return
    order = np.argsort(y, kind="stable")
    first = np.flatnonzero(np.diff(y[order], prepend=-1))
    if len(first):
        sums[y[order][first]] += np.add.reduceat(rows[order], first, axis=0, dtype=np.float64)
