"""A head for images that may have several labels, or none: a logistic regression for each label against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import TrainingError, UsageError
from .calibration import fit_temperature
from .head import check_options
from .held_out import AllRight, column_groups, ece_of
from .logistic import NO_ROWS, LogisticHead
from .metrics import reliability_curve
from .multilabel import THRESHOLD, average_precision, best_thresholds, binary_log_loss, mean_average_precision
from .network import sigmoid
from .search import label_task
from .task import Rows, Task
from .team import Team, total


class LabelsHead(LogisticHead):
    """L2-penalised logistic regressions, one for each label, with one C for all.

    `fit` takes for `y` which labels each image has, (n, K) bool. All labels, folds and values of C are one computation.
    The C with the lowest mean log loss is chosen; thresholds and the temperature are fitted on the logits of held-out
    rows.

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

    def _labels(self, y: np.ndarray) -> np.ndarray:
        return np.asarray(y, bool)

    def _n_classes(self, y: np.ndarray) -> int:
        return int(y.shape[1])

    def _strata(self, y: np.ndarray) -> np.ndarray:
        return rarest_label(y)

    def _check_labels(self, y: np.ndarray, groups: np.ndarray | None) -> None:
        """Raise TrainingError where no label is there and absent at least twice, or images are fewer than folds."""
        images = len(y) if groups is None else len(np.unique(groups))
        if images < self.cv:
            raise TrainingError(f"there are {images} training images, {self.cv} folds need {self.cv}: add some")
        counts = y.sum(axis=0)
        usable = (counts >= 2) & (counts <= len(y) - 2)
        if not usable.any():
            raise TrainingError("no label is given to two training images and absent from two: nothing can be learnt")
        if not usable.all():
            rare = [self.classes_[label] for label in np.flatnonzero(~usable)]
            self.notes_.append(
                f"{len(rare)} labels have fewer than two training images with or without them, {rare[0]!r} for one: "
                "what is said of them means little"
            )

    def begin(
        self,
        y: np.ndarray,
        class_names: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
        blocks: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Check labels and settings, as `Head.begin`."""
        y, folds = super().begin(y, class_names, groups, blocks)
        self.thresholds_ = np.full(len(self.classes_), THRESHOLD)
        return y, folds

    def _task(
        self, y: np.ndarray, folds: np.ndarray, Z: np.ndarray = NO_ROWS, *, n_views: int = 0, rows: Rows | None = None
    ) -> Task:
        n_views, balanced = n_views or len(Z) // len(y), self.class_weight == "balanced"
        return label_task(Z, y, folds, balanced=balanced, rows=rows, n_views=n_views)

    def _loss(self, y: np.ndarray, logits: np.ndarray) -> float:
        return binary_log_loss(y, sigmoid(logits))

    def _with_all_classes(self, values: np.ndarray, axis: int) -> np.ndarray:
        return values

    def _score_folds(self, y: np.ndarray, folds: np.ndarray, logits: np.ndarray) -> None:
        self.oof_logits_ = logits
        self.temperature_ = fit_temperature(logits, y)
        plain, self.oof_proba_ = sigmoid(logits), sigmoid(logits / self.temperature_)
        self.thresholds_ = best_thresholds(y, self.oof_proba_)
        self.cv_ = {
            "folds": self.cv,
            "map": mean_average_precision(y, self.oof_proba_),
            "accuracy": float(((self.oof_proba_ >= self.thresholds_) == y).all(axis=1).mean()),
            "log_loss": binary_log_loss(y, plain),
            "ece": reliability_curve(plain.ravel(), y.ravel()).ece,
            "log_loss_calibrated": binary_log_loss(y, self.oof_proba_),
            "ece_calibrated": reliability_curve(self.oof_proba_.ravel(), y.ravel()).ece,
        }

    def _scores_of_folds(self, team: Team, found: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return `cv_`, and set the thresholds, a group of labels at a time: ranks take all images of a label."""
        n, n_labels = float(found["n"].sum()), len(self.classes_)
        average: list[float | None] = []
        for low, high in column_groups(int(n), n_labels, team.memory // 2):
            values, Y = (np.concatenate(several) for several in zip(*team.every("columns", low, high), strict=True))
            proba = sigmoid(values / self.temperature_)
            self.thresholds_[low:high] = best_thresholds(Y, proba)
            average += [average_precision(Y[:, label], proba[:, label]) for label in range(high - low)]
        known = [value for value in average if value is not None]
        right = total(team, "reduce", AllRight(self.temperature_, self.thresholds_))["right"]
        return {
            "folds": self.cv,
            "map": float(np.mean(known)) if known else None,
            "accuracy": float(right / n),
            "log_loss": float(found["loss_plain"] / n),
            "ece": ece_of(found["gap_plain"], n * n_labels),
            "log_loss_calibrated": float(found["loss_calibrated"] / n),
            "ece_calibrated": ece_of(found["gap_calibrated"], n * n_labels),
        }

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
