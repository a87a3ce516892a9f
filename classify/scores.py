"""What is measured of a fitted head: on its training images, in cross-validation, and once on the validation images."""

from __future__ import annotations

from typing import Any

import numpy as np

from .conformal import conformal_threshold, coverage_of, prediction_sets
from .head import Head
from .metrics import expected_calibration_error, majority_baseline, nearest_mean_baseline, reliability_curve, score
from .model import SavedModel
from .multilabel import mean_average_precision, score_multilabel

_WORTH_A_WORD = 0.005  # the least change of the calibration error that is told
COVERAGE = 0.9  # of the sets whose coverage is measured on the validation images


Rows = tuple[np.ndarray, np.ndarray]
"""Embeddings (n, D) float32, and labels (n,) int or (n, K) bool."""


def measured(head: Head, model: SavedModel, train: Rows, val: Rows) -> dict[str, Any]:
    """Return the scores of a head that has just been fitted.

    Parameters
    ----------
    head : Head
    model : SavedModel
        What is saved of it.
    train, val : (X, y)
        The images that it was trained on, and those of the validation split, of which there may be none.

    Returns
    -------
    dict
        ``train``, ``cv``, ``temperature``, ``val`` (None without such a split), ``baseline``, ``conformal`` (None
        without a validation split, or with several labels an image), ``per_class``: the validation images' table.
    """
    scores: dict[str, Any] = {
        "train": _on_training(head, *train),
        "cv": head.cv_ or None,
        "temperature": head.temperature_,
    }
    if not len(val[1]):
        return scores | {"val": None, "baseline": _baseline(model, None, None), "conformal": None, "per_class": []}
    full = scores_of(model, model.logits(val[0]), val, train)
    table = full.pop("per_label" if model.multi_label else "per_class")
    full.pop("confusion", None)
    apart = {name: full.pop(name) for name in ("baseline", "conformal")}
    return scores | apart | {"val": full, "per_class": table}


def _on_training(head: Head, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    right = head.predict(X) == y
    return {"n": len(y), "accuracy": float((right if right.ndim == 1 else right.all(axis=1)).mean())}


def scores_of(model: SavedModel, logits: np.ndarray, rows: Rows, train: Rows | None) -> dict[str, Any]:
    """Return all scores of a model on some images.

    Parameters
    ----------
    model : SavedModel
    logits : ndarray of shape (n, K), or (n, V, K), dtype float64
        Of the images, before the temperature; of V views of each, over which probabilities are averaged.
    rows : (X, y)
        The images.
    train : (X, y) or None
        The training images, for the baselines.

    Returns
    -------
    dict
        What `metrics.score` or `multilabel.score_multilabel` returns (there also as ``accuracy`` that of all labels of
        an image together), ``ece_uncalibrated``, ``baseline``, ``conformal``.
    """
    y = rows[1]
    train = train if train is not None and len(train[1]) else None
    common = {"temperature": model.temperature, "baseline": _baseline(model, rows, train), "conformal": None}
    if model.multi_label:
        full = score_multilabel(y, model.probabilities(logits), np.array(model.thresholds), model.classes)
        plain = model.probabilities(logits, 1.0)
        ece = reliability_curve(plain.ravel(), y.ravel()).ece
        return full | {"accuracy": full["subset_accuracy"], "ece_uncalibrated": ece} | common
    proba = model.probabilities(logits)
    if logits.ndim == 2:  # sets were calibrated on probabilities of one view
        common["conformal"] = _coverage(model, proba, y)
    ece = expected_calibration_error(y, model.probabilities(logits, 1.0))
    return score(y, proba, model.classes) | {"ece_uncalibrated": ece} | common


def calibration_words(scores: dict[str, Any]) -> str:
    """Return log loss and calibration error for a person, with what the temperature changed where it did."""
    before, after = scores["ece_uncalibrated"], scores["ece"]
    words = f"log loss {scores['log_loss']:.3f}, calibration error {100 * after:.1f} %"
    if abs(before - after) < _WORTH_A_WORD:
        return words
    return f"{words} (before temperature {scores['temperature']:.2f}: {100 * before:.1f} %)"


def _coverage(model: SavedModel, proba: np.ndarray, y: np.ndarray) -> dict[str, Any] | None:
    if not model.true_probabilities.size:
        return None
    threshold = conformal_threshold(model.true_probabilities, COVERAGE)
    return {"promised": COVERAGE, "threshold": threshold, **coverage_of(prediction_sets(proba, threshold), y)}


def _baseline(model: SavedModel, rows: Rows | None, train: Rows | None) -> dict[str, Any]:
    """Return what answers without a fit achieve: the commonest class and the nearest mean, or each label's share."""
    if model.multi_label:
        return {"map": None if rows is None or train is None else _by_chance(train[1], rows[1])}
    if rows is None or train is None:
        return {"majority": None, "nearest_mean": None}
    return {"majority": majority_baseline(train[1], rows[1]), "nearest_mean": nearest_mean_baseline(*train, *rows)}


def _by_chance(train_Y: np.ndarray, Y: np.ndarray) -> float | None:
    return mean_average_precision(Y, np.broadcast_to(train_Y.mean(axis=0), Y.shape))
