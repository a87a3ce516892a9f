"""Temperature scaling: probabilities that are as sure as they are right."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import TrainingError

BOUNDS = (0.01, 100.0)  # temperatures
_STEPS = 100
_PRECISION = 1e-9  # relative, of the temperature


def fit_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """Return the temperature T for which softmax(logits / T), or sigmoid(logits / T), fits the labels best.

    Temperature scaling (Guo et al. 2017, section 4.2): the mean negative log likelihood is convex in 1/T, and its
    minimum is found by Newton's method inside a shrinking bracket. The ranking of the classes stays as it is.

    Logits that are never wrong would be fitted best by T = 0, certainty that no finite number of images warrants. So a
    share 1 / (n + 1) of each label is spread evenly over the classes, as if one image more had come with a label drawn
    at random: the prior of the rule of succession, as Platt (1999, section 2.2) smooths his targets. n images without
    an error then end near a probability of 1 - 1/n; the effect on noisy ones goes as 1/n. Where this would fit the
    labels themselves worse than T = 1 does, T is 1: the log loss of what it was fitted on never rises.

    Parameters
    ----------
    logits : ndarray of shape (n, K), dtype float
        Of images that the classifier was not trained on: held out, or cross-validated.
    y : ndarray of shape (n,), dtype int, or of shape (n, K), dtype bool
        Labels for a softmax; or, for a sigmoid each, whether an image has each of K labels.

    Returns
    -------
    float
        0.01 to 100; above 1 where the classifier is too sure; 1 where the logits say nothing (no rows, or all equal).

    Raises
    ------
    TrainingError
        The shapes do not fit each other, or the logits hold NaN or infinity.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or np.shape(y) not in ((len(logits),), logits.shape):
        raise TrainingError(
            f"a temperature is fitted on (n, K) logits with n labels, and got {logits.shape} and {np.shape(y)}"
        )
    if not np.isfinite(logits).all():
        raise TrainingError("a temperature cannot be fitted: the logits hold NaN or infinity")
    if not logits.size:
        return 1.0
    if np.ndim(y) == 2:
        logits, y = _as_pairs(logits, y)
    return temperature_of(lambda inverse: _sums(logits, np.asarray(y), inverse))


def heat_sums(logits: np.ndarray, y: np.ndarray, inverse: float) -> np.ndarray:
    """Return what a temperature is fitted by, (6,) float64, summed over some rows; see `temperature_of`.

    Parameters
    ----------
    logits : ndarray of shape (n, K), dtype float
    y : ndarray of shape (n,), dtype int, or of shape (n, K), dtype bool
    inverse : float
        1/T.
    """
    logits = np.asarray(logits, np.float64)
    return _sums(*(_as_pairs(logits, y) if np.ndim(y) == 2 else (logits, np.asarray(y))), inverse)


def _as_pairs(logits: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every label by itself as one of two classes: sigmoid(z) is the second part of softmax(0, z)."""
    return np.stack([np.zeros(logits.size), logits.ravel()], axis=1), np.asarray(Y, bool).ravel().astype(np.int64)


def _sums(logits: np.ndarray, y: np.ndarray, inverse: float) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    weight = np.exp(inverse * logits)
    total = weight.sum(axis=1, keepdims=True)
    weight /= total
    mean = (weight * logits).sum(axis=1)
    curvature = (weight * logits**2).sum(axis=1) - mean**2
    true = logits[np.arange(len(y)), y].sum()
    return np.array([len(y), true, logits.mean(axis=1).sum(), mean.sum(), curvature.sum(), np.log(total).sum()])


def temperature_of(sums: Callable[[float], np.ndarray]) -> float:
    """Return the temperature by what `heat_sums` returns for all rows at a value of 1/T.

    Parameters
    ----------
    sums : callable
        Of 1/T; returns the number of rows, and summed over them the logit of the label, the mean logit, the mean
        logit by probability, its variance, and the logarithm of the sum of exponentials, each row's largest logit
        taken away.
    """

    def slope(inverse: float) -> tuple[float, float]:
        n, true, plain, mean, curvature, _ = sums(inverse)
        extra = 1 / (n + 1)
        return float((mean - (1 - extra) * true - extra * plain) / n), float(curvature / n)

    def loss(inverse: float) -> float:
        n, true, *_, total = sums(inverse)
        return float((total - inverse * true) / n)

    inverse = _root(slope, 1 / BOUNDS[1], 1 / BOUNDS[0])
    return 1 / inverse if loss(inverse) <= loss(1.0) else 1.0


def _root(slope: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Return where a rising function is zero, from 1 by Newton's steps, by halving (in logarithm) where they leave."""
    at = 1.0
    for _ in range(_STEPS):
        value, derivative = slope(at)
        if value == 0:
            return at
        low, high = (at, high) if value < 0 else (low, at)
        step = at - value / derivative if derivative > 0 else math.inf
        after = step if low < step < high else math.sqrt(low * high)
        if abs(after - at) <= _PRECISION * at:
            return after
        at = after
    return at
