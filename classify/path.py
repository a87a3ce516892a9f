"""Logistic regressions for many values of C and all folds, as one computation.

Each C starts from the solution of the one before. All folds take their steps together, so that they share each pass
over the rows. Steps are those of L-BFGS (Nocedal and Wright 2006, algorithm 7.4), which begins not from a multiple of
the identity but from the inverse of the Hessian's Kronecker-factored approximation at the start of each C: what is
left for L-BFGS to learn is little, and a C takes 5 to 40 passes.

The objective is scikit-learn's, divided by C and by the sum of the rows' weights: the weighted mean of the log loss
plus ``|W|^2 / (2 C sum of weights)``, the intercept not penalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np

from .task import Curvature, Float, PassesLike, Sums

_PAIRS = 8
_FARTHEST = 5.0  # ratio of two values of C, one started from the other; that of 11 values from 1e-4 to 1e2 is 4
_ON_THE_WAY = 0.01  # tolerance of values of C that are only passed by
_SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
_SHORTER = 0.3
_TRIES = 12
# What a step promises falls short of what is left to gain, by up to ten times in weak directions (measured on 4,000 x
# 256 and 8,000 x 512 against solutions in float64); the tolerance is to hold for what is left.
_PROMISED_SHARE = 0.1
# Nats an image. Where rows can be told apart wholly, a weak penalty lets the objective fall towards 0, and shares of it
# soon are less than anything that could be seen in a probability.
_NEGLIGIBLE = 1e-3
_STANDING_STILL = 100.0  # times the tolerance: a fit that cannot move and promises more than this has failed
_NOISE = {4: 2e-7, 8: 1e-14}  # relative error of an objective, by bytes a number of the products


@dataclass(frozen=True, slots=True)
class Solution:
    """The minimum for one C.

    Attributes
    ----------
    C : float
    W : ndarray of shape (P, K, D + 1), dtype float64
        Coefficients; the last column is the intercept.
    objective : ndarray of shape (P,), dtype float64
    steps : int
        Steps of the slowest fit.
    converged : bool
        No fit stopped because of the number of steps, or because it could not get on far from its minimum.
    """

    C: float
    W: np.ndarray
    objective: np.ndarray
    steps: int
    converged: bool


def better_start(passes: PassesLike, C: float, start: np.ndarray) -> np.ndarray | None:
    """Return a start for one C, or None where zeros are a better one."""
    totals = passes.task.totals()
    penalty = 1 / (C * totals)
    everyone = np.ones(len(start), bool)
    mine, zeros = (_objective(W, passes.run(W, everyone), totals, penalty) for W in (start, np.zeros_like(start)))
    return start if (mine < zeros).all() else None


def _objective(W: np.ndarray, sums: Sums, totals: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the mean loss and the penalty of each fit, (P,)."""
    weights = W[:, :, :-1]
    return np.asarray(sums.loss / totals + 0.5 * penalty * _dots(weights, weights))


def solve_path(
    passes: PassesLike, Cs: Sequence[float], *, start: np.ndarray | None = None, tol: float = 1e-6, max_iter: int = 500
) -> Iterator[Solution]:
    """Yield the solution for each C, each started from the one before.

    Parameters
    ----------
    passes : PassesLike
    Cs : sequence of float
        Inverse penalties, best in ascending order.
    start : ndarray of shape (P, K, D + 1), optional
        Zeros where it is None.
    tol : float, default 1e-6
        A fit has converged when its objective is about this share above the minimum, as its last steps suggest; or,
        where the objective is smaller than a thousandth of a nat a row, this share of that.
    max_iter : int, default 500
        Steps for each C at most.
    """
    task = passes.task
    W = np.zeros((task.n_fits, task.n_outputs, task.rows.shape[1] + 1)) if start is None else start
    totals = task.totals()
    before = _free_of_data(passes, W, float(totals.mean())) if start is None else Cs[0]
    for C in Cs:
        for milestone in _between(before, C):
            W = _Descent(passes, W, 1 / (milestone * totals), totals, _ON_THE_WAY).run(milestone, max_iter).W
        solution = _Descent(passes, W, 1 / (C * totals), totals, tol).run(C, max_iter)
        yield solution
        W, before = solution.W, C


def _free_of_data(passes: PassesLike, W: np.ndarray, total: float) -> float:
    """Return a C so small that the solution is near 0: the penalty curves ten times more than the mean feature."""
    curvature = passes.run(W, np.ones(len(W), bool), curvature=True).curvature
    assert curvature is not None
    second = curvature.second if curvature.second.ndim == 1 else np.diag(curvature.second)
    return 10 / max(curvature.total * float(second.mean()), 1e-12 * total)


def _between(before: float, C: float) -> list[float]:
    """Return values between two of C that are so far apart that the curvature at one says little about the other."""
    stages = int(np.ceil(np.log(max(C / before, 1.0)) / np.log(_FARTHEST)))
    return [float(value) for value in np.geomspace(before, C, stages + 1)[1:-1]] if stages > 1 else []


class _Descent:
    """The steps of all fits for one C."""

    def __init__(self, passes: PassesLike, W: np.ndarray, penalty: np.ndarray, totals: np.ndarray, tol: float) -> None:
        self._passes, self._tol = passes, tol
        self._penalty, self._totals = penalty, totals
        self._noise = _NOISE[passes.task.rows.dtype.itemsize]
        self._W = W.copy()
        self._active = np.ones(len(W), bool)
        self._failed = np.zeros(len(W), bool)
        self._bounded = False
        sums = passes.run(W, self._active, curvature=True)
        self._objective, self._gradient = self._penalised(W, sums)
        self._metric = self._metric_of(sums)
        self._memory = _Memory()

    def run(self, C: float, max_iter: int) -> Solution:
        steps = 0
        while steps < max_iter:
            direction = -self._memory.apply(self._gradient, self._metric)
            promise = -_dots(self._gradient, direction)
            # Half of it is what a quadratic with the curvature that was learnt would still fall by. The first step is
            # always taken, as the curvature has not been tried then.
            enough = 0.5 * promise <= _PROMISED_SHARE * self._tol * self._scale()
            self._active &= ~(enough if steps else promise <= 0)
            if not self._active.any():
                break
            steps += 1
            self._step(direction, promise)
        converged = not (self._active | self._failed).any()
        return Solution(C, self._W, self._objective, steps, converged)

    def _scale(self) -> np.ndarray:
        """Return what the tolerance is a share of, (P,)."""
        return np.asarray(np.maximum(np.abs(self._objective), _NEGLIGIBLE))

    def _metric_of(self, sums: Sums, factor: float = 1.0) -> Metric:
        assert sums.curvature is not None
        curvature = replace(sums.curvature, total=factor * sums.curvature.total)
        total, penalty = float(self._totals.mean()), float(self._penalty.mean())
        return Metric(curvature, total, penalty, self._passes.task.rows.dtype, self._passes.pool)

    def _step(self, direction: np.ndarray, promise: np.ndarray) -> None:
        """Move every active fit, each as far as its own objective falls by enough."""
        length = np.where(self._active, 1.0, 0.0)
        waiting = self._active.copy()
        W, objective, gradient = self._W.copy(), self._objective.copy(), self._gradient.copy()
        for _ in range(_TRIES):
            trial = self._W + length[:, None, None] * direction
            found, slope = self._penalised(trial, self._passes.run(trial, waiting))
            slack = self._noise * np.abs(self._objective)
            good = waiting & (found <= self._objective - _SUFFICIENT * length * promise + slack)
            W[good], objective[good], gradient[good] = trial[good], found[good], slope[good]
            waiting &= ~good
            if not waiting.any():
                break
            length[waiting] *= _SHORTER
        self._memory.remember(W - self._W, gradient - self._gradient)
        self._W, self._objective, self._gradient = W, objective, gradient
        if waiting.any():
            self._recover(waiting, promise)

    def _recover(self, stuck: np.ndarray, promise: np.ndarray) -> None:
        """Forget what was learnt of the curvature where it leads nowhere; give fits up that nothing helps.

        Where rows are wrong and yet nearly certain, the curvature at a point is next to nothing, and steps from there
        are far too long. The curvature at 0, times K / 2 for a softmax, is nowhere exceeded (Boehning and Lindsay 1988,
        Boehning 1992): with it a step of length one never leads up.
        """
        if not self._bounded:
            task = self._passes.task
            sums = self._passes.run(np.zeros_like(self._W), np.ones(len(self._W), bool), curvature=True)
            self._metric = self._metric_of(sums, max(1.0, task.n_outputs / 2) if task.link == "softmax" else 1.0)
            self._bounded, self._memory = True, _Memory()
        elif self._memory.steps[:-1]:
            self._memory = _Memory()
        else:  # no step is left that the precision of the sums could tell from standing still
            self._active &= ~stuck
            self._failed |= stuck & (0.5 * promise > _STANDING_STILL * self._tol * self._scale())

    def _penalised(self, W: np.ndarray, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
        gradient = sums.gradient / self._totals[:, None, None]
        gradient[:, :, :-1] += self._penalty[:, None, None] * W[:, :, :-1]
        return _objective(W, sums, self._totals, self._penalty), gradient


class Metric:
    """The inverse of an approximate Hessian: what turns a gradient into a step of the right length in every direction.

    With the Kronecker factors' eigenvectors the inverse of ``outputs x second + penalty`` is a division. The intercept
    has no penalty: the features are taken from their weighted mean, which frees it of them.

    Parameters
    ----------
    curvature : Curvature
    total : float
        Sum of the rows' weights.
    penalty : float
    dtype : dtype
        In which eigenvectors are multiplied; they need not be exact.
    pool : Executor, optional
        Threads that take a fit each.
    """

    def __init__(
        self, curvature: Curvature, total: float, penalty: float, dtype: Float, pool: Executor | None = None
    ) -> None:
        self._pool = pool
        spread = curvature.total / total
        outputs, self._left = np.linalg.eigh(curvature.outputs)
        outputs = np.maximum(outputs, 0)
        self._left = self._left.astype(dtype)
        if curvature.second.ndim == 2:
            features, right = np.linalg.eigh(curvature.second)
            self._right: np.ndarray | None = right.astype(dtype)
        else:
            features, self._right = curvature.second, None
        self._mean = curvature.mean
        self._weights = (1 / (spread * outputs[:, None] * np.maximum(features, 0) + penalty)).astype(dtype)
        # Adding a number to all logits changes nothing: in that direction there is neither curvature nor slope.
        flat = outputs <= 1e-9 * max(outputs.max(), np.finfo(np.float64).tiny)
        self._intercepts = np.where(flat, 0.0, 1 / np.maximum(spread * outputs, np.finfo(np.float64).tiny))

    def apply(self, gradient: np.ndarray) -> np.ndarray:
        """Return the step (P, K, D + 1) for a gradient (P, K, D + 1), of the same sign."""
        return np.stack(list((self._pool.map if self._pool else map)(self._of_one, gradient)))

    def _of_one(self, gradient: np.ndarray) -> np.ndarray:
        of_intercept = gradient[:, -1]
        of_weights = (gradient[:, :-1] - of_intercept[:, None] * self._mean).astype(self._weights.dtype)
        turned = self._left.T @ of_weights
        turned = (turned if self._right is None else turned @ self._right) * self._weights
        step = np.empty_like(gradient)
        step[:, :-1] = self._left @ (turned if self._right is None else turned @ self._right.T)
        step[:, -1] = self._left @ (self._intercepts * (self._left.T @ of_intercept)) - step[:, :-1] @ self._mean
        return step


@dataclass(slots=True)
class _Memory:
    """The last steps of all fits, and how their gradients changed."""

    steps: list[np.ndarray] = field(default_factory=list)
    changes: list[np.ndarray] = field(default_factory=list)
    scales: list[np.ndarray] = field(default_factory=list)

    def remember(self, step: np.ndarray, change: np.ndarray) -> None:
        """Keep a pair; of a fit that did not move, or along which the slope did not rise, nothing."""
        product = _dots(step, change)
        useful = product > 1e-12 * np.sqrt(_dots(step, step) * _dots(change, change))
        self.steps.append(step)
        self.changes.append(change)
        self.scales.append(np.divide(1.0, product, out=np.zeros_like(product), where=useful))
        if len(self.steps) > _PAIRS:
            del self.steps[0], self.changes[0], self.scales[0]

    def apply(self, gradient: np.ndarray, metric: Metric) -> np.ndarray:
        """Return the inverse Hessian, as far as it is known, times a gradient: the two loops of L-BFGS."""
        result = gradient.copy()
        shares = []
        for step, change, scale in zip(
            reversed(self.steps), reversed(self.changes), reversed(self.scales), strict=True
        ):
            share = scale * _dots(step, result)
            result -= share[:, None, None] * change
            shares.append(share)
        result = metric.apply(result)
        for step, change, scale, share in zip(self.steps, self.changes, self.scales, reversed(shares), strict=True):
            result += (share - scale * _dots(change, result))[:, None, None] * step
        return result


def _dots(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the inner product of each fit's arrays, (P,)."""
    return np.asarray(np.einsum("pkd,pkd->p", one, other))
