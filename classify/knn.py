"""Heads that are not trained: nearest class mean and nearest neighbours, for a check of what embeddings are worth."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..errors import UsageError
from .head import Head
from .metrics import log_loss
from .network import Network, forward, softmax
from .preparation import Preparation, of_length_one
from .share import Problem
from .task import Task
from .team import Elsewhere, Team
from .views import as_rows
from .voters import BLOCK_NUMBERS, Neighbours, distances_to, nearest_rows, vote_logits

K_TRIED = (1, 3, 5, 10, 20, 50, 100)
METRICS = ("cosine", "euclidean")
_NEVER = -1e30  # a logit that no other falls below


class KNNHead(Head):
    """The commonest label among the nearest training embeddings, found by exact search.

    An image with several views is as near as the nearest of them, and votes once.

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
        rows = self._rows(Z)
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
        return Neighbours(preparation, self._rows(Z), y.astype(np.int32), k, len(self.classes_), cosine)

    def _rows(self, Z: np.ndarray) -> np.ndarray:
        """Return prepared embeddings (n, V, r) as distances are taken between them."""
        return of_length_one(as_rows(Z)).reshape(Z.shape) if self.metric == "cosine" else Z

    def _searches(self) -> bool:
        return self.k == "auto"

    def _settle(self) -> None:
        self.k_ = 1 if self.k == "auto" else int(self.k)

    def _candidates(self, most: int) -> list[int]:
        if self.k == "auto":
            return [k for k in K_TRIED if k <= most]
        if not isinstance(self.k, int) or not 1 <= self.k <= most:
            raise UsageError(f"--k must be 'auto' or from 1 to {most}, the images that a fold leaves, and is {self.k}")
        return [self.k]

    def choice(self) -> str:
        """Return in a few words what was chosen by cross-validation."""
        tried = len(self.cv_.get("grid", ()))
        return f"k = {self.k_}" + (f", the best of {tried} in cross-validation" if tried > 1 else "")

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "k": self.k_}


def _nearest_of_other_folds(rows: np.ndarray, folds: np.ndarray, k: int) -> np.ndarray:
    """Return the numbers (n, k) of the images nearest to view 0 of each, none of its fold, by their rows (n, V, r)."""
    result = np.empty((len(rows), k), np.int64)
    block = max(1, BLOCK_NUMBERS // len(rows))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        distances = distances_to(rows[part, 0], rows)
        distances[folds[part, None] == folds] = np.inf
        result[part] = nearest_rows(distances, k)
    return result


class NCMHead(Head):
    """The class whose mean embedding, over all views of its images, is nearest by Euclidean distance.

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

    def check_blocks(self) -> None:
        """Return: means are sums over blocks."""

    def fit_over(self, team: Team, y: np.ndarray, folds: np.ndarray) -> None:
        """Fit rows that shards have put aside: sums by class and fold in one pass make the means of all fits."""
        n_classes = len(self.classes_)
        task = Task(
            Elsewhere((len(y) * team.n_views, self.preparation_.n_outputs)), y, folds, "softmax", n_classes,
            np.ones((max(1, self.cv), n_classes)),
        )  # fmt: skip
        team.every("begin", Problem.of(task))
        found = team.every("class_means", max(1, self.cv), n_classes)
        sums, counts = (np.sum(several, axis=0) for several in zip(*found, strict=True))
        if self.cv > 1:
            fits = [_of_sums(sums.sum(0) - own, counts.sum(0) - n) for own, n in zip(sums, counts, strict=True)]
            self._score_over(team, np.stack([np.column_stack(fit) for fit in fits]).astype(np.float64))
        weight, bias = _of_sums(sums.sum(axis=0), counts.sum(axis=0))
        self.network_ = Network(self.preparation_, (weight,), (bias,))

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        logits = np.empty((len(y), len(self.classes_)))
        for fold in range(self.cv):
            inside = folds != fold
            weight, bias = _nearest_mean(as_rows(Z[inside]), y[inside].repeat(Z.shape[1]), len(self.classes_))
            logits[~inside] = forward(Z[~inside, 0], (weight,), (bias,))
        self._score_folds(y, folds, logits)
        self.network_ = self._again(self.preparation_, Z, y)

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Network:
        weight, bias = _nearest_mean(as_rows(Z), y.repeat(Z.shape[1]), len(self.classes_))
        return Network(preparation, (weight,), (bias,))


def _nearest_mean(Z: np.ndarray, y: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (K, r) and biases (K,), float32; a class without rows is never the nearest."""
    counts = np.bincount(y, minlength=n_classes)
    sums = np.zeros((n_classes, Z.shape[1]))
    for label in np.flatnonzero(counts):
        sums[label] = Z[y == label].sum(axis=0, dtype=np.float64)
    return _of_sums(sums, counts)


def _of_sums(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and biases by the sums (K, r) of the rows of each class, and their numbers (K,)."""
    means = sums / np.maximum(counts, 1)[:, None]
    bias = np.where(counts > 0, -0.5 * np.square(means).sum(axis=1), _NEVER)
    return means.astype(np.float32), bias.astype(np.float32)
