"""Scores of a classifier, in plain numpy; every formula with its source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .preparation import standardisation

ECE_BINS = 15  # as in Guo et al. 2017
TOP_K = 5


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


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often answers of each confidence are right.

    Attributes
    ----------
    edges : ndarray of shape (bins + 1,), dtype float64
        Bounds of the bins, from 0 to 1 in equal steps; a bin holds its lower bound, the last one holds both.
    counts : ndarray of shape (bins,), dtype int64
        Answers in each bin.
    confidence, accuracy : ndarray of shape (bins,), dtype float64
        Mean confidence and share that is right, 0 to 1; NaN where a bin is empty.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Mean distance of confidence and accuracy over all answers: Guo et al. (2017), equation 3."""
        full = self.counts > 0
        gap = np.abs(self.accuracy[full] - self.confidence[full])
        return float((self.counts[full] * gap).sum() / max(1, self.counts.sum()))


def reliability_curve(confidence: np.ndarray, right: np.ndarray, bins: int = ECE_BINS) -> Reliability:
    """Return the reliability diagram (DeGroot and Fienberg 1983) in equal-width bins.

    Parameters
    ----------
    confidence : ndarray of shape (n,), dtype float
        Probability that was given to each answer, 0 to 1.
    right : ndarray of shape (n,), dtype bool
        Whether the answer was right.
    bins : int, default 15
    """
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    size = np.where(counts > 0, counts, np.nan)
    mean_confidence = np.bincount(place, confidence, minlength=bins) / size
    return Reliability(
        np.linspace(0, 1, bins + 1), counts, mean_confidence, np.bincount(place, right, minlength=bins) / size
    )


def expected_calibration_error(y: np.ndarray, proba: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return how far the top probability is from the share that is right, averaged over equal-width bins.

    Guo et al. (2017), equation 3.
    """
    return reliability_curve(proba.max(axis=1), proba.argmax(axis=1) == y, bins).ece


def top_k_accuracy(y: np.ndarray, proba: np.ndarray, k: int) -> float:
    """Return the share of images whose true class is among the k most probable ones.

    Of equal probabilities the earlier class goes first, as in `argmax`, so that k = 1 is the accuracy.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
    proba : ndarray of shape (n, K)
    k : int
        1 to K.
    """
    true = proba[np.arange(len(y)), y][:, None]
    earlier = np.arange(proba.shape[1]) < np.asarray(y)[:, None]
    before = (proba > true).sum(axis=1) + ((proba == true) & earlier).sum(axis=1)
    return float((before < k).mean())


def binary_auc(positive: np.ndarray, score: np.ndarray) -> float | None:
    """Return the chance that a positive scores higher than a negative, equal scores counting half.

    The area under the ROC curve as Mann and Whitney's U (Hanley and McNeil 1982), in whole numbers up to the last
    division.

    Parameters
    ----------
    positive : ndarray of shape (n,), dtype bool
    score : ndarray of shape (n,), dtype float

    Returns
    -------
    float or None
        None where there are no positives or no negatives.
    """
    found, order = score[positive], np.sort(score)
    n_positive, n_negative = len(found), len(score) - len(found)
    if not n_positive or not n_negative:
        return None
    below = np.searchsorted(order, found, "left").sum() + np.searchsorted(order, found, "right").sum()
    # The positives among themselves make n_positive^2 of twice the pairs, whatever their scores.
    return (int(below) - n_positive**2) / (2 * n_positive * n_negative)


def roc_auc(y: np.ndarray, proba: np.ndarray) -> float | None:
    """Return the area under the ROC curve; of more than two classes the mean of each one against the rest.

    One-vs-rest and unweighted (Provost and Domingos 2000 without their weights), over the classes that have both
    images of their own and others. Costs a sort of n numbers a class.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
    proba : ndarray of shape (n, K), dtype float
        With K = 2 the second column ranks.

    Returns
    -------
    float or None
        0 to 1, 0.5 for chance; None where all images are of one class.
    """
    y = np.asarray(y)
    ranked = (1,) if proba.shape[1] == 2 else range(proba.shape[1])
    areas = [area for label in ranked if (area := binary_auc(y == label, proba[:, label])) is not None]
    return float(np.mean(areas)) if areas else None


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


def _mean_f1(table: Sequence[dict[str, Any]]) -> float:
    """Return the mean F1 of the classes that occur among labels or predictions, each of equal weight.

    The mean of the classes' F1, not the F1 of mean precision and recall (Opitz and Burst 2019 on the two).
    """
    return float(np.mean([row["f1"] for row in table if row["f1"] is not None]))


def top_k_of(n_classes: int) -> int | None:
    """Return among how many classes the true one is looked for: five, at most half of them; None of two classes."""
    return max(2, min(TOP_K, n_classes // 2)) if n_classes > 2 else None


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
        images), macro_f1, top_k (k and accuracy; None for two classes), roc_auc (None where undefined), log_loss, ece,
        per_class, confusion. Fractions, not percent.
    """
    k = top_k_of(proba.shape[1])
    return scores_by(
        confusion_matrix(y, proba.argmax(axis=1), len(class_names)),
        class_names,
        top_k=None if k is None else top_k_accuracy(y, proba, k),
        roc_auc=roc_auc(y, proba),
        log_loss=log_loss(y, proba),
        ece=expected_calibration_error(y, proba),
    )


def scores_by(
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    top_k: float | None,
    roc_auc: float | None,
    log_loss: float,
    ece: float,
) -> dict[str, Any]:
    """Return what `score` does, by the confusion matrix (K, K) and what cannot be read off it."""
    n, right = int(confusion.sum()), int(np.trace(confusion))
    k = top_k_of(len(class_names))
    table = per_class(confusion, class_names)
    low, high = wilson_interval(right, n)
    return {
        "n": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "balanced_accuracy": float(np.mean([row["recall"] for row in table if row["recall"] is not None])),
        "macro_f1": _mean_f1(table),
        "top_k": None if k is None else {"k": k, "accuracy": top_k},
        "roc_auc": roc_auc,
        "log_loss": log_loss,
        "ece": ece,
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
