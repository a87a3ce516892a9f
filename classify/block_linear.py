"""A linear head by mini-batches of rows that were put aside: blocks in a random order, and rows at random within some.

An epoch reads chunks of neighbouring rows in an order of its own, as many as a buffer holds at a time, and deals the
rows of each buffer to batches at random. Unlike a shuffle of all rows, which would read each from another place, rows
of one chunk are always in one buffer, and so within as many steps of each other as a buffer lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .grid import Trial
from .scratch import ahead
from .shard import Shard
from .training import STEPS_AT_MOST, Batches, Recipe, Rows, Setting, Stack, threads_for

if TYPE_CHECKING:
    import torch

CHUNK_ROWS = 256  # neighbours that stay together: half a megabyte of 512 numbers each, which a disk reads in one go
_BATCH = 64
_SHARE = 3  # of the memory: two buffers, one of which is being read, and what a step takes


@dataclass(slots=True)
class Buffers:
    """Rows of a shard in random order, some at a time.

    Attributes
    ----------
    shard : Shard
    n_fits : int
        Folds that train side by side, each on a copy of its batch.
    n_classes : int
    recipe : Recipe
    balanced : bool
        Whether classes count alike, or images.
    epochs : int
        How often all rows were read.
    """

    shard: Shard
    n_fits: int
    n_classes: int
    recipe: Recipe
    balanced: bool
    epochs: int = 0

    @property
    def _width(self) -> int:
        return self.shard.rows.shape[1]

    @property
    def rows_each(self) -> int:
        """Rows that a buffer holds."""
        chunks = self.shard.share.memory // (_SHARE * 4 * self._width * CHUNK_ROWS)
        return int(CHUNK_ROWS * max(1, min(chunks, -(-self.shard.rows.shape[0] // CHUNK_ROWS))))

    @property
    def batch(self) -> int:
        """Rows of a batch at most: as the recipe says, or so many that an epoch has 64 steps, as far as they fit."""
        n_views = self.shard.share.views.count
        if self.recipe.batch_size is not None:
            return self.recipe.batch_size * n_views
        fitting = self.shard.share.memory // (_SHARE * 2 * 4 * self._width * self.n_fits)
        wanted = max(_BATCH * n_views, -(-self.shard.rows.shape[0] // STEPS_AT_MOST))
        return int(max(1, min(wanted, max(fitting, _BATCH))))

    def epoch(self, epoch: int, *, folds: bool) -> Iterator[tuple[Rows, Batches]]:
        """Yield rows, on their device, and the batches that they are dealt to."""
        self.epochs += 1
        share, n_views = self.shard.share, self.shard.share.views.count
        # Each row counts what its image does, divided by its views; of one class as much as of another if they shall.
        weight = np.full(self.n_classes, 1 / n_views)
        if self.balanced:
            counts = np.maximum(np.bincount(share.target, minlength=self.n_classes), 1)
            weight *= len(share.target) / (self.n_classes * counts)
        for number, (numbers, Z) in enumerate(ahead(self._buffers(epoch))):
            images = numbers // n_views
            y, fold = share.target[images], share.fold[images]
            everyone = np.arange(len(y))
            members = [everyone[fold != fit] for fit in range(self.n_fits)] if folds else [everyone]
            if min(map(len, members)):
                batches = Batches(members, self.batch, [self.recipe.random_state, epoch, number])
                yield _on(self.recipe.device, Z, y, weight[y], self.n_classes), batches

    def _buffers(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows, rng = self.shard.rows, np.random.default_rng([self.recipe.random_state, epoch])
        starts = CHUNK_ROWS * rng.permutation(-(-rows.shape[0] // CHUNK_ROWS))
        chunks = self.rows_each // CHUNK_ROWS
        for first in range(0, len(starts), chunks):
            some = starts[first : first + chunks].tolist()
            Z = np.empty((CHUNK_ROWS * len(some), self._width), np.float32)
            numbers, done = np.empty(len(Z), np.int64), 0
            for start in some:
                stop = min(start + CHUNK_ROWS, rows.shape[0])
                Z[done : done + stop - start] = rows.table.read(start, stop)
                numbers[done : done + stop - start] = rows.numbers[start:stop]
                done += stop - start
            yield numbers[:done], Z[:done]


def _on(device: str, Z: np.ndarray, y: np.ndarray, weight: np.ndarray, n_classes: int) -> Rows:
    import torch

    rows, labels, counted = (torch.from_numpy(each).to(device) for each in (Z, y, weight.astype(np.float32)))
    return Rows(rows, labels, counted, n_classes)


class _Course:
    """How one setting does as training goes on; see `headstart.classify.grid._Course`, which keeps logits instead."""

    def __init__(self, setting: Setting, counts: np.ndarray) -> None:
        self.setting, self._counts = setting, counts
        self.best_epoch, self.diverged = 0, False
        self.history: list[dict[str, float]] = []
        self._best = float("inf")
        self._others_best = np.full(len(counts), np.inf)
        self._own, self._right = np.zeros(len(counts)), np.zeros(len(counts))
        self.W = np.zeros(0)

    def add(self, epoch: int, train_loss: float, loss: np.ndarray, right: np.ndarray, W: np.ndarray) -> None:
        """Take in an epoch: losses and right images of each fold's own rows (F,), by fits (F, K, r + 1)."""
        total, n = float(loss.sum()), int(self._counts.sum())
        self.diverged = not np.isfinite(total + train_loss)
        if self.diverged:
            return
        better = total - loss < self._others_best
        self._others_best = np.where(better, total - loss, self._others_best)
        self._own, self._right = np.where(better, loss, self._own), np.where(better, right, self._right)
        self.W = np.where(better[:, None, None], W, self.W) if self.W.size else W.copy()
        self.history.append(
            {"epoch": epoch, "train_loss": train_loss, "dev_loss": total / n, "dev_accuracy": float(right.sum()) / n}
        )
        if total < self._best:
            self._best, self.best_epoch = total, epoch

    def trial(self) -> Trial:
        if self.diverged or not self.W.size:
            return Trial(self.setting, 0, float("inf"), 0.0, np.empty(0), self.history)
        n = int(self._counts.sum())
        own, right = float(self._own.sum()) / n, float(self._right.sum()) / n
        return Trial(self.setting, self.best_epoch, own, right, np.empty(0), self.history)


def cross_validate(
    buffers: Buffers, counts: np.ndarray, settings: Sequence[Setting], judge: Judge, tick: Callable[[int], object]
) -> tuple[list[Trial], list[np.ndarray]]:
    """Try every setting in every fold, all side by side.

    Parameters
    ----------
    buffers : Buffers
    counts : ndarray of shape (F,), dtype int
        Images of each fold.
    settings : sequence of Setting
    judge : callable
        Of fits (S, F, K, r + 1); returns ``loss`` and ``right`` (S, F) of each fold's own images.
    tick : callable
        Told of epochs that are done or saved.

    Returns
    -------
    list of Trial
        In the order of the settings.
    list of ndarray of shape (F, K, r + 1)
        The fits that each is judged by.
    """
    courses = [_Course(setting, counts) for setting in settings]
    running, recipe = courses, buffers.recipe
    stack: Stack | None = None
    for epoch in range(1, recipe.epochs + 1):
        stack, losses = _epoch(buffers, stack, settings, epoch, folds=True)
        W = _fits(stack)
        found = judge(W)
        for number, course in enumerate(running):
            course.add(epoch, float(losses[number]), found["loss"][number], found["right"][number], W[number])
        going = [not course.diverged and epoch - course.best_epoch < recipe.patience for course in running]
        tick(len(running) + going.count(False) * (recipe.epochs - epoch))
        if not any(going):
            break
        if not all(going):
            import torch

            stack.keep(torch.tensor(going, device=stack.parameters[0].device))
            running = [course for course, goes in zip(running, going, strict=True) if goes]
    return [course.trial() for course in courses], [course.W for course in courses]


Judge = Callable[[np.ndarray], dict[str, np.ndarray]]


def train(buffers: Buffers, setting: Setting, epochs: int) -> np.ndarray:
    """Train one network on all rows for so many epochs; return its fit (K, r + 1)."""
    stack: Stack | None = None
    for epoch in range(1, epochs + 1):
        stack, _ = _epoch(buffers, stack, [setting], epoch, folds=False)
    assert stack is not None
    return np.asarray(_fits(stack)[0, 0])


def _epoch(
    buffers: Buffers, stack: Stack | None, settings: Sequence[Setting], epoch: int, *, folds: bool
) -> tuple[Stack, torch.Tensor]:
    """Train for one epoch; return the networks, and their mean loss over batches and folds (S,)."""
    total: Any = 0.0
    steps, n_fits = 0, buffers.n_fits if folds else 1
    for rows, batches in buffers.epoch(epoch, folds=folds):
        stack = Stack(settings, n_fits, rows, buffers.recipe) if stack is None else stack
        networks = len(stack.parameters[0]) * n_fits
        with threads_for(networks, rows.parameters(settings[0]), batches.size):
            total = total + batches.steps * stack.train_epoch(rows, batches, epoch).mean(dim=1)
        steps += batches.steps
    assert stack is not None
    return stack, total / max(1, steps)


def _fits(stack: Stack) -> np.ndarray:
    """Return weights and biases as (S, F, K, r + 1) float64."""
    weight, bias = (parameter.detach().cpu().numpy().astype(np.float64) for parameter in stack.parameters)
    return np.concatenate([weight, bias], axis=2).transpose(0, 1, 3, 2)
