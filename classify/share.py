"""What a shard is made of, what it has to know of the whole task, what it learns of its rows, and how it keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache.space import FeatureSpace
from ..extract.views import Views
from .moments import Moments
from .scratch import Table
from .search import without_folds
from .task import Float, Link, Task


@dataclass(frozen=True, slots=True)
class Share:
    """What a shard is made of; it travels to a worker once.

    Attributes
    ----------
    root : Path
        The cache's folder, as the worker finds it.
    spaces : tuple of FeatureSpace
    views : Views
    digest : ndarray of shape (n, 32), dtype uint8
        Of the images of this share.
    target : ndarray of shape (n,), dtype int64, or (n, K), dtype bool
        Class, or labels, of each.
    fold : ndarray of shape (n,), dtype int64
    picked : ndarray of shape (p,), dtype int64
        Images whose embeddings are asked for as they are, ascending.
    memory : int
        Bytes that it may take.
    threads : int or None
        At most so many; one a core where it is None.
    device : str
        As in `passes_over`.
    place : tuple of int, default (0, 1)
        Which of how many shards this is.
    """

    root: Any
    spaces: tuple[FeatureSpace, ...]
    views: Views
    digest: np.ndarray
    target: np.ndarray
    fold: np.ndarray
    picked: np.ndarray
    memory: int
    threads: int | None = None
    device: str = "auto"
    place: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a shard has to know of the whole task, beside its own rows; see `Task`."""

    link: Link
    n_outputs: int
    class_weight: np.ndarray
    all_weight: np.ndarray

    @classmethod
    def of(cls, task: Task) -> Problem:
        """Return what is to be known of a task."""
        alone = without_folds(task)
        return cls(task.link, task.n_outputs, task.class_weight, alone.class_weight)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is learnt of raw rows in one reading; of view 0 of each image.

    Attributes
    ----------
    prepared : Moments
        Of the features, after lengths were made equal where that was asked for.
    raw : Moments
        Of the features as they come.
    class_sums : ndarray of shape (K, D), dtype float64
        Sums of the features as they come; empty where an image may have several labels.
    picked : ndarray of shape (p, D), dtype float32
        The embeddings that were asked for.
    """

    prepared: Moments
    raw: Moments
    class_sums: np.ndarray
    picked: np.ndarray

    def __add__(self, other: Survey) -> Survey:
        """Return what is learnt of the rows of both; picked ones one after the other."""
        return Survey(
            self.prepared + other.prepared,
            self.raw + other.raw,
            self.class_sums + other.class_sums,
            np.concatenate([self.picked, other.picked]),
        )


@dataclass(slots=True)
class HeldRows:
    """Rows that were put aside, as `headstart.classify.task.Rows`.

    Attributes
    ----------
    table : Table
    numbers : ndarray of shape (n,), dtype int64
        ``i * V + v`` for view v of image i.
    size : int
        Rows a block.
    """

    table: Table
    numbers: np.ndarray
    size: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return self.table.shape

    @property
    def dtype(self) -> Float:
        """In which products are computed."""
        return np.dtype(np.float32)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the blocks in order; each counts until the next is asked for."""
        for start, rows in self.table.blocks(self.size):
            yield self.numbers[start : start + len(rows)], rows
