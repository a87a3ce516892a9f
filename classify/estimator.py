"""`LogisticRegressionPath`: the search over C as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import TrainingError
from .metrics import log_loss
from .network import softmax
from .search import both_rows, class_task, coefficients, default_Cs, rotated, search
from .task import InBlocks, Task

_LEAST_C = 1e-30  # below it, and above its inverse, a penalty is lost in the digits of the loss, or the other way round


class LogisticRegressionPath(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """L2-penalised logistic regression, C chosen by cross-validation, all folds and values of C in one computation.

    The objective is that of `sklearn.linear_model.LogisticRegression`: multinomial for three classes and more, binomial
    for two, the intercept not penalised. Features are taken as they are: standardise them first.

    Parameters
    ----------
    Cs : int or array-like of float, default 11
        Inverse penalties to try, above 0; an integer spans 1e-4 to 1e2 in equal ratios.
    cv : int or cross-validation splitter, default 5
        Stratified folds, or a splitter whose test sets have no row in common and train on all others.
    scoring : str or callable, default "neg_log_loss"
        A scorer's name, or ``scorer(estimator, X, y)``; the C with the best mean over folds is taken, of equal ones the
        smallest.
    class_weight : dict, "balanced" or None, default None
        What each row counts by its class; "balanced" lets all classes count alike in what each fit trains on.
    tol : float, default 1e-6
        By how large a share the objective may be above its minimum, as its last steps suggest; in the folds ten times
        that.
    max_iter : int, default 500
        Steps at most for each C.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" is an NVIDIA GPU where there is one and the work is long.
    block_rows : int or None, default None
        Read the rows anew in every pass, so many at a time, from X as it is (a file mapped into memory, say) rather
        than from a copy; products are then in float32, and folds are cut from contiguous or mixed rows alike.
    random_state : int, RandomState or None, default None
        Shuffles rows before they are divided into folds; None leaves their order. A splitter shuffles by itself.

    Attributes
    ----------
    C_ : float
        The chosen inverse penalty.
    Cs_ : ndarray of shape (n_Cs,)
        What was tried, ascending.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,), or (1,) for two classes
    scores_ : ndarray of shape (n_folds, n_Cs)
        Score of each C on each held-out fold.
    classes_ : ndarray of shape (n_classes,)
    n_iter_ : ndarray of shape (n_Cs,)
        Steps of the slowest fold at each C.
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from headstart import LogisticRegressionPath
    >>> X, y = load_iris(return_X_y=True)
    >>> LogisticRegressionPath(random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        Cs: Any = 11,
        *,
        cv: Any = 5,
        scoring: str | Callable[..., float] = "neg_log_loss",
        class_weight: Any = None,
        tol: float = 1e-6,
        max_iter: int = 500,
        device: str = "auto",
        block_rows: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.block_rows = block_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Search and fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            float32 is computed in float32, everything else in float64. With `block_rows` anything that has a shape and
            can be sliced.
        y : array-like of shape (n_samples,)

        Raises
        ------
        ValueError
            Fewer than two classes, a class that is in one fold alone, folds that overlap, or settings without meaning.
        """
        X, y = self._validated(X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"LogisticRegressionPath needs samples of at least 2 classes in the data, and has one class: "
                f"{self.classes_.tolist()[0]!r}"
            )
        self.Cs_ = _inverse_penalties(self.Cs)
        folds = self._folds(y)
        centre, centred = self._centred(X)
        turned, back = (centred, None) if self.block_rows else rotated(centred, X.dtype)
        task = self._task(turned, codes.astype(np.int64), folds)

        def straight(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            coef, intercept = coefficients(W, back)
            return coef, intercept - coef @ centre

        found = search(
            task, self.Cs_.tolist(), self._scorer(X, y, codes, folds, straight),
            tol=self.tol, max_iter=self.max_iter, device=self.device,
        )  # fmt: skip
        self.C_, self.scores_, self.n_iter_ = found.C, found.scores.T, found.steps
        coef, intercept = straight(found.fit.W[0])
        dtype = np.float32 if task.rows.dtype == np.float32 else np.float64
        self.coef_, self.intercept_ = coef.astype(dtype), intercept.astype(dtype)
        if not found.converged:
            _warn_of_steps(self.max_iter, found.C)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits, (n_samples, n_classes), or (n_samples,) of the second of two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return np.asarray(logits.ravel() if logits.shape[1] == 1 else logits)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, (n_samples, n_classes) float64."""
        return softmax(self._both_logits(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return logarithms of probabilities, (n_samples, n_classes) float64."""
        both = self._both_logits(X).astype(np.float64)
        shifted = both - both.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    def _both_logits(self, X: Any) -> np.ndarray:
        """Return logits with a column a class, also of two."""
        logits = self.decision_function(X)
        return both_rows(logits if logits.ndim == 2 else logits[:, None], 1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class of each row, (n_samples,)."""
        logits = self.decision_function(X)
        codes = (logits > 0).astype(np.int64) if logits.ndim == 1 else logits.argmax(axis=1)
        return np.asarray(self.classes_[codes])

    def _validated(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        if not (self.tol > 0 and np.isfinite(self.tol)) or self.max_iter < 1:
            raise ValueError(f"tol must be above 0 and max_iter at least 1: {self.tol!r}, {self.max_iter!r}")
        if self.block_rows is None:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        else:
            self.n_features_in_, y = int(X.shape[1]), np.asarray(y)
            if y.shape != (X.shape[0],) or self.block_rows < 1:
                raise ValueError(f"block_rows must be above 0, and y have a label a row: {self.block_rows}, {y.shape}")
            rows = range(0, X.shape[0], self.block_rows)
            if not all(np.isfinite(X[start : start + self.block_rows]).all() for start in rows):
                raise ValueError("X holds NaN or infinity")
        check_classification_targets(y)
        return X, np.asarray(y)

    def _centred(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Take the mean from the features, which the intercept makes up for: float32 has more digits then."""
        if self.block_rows is not None:
            return np.zeros(X.shape[1]), X
        centre = X.mean(axis=0, dtype=np.float64)
        return centre, np.asarray(X - centre, X.dtype)

    def _folds(self, y: np.ndarray) -> np.ndarray:
        splitter = self.cv
        if (splitter is None or isinstance(splitter, Integral)) and self.random_state is not None:
            splitter = StratifiedKFold(
                5 if splitter is None else splitter, shuffle=True, random_state=self.random_state
            )
        folds, number = np.full(len(y), -1), -1
        for number, sides in enumerate(check_cv(splitter, y, classifier=True).split(np.zeros(len(y)), y)):
            train, test = (np.arange(len(y))[side] for side in sides)  # numbers, also of masks
            if (folds[test] >= 0).any() or len(np.union1d(train, test)) != len(y) or len(train) + len(test) != len(y):
                raise ValueError("cv must divide the rows: test sets without common rows, all other rows for training")
            folds[test] = number
        if number < 1:
            raise ValueError(f"cv must make at least 2 folds, and makes {number + 1}")
        return folds

    def _task(self, X: Any, codes: np.ndarray, folds: np.ndarray) -> Task:
        weight = self.class_weight
        table = None
        if isinstance(weight, dict):
            known = self.classes_.tolist()
            table = np.array([float(weight.get(label, 1.0)) for label in known])
            if not set(weight) <= set(known) or not ((table > 0) & np.isfinite(table)).all():
                raise ValueError(f"class_weight must have finite weights above 0 of classes that there are: {weight!r}")
        elif weight not in (None, "balanced"):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, and is {weight!r}")
        rows = None if self.block_rows is None else InBlocks(X, self.block_rows)
        try:
            return class_task(
                X, codes, folds, len(self.classes_), balanced=weight == "balanced", table=table, rows=rows
            )
        except TrainingError as error:
            raise ValueError(f"a class is held out as a whole, so cv cannot be {self.cv!r}: {error}") from error

    def _scorer(
        self,
        X: Any,
        y: np.ndarray,
        codes: np.ndarray,
        folds: np.ndarray,
        straight: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Return what scores held-out logits, or coefficients, by fold."""
        mine = [np.flatnonzero(folds == fold) for fold in range(folds.max() + 1)]
        if self.scoring == "neg_log_loss":
            return lambda logits, _: np.array(
                [-log_loss(codes[rows], softmax(both_rows(logits[rows], 1))) for rows in mine]
            )
        if not isinstance(self.scoring, str) and not callable(self.scoring):
            raise ValueError(f"scoring must be a scorer's name or a callable, and is {self.scoring!r}")
        scorer = get_scorer(self.scoring) if isinstance(self.scoring, str) else self.scoring

        def score(_: np.ndarray, W: np.ndarray) -> np.ndarray:
            return np.array(
                [scorer(self._plain(*straight(W[fold])), X[rows], y[rows]) for fold, rows in enumerate(mine)]
            )

        return score

    def _plain(self, coef: np.ndarray, intercept: np.ndarray) -> LogisticRegression:
        """Return scikit-learn's own estimator with the coefficients of a fold."""
        model = LogisticRegression()
        model.classes_, model.n_features_in_ = self.classes_, coef.shape[1]
        model.coef_, model.intercept_ = coef, intercept
        return model


def _inverse_penalties(Cs: Any) -> np.ndarray:
    if isinstance(Cs, bool) or (isinstance(Cs, float) or Cs is None):
        raise ValueError(f"Cs must be a number of values or the values themselves, and is {Cs!r}")
    if isinstance(Cs, int | np.integer):
        if Cs < 1:
            raise ValueError(f"Cs must be at least 1, and is {Cs}")
        return default_Cs(int(Cs))
    values = np.sort(np.asarray(Cs, np.float64))
    if values.ndim != 1 or not len(values) or not ((values >= _LEAST_C) & (values <= 1 / _LEAST_C)).all():
        raise ValueError(f"Cs must be a number of values or values from {_LEAST_C:g} to {1 / _LEAST_C:g}: {Cs!r}")
    return values


def _warn_of_steps(max_iter: int, C: float) -> None:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    warnings.warn(
        f"the solver stopped at {max_iter} steps before it had converged at C = {C:.3g}; raise max_iter, or "
        "standardise the features",
        ConvergenceWarning,
        stacklevel=3,
    )
