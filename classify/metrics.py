"""Scores of a classifier, in plain numpy; every formula with its source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .preparation import standardisation

ECE_BINS = 15  # as in Guo et al. 2017


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of equal labels; both (n,) of int."""
    return float((np.asarray(y) == np.asarray(predicted)).mean())


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval for a share that holds the true one with the given confidence.

    Wilson (1927), without continuity correction: unlike the textbook interval it keeps inside 0 to 1 and its promise,
    also near the ends and for small n.

    Parameters
    ----------
    successes, n : int
        At least one trial.
    confidence : float, default 0.95
        Between 0 and 1.
    """
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def log_loss(y: np.ndarray, proba: np.ndarray) -> float:
    """Return the mean of -log p of the true class, in nats; p is clipped at 2.2e-16 so that one error stays finite.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
    proba : ndarray of shape (n, K)
    """
    true = np.asarray(proba, np.float64)[np.arange(len(y)), y]
    return float(-np.log(np.clip(true, np.finfo(np.float64).eps, 1.0)).mean())


def expected_calibration_error(y: np.ndarray, proba: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return how far the top probability is from the share that is right, averaged over equal-width bins.

    Guo et al. (2017), equation 3.
    """
    confidence = proba.max(axis=1)
    right = proba.argmax(axis=1) == y
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    size = np.bincount(place, minlength=bins)
    gap = np.bincount(place, right, minlength=bins) - np.bincount(place, confidence, minlength=bins)
    return float(np.abs(gap).sum() / max(1, size.sum()))


def confusion_matrix(y: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Return counts (K, K) int64: row the true class, column the predicted one."""
    flat = np.asarray(y, np.int64) * n_classes + np.asarray(predicted, np.int64)
    return np.bincount(flat, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def per_class(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and f1 of each class.

    A class that was never predicted has no precision, one without images has no recall: None, as nothing was measured.
    """
    rows = []
    for index, label in enumerate(class_names):
        hit, n, claimed = int(confusion[index, index]), int(confusion[index].sum()), int(confusion[:, index].sum())
        rows.append(
            {
                "label": label,
                "n": n,
                "precision": hit / claimed if claimed else None,
                "recall": hit / n if n else None,
                "f1": 2 * hit / (n + claimed) if n + claimed else None,
            }
        )
    return rows


def score(y: np.ndarray, proba: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return all scores of one set of predictions.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
        True labels; n is at least 1.
    proba : ndarray of shape (n, K), dtype float
        Probabilities.
    class_names : sequence of str, K

    Returns
    -------
    dict
        n, accuracy with its 95 % Wilson interval (low, high), balanced_accuracy (mean recall of the classes that have
        images), log_loss, ece, per_class, confusion. Fractions, not percent.
    """
    predicted = proba.argmax(axis=1)
    n, right = len(y), int((predicted == y).sum())
    confusion = confusion_matrix(y, predicted, len(class_names))
    table = per_class(confusion, class_names)
    low, high = wilson_interval(right, n)
    return {
        "n": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "balanced_accuracy": float(np.mean([row["recall"] for row in table if row["recall"] is not None])),
        "log_loss": log_loss(y, proba),
        "ece": expected_calibration_error(y, proba),
        "per_class": table,
        "confusion": confusion.tolist(),
    }


def majority_baseline(y_train: np.ndarray, y: np.ndarray) -> float:
    """Return the accuracy on `y` of always answering the commonest training class."""
    return float((y == np.bincount(y_train).argmax()).mean())


def nearest_mean_baseline(X_train: np.ndarray, y_train: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    """Return the accuracy on (X, y) of answering the class whose training mean is nearest, after standardisation.

    Parameters
    ----------
    X_train, X : ndarray of shape (n, D), dtype float32
    y_train, y : ndarray of shape (n,), dtype int
    """
    mean, scale = standardisation(X_train)
    present = np.unique(y_train)
    centres = np.stack([((X_train[y_train == label] - mean) / scale).mean(axis=0) for label in present])
    Z = (X - mean) / scale
    distance = (centres**2).sum(axis=1) - 2 * (Z @ centres.T)  # less |z|^2, which is the same for all classes
    return accuracy(y, present[distance.argmin(axis=1)])


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value that two classifiers err alike.

    McNemar (1947), in its exact form: among the images that just one of them gets right, either is as likely as not.

    Parameters
    ----------
    only_first, only_second : int
        Images that only the first, only the second classifier gets right.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    # Sums of C(n, k) / 2^n through logarithms: the coefficients outgrow a float beyond about a thousand images.
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
