"""Pictures unlike anything in training, by their distance to the nearest training embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError, TrainingError
from .neighbours import nearest, references
from .preparation import of_length_one

NEIGHBOURS = 5
MOST_ROWS = 4096  # reference rows, and as many held-out ones; 34 MB of float32 at a width of 2048


@dataclass(frozen=True, slots=True)
class Novelty:
    """What training pictures look like, and how far apart they are.

    Attributes
    ----------
    reference : ndarray of shape (r, D), dtype float32
        Training embeddings of length 1.
    distances : ndarray of shape (c,), dtype float32
        The distance of training pictures to the others, ascending.
    """

    reference: np.ndarray
    distances: np.ndarray

    def distance(self, X: np.ndarray) -> np.ndarray:
        """Return the mean distance (m,) float64, 0 to 2, of embeddings (m, D) float32 to the nearest of training.

        Raises
        ------
        ModelError
            The embeddings have another width.
        """
        if X.ndim != 2 or X.shape[1] != self.reference.shape[1]:
            width = self.reference.shape[1]
            raise ModelError(f"novelty is measured on embeddings of width {width}, and got an array of {X.shape}")
        return _distance(X, self.reference)

    def score(self, X: np.ndarray) -> np.ndarray:
        """Return the share (m,) float64 of training pictures that are as far from the others, or farther.

        The picture itself counts as one of them: (1 + farther) / (1 + c), a conformal p-value (Vovk et al. 2005; Bates
        et al. 2023). So a picture like those of training falls below 0.01 once in a hundred times at most, and the
        smallest value is 1 / (1 + c): fewer than 99 training pictures cannot call anything as rare as 0.01.

        Parameters
        ----------
        X : ndarray of shape (m, D), dtype float32
            Embeddings as they come, not standardised.
        """
        return np.asarray((1 + _farther(self.distance(X), self.distances)) / (1 + len(self.distances)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, to be saved."""
        return {"reference": self.reference, "distances": self.distances}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Novelty:
        """Rebuild what `arrays` returned.

        Raises
        ------
        ModelError
            An array is missing, or is not what it should be.
        """
        try:
            novelty = cls(arrays["reference"], arrays["distances"])
        except KeyError as error:
            raise ModelError(f"the saved novelty lacks the array {error}") from error
        if (
            novelty.reference.ndim != 2
            or novelty.distances.ndim != 1
            or not all(a.size for a in novelty.arrays().values())
        ):
            raise ModelError("the arrays of the saved novelty do not fit each other")
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in novelty.arrays().values()):
            raise ModelError("the arrays of the saved novelty are not finite numbers of 32 bits")
        if (np.diff(novelty.distances) < 0).any():
            raise ModelError("the distances of the saved novelty are not in order")
        return novelty


def fit_novelty(
    X: np.ndarray,
    y: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    most: int = MOST_ROWS,
    random_state: int = 0,
) -> Novelty:
    """Learn how far training pictures are from each other.

    The distance is the mean over the 5 nearest training embeddings (Angiulli and Pizzuti 2002) of length 1 (Sun et al.
    2022), not standardised. Measured with efficientnet_lite0 on two small sets of photographs, each against the other
    and against flat, noisy and drawn pictures: the area under the ROC curve is 0.99 to 1.00, and 4 to 6 % of fresh
    pictures fall below 0.05. The Mahalanobis distance (Lee et al. 2018), shrunk as by Ledoit and Wolf (2004), lets 8 to
    10 % fall there, and 24 to 50 % instead of 2 to 14 % where one class has 6 pictures and the other 60; after
    standardising, flat and noisy pictures look familiar, as they lie near the mean.

    Up to `most` rows all are kept, and each one's distance is to the others. Of more, `most` are kept, as many of each
    class as possible, and others tell the distances: 1.28 million rows of 2048 numbers cost some 0.25 GB beside X, a
    few seconds, and 34 MB in the model.

    Parameters
    ----------
    X : ndarray of shape (n, D), dtype float32
        Training embeddings as they come, not standardised.
    y : ndarray of shape (n,), dtype int
        Labels; they decide only which rows are kept.
    groups : ndarray of shape (n,), dtype int, optional
        Rows of one group, copies of a picture say, are not each other's neighbours.
    most : int, default 4096
    random_state : int, default 0
        For the choice.

    Raises
    ------
    TrainingError
        Fewer than 2 pictures that are not copies of each other.
    """
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    kept, probe = novelty_rows(y, most, random_state)
    return novelty_between(X[kept], X[probe], groups[kept], groups[probe])


def novelty_rows(y: np.ndarray, most: int = MOST_ROWS, random_state: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the rows that `fit_novelty` keeps, and of those that tell it the distances."""
    kept = references(np.asarray(y), most, random_state)
    if len(y) == len(kept):
        return kept, kept
    others = np.setdiff1d(np.arange(len(y)), kept, assume_unique=True)
    return kept, np.random.default_rng(random_state).permutation(others)[:most]


def novelty_between(kept: np.ndarray, probe: np.ndarray, kin: np.ndarray, own: np.ndarray) -> Novelty:
    """Return what `fit_novelty` does, by the rows that it takes.

    Parameters
    ----------
    kept, probe : ndarray of shape (r, D) and (c, D), dtype float32
        Embeddings of the rows that `novelty_rows` names.
    kin, own : ndarray of shape (r,) and (c,), dtype int
        Their groups.

    Raises
    ------
    TrainingError
        All of them are copies of one picture.
    """
    reference = of_length_one(kept)
    distances = _distance(probe, reference, own, kin)
    distances = np.sort(distances[np.isfinite(distances)])
    if not distances.size:
        there = len(np.unique(np.concatenate([kin, own])))
        raise TrainingError(f"novelty needs 2 different training pictures, and there are {there}")
    return Novelty(reference, distances.astype(np.float32))


def training_outliers(
    X: np.ndarray, y: np.ndarray, novelty: Novelty, *, groups: np.ndarray | None = None, random_state: int = 0
) -> np.ndarray:
    """Return the score of each training picture among the others, (n,) float64; the smallest are the odd ones out.

    As `Novelty.score`, with a picture and its group left out of its own neighbours; strangers who come in numbers
    are each other's neighbours and look at home. n rows of width D cost n * r * D multiplications: 1.28 million of
    2048 against 4096 are 11 million million, minutes on a few cores.

    Parameters
    ----------
    X, y, groups, random_state
        As `fit_novelty` had them.
    novelty : Novelty
        What it returned.
    """
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    kept = references(np.asarray(y), len(novelty.reference), random_state)
    distance = _distance(X, novelty.reference, groups, groups[kept])
    # A picture is among those that it is compared with, and not counted a second time.
    return np.asarray(np.maximum(_farther(distance, novelty.distances), 1) / len(novelty.distances))


def _distance(
    X: np.ndarray, reference: np.ndarray, own: np.ndarray | None = None, kin: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean over the nearest; over those that there are where they are few, infinite where there are none."""
    result = np.empty(len(X))
    for rows, distance, _ in nearest(X, reference, min(NEIGHBOURS, len(reference)), own, kin):
        there = np.isfinite(distance)
        total = np.where(there, distance, 0).sum(axis=1, dtype=np.float64)
        result[rows] = np.where(there.any(axis=1), total / np.maximum(there.sum(axis=1), 1), np.inf)
    return result


def _farther(distance: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Count the training pictures (m,) that are as far or farther."""
    return np.asarray(len(ascending) - np.searchsorted(ascending, distance.astype(np.float32), "left"))
