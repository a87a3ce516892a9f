"""What a fitted nearest-neighbour head comes down to: its training rows, which vote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError
from .network import softmax
from .preparation import Preparation, of_length_one
from .views import with_views

BLOCK_NUMBERS = 4 << 20  # distances that are held at a time


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A fitted head that keeps its training rows; it stands in the place of a `Network`.

    Attributes
    ----------
    preparation : Preparation
        What is done to embeddings first.
    rows : ndarray of shape (n, V, r), dtype float32
        The training embeddings, V views of each image, prepared; of length 1 where `cosine` is set.
    labels : ndarray of shape (n,), dtype int32
    k : int
        How many neighbours vote, at most n.
    n_classes : int
    cosine : bool
        Whether embeddings are compared by angle, not by distance.
    """

    preparation: Preparation
    rows: np.ndarray
    labels: np.ndarray
    k: int
    n_classes: int
    cosine: bool

    @property
    def n_features(self) -> int:
        """Width of the embeddings that go in."""
        return self.preparation.n_features

    def logits(self, X: np.ndarray) -> np.ndarray:
        """Return log probabilities (n, K) float64 of embeddings (n, D) float32, as `vote_logits` gives them.

        Raises
        ------
        ModelError
            The embeddings have another width.
        """
        result = np.empty((len(X), self.n_classes))
        block = max(1, BLOCK_NUMBERS // max(len(self.rows), self.n_features))
        for start in range(0, len(X), block):
            part = slice(start, start + block)
            Z = self.preparation.apply(X[part])
            Z = of_length_one(Z) if self.cosine else Z
            nearest = nearest_rows(distances_to(Z, self.rows), self.k)
            result[part] = vote_logits(self.labels[nearest], self.n_classes)
        return result

    def predict_proba(self, X: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return probabilities (n, K) float64; a temperature above 1 makes them less sure."""
        return softmax(self.logits(X) / temperature)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, to be saved."""
        numbers = np.array([self.k, self.n_classes, self.cosine], np.int64)
        rows = self.rows[:, 0] if self.rows.shape[1] == 1 else self.rows
        return {**self.preparation.arrays(), "rows": rows, "labels": self.labels, "neighbours": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Neighbours:
        """Rebuild it from `arrays`.

        Raises
        ------
        ModelError
            An array is missing, or they do not fit each other.
        """
        preparation = Preparation.from_arrays(arrays)
        try:
            rows, labels, numbers = arrays["rows"], arrays["labels"], arrays["neighbours"]
        except KeyError as error:
            raise ModelError(f"the saved head lacks the array {error}") from error
        whole = numbers.shape == (3,) and numbers.dtype == np.int64 and labels.dtype == np.int32 and labels.ndim == 1
        rows = with_views(rows)
        if not whole or rows.ndim != 3 or not rows.size or rows.shape[::2] != (len(labels), preparation.n_outputs):
            raise ModelError("the arrays of the saved head do not fit each other")
        k, n_classes, cosine = map(int, numbers)
        inside = len(labels) > 0 and labels.min() >= 0 and labels.max() < n_classes and 1 <= k <= len(labels)
        if not inside or cosine not in (0, 1):
            raise ModelError("the arrays of the saved head do not fit each other")
        real = [array for name, array in arrays.items() if name not in ("blocks", "labels", "neighbours")]
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in real):
            raise ModelError("the arrays of the saved head are not finite numbers of 32 bits")
        return cls(preparation, rows, labels, k, n_classes, bool(cosine))


def vote_logits(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return log probabilities (n, K) float64 of the labels (n, k) of each row's neighbours.

    Each neighbour has a vote; one more is divided evenly among the K classes, ``p = (votes + 1 / K) / (k + 1)``, so a
    class without any keeps a small probability and the log loss stays finite.
    """
    n, k = labels.shape
    flat = (np.arange(n)[:, None] * n_classes + labels).reshape(-1)
    votes = np.bincount(flat, minlength=n * n_classes).reshape(n, n_classes)
    return np.asarray(np.log((votes + 1 / n_classes) / (k + 1)))


def distances_to(Z: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return squared distances (m, n) of rows (m, r) to images (n, V, r), to the nearest of their views each.

    They are less ``|z|^2``, the same for all images; where rows are of length 1, they have the order of angles.
    """
    least = _distances(Z, rows[:, 0])
    for view in range(1, rows.shape[1]):
        np.minimum(least, _distances(Z, rows[:, view]), out=least)
    return least


def _distances(Z: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", rows, rows) - 2 * (Z @ rows.T))


def nearest_rows(distances: np.ndarray, k: int) -> np.ndarray:
    """Return the numbers (m, k) of the nearest rows, the nearest first; of equal ones any."""
    if k < distances.shape[1]:
        found = np.sort(np.argpartition(distances, k - 1, axis=1)[:, :k], axis=1)
    else:
        found = np.broadcast_to(np.arange(distances.shape[1]), distances.shape)
    order = np.argsort(np.take_along_axis(distances, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
