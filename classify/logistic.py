"""Logistic regression on prepared embeddings, C chosen by cross-validation on the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ..errors import UsageError
from .head import Head
from .metrics import log_loss
from .network import Network, softmax
from .path import Solution, solve_path
from .preparation import Preparation
from .search import (
    Search,
    best_along,
    both_rows,
    class_task,
    default_Cs,
    fit_from,
    fit_rows,
    search,
    without_folds,
)
from .share import Problem
from .task import Rows, Task
from .team import Elsewhere, Team, TeamPasses, total
from .turning import turned
from .views import as_rows

NO_ROWS = np.zeros((0, 0), np.float32)


class LogisticHead(Head):
    """L2-penalised multinomial logistic regression.

    Parameters
    ----------
    C : float or "auto", default "auto"
        Inverse of the penalty's weight, on standardised features. "auto" takes the value with the lowest
        cross-validated log loss; of equal ones the smaller, which is the simpler model.
    Cs : int, default 11
        How many values "auto" tries, from 1e-4 to 1e2 in equal ratios.
    l2_norm, pca, cv
        As in `Head`.
    class_weight : {"none", "balanced"}, default "none"
        Whether rows count alike, or classes.
    tol : float, default 1e-6
        By how large a share an objective may be above its minimum.
    max_iter : int, default 500
        Steps at most, for each value of C.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" is an NVIDIA GPU where there is one and the work is long: only then torch is loaded.
    random_state : int, default 0
        For the folds.

    Attributes
    ----------
    C_ : float
    coef_ : ndarray of shape (K, r), or (1, r) for two classes, dtype float32
    intercept_ : ndarray of shape (K,), or (1,) for two classes, dtype float32
        Both for prepared features.
    cv_ : dict
        Also ``Cs`` and ``log_losses``, the mean held-out log loss of each, and ``log_loss_std`` over folds.
    """

    kind: ClassVar[str] = "logistic"

    def __init__(
        self,
        *,
        C: float | str = "auto",
        Cs: int = 11,
        l2_norm: bool = False,
        pca: float | None = None,
        cv: int = 5,
        class_weight: str = "none",
        tol: float = 1e-6,
        max_iter: int = 500,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.Cs = Cs
        self.l2_norm = l2_norm
        self.pca = pca
        self.cv = cv
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.random_state = random_state

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        candidates = self._candidates()
        features = turned(as_rows(Z), len(y))
        mine = [folds == fold for fold in range(self.cv)]

        def score(logits: np.ndarray, _: np.ndarray) -> np.ndarray:
            return np.array([-self._loss(y[rows], logits[rows]) for rows in mine])

        task = replace(self._task(y, folds, features.Z), along_axes=features.along_axes)
        found = search(task, candidates, score, tol=self.tol, max_iter=self.max_iter, device=self.device)
        self._score_folds(y, folds, self._with_all_classes(found.logits, 1))
        self._take(found, candidates)
        self.network_ = self._network(self.preparation_, *features.straight(found.fit.W[0]))
        self.coef_, self.intercept_ = self._coefficients(*features.straight(found.fit.W[0]))

    def fit_over(self, team: Team, y: np.ndarray, folds: np.ndarray) -> None:
        """Fit rows that shards have put aside: the same path, each pass over all shards at once."""
        n_views, width = team.n_views, self.preparation_.n_outputs
        task = self._task(y, folds, n_views=n_views, rows=Elsewhere((len(y) * n_views, width)))
        team.every("begin", Problem.of(task))
        alone = TeamPasses(team, without_folds(task), folds=False)
        if self.cv == 1:
            self._settle()
            fit = next(solve_path(alone, [self.C_], tol=self.tol, max_iter=self.max_iter))
            self._note(fit.converged)
        else:
            fit = self._search_over(team, TeamPasses(team, task, folds=True), alone, np.bincount(folds))
        coef, intercept = fit.W[0, :, :-1], fit.W[0, :, -1]
        self.network_ = self._network(self.preparation_, coef, intercept)
        self.coef_, self.intercept_ = self._coefficients(coef, intercept)

    def check_blocks(self) -> None:
        """Return: the path is fitted block by block."""

    def _search_over(self, team: Team, passes: TeamPasses, alone: TeamPasses, counts: np.ndarray) -> Solution:
        """Choose C as `search` does, score the folds, and return the fit to all rows."""
        candidates = self._candidates()

        def judge(solution: Solution) -> tuple[np.ndarray, np.ndarray]:
            return -total(team, "losses", solution.W) / counts, np.zeros(0)

        best = best_along(passes, candidates, judge, tol=self.tol, max_iter=self.max_iter)
        self._score_over(team, best.solution.W)
        fit = fit_from(alone, best.solution, tol=self.tol, max_iter=self.max_iter)
        converged = best.solution.converged and fit.converged
        self._take(Search(best.solution.C, best.scores, best.kept, fit, best.steps, converged), candidates)
        return fit

    def _take(self, found: Search, candidates: list[float]) -> None:
        """Set what is told of a search."""
        self.C_ = found.C
        losses, spread = -found.scores.mean(axis=1), found.scores.std(axis=1)
        self.cv_ |= {"Cs": candidates, "log_losses": losses.tolist(), "log_loss_std": spread.tolist()}
        self._note(found.converged, candidates)

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Network:
        features = turned(as_rows(Z), len(y))
        task = replace(self._task(y, np.full(len(y), -1), features.Z), along_axes=features.along_axes)
        fit = fit_rows(task, self.C_, tol=self.tol, max_iter=self.max_iter, device=self.device)
        return self._network(preparation, *features.straight(fit.W[0]))

    def _task(
        self, y: np.ndarray, folds: np.ndarray, Z: np.ndarray = NO_ROWS, *, n_views: int = 0, rows: Rows | None = None
    ) -> Task:
        """Return the task of rows Z (n * V, r), or of others that are not there to be looked at."""
        n_views, balanced = n_views or len(Z) // len(y), self.class_weight == "balanced"
        return class_task(Z, y, folds, len(self.classes_), balanced=balanced, rows=rows, n_views=n_views)

    def _loss(self, y: np.ndarray, logits: np.ndarray) -> float:
        """Return the log loss by which C is chosen, of logits as the solver has them."""
        return log_loss(y, softmax(self._with_all_classes(logits, 1)))

    def _with_all_classes(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Return what the solver has, which knows two classes by one number, with one for each class."""
        return both_rows(values, axis)

    def _network(self, preparation: Preparation, coef: np.ndarray, intercept: np.ndarray) -> Network:
        weight, bias = (self._with_all_classes(values, 0).astype(np.float32) for values in (coef, intercept))
        return Network(preparation, (weight,), (bias,))

    def _coefficients(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return coef.astype(np.float32), intercept.astype(np.float32)

    def _check_settled(self) -> None:
        if self.C == "auto":
            raise UsageError("--cv 1 makes no folds by which C could be chosen: name a value with --C")

    def _searches(self) -> bool:
        return self.C == "auto"

    def _settle(self) -> None:
        self.C_ = 1.0 if self.C == "auto" else self._candidates()[0]

    def _candidates(self) -> list[float]:
        if self.C == "auto":
            return [float(C) for C in default_Cs(self.Cs)]
        if not isinstance(self.C, int | float) or not 0 < self.C < float("inf"):
            raise UsageError(f"--C must be 'auto' or a number above 0, and is {self.C!r}")
        return [float(self.C)]

    def _note(self, converged: bool, candidates: Sequence[float] = ()) -> None:
        if not converged:
            self.notes_.append(
                f"the solver stopped at {self.max_iter} steps before it had converged at C = {self.C_:.3g}"
            )
        if len(candidates) > 1 and self.C_ in (candidates[0], candidates[-1]):
            self.notes_.append(
                f"the best C, {self.C_:.3g}, lies at the end of what was tried; fix another one with --C to see further"
            )

    def choice(self) -> str:
        """Return in a few words what was chosen by cross-validation."""
        tried = len(self.cv_.get("Cs", ()))
        return f"C = {self.C_:.3g}" + (f", the best of {tried} in cross-validation" if tried > 1 else "")

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "C": self.C_}
