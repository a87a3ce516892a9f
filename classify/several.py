"""A head for images that may have several labels, or none: a logistic regression for each label against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import TrainingError, UsageError
from .calibration import fit_temperature
from .head import check_options, check_rows
from .logistic import LogisticHead, coefficients
from .metrics import reliability_curve
from .multilabel import best_thresholds, binary_log_loss, mean_average_precision
from .network import Network, sigmoid
from .preparation import Preparation, fit_preparation
from .search import fit_rows, label_task, rotated, search
from .splits import stratified_folds


class LabelsHead(LogisticHead):
    """L2-penalised logistic regressions, one for each label, with one C for all.

    All labels, folds and values of C are one computation. The C with the lowest mean log loss is chosen; thresholds and
    the temperature are fitted on the logits of held-out rows.

    Parameters
    ----------
    C, Cs, l2_norm, pca, cv, class_weight, tol, max_iter, device, random_state
        As in `LogisticHead`; "balanced" lets presence and absence of each label count alike.

    Attributes
    ----------
    C_ : float
    coef_ : ndarray of shape (K, r), dtype float32
    intercept_ : ndarray of shape (K,), dtype float32
        Both for prepared features.
    thresholds_ : ndarray of shape (K,), dtype float64
        From which probability on a label is given: those of the highest F1 in cross-validation.
    cv_ : dict
        ``folds``, ``map`` (mean average precision), ``accuracy`` (of all labels of an image together), ``log_loss`` and
        ``ece`` before and after temperature scaling, ``Cs``, ``log_losses``, ``log_loss_std``.
    """

    kind: ClassVar[str] = "logistic"
    thresholds_: np.ndarray

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        class_names: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
        blocks: Sequence[int] = (),
    ) -> Self:
        """Fit the head.

        Parameters
        ----------
        X : ndarray of shape (n, D), dtype float32
            Embeddings.
        y : ndarray of shape (n, K), dtype bool
            Which labels each image has.
        class_names : sequence of str, optional
            K names; numbers where it is None.
        groups, blocks
            As in `Head`.

        Raises
        ------
        TrainingError
            No label is there and absent at least twice, there are fewer images than folds, or the embeddings hold NaN
            or infinity.
        """
        Y = np.asarray(y, bool)
        self.classes_ = tuple(class_names) if class_names is not None else tuple(map(str, range(Y.shape[1])))
        self._check(X, Y, groups)
        X = np.asarray(X, np.float32)
        self._blocks = tuple(blocks)
        self.preparation_ = fit_preparation(X, l2_norm=self.l2_norm, blocks=blocks, pca=self.pca)
        folds = stratified_folds(rarest_label(Y), self.cv, random_state=self.random_state, groups=groups)
        self._fit_labels(self.preparation_.apply(X), Y, folds)
        return self

    def _check(self, X: np.ndarray, Y: np.ndarray, groups: np.ndarray | None) -> None:
        check_rows(X, Y)
        images = len(Y) if groups is None else len(np.unique(groups))
        if images < self.cv:
            raise TrainingError(f"there are {images} training images, {self.cv} folds need {self.cv}: add some")
        counts = Y.sum(axis=0)
        usable = (counts >= 2) & (counts <= len(Y) - 2)
        if not usable.any():
            raise TrainingError("no label is given to two training images and absent from two: nothing can be learnt")
        self.notes_ = []
        if not usable.all():
            rare = [self.classes_[label] for label in np.flatnonzero(~usable)]
            self.notes_.append(
                f"{len(rare)} labels have fewer than two training images with or without them, {rare[0]!r} for one: "
                "what is said of them means little"
            )

    def _fit_labels(self, Z: np.ndarray, Y: np.ndarray, folds: np.ndarray) -> None:
        candidates = self._candidates()
        turned, back = rotated(Z)
        task = label_task(turned, Y, folds, balanced=self.class_weight == "balanced")

        def score(logits: np.ndarray, _: np.ndarray) -> np.ndarray:
            proba = sigmoid(logits)
            return np.array([-binary_log_loss(Y[folds == fold], proba[folds == fold]) for fold in range(self.cv)])

        found = search(task, candidates, score, tol=self.tol, max_iter=self.max_iter, device=self.device)
        self.C_ = found.C
        self._score_labels(Y, found.logits)
        losses, spread = -found.scores.mean(axis=1), found.scores.std(axis=1)
        self.cv_ |= {"Cs": candidates, "log_losses": losses.tolist(), "log_loss_std": spread.tolist()}
        coef, intercept = coefficients(found.fit.W[0], back)
        self.coef_, self.intercept_ = coef.astype(np.float32), intercept.astype(np.float32)
        self.network_ = Network(self.preparation_, (self.coef_,), (self.intercept_,))
        self._note(found, candidates)

    def _score_labels(self, Y: np.ndarray, logits: np.ndarray) -> None:
        self.oof_logits_ = logits
        self.temperature_ = fit_temperature(logits, Y)
        plain, self.oof_proba_ = sigmoid(logits), sigmoid(logits / self.temperature_)
        self.thresholds_ = best_thresholds(Y, self.oof_proba_)
        self.cv_ = {
            "folds": self.cv,
            "map": mean_average_precision(Y, self.oof_proba_),
            "accuracy": float(((self.oof_proba_ >= self.thresholds_) == Y).all(axis=1).mean()),
            "log_loss": binary_log_loss(Y, plain),
            "ece": reliability_curve(plain.ravel(), Y.ravel()).ece,
            "log_loss_calibrated": binary_log_loss(Y, self.oof_proba_),
            "ece_calibrated": reliability_curve(self.oof_proba_.ravel(), Y.ravel()).ece,
        }

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Network:
        turned, back = rotated(Z)
        task = label_task(turned, y.astype(bool), np.full(len(y), -1), balanced=self.class_weight == "balanced")
        fit = fit_rows(task, self.C_, tol=self.tol, max_iter=self.max_iter, device=self.device)
        coef, intercept = coefficients(fit.W[0], back)
        return Network(preparation, (coef.astype(np.float32),), (intercept.astype(np.float32),))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probability of each label (n, K) float64 of embeddings (n, D) float32."""
        return sigmoid(self.network_.logits(X) / self.temperature_)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return which labels are given, (n, K) bool."""
        return np.asarray(self.predict_proba(X) >= self.thresholds_)

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "thresholds": self.thresholds_.tolist()}


def labels_head(kind: str, **options: Any) -> LabelsHead:
    """Return an unfitted head for images with several labels.

    Raises
    ------
    UsageError
        There is none of this kind, or an option means nothing to it.
    """
    if kind != LabelsHead.kind:
        raise UsageError(f"--head {kind} learns one class an image, and this dataset has several: use --head logistic")
    check_options(LabelsHead, options)
    return LabelsHead(**options)


def rarest_label(Y: np.ndarray) -> np.ndarray:
    """Return what folds are balanced by, (n,) int64: the rarest label of each image, one number more for none.

    Sechidis, Tsoumakas and Vlahavas (2011) divide the images of the rarest label first for the same reason: the common
    ones come out even by themselves.
    """
    counts = Y.sum(axis=0)
    ranked = np.where(Y, counts, len(Y) + 1)
    return np.asarray(np.where(Y.any(axis=1), ranked.argmin(axis=1), Y.shape[1]))
