"""The same passes as in `passes`, in torch on a GPU: all fits see all rows, those of their fold with a weight of 0."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DeviceError
from .task import Curvature, InMemory, Sums, Task

if TYPE_CHECKING:
    import torch

LOGITS_AT_A_TIME = 1 << 28  # numbers, 1 GB


class TorchPasses:
    """Passes over the rows of a task on a device of torch.

    Parameters
    ----------
    task : Task
    device : str
        As torch has it.
    diagonal : bool, default False
        Keep only the diagonal of the features' second moment.

    Raises
    ------
    DeviceError
        There is no such device.
    """

    def __init__(self, task: Task, device: str, *, diagonal: bool = False) -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise DeviceError("there is no NVIDIA GPU that torch can use; leave the device out, or say cpu")
        self.task, self.count = task, 0
        self.pool: Executor | None = None
        self._diagonal = diagonal
        self._device = torch.device(device)
        self._dtype = torch.float64 if task.rows.dtype == np.float64 else torch.float32
        self._kept = self._moved(next(task.rows.blocks())) if isinstance(task.rows, InMemory) else None

    def __enter__(self) -> TorchPasses:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept = None

    def run(self, W: np.ndarray, active: np.ndarray, *, curvature: bool = False) -> Sums:
        """Compute loss and gradient of the active fits, as `PassesLike` says."""
        self.count += 1
        fits = np.flatnonzero(active)
        weights = self._tensor(W[fits])
        total = _Sums(self.task, len(fits), self._device, diagonal=self._diagonal)
        for Z, target, weight in self._tiles(fits):
            total.take(Z, target, weight, weights, curvature)
        loss, gradient = np.zeros(len(W)), np.zeros(W.shape)
        loss[fits], gradient[fits] = total.loss.cpu().numpy(), total.gradient.cpu().numpy()
        return Sums(loss, gradient, total.curvature() if curvature else None)

    def decide(self, W: np.ndarray) -> np.ndarray:
        """Return the logits (n, K) float64 of each image's first row by the fit that did not train on it."""
        n_views = self.task.n_views
        result = np.full((self.task.rows.shape[0] // n_views, self.task.n_outputs), np.nan)
        coefficients = self._tensor(W)
        for numbers, Z in self._blocks():
            decided_by = self.task.decided_by(numbers)
            for fit in range(self.task.n_fits):
                mine = np.flatnonzero(decided_by == fit)
                weights = coefficients[fit]
                logits = Z[self._index(mine)] @ weights[:, :-1].T + weights[:, -1]
                result[numbers[mine] // n_views] = logits.cpu().numpy()
        return result

    def _blocks(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        if self._kept is not None:
            yield self._kept
        else:
            yield from map(self._moved, self.task.rows.blocks())

    def _tiles(self, fits: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield rows (m, D), their targets, and what each counts in each fit, (p, 1, m) or (p, K, m)."""
        task = self.task
        size = max(1, LOGITS_AT_A_TIME // max(1, len(fits) * task.n_outputs))
        for numbers, Z in self._blocks():
            for start in range(0, len(numbers), size):
                rows = numbers[start : start + size]
                table, inside = task.class_weight[fits], task.fold[rows] != fits[:, None]
                if task.link == "softmax":
                    weight = table[:, task.target[rows]][:, None]
                else:
                    weight = np.where(task.target[rows].T, table[:, :, 1:], table[:, :, :1])
                target = self._index(task.target[rows])
                yield Z[start : start + size], target, self._tensor(weight * inside[:, None])

    def _moved(self, block: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, torch.Tensor]:
        numbers, Z = block
        return numbers, self._tensor(Z)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.as_tensor(array).to(self._device, self._dtype)

    def _index(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.as_tensor(array, device=self._device)


class _Sums:
    """Sums over tiles, on the device; see `losses` for how each is written so that float32 is enough."""

    def __init__(self, task: Task, n_fits: int, device: torch.device, *, diagonal: bool) -> None:
        import torch

        width = task.rows.shape[1]
        self._link, self._diagonal = task.link, diagonal
        self.loss = torch.zeros(n_fits, dtype=torch.float64, device=device)
        self.gradient = torch.zeros((n_fits, task.n_outputs, width + 1), dtype=torch.float64, device=device)
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._second = torch.zeros(width if diagonal else (width, width), dtype=torch.float64, device=device)
        self._outputs = torch.zeros((task.n_outputs, task.n_outputs), dtype=torch.float64, device=device)
        self._weight = torch.zeros((), dtype=torch.float64, device=device)

    def take(
        self, Z: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, W: torch.Tensor, curvature: bool
    ) -> None:
        """Add one tile."""
        fits, outputs, width = W.shape
        logits = (W[:, :, :-1].reshape(fits * outputs, width - 1) @ Z.T).reshape(fits, outputs, len(Z)) + W[:, :, -1:]
        found = (_softmax if self._link == "softmax" else _sigmoid)(logits, target, weight)
        loss, slope, share, factor = found
        self.loss += loss
        self.gradient[:, :, :-1] += (slope.reshape(fits * outputs, -1) @ Z).reshape(fits, outputs, width - 1)
        self.gradient[:, :, -1] += slope.sum(2)
        if curvature:
            root = share.sqrt()[:, None] * Z
            self._weight += share.sum()
            self._mean += share @ Z
            self._second += (root * root).sum(0) if self._diagonal else root.T @ root
            self._outputs += factor

    def curvature(self) -> Curvature:
        """Return what was found of the curvature."""
        tiny = float(np.finfo(np.float64).tiny)
        weight = max(float(self._weight), tiny)
        mean, second = (value.cpu().numpy() / weight for value in (self._mean, self._second))
        outputs = self._outputs.cpu().numpy()
        second -= mean * mean if self._diagonal else np.outer(mean, mean)
        return Curvature(float(self._weight), mean, second, outputs / max(float(np.trace(outputs)), tiny))


_Found = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]


def _softmax(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> _Found:
    import torch

    own_place = y[None, None].expand(len(logits), 1, -1)
    logits = logits - logits.amax(1, keepdim=True)
    own = logits.gather(1, own_place)[:, 0]
    top = own.exp()
    others_each = logits.exp().scatter(1, own_place, 0.0)
    others = others_each.sum(1)
    total = others + top
    losses = (torch.log1p(others + (top - 1)) - own) * weight[:, 0]
    proba, wrong = others_each / total[:, None], others / total
    slope = (proba * weight).scatter(1, own_place, -(wrong * weight[:, 0])[:, None])
    share = ((2 * wrong - wrong * wrong - (proba * proba).sum(1)) * weight[:, 0]).mean(0).clamp(min=0)
    full = proba.scatter(1, own_place, (top / total)[:, None])
    product = ((full * weight) @ full.transpose(1, 2)).sum(0).double()
    product.fill_diagonal_(0)
    return losses.double().sum(1), slope, share, torch.diag(product.sum(1)) - product


def _sigmoid(logits: torch.Tensor, Y: torch.Tensor, weight: torch.Tensor) -> _Found:
    import torch

    sign = torch.where(Y.T, 1.0, -1.0).to(logits.dtype)
    margin = logits * sign
    small = (-margin.abs()).exp()
    losses = ((-margin).clamp(min=0) + torch.log1p(small)) * weight
    slope = -sign * weight * torch.where(margin > 0, small, torch.ones_like(small)) / (1 + small)
    each = small / (1 + small) ** 2 * weight
    return losses.double().sum((1, 2)), slope, each.mean(0).sum(0), torch.diag(each.double().sum((0, 2)))
