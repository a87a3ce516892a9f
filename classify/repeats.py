"""Repeats: in each another fifth of the training images is set aside to score on; and how sure their mean is."""

from __future__ import annotations

import numpy as np

from .splits import stratified_folds

REPEATS = 10
FEW_REPEATS = 5  # with 2 the intervals hold the truth in 65 to 81 cases of 100, see benchmarks/few_shots.py
_FOLDS = 5  # one part in five is set aside to be scored on


def set_aside(strata: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Choose a fifth of the training images, whole groups of copies, with about its share of each class.

    Parameters
    ----------
    strata : ndarray of shape (n,), dtype int
        The class of each.
    groups : ndarray of shape (n,), dtype int
    seed : int

    Returns
    -------
    ndarray of shape (n,), dtype bool
    """
    return np.asarray(stratified_folds(strata, _FOLDS, random_state=seed, groups=groups) == 0)


def spread(scores: np.ndarray, *, least: float = 0.0) -> dict[str, float]:
    """Return the mean of what repeats scored, ``low`` and ``high`` of its 95 % interval, and ``std`` over repeats.

    Parameters
    ----------
    scores : ndarray of shape (repeats,), dtype float64
        Shares, or differences of shares; two or more.
    least : float, default 0.0
        What a score may be at least, where the interval ends; it ends at 1 too. -1 for differences.
    """
    mean, half = float(scores.mean()), 1.96 * standard_error(scores)
    std = float(scores.std(ddof=1))
    return {"mean": mean, "low": max(least, mean - half), "high": min(1.0, mean + half), "std": std}


def standard_error(scores: np.ndarray) -> float:
    """Return the standard error of the mean of what repeats scored.

    Repeats share images, so they say less than as many independent ones: the variance over repeats is multiplied by
    ``1 / repeats + test / train``, Nadeau and Bengio (2003), "Inference for the generalization error". Draws of a few
    images share less than all that are not set aside do, so with ten repeats their intervals are rather too wide than
    too narrow.
    """
    return float(scores.std(ddof=1) * np.sqrt(1 / len(scores) + 1 / (_FOLDS - 1)))
