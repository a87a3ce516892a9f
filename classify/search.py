"""The search over C: all folds along the path, the best C, and the fit to all rows that starts from its folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TrainingError
from .passes import passes_over
from .path import Solution, better_start, solve_path
from .task import Float, InMemory, PassesLike, Rows, Task
from .views import of_rows

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Turns held-out logits (n, K) and coefficients (P, K, D + 1) into how good each fold is, (P,); more is better."""

# Features up to this many numbers are taken in float64: the copy is small, and so is the fit.
_DOUBLE_UP_TO = 1_000_000
_FOLDS_LOOSER = 10.0


@dataclass(frozen=True, slots=True)
class Search:
    """What a search over C found.

    Attributes
    ----------
    C : float
        The best.
    scores : ndarray of shape (n_Cs, P), dtype float64
        How good each C was on each fold.
    logits : ndarray of shape (n, K), dtype float64
        Of each image's first row by the fit that did not train on it, at the best C.
    fit : Solution
        The fit to all rows at the best C.
    steps : ndarray of shape (n_Cs,), dtype int64
        Of the slowest fold at each C.
    converged : bool
        The fits at the best C reached the tolerance.
    """

    C: float
    scores: np.ndarray
    logits: np.ndarray
    fit: Solution
    steps: np.ndarray
    converged: bool


def default_Cs(count: int) -> np.ndarray:  # noqa: N802  (C is the field's name)
    """Return so many inverse penalties from 1e-4 to 1e2 in equal ratios, ascending."""
    return np.logspace(-4, 2, count)


def search(
    task: Task, Cs: Sequence[float], score: Score, *, tol: float = 1e-6, max_iter: int = 500, device: str = "auto"
) -> Search:
    """Fit all folds at each C, choose the best by its mean score, and fit all rows with it.

    Parameters
    ----------
    task : Task
        With a fold for each fit.
    Cs : sequence of float
        Ascending; of equally good ones the first is chosen, which is the simpler model.
    score : callable
    tol, max_iter
        As `solve_path` has them, for the fit to all rows; the fits without a fold may be ten times `tol` above their
        minima, which moves their scores by less than folds differ by thousands of times.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" is an NVIDIA GPU where there is one and the work is long enough for it to be worth loading torch.
    """
    with passes_over(task, device) as passes:

        def judge(solution: Solution) -> tuple[np.ndarray, np.ndarray]:
            logits = passes.decide(solution.W)
            return score(logits, solution.W), logits

        best = best_along(passes, Cs, judge, tol=tol, max_iter=max_iter)
    with passes_over(without_folds(task), device) as passes:
        fit = fit_from(passes, best.solution, tol=tol, max_iter=max_iter)
    converged = best.solution.converged and fit.converged
    return Search(best.solution.C, best.scores, best.kept, fit, best.steps, converged)


@dataclass(frozen=True, slots=True)
class Best:
    """The best of several values of C.

    Attributes
    ----------
    solution : Solution
        Of all folds.
    kept : ndarray
        What `judge` gave beside its scores.
    scores : ndarray of shape (n_Cs, P), dtype float64
    steps : ndarray of shape (n_Cs,), dtype int64
    """

    solution: Solution
    kept: np.ndarray
    scores: np.ndarray
    steps: np.ndarray


def best_along(
    passes: PassesLike,
    Cs: Sequence[float],
    judge: Callable[[Solution], tuple[np.ndarray, np.ndarray]],
    *,
    tol: float,
    max_iter: int,
) -> Best:
    """Fit all folds at each C, and return the one with the best mean score.

    Parameters
    ----------
    passes : PassesLike
    Cs, tol, max_iter
        As in `search`.
    judge : callable
        Given a solution, returns how good each fold is, (P,), more being better, and what is to be kept of the best.
    """
    n_fits = passes.task.n_fits
    best: tuple[Solution, np.ndarray] | None = None
    scores, steps = np.empty((len(Cs), n_fits)), np.empty(len(Cs), np.int64)
    for number, solution in enumerate(solve_path(passes, Cs, tol=_FOLDS_LOOSER * tol, max_iter=max_iter)):
        scores[number], kept = judge(solution)
        steps[number] = solution.steps
        if np.isnan(scores[number]).any():
            raise TrainingError(f"the score of a fold is not a number at C = {solution.C:.3g}")
        if best is None or scores[number].mean() > scores[:number].mean(axis=1).max():
            best = solution, kept
    assert best is not None
    return Best(*best, scores, steps)


def fit_from(passes: PassesLike, folds: Solution, *, tol: float, max_iter: int) -> Solution:
    """Return the fit to all rows at the C of the folds' fits, which it starts from."""
    start = better_start(passes, folds.C, folds.W.mean(axis=0, keepdims=True))
    return next(solve_path(passes, [folds.C], start=start, tol=tol, max_iter=max_iter))


def fit_rows(task: Task, C: float, *, tol: float = 1e-6, max_iter: int = 500, device: str = "auto") -> Solution:
    """Return the fit to all rows at one C, which nothing was searched for."""
    with passes_over(without_folds(task), device) as passes:
        return next(solve_path(passes, [C], tol=tol, max_iter=max_iter))


def without_folds(task: Task) -> Task:
    """Return the task of one fit to all rows."""
    weight = task.all_weight
    if weight is None:
        weight = np.full((1, *task.class_weight.shape[1:]), 1 / task.n_views)
    return replace(task, fold=np.full(len(task.fold), -1), class_weight=weight)


def rotated(Z: np.ndarray, dtype: Float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn features into as few as there are rows, without loss.

    The minimum of a loss of ``Z w`` with an L2 penalty on ``w`` lies in the row space of Z (the representer theorem;
    Hastie and Tibshirani 2004, "Efficient quadratic regularization for expression arrays"). With fewer rows than
    features the problem in the coordinates of the right singular vectors is the same one, and smaller.

    Parameters
    ----------
    Z : ndarray of shape (n, D), dtype float32 or float64
    dtype : dtype, optional
        Of the result; where it is None float64 where that is small, else float32.

    Returns
    -------
    rotated : ndarray of shape (n, min(n, D))
    back : ndarray of shape (D, n) or None
        Takes coefficients back to the features; None where nothing was turned.
    """
    dtype = solver_dtype(Z) if dtype is None else dtype
    if len(Z) >= Z.shape[1]:
        return Z.astype(dtype, copy=False), None
    left, singular, right = np.linalg.svd(Z.astype(np.float64), full_matrices=False)
    return (left * singular).astype(dtype), right.T


def solver_dtype(Z: np.ndarray) -> Float:
    """Return in what features (n, D) are taken: float64 where they are few, else float32."""
    return np.dtype(np.float64 if min(Z.shape) * len(Z) <= _DOUBLE_UP_TO else np.float32)


def coefficients(W: np.ndarray, back: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients (K, D) and intercepts (K,) of a solution on features that `rotated` turned."""
    coef = W[:, :-1]
    return coef if back is None else coef @ back.T, W[:, -1]


def class_task(
    Z: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray,
    n_classes: int,
    *,
    balanced: bool = False,
    table: np.ndarray | None = None,
    rows: Rows | None = None,
    n_views: int = 1,
) -> Task:
    """Return the task of telling K classes apart: softmax, or for two classes one sigmoid, as scikit-learn has it.

    Parameters
    ----------
    Z : ndarray of shape (n * V, D), dtype float32 or float64
        The V rows of an image one after the other.
    y : ndarray of shape (n,), dtype int64
        Classes, 0 to K - 1.
    folds : ndarray of shape (n,), dtype int64
        From 0; -1 for images that are in no test set.
    n_classes : int
        K.
    balanced : bool, default False
        Weigh images so that all classes count alike: ``n / (K * count)`` of those that a fit trains on.
    table : ndarray of shape (K,), dtype float64, optional
        What an image of each class counts, where that is given.
    rows : Rows, optional
        What is read instead of Z, which is copied in the order of the folds otherwise.
    n_views : int, default 1
        V, the rows of an image; each counts a V-th of it.

    Raises
    ------
    TrainingError
        All rows of a class are in one fold.
    """
    n_folds = max(1, int(folds.max()) + 1)
    counts = np.stack([np.bincount(y[folds != fold], minlength=n_classes) for fold in range(n_folds)])
    if not counts.all():
        raise TrainingError("all images of a class are in one fold, copies of each other perhaps: add others")
    weight = _class_weights(counts, balanced, table)
    all_weight = _class_weights(np.bincount(y, minlength=n_classes)[None], balanced, table)
    weight, all_weight = weight / n_views, all_weight / n_views
    target, fold = of_rows(y, n_views), of_rows(folds, n_views)
    rows = rows or _by_fold(Z, fold)
    if n_classes == 2:
        present, table_of = (target == 1)[:, None], (weight[:, None], all_weight[:, None])
        return Task(rows, present, fold, "sigmoid", 1, *table_of, n_views=n_views)
    return Task(rows, target, fold, "softmax", n_classes, weight, all_weight, n_views)


def _by_fold(Z: np.ndarray, fold: np.ndarray) -> InMemory:
    """Return rows in the order of their folds, which tiles of one fold are cut from."""
    order = np.argsort(fold, kind="stable")
    return InMemory(np.ascontiguousarray(Z[order]), order)


def label_task(
    Z: np.ndarray,
    Y: np.ndarray,
    folds: np.ndarray,
    *,
    balanced: bool = False,
    rows: Rows | None = None,
    n_views: int = 1,
) -> Task:
    """Return the task of giving each of K labels by itself.

    Parameters
    ----------
    Z : ndarray of shape (n * V, D), dtype float32 or float64
        The V rows of an image one after the other.
    Y : ndarray of shape (n, K), dtype bool
    folds : ndarray of shape (n,), dtype int64
        From 0; -1 for images that are in no test set.
    balanced : bool, default False
        Weigh images so that presence and absence of each label count alike.
    rows : Rows, optional
        What is read instead of Z.
    n_views : int, default 1
        V, the rows of an image; each counts a V-th of it.
    """
    n_folds = max(1, int(folds.max()) + 1)
    inside = np.stack([folds != fold for fold in range(n_folds)])
    weight, all_weight = (_label_weights(Y, some, balanced) / n_views for some in (inside, np.ones((1, len(Y)), bool)))
    target, fold = of_rows(Y, n_views), of_rows(folds, n_views)
    return Task(rows or _by_fold(Z, fold), target, fold, "sigmoid", Y.shape[1], weight, all_weight, n_views)


def _label_weights(Y: np.ndarray, inside: np.ndarray, balanced: bool) -> np.ndarray:
    """Return what absence and presence of each label count, (P, K, 2) float64, in the rows (P, n) of each fit."""
    positive = inside.astype(np.float64) @ Y
    counts = np.stack([inside.sum(axis=1, keepdims=True) - positive, positive], axis=2)
    # A label that all rows have, or none, has one side only, which counts as it is.
    even = balanced & (counts > 0).all(axis=2, keepdims=True)
    return np.where(even, counts.sum(axis=2, keepdims=True) / (2 * np.maximum(counts, 1)), 1.0)


def _class_weights(counts: np.ndarray, balanced: bool, table: np.ndarray | None) -> np.ndarray:
    """Return what a row of each class counts, (P, K) float64, for the numbers of rows `counts` (P, K)."""
    if balanced:
        return np.asarray(counts.sum(axis=1, keepdims=True) / (counts.shape[1] * counts))
    return np.broadcast_to(1.0 if table is None else table, counts.shape).astype(np.float64)


def both_rows(values: np.ndarray, axis: int) -> np.ndarray:
    """Return numbers of K classes along an axis that has one of them for two: half of it, with either sign."""
    return values if values.shape[axis] > 1 else np.concatenate([-values, values], axis=axis) / 2
