"""The rows that a run computed last, so that whoever follows it need not read them back from the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..cache.part import Keys
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from ..cache.writer import CUT_BYTES
from .features import gathered
from .views import PLAIN, Views

# A writer holds at most one part that it collects and one that is on its way to the disk, each of CUT_BYTES and a batch
# more: with these bounds, a row that is let go here is in a part that readers find.
KEPT_BYTES = 3 * CUT_BYTES
KEPT_BLOCKS = 3


@dataclass(slots=True)
class _Kept:
    """The latest rows of one space: by digest and view, and as the blocks in which they came, with their bytes."""

    rows: dict[tuple[bytes, int], np.ndarray] = field(default_factory=dict)
    blocks: deque[tuple[list[tuple[bytes, int]], int]] = field(default_factory=deque)
    bytes: int = 0

    def add(self, keys: Keys, rows: np.ndarray) -> None:
        names = _names(keys)
        self.rows.update(zip(names, rows, strict=True))
        self.blocks.append((names, rows.nbytes))
        self.bytes += rows.nbytes
        while len(self.blocks) > KEPT_BLOCKS and self.bytes - self.blocks[0][1] >= KEPT_BYTES:
            gone, size = self.blocks.popleft()
            self.bytes -= size
            for name in gone:
                del self.rows[name]


class RecentRows:
    """Keeps the latest rows of a run in memory, at most 48 MiB a space or three batches.

    Parameters
    ----------
    store : FeatureStore
        Where the other rows are: those from before the run, and those that it has published.
    spaces : sequence of FeatureSpace
        At least one, D wide together.
    views : Views, default `PLAIN`
        Those of the run.
    """

    def __init__(self, store: FeatureStore, spaces: Sequence[FeatureSpace], views: Views = PLAIN) -> None:
        self._views = views
        self._store = store
        self._spaces = tuple(spaces)
        self._kept = {space.id: _Kept() for space in spaces}

    def add(self, space_id: str, keys: Keys, rows: np.ndarray) -> None:
        """Take in rows that were just computed.

        Parameters
        ----------
        space_id : str
        keys : Keys
            Of n rows.
        rows : ndarray of shape (n, D of that space)
            In the space's own dtype, as they are stored.
        """
        if space_id in self._kept:
            self._kept[space_id].add(keys, rows)

    def gather(self, digest: np.ndarray) -> np.ndarray:
        """Return the embeddings of images in all spaces, side by side, wherever they are.

        Parameters
        ----------
        digest : ndarray of shape (n, 32), dtype uint8
            SHA-256 of each image file's bytes.

        Returns
        -------
        ndarray of shape (n, D), dtype float32
            (n, V, D) where the run has V views.

        Raises
        ------
        CacheMissError
            As `FeatureStore.gather`.
        """
        return gathered(self._spaces, self._views, digest, self._fill)

    def _fill(self, space_id: str, keys: Keys, out: np.ndarray) -> None:
        rows = self._kept[space_id].rows
        found = [rows.get(name) for name in _names(keys)]
        stored = np.array([row is None for row in found], bool)
        if stored.any():
            out[stored] = self._store.gather(space_id, keys[stored])
        for place in np.flatnonzero(~stored):
            out[place] = found[place]


def _names(keys: Keys) -> list[tuple[bytes, int]]:
    """Return what tells rows of one run apart, which has one recipe: digest and view."""
    return [(digest.tobytes(), view) for digest, view in zip(keys.digest, keys.view.tolist(), strict=True)]
