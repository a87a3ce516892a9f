"""What is asked of logits that lie in blocks or on several machines: sums over them, and columns where ranks count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .calibration import heat_sums
from .metrics import log_loss, reliability_curve
from .multilabel import binary_log_loss
from .network import sigmoid, softmax
from .search import both_rows

Found = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Heat:
    """What a temperature is fitted by, at one value of 1/T; see `calibration.temperature_of`."""

    inverse: float

    def __call__(self, target: np.ndarray, fold: np.ndarray, logits: np.ndarray) -> Found:
        """Return ``sums``."""
        logits = logits if target.ndim == 2 else both_rows(logits, 1)
        return {"sums": heat_sums(logits, target, self.inverse)}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How good held-out logits are, before and after a temperature.

    Attributes
    ----------
    temperature : float
    n_folds : int
    """

    temperature: float
    n_folds: int

    def __call__(self, target: np.ndarray, fold: np.ndarray, logits: np.ndarray) -> Found:
        """Return numbers of images and of right ones by fold, summed losses, and gaps of confidence by bin."""
        several = target.ndim == 2
        logits = logits if several else both_rows(logits, 1)
        plain, calibrated = ((sigmoid if several else softmax)(logits / t) for t in (1.0, self.temperature))
        found = {"n": np.bincount(fold, minlength=self.n_folds)}
        if not several:
            right = calibrated.argmax(axis=1) == target
            found["right"] = np.bincount(fold[right], minlength=self.n_folds)
        loss = binary_log_loss if several else log_loss
        for name, proba in (("plain", plain), ("calibrated", calibrated)):
            found[f"loss_{name}"] = np.array(len(target) * loss(target, proba))
            found[f"gap_{name}"] = gaps(target, proba)
        return found


@dataclass(frozen=True, slots=True)
class AllRight:
    """How many images have all their labels right, at thresholds of probabilities after a temperature."""

    temperature: float
    thresholds: np.ndarray

    def __call__(self, target: np.ndarray, fold: np.ndarray, logits: np.ndarray) -> Found:
        """Return ``right``."""
        given = sigmoid(logits / self.temperature) >= self.thresholds
        return {"right": np.array((given == target).all(axis=1).sum())}


def gaps(target: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """Return in each bin of confidence how many more answers are right than it says, (bins,) float64.

    The calibration error is the sum of their absolute values over the number of answers.
    """
    if target.ndim == 2:
        curve = reliability_curve(proba.ravel(), target.ravel())
    else:
        curve = reliability_curve(proba.max(axis=1), proba.argmax(axis=1) == target)
    return np.where(curve.counts > 0, np.nan_to_num(curve.accuracy - curve.confidence) * curve.counts, 0.0)


def ece_of(gap: np.ndarray, n: float) -> float:
    """Return the calibration error by the gaps of so many answers."""
    return float(np.abs(gap).sum() / max(1, n))


def column_groups(n_rows: int, n_columns: int, memory: int) -> Iterator[tuple[int, int]]:
    """Divide columns of probabilities into groups that are ranked at a time within so many bytes, one at the least."""
    size = max(1, memory // (64 * max(1, n_rows)))
    yield from ((start, min(start + size, n_columns)) for start in range(0, n_columns, size))
