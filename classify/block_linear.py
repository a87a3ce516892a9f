"""A linear head by mini-batches of rows that shards have put aside: every step is made of the sums of all shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .grid import Trial
from .optimizers import Optimizer, rate_factor
from .team import Team, total
from .training import Recipe, Setting, images_a_batch

# Settings that are trained at once. Each takes some 48 bytes a coefficient: itself, gradient and moments in float32,
# what is judged and what was best in float64; as many as fit into what `budget.solver_bytes` sets aside.
SIDE_BY_SIDE = 5


class Descent:
    """Linear networks that take their steps side by side, S settings in P fits each, from zero on.

    Parameters
    ----------
    team : Team
        Whose shards deal the rows; see `headstart.classify.mini_batches`.
    settings : sequence of Setting
    shape : tuple of int
        P, K and r.
    n_images : int
        That a fit trains on, at most.
    recipe : Recipe
    folds : bool
        Whether fit p leaves fold p out, or each has all rows.

    Attributes
    ----------
    W : ndarray of shape (S, P, K, r + 1), dtype float32
        Weights and biases.
    """

    def __init__(
        self,
        team: Team,
        settings: Sequence[Setting],
        shape: tuple[int, int, int],
        n_images: int,
        recipe: Recipe,
        *,
        folds: bool,
    ) -> None:
        import torch

        n_fits, n_classes, width = shape
        self._parameters = torch.zeros((len(settings), n_fits, n_classes, width + 1))
        column = (torch.tensor([[getattr(each, name)] for each in settings]) for name in ("lr", "weight_decay"))
        lr, weight_decay = (values[:, :, None, None] for values in column)
        self._optimizer = Optimizer(
            recipe.optimizer, [self._parameters], lr=lr, weight_decay=weight_decay, momentum=recipe.momentum
        )
        self._steps = math.ceil(n_images / images_a_batch(n_images, recipe.batch_size))
        self._team, self._recipe, self._folds = team, recipe, folds

    @property
    def W(self) -> np.ndarray:  # noqa: N802  (as everywhere else)
        """See the class."""
        return np.asarray(self._parameters.numpy())

    def epoch(self, epoch: int) -> np.ndarray:
        """Train for one epoch; return the mean loss of the batches and fits, (S,) float64."""
        import torch

        factor = rate_factor(self._recipe.schedule, epoch, self._recipe.epochs)
        losses = np.zeros(len(self._parameters))
        for step in range(self._steps):
            sums = total(self._team, "step", epoch, step, self._steps, self.W, self._folds)
            if not sums["weight"].any():  # fewer images than steps
                continue
            counted = np.maximum(sums["weight"], np.float32(1e-12))
            gradient = torch.from_numpy(sums["gradient"] / counted[:, None, None])
            self._optimizer.step([self._parameters], [gradient], factor)
            losses += (sums["loss"] / counted).mean(axis=1)
        self._team.passes += 1
        return losses / self._steps

    def keep(self, settings: list[bool]) -> None:
        """Go on with some of the settings only."""
        import torch

        going = torch.tensor(settings)
        self._parameters = self._parameters[going]
        self._optimizer.keep(going)


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


Judge = Callable[[np.ndarray], dict[str, np.ndarray]]


def cross_validate(
    descent: Descent,
    counts: np.ndarray,
    settings: Sequence[Setting],
    recipe: Recipe,
    judge: Judge,
    tick: Callable[[int], object],
) -> tuple[list[Trial], list[np.ndarray]]:
    """Try every setting in every fold, all side by side.

    Parameters
    ----------
    descent : Descent
        Of the settings, with folds.
    counts : ndarray of shape (P,), dtype int
        Images of each fold.
    settings : sequence of Setting
    recipe : Recipe
    judge : callable
        Of fits (S, P, K, r + 1); returns ``loss`` and ``right`` (S, P) of each fold's own images.
    tick : callable
        Told of epochs that are done or saved.

    Returns
    -------
    list of Trial
        In the order of the settings.
    list of ndarray of shape (P, K, r + 1)
        The fits that each is judged by.
    """
    courses = [_Course(setting, counts) for setting in settings]
    running = courses
    for epoch in range(1, recipe.epochs + 1):
        losses = descent.epoch(epoch)
        W = descent.W.astype(np.float64)
        found = judge(W)
        for number, course in enumerate(running):
            course.add(epoch, float(losses[number]), found["loss"][number], found["right"][number], W[number])
        going = [not course.diverged and epoch - course.best_epoch < recipe.patience for course in running]
        tick(len(running) + going.count(False) * (recipe.epochs - epoch))
        if not any(going):
            break
        if not all(going):
            descent.keep(going)
            running = [course for course, goes in zip(running, going, strict=True) if goes]
    return [course.trial() for course in courses], [course.W for course in courses]
