"""Logistic regression on standardised embeddings, C chosen by cross-validation on the training rows."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np

from ..errors import UsageError
from ..extract.device import available_cores
from .head import Head
from .metrics import log_loss
from .network import Network, forward, softmax

# The data of a fit up to this size (in numbers) is taken to float64, where L-BFGS needs fewer steps; beyond it the
# copy would cost more than it saves.
_DOUBLE_UP_TO = 20_000_000
_TOLERANCE = 1e-5


class LogisticHead(Head):
    """L2-penalised multinomial logistic regression by scikit-learn.

    Parameters
    ----------
    C : float or "auto", default "auto"
        Inverse of the penalty's weight, on standardised features. "auto" takes the value with the lowest
        cross-validated log loss; of equal ones the smaller, which is the simpler model.
    Cs : int, default 11
        How many values "auto" tries, from 1e-4 to 1e2 in equal ratios.
    cv : int, default 5
        Folds.
    class_weight : {"none", "balanced"}, default "none"
    max_iter : int, default 1000
        Steps of L-BFGS at most, for each value of C.
    random_state : int, default 0
        For the folds.

    Attributes
    ----------
    C_ : float
    coef_ : ndarray of shape (K, D), or (1, D) for two classes, dtype float32
    intercept_ : ndarray of shape (K,), or (1,) for two classes, dtype float32
        Both for standardised features.
    cv_ : dict
        Also ``Cs`` and ``log_losses``, the mean held-out log loss of each.
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
        max_iter: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.Cs = Cs
        self.l2_norm = l2_norm
        self.pca = pca
        self.cv = cv
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.random_state = random_state

    def _fit(self, X: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        from sklearn.exceptions import ConvergenceWarning

        # Told in notes_ where it concerns the result. The filter is the whole process's, so no thread may set its own.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._search(X, y, folds)

    def _search(self, X: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        candidates = self._candidates()
        self._stopped_early: set[float] = set()
        held_out = self._held_out(X, y, folds, candidates)
        losses = [log_loss(y, softmax(logits)) for logits in held_out]
        best = int(np.argmin(losses))
        self.C_ = float(candidates[best])
        self._score_folds(y, folds, held_out[best])
        self.cv_ |= {"Cs": candidates, "log_losses": losses}
        coef, intercept = self._path(X, y, [self.C_])[0]
        self.network_ = Network(self.preparation_, (coef,), (intercept,))
        self._set_coefficients()
        if self.C_ in self._stopped_early:
            self.notes_.append(
                f"the solver stopped at {self.max_iter} steps before it had converged at C = {self.C_:.3g}"
            )
        if len(candidates) > 1 and best in (0, len(candidates) - 1):
            self.notes_.append(f"the best C, {self.C_:.3g}, lies at the end of what was tried")

    def _held_out(self, X: np.ndarray, y: np.ndarray, folds: np.ndarray, candidates: list[float]) -> np.ndarray:
        """Return the logits (Cs, n, K) of every row by the fits that did not see it."""
        from joblib import Parallel, delayed
        from threadpoolctl import threadpool_limits

        held_out = np.empty((len(candidates), len(y), len(self.classes_)))

        def one(fold: int) -> None:
            inside = folds != fold
            for number, (coef, intercept) in enumerate(self._path(X[inside], y[inside], candidates)):
                held_out[number, ~inside] = forward(X[~inside], (coef,), (intercept,))

        # A fold a core, each with one thread of its own: threads that share such small products mostly wait.
        with threadpool_limits(1):
            Parallel(n_jobs=min(self.cv, available_cores()), prefer="threads")(delayed(one)(f) for f in range(self.cv))
        return held_out

    def _candidates(self) -> list[float]:
        if self.C == "auto":
            return [float(C) for C in np.logspace(-4, 2, self.Cs)]
        if not isinstance(self.C, int | float) or not 0 < self.C < float("inf"):
            raise UsageError(f"--C must be 'auto' or a number above 0, and is {self.C!r}")
        return [float(self.C)]

    def _path(self, X: np.ndarray, y: np.ndarray, candidates: list[float]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Fit every C from the smallest up, each from the coefficients of the one before."""
        from sklearn.linear_model import LogisticRegression

        Z, back = _rotated(X)
        weight = None if self.class_weight == "none" else self.class_weight
        model = LogisticRegression(tol=_TOLERANCE, max_iter=self.max_iter, warm_start=True, class_weight=weight)
        fits = []
        for C in candidates:
            model.set_params(C=C)
            model.fit(Z, y)
            if model.n_iter_.max() >= self.max_iter:
                self._stopped_early.add(C)
            fits.append(_both_rows(model.coef_ @ back.T if back is not None else model.coef_, model.intercept_))
        return fits

    def _set_coefficients(self) -> None:
        weight, bias = self.network_.weights[0], self.network_.biases[0]
        binary = len(bias) == 2
        self.coef_ = weight[1:] - weight[:1] if binary else weight
        self.intercept_ = bias[1:] - bias[:1] if binary else bias

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "C": self.C_}


def _rotated(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn features into as few as there are rows, without loss.

    The minimum of a loss of ``Z w`` with an L2 penalty on ``w`` lies in the row space of Z (the representer theorem;
    Hastie and Tibshirani 2004, "Efficient quadratic regularization for expression arrays"). With fewer rows than
    features the problem in the coordinates of the right singular vectors is the same one, and smaller.

    Returns
    -------
    rotated : ndarray of shape (n, min(n, D)), float64 where it is small enough
    back : ndarray of shape (D, n) or None
        Takes coefficients back to the features; None where nothing was turned.
    """
    dtype = np.float64 if min(Z.shape) * len(Z) <= _DOUBLE_UP_TO else np.float32
    if len(Z) >= Z.shape[1]:
        return Z.astype(dtype), None
    left, singular, right = np.linalg.svd(Z.astype(np.float64), full_matrices=False)
    return (left * singular).astype(dtype), right.T


def _both_rows(coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(coef) == 1:  # scikit-learn keeps one row for two classes: half of it, with either sign, says the same
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return coef.astype(np.float32), intercept.astype(np.float32)
