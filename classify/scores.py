"""What is measured of a fitted head: on its training images, in cross-validation, and once on the validation images."""

from __future__ import annotations

from typing import Any

import numpy as np

from .conformal import coverage_of, fit_conformal, prediction_sets
from .dataset import LabelledSet
from .head import Head
from .metrics import expected_calibration_error, majority_baseline, nearest_mean_baseline, reliability_curve, score
from .multilabel import mean_average_precision, score_multilabel
from .network import sigmoid, softmax
from .several import LabelsHead

COVERAGE = 0.9  # of the sets whose coverage is measured on the validation images
_BY_CLASS = ("per_class", "confusion", "per_label")


def measured(head: Head, data: LabelledSet) -> dict[str, Any]:
    """Return the scores of a head.

    Returns
    -------
    dict
        ``train``, ``cv``, ``val`` (None without such a split), ``baseline``, ``conformal`` (None without a validation
        split, or with several labels an image), ``per_class``: the validation images' table.
    """
    X, y = data.part("train")
    scores: dict[str, Any] = {"train": _on_training(head, X, y), "cv": head.cv_, "temperature": head.temperature_}
    scores |= {"val": None, "baseline": _no_baseline(head), "conformal": None, "per_class": []}
    val_X, val_y = data.part("val")
    if not len(val_y):
        return scores
    logits = head.decision_function(val_X)
    if isinstance(head, LabelsHead):
        return scores | _of_labels(head, logits, y, val_y)
    return scores | _of_classes(head, logits, (X, y), (val_X, val_y))


def _on_training(head: Head, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    right = head.predict(X) == y
    return {"n": len(y), "accuracy": float((right if right.ndim == 1 else right.all(axis=1)).mean())}


def _no_baseline(head: Head) -> dict[str, Any]:
    return {"map": None} if isinstance(head, LabelsHead) else {"majority": None, "nearest_mean": None}


_Rows = tuple[np.ndarray, np.ndarray]


def _of_classes(head: Head, logits: np.ndarray, train: _Rows, val: _Rows) -> dict[str, Any]:
    X, y = val
    proba = softmax(logits / head.temperature_)
    full = score(y, proba, head.classes_)
    brief = {name: value for name, value in full.items() if name not in _BY_CLASS}
    threshold = fit_conformal(head.oof_proba_, train[1], COVERAGE)
    return {
        "val": brief | {"ece_uncalibrated": expected_calibration_error(y, softmax(logits))},
        "baseline": {
            "majority": majority_baseline(train[1], y),
            "nearest_mean": nearest_mean_baseline(*train, X, y),
        },
        "conformal": {"promised": COVERAGE, **coverage_of(prediction_sets(proba, threshold), y)},
        "per_class": full["per_class"],
    }


def _of_labels(head: LabelsHead, logits: np.ndarray, train_Y: np.ndarray, Y: np.ndarray) -> dict[str, Any]:
    full = score_multilabel(Y, sigmoid(logits / head.temperature_), head.thresholds_, head.classes_)
    brief = {name: value for name, value in full.items() if name not in _BY_CLASS}
    brief |= {"accuracy": full["subset_accuracy"], "ece_uncalibrated": _ece(Y, sigmoid(logits))}
    share = np.broadcast_to(train_Y.mean(axis=0), Y.shape)
    return {"val": brief, "baseline": {"map": mean_average_precision(Y, share)}, "per_class": full["per_label"]}


def _ece(Y: np.ndarray, proba: np.ndarray) -> float:
    return reliability_curve(proba.ravel(), Y.ravel()).ece
