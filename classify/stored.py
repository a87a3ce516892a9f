"""Embeddings of some images as they lie in the cache, read part by part and never all at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from ..extract.views import PLAIN, Views
from .scratch import ahead

PIECE_BYTES = 8 << 20  # of rows that are worked on at a time


@dataclass(frozen=True, slots=True)
class StoredRows:
    """All views of some images in one feature space, or in several side by side.

    Attributes
    ----------
    store : FeatureStore
    spaces : tuple of FeatureSpace
        D wide together.
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of each image file's bytes.
    views : Views, default `PLAIN`
        V of each image.
    """

    store: FeatureStore
    spaces: tuple[FeatureSpace, ...]
    digest: np.ndarray
    views: Views = PLAIN

    def __len__(self) -> int:
        return len(self.digest) * self.views.count

    @property
    def width(self) -> int:
        """D."""
        return sum(space.dim for space in self.spaces)

    def columns(self) -> list[slice]:
        """Return where the columns of each space stand."""
        ends = list(itertools.accumulate(space.dim for space in self.spaces))
        return [slice(end - space.dim, end) for space, end in zip(self.spaces, ends, strict=True)]

    def blocks(self, place: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read the rows of one of the spaces, in the order in which they are stored, every byte checked.

        A thread reads the next part while one is worked on; memory is three parts.

        Parameters
        ----------
        place : int
            Which of the spaces.

        Yields
        ------
        numbers : ndarray of shape (m,), dtype int64
            Of the rows: ``i * V + v`` is view v of image i.
        rows : ndarray of shape (m, d), dtype float32
            At most 8 MB of them.

        Raises
        ------
        CacheMissError
            As `FeatureStore.blocks`.
        """
        space = self.spaces[place]
        yield from ahead(self.store.blocks(space.id, self.views.keys(self.digest), piece_rows(space.dim)))


def piece_rows(width: int) -> int:
    """Return how many rows of so many float32 numbers are worked on at a time."""
    return max(1, PIECE_BYTES // (4 * width))


def largest_part(store: FeatureStore, spaces: Sequence[FeatureSpace]) -> int:
    """Return the bytes of the largest part's embeddings in these spaces, as float32."""
    sizes = [len(head.keys) * 4 * space.dim for space in spaces for head in store.heads(space.id)]
    return max(sizes, default=0)
