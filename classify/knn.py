"""Heads that are not trained: nearest class mean and nearest neighbours, for a check of what embeddings are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import ModelError, UsageError
from .head import Head
from .metrics import log_loss
from .network import Network, forward, softmax
from .preparation import Preparation

K_TRIED = (1, 3, 5, 10, 20, 50, 100)
METRICS = ("cosine", "euclidean")
_BLOCK_NUMBERS = 4 << 20  # distances that are held at a time
_NEVER = -1e30  # a logit that no other falls below


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A fitted head that keeps its training rows; it stands in the place of a `Network`.

    Attributes
    ----------
    preparation : Preparation
        What is done to embeddings first.
    rows : ndarray of shape (n, r), dtype float32
        The training embeddings, prepared; of length 1 where `cosine` is set.
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
        block = max(1, _BLOCK_NUMBERS // max(len(self.rows), self.n_features))
        for start in range(0, len(X), block):
            part = slice(start, start + block)
            Z = _compared(self.preparation.apply(X[part]), self.cosine)
            nearest = _nearest(_distances(Z, self.rows), self.k)
            result[part] = vote_logits(self.labels[nearest], self.n_classes)
        return result

    def predict_proba(self, X: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return probabilities (n, K) float64; a temperature above 1 makes them less sure."""
        return softmax(self.logits(X) / temperature)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, to be saved."""
        numbers = np.array([self.k, self.n_classes, self.cosine], np.int64)
        return {**self.preparation.arrays(), "rows": self.rows, "labels": self.labels, "neighbours": numbers}

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
        if not whole or rows.shape != (len(labels), preparation.n_outputs):
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


def _compared(Z: np.ndarray, cosine: bool) -> np.ndarray:
    if not cosine:
        return Z
    length = np.linalg.norm(Z, axis=1, keepdims=True)
    return np.asarray(Z / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def _distances(Z: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return squared distances (m, n) less ``|z|^2``, the same for all rows; those of length 1 it orders by angle."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows) - 2 * (Z @ rows.T))


def _nearest(distances: np.ndarray, k: int) -> np.ndarray:
    """Return the numbers (m, k) of the nearest rows, the nearest first; of equal ones the earlier row."""
    if k < distances.shape[1]:
        # Sorted by number before they are sorted by distance, so that equal distances keep the order of the rows.
        found = np.sort(np.argpartition(distances, k - 1, axis=1)[:, :k], axis=1)
    else:
        found = np.broadcast_to(np.arange(distances.shape[1]), distances.shape)
    order = np.argsort(np.take_along_axis(distances, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


class KNNHead(Head):
    """The commonest label among the nearest training embeddings, found by exact search.

    Parameters
    ----------
    k : int or "auto", default "auto"
        How many neighbours vote. "auto" takes of 1, 3, 5, 10, 20, 50, 100 (as far as a fold has so many) the one with
        the lowest cross-validated log loss; of equal ones the larger, which is the smoother.
    metric : {"cosine", "euclidean"}, default "cosine"
        On prepared embeddings.
    l2_norm, pca, cv
        As in `Head`.
    random_state : int, default 0
        For the folds.

    Attributes
    ----------
    k_ : int
    cv_ : dict
        Also ``grid``: ``k``, ``log_loss``, ``accuracy`` of each that was tried.
    """

    kind: ClassVar[str] = "knn"
    network_: Neighbours  # type: ignore[assignment]  # has what `Head` asks of a Network

    def __init__(
        self,
        *,
        k: int | str = "auto",
        metric: str = "cosine",
        l2_norm: bool = False,
        pca: float | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.metric = metric
        self.l2_norm = l2_norm
        self.pca = pca
        self.cv = cv
        self.random_state = random_state

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"--metric must be one of {', '.join(METRICS)}, and is {self.metric!r}")
        candidates = self._candidates(len(y) - int(np.bincount(folds).max()))
        cosine = self.metric == "cosine"
        rows = _compared(Z, cosine)
        nearest = _nearest_of_other_folds(rows, folds, max(candidates))
        held_out = [vote_logits(y[nearest[:, :k]], len(self.classes_)) for k in candidates]
        tried = [
            {"k": k, "log_loss": log_loss(y, softmax(logits)), "accuracy": float((logits.argmax(axis=1) == y).mean())}
            for k, logits in zip(candidates, held_out, strict=True)
        ]
        best = min(range(len(tried)), key=lambda number: (tried[number]["log_loss"], -candidates[number]))
        self.k_ = candidates[best]
        self._score_folds(y, folds, held_out[best])
        self.cv_ |= {"grid": tried}
        self.network_ = Neighbours(self.preparation_, rows, y.astype(np.int32), self.k_, len(self.classes_), cosine)

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Neighbours:
        cosine, k = self.metric == "cosine", min(self.k_, len(y))
        return Neighbours(preparation, _compared(Z, cosine), y.astype(np.int32), k, len(self.classes_), cosine)

    def _candidates(self, most: int) -> list[int]:
        if self.k == "auto":
            return [k for k in K_TRIED if k <= most]
        if not isinstance(self.k, int) or not 1 <= self.k <= most:
            raise UsageError(f"--k must be 'auto' or from 1 to {most}, the images that a fold leaves, and is {self.k}")
        return [self.k]

    def choice(self) -> str:
        """Return in a few words what was chosen by cross-validation."""
        tried = len(self.cv_["grid"])
        return f"k = {self.k_}" + (f", the best of {tried} in cross-validation" if tried > 1 else "")

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "k": self.k_}


def _nearest_of_other_folds(rows: np.ndarray, folds: np.ndarray, k: int) -> np.ndarray:
    """Return the numbers (n, k) of each row's nearest rows that are not in its fold."""
    result = np.empty((len(rows), k), np.int64)
    block = max(1, _BLOCK_NUMBERS // len(rows))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        distances = _distances(rows[part], rows)
        distances[folds[part, None] == folds] = np.inf
        result[part] = _nearest(distances, k)
    return result


class NCMHead(Head):
    """The class whose mean embedding is nearest, by Euclidean distance.

    With the logit ``z.c - |c|^2 / 2`` of a mean c, the largest is that of the nearest mean and the head a linear one
    (Mensink et al. 2013, equation 8).

    Parameters
    ----------
    l2_norm, pca, cv
        As in `Head`.
    random_state : int, default 0
        For the folds.
    """

    kind: ClassVar[str] = "ncm"

    def __init__(self, *, l2_norm: bool = False, pca: float | None = None, cv: int = 5, random_state: int = 0) -> None:
        self.l2_norm = l2_norm
        self.pca = pca
        self.cv = cv
        self.random_state = random_state

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        logits = np.empty((len(y), len(self.classes_)))
        for fold in range(self.cv):
            inside = folds != fold
            weight, bias = _nearest_mean(Z[inside], y[inside], len(self.classes_))
            logits[~inside] = forward(Z[~inside], (weight,), (bias,))
        self._score_folds(y, folds, logits)
        self.network_ = self._again(self.preparation_, Z, y)

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Network:
        weight, bias = _nearest_mean(Z, y, len(self.classes_))
        return Network(preparation, (weight,), (bias,))


def _nearest_mean(Z: np.ndarray, y: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (K, r) and biases (K,), float32; a class without rows is never the nearest."""
    counts = np.bincount(y, minlength=n_classes)
    means = np.zeros((n_classes, Z.shape[1]))
    for label in np.flatnonzero(counts):
        means[label] = Z[y == label].mean(axis=0, dtype=np.float64)
    bias = np.where(counts > 0, -0.5 * np.square(means).sum(axis=1), _NEVER)
    return means.astype(np.float32), bias.astype(np.float32)
