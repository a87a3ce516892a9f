"""The search over settings of trained heads: what is tried, and how each setting does on the folds.

The number of epochs is searched like any other setting, by the loss on held-out rows, and the last fit takes all rows.
Keeping a fifth of them out of each training to watch for overfitting, the usual way, gave log losses on rows that
neither had seen that were 0.0002 to 0.022 higher, for two heads on two sets of 200 and 245 photographs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics import log_loss
from .network import softmax
from .training import Batches, Recipe, Rows, Setting, Stack, padded, threads_for

if TYPE_CHECKING:
    import torch

_STACK_BYTES = 256 << 20  # of the parameters, gradients and moments that are trained side by side
_BYTES_PER_PARAMETER = 20  # float32: itself, its gradient, two moments and the step


def grid(
    lr: Sequence[float], weight_decay: Sequence[float], hidden: Sequence[Sequence[int]], dropout: Sequence[float]
) -> list[Setting]:
    """Return every combination, those of one shape after each other.

    Parameters
    ----------
    lr, weight_decay, dropout : sequence of float
    hidden : sequence of sequence of int
        For each hidden layer, the widths to try.
    """
    return [Setting(*point) for point in itertools.product(lr, weight_decay, itertools.product(*hidden), dropout)]


@dataclass(frozen=True, slots=True)
class Trial:
    """How a setting does on rows that it was not trained on.

    Attributes
    ----------
    setting : Setting
    epochs : int
        The epoch with the lowest loss on all held-out rows; 0 where the setting diverged.
    log_loss : float
        Of all rows, each by the network that did not see it, at the epoch that the other folds like best; infinite
        where the setting diverged.
    accuracy : float
    logits : ndarray of shape (n, K), dtype float32
        What both were computed of.
    history : list of dict
        ``epoch``, ``train_loss``, ``dev_loss``, ``dev_accuracy`` of each epoch, over all folds.
    """

    setting: Setting
    epochs: int
    log_loss: float
    accuracy: float
    logits: np.ndarray
    history: list[dict[str, float]]

    @property
    def diverged(self) -> bool:
        """Whether its loss stopped being a number."""
        return not self.epochs

    def as_dict(self) -> dict[str, Any]:
        """Return setting, epochs and scores as JSON has them: None for those of a setting that diverged."""
        log_loss, accuracy = (None, None) if self.diverged else (self.log_loss, self.accuracy)
        return {**self.setting.as_dict(), "epochs": self.epochs, "log_loss": log_loss, "accuracy": accuracy}


class _Course:
    """How one setting does as training goes on, in F folds of h held-out rows at most."""

    def __init__(self, setting: Setting, held_out: Sequence[np.ndarray]) -> None:
        self.setting = setting
        self.best_epoch = 0
        self.diverged = False
        self.history: list[dict[str, float]] = []
        self._held_out = held_out
        self._best = float("inf")
        # A fold is scored at the epoch at which the *other* folds' rows have their lowest loss: its own have no say.
        self._others_best = np.full(len(held_out), np.inf)
        self._logits: torch.Tensor | None = None

    def add(self, epoch: int, train_loss: float, loss: np.ndarray, right: int, logits: torch.Tensor) -> None:
        """Take in an epoch: loss summed over each fold's held-out rows (F,), and the logits (F, h, K) it is of."""
        import torch

        total, n = float(loss.sum()), sum(map(len, self._held_out))
        self.diverged = not np.isfinite(total + train_loss)
        if self.diverged:
            return
        better = total - loss < self._others_best
        self._others_best = np.where(better, total - loss, self._others_best)
        chosen = torch.from_numpy(better).to(logits.device)[:, None, None]
        self._logits = logits if self._logits is None else torch.where(chosen, logits, self._logits)
        self.history.append(
            {"epoch": epoch, "train_loss": train_loss, "dev_loss": total / n, "dev_accuracy": right / n}
        )
        if total < self._best:
            self._best, self.best_epoch = total, epoch

    def trial(self, y: np.ndarray) -> Trial:
        if self.diverged or self._logits is None:
            return Trial(self.setting, 0, float("inf"), 0.0, np.empty(0), self.history)
        by_fold = self._logits.cpu().numpy()
        logits = np.empty((len(y), by_fold.shape[2]), np.float32)
        for rows, found in zip(self._held_out, by_fold, strict=True):
            logits[rows] = found[: len(rows)]
        right = float((logits.argmax(axis=1) == y).mean())
        return Trial(self.setting, self.best_epoch, log_loss(y, softmax(logits)), right, logits, self.history)


def cross_validate(
    rows: Rows, folds: np.ndarray, settings: Sequence[Setting], recipe: Recipe, tick: Callable[[int], object]
) -> list[Trial]:
    """Try every setting in every fold.

    Parameters
    ----------
    rows : Rows
    folds : ndarray of shape (n,), dtype int
        The fold of each row, from 0; rows that must not be divided share one.
    settings : sequence of Setting
    recipe : Recipe
    tick : callable
        Told of epochs that are done or saved; ``len(settings) * recipe.epochs`` in sum.

    Returns
    -------
    list of Trial
        In the order of the settings.
    """
    n_folds = int(folds.max()) + 1
    held_out = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    trials: dict[Setting, Trial] = {}
    for some in _chunks(settings, n_folds, rows):
        trials |= {trial.setting: trial for trial in _side_by_side(rows, held_out, some, recipe, tick)}
    return [trials[setting] for setting in settings]


def _side_by_side(
    rows: Rows, held_out: list[np.ndarray], settings: list[Setting], recipe: Recipe, tick: Callable[[int], object]
) -> list[Trial]:
    """Try settings of one shape."""
    y = rows.y.cpu().numpy()
    courses = [_Course(setting, held_out) for setting in settings]
    everyone = np.arange(len(y))
    batches = Batches([np.setdiff1d(everyone, own) for own in held_out], recipe.batch_size, recipe.random_state)
    with threads_for(len(settings) * len(held_out), rows.parameters(settings[0]), batches.size * rows.n_views):
        _run(rows, held_out, courses, batches, recipe, tick)
    return [course.trial(y) for course in courses]


def _run(
    rows: Rows,
    held_out: list[np.ndarray],
    running: list[_Course],
    batches: Batches,
    recipe: Recipe,
    tick: Callable[[int], object],
) -> None:
    """Train until no setting goes on; one that has diverged, or not improved for long enough, leaves the others."""
    import torch

    stack = Stack([course.setting for course in running], len(held_out), rows, recipe)
    numbers, real = (torch.from_numpy(array).to(rows.Z.device) for array in padded(held_out))
    for epoch in range(1, recipe.epochs + 1):
        train_loss = stack.train_epoch(rows, batches, epoch).mean(dim=1).tolist()
        logits = stack.held_out_logits(rows, numbers)
        losses, right = _held_out_scores(logits, rows.y[numbers], real)
        for number, course in enumerate(running):
            course.add(epoch, train_loss[number], losses[number], int(right[number]), logits[number])
        going = [not course.diverged and epoch - course.best_epoch < recipe.patience for course in running]
        tick(len(running) + going.count(False) * (recipe.epochs - epoch))
        if not any(going):
            return
        if not all(going):
            stack.keep(torch.tensor(going, device=rows.Z.device))
            running = [course for course, goes in zip(running, going, strict=True) if goes]


def _held_out_scores(logits: torch.Tensor, y: torch.Tensor, real: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each fold's held-out rows, summed (S, F) float64, and how many of all are right (S,)."""
    true = logits.log_softmax(dim=-1).gather(-1, y.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    losses = -(true.double() * real).sum(dim=-1)
    right = ((logits.argmax(dim=-1) == y) & real).sum(dim=(1, 2))
    return losses.cpu().numpy(), right.cpu().numpy()


def _chunks(settings: Sequence[Setting], n_folds: int, rows: Rows) -> Iterator[list[Setting]]:
    """Divide settings into those of one shape, and these into as many as fit the memory."""
    by_shape: dict[tuple[int, ...], list[Setting]] = {}
    for setting in settings:
        by_shape.setdefault(setting.hidden, []).append(setting)
    for same in by_shape.values():
        count = max(1, _STACK_BYTES // (_BYTES_PER_PARAMETER * rows.parameters(same[0]) * n_folds))
        yield from (same[start : start + count] for start in range(0, len(same), count))
