"""Scores where an image may have several labels, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .metrics import binary_auc, reliability_curve, wilson_interval

THRESHOLD = 0.5  # where nothing speaks for another one
_BEYOND_CHANCE = 3.0


def average_precision(y: np.ndarray, score: np.ndarray) -> float | None:
    """Return the mean precision over the positives, each at its place in the ranking.

    The sum over thresholds of the rise in recall times the precision there (Zhu 2004, as scikit-learn has it), without
    interpolation; images of equal score enter together.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype bool
    score : ndarray of shape (n,), dtype float

    Returns
    -------
    float or None
        Above 0 to 1; None without positives.
    """
    hits, claimed, _ = _ranking(np.asarray(y, bool), score)
    if not hits.size or not hits[-1]:
        return None
    return float((np.diff(hits, prepend=0) * hits / claimed).sum() / hits[-1])


def _ranking(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positives and images (t,) at or above each distinct score, and those scores, from the highest down."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(y) else np.array([], int)
    return np.cumsum(y[order])[last], last + 1, ranked[last]


def mean_average_precision(Y: np.ndarray, proba: np.ndarray) -> float | None:
    """Return the mean of the labels' average precisions; labels without positives are left out, None without any.

    Parameters
    ----------
    Y : ndarray of shape (n, L), dtype bool
    proba : ndarray of shape (n, L), dtype float
    """
    each = [average_precision(Y[:, label], proba[:, label]) for label in range(Y.shape[1])]
    known = [value for value in each if value is not None]
    return float(np.mean(known)) if known else None


def best_thresholds(Y: np.ndarray, proba_oof: np.ndarray) -> np.ndarray:
    """Return for each label the probability from which on it is best given, by F1.

    A threshold lies halfway between the lowest probability that is taken and the highest that is not; of thresholds
    with the same F1 the one nearest to 0.5 is taken. F1 at these thresholds is flattering on the images that they were
    chosen on; with few positives they are uncertain (Lipton et al. 2014).

    Parameters
    ----------
    Y : ndarray of shape (n, L), dtype bool
    proba_oof : ndarray of shape (n, L), dtype float
        Probabilities of each image by the fit that did not see it, 0 to 1.

    Returns
    -------
    ndarray of shape (L,), dtype float64
        To be used as ``proba >= threshold``; 0.5 for labels that no image has, or all have, and for those that are not
        ranked better than by chance: F1 would be highest where everything is given.
    """
    return np.array([_best_threshold(np.asarray(Y[:, i], bool), proba_oof[:, i]) for i in range(Y.shape[1])])


def _best_threshold(y: np.ndarray, proba: np.ndarray) -> float:
    if y.all() or not y.any() or not _ranked(y, proba):  # also where there are no images
        return THRESHOLD
    hits, claimed, at = _ranking(y, np.asarray(proba, np.float64))
    f1 = 2 * hits / (claimed + y.sum())
    middle = (at + np.append(at[1:], 0.0)) / 2
    # Halfway between neighbouring floats rounding may end on the lower one, which is not to be taken.
    middle = np.where(middle > np.append(at[1:], -1.0), middle, at)
    best = np.flatnonzero(f1 >= f1.max() * (1 - 1e-12))
    return float(middle[best[np.abs(middle[best] - THRESHOLD).argmin()]])


def _ranked(y: np.ndarray, proba: np.ndarray) -> bool:
    """Tell whether positives are ranked above negatives by more than three standard errors of chance.

    The error is that of Mann and Whitney's statistic for equal distributions: ``sqrt((n + 1) / (12 p q))`` for p
    positives and q negatives.
    """
    n, positives = len(y), int(y.sum())
    error = math.sqrt((n + 1) / (12 * positives * (n - positives)))
    area = binary_auc(y, proba)
    return area is not None and area - 0.5 > _BEYOND_CHANCE * error


def score_multilabel(Y: np.ndarray, proba: np.ndarray, thresholds: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return all scores of one set of predictions.

    Parameters
    ----------
    Y : ndarray of shape (n, L), dtype bool
        Which labels each image has; n is at least 1.
    proba : ndarray of shape (n, L), dtype float
        Probabilities, 0 to 1.
    thresholds : ndarray of shape (L,), dtype float
        A label is given where its probability is at least that.
    names : sequence of str, L

    Returns
    -------
    dict
        n; map (mean average precision, None where no label has positives); micro_f1 (of all decisions together) and
        macro_f1 (mean of the labels that occur or were given), both None where no label occurs or was given;
        subset_accuracy (all labels of an image right) with its 95 % Wilson interval (low, high); log_loss (mean over
        all decisions, in nats); ece (of all probabilities, against whether the label is there); per_label (label, n,
        precision, recall, f1, average_precision, threshold). Fractions, not percent.
    """
    Y, proba = np.asarray(Y, bool), np.asarray(proba, np.float64)
    given = proba >= thresholds
    return scores_by_label(
        [score_of_label(Y[:, i], given[:, i], proba[:, i]) for i in range(Y.shape[1])],
        names,
        thresholds,
        n=len(Y),
        exact=int((given == Y).all(axis=1).sum()),
        log_loss=binary_log_loss(Y, proba),
        ece=reliability_curve(proba.ravel(), Y.ravel()).ece,
    )


def scores_by_label(
    table: Sequence[dict[str, Any]],
    names: Sequence[str],
    thresholds: np.ndarray,
    *,
    n: int,
    exact: int,
    log_loss: float,
    ece: float,
) -> dict[str, Any]:
    """Return what `score_multilabel` does, by what `score_of_label` says of each label and what it does not say."""
    low, high = wilson_interval(exact, n)
    f1 = [row["f1"] for row in table if row["f1"] is not None]
    average = [row["average_precision"] for row in table if row["average_precision"] is not None]
    together = sum(row["n"] + row["claimed"] for row in table)
    return {
        "n": n,
        "map": float(np.mean(average)) if average else None,
        "micro_f1": 2 * sum(row["hit"] for row in table) / together if together else None,
        "macro_f1": float(np.mean(f1)) if f1 else None,
        "subset_accuracy": exact / n,
        "low": low,
        "high": high,
        "log_loss": log_loss,
        "ece": ece,
        "per_label": [
            {"label": name, **_shown(row), "threshold": float(threshold)}
            for name, row, threshold in zip(names, table, thresholds, strict=True)
        ],
    }


def score_of_label(y: np.ndarray, given: np.ndarray, proba: np.ndarray) -> dict[str, Any]:
    """Return the scores of one label, None where nothing was measured, and how often it is ``claimed``, and ``hit``."""
    hit, n, claimed = int((y & given).sum()), int(y.sum()), int(given.sum())
    return {
        "hit": hit,
        "claimed": claimed,
        "n": n,
        "precision": hit / claimed if claimed else None,
        "recall": hit / n if n else None,
        "f1": 2 * hit / (n + claimed) if n + claimed else None,
        "average_precision": average_precision(y, proba),
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("hit", "claimed")}


def binary_log_loss(Y: np.ndarray, proba: np.ndarray) -> float:
    """Return the mean over images and labels of -log p of what is true, p clipped at 2.2e-16 so that it stays finite.

    Parameters
    ----------
    Y : ndarray of shape (n, L), dtype bool
    proba : ndarray of shape (n, L), dtype float
    """
    true = np.where(Y, proba, 1 - proba)
    return float(-np.log(np.clip(true, np.finfo(np.float64).eps, 1.0)).mean())
