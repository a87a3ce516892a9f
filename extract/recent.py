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
from .features import side_by_side

# A writer holds at most one part that it collects and one that is on its way to the disk, each of CUT_BYTES and a batch
# more: with these bounds, a row that is let go here is in a part that readers find.
KEPT_BYTES = 3 * CUT_BYTES
KEPT_BLOCKS = 3


@dataclass(slots=True)
class _Kept:
    """The latest rows of one space: by digest, and as the blocks in which they came, with their bytes."""

    rows: dict[bytes, np.ndarray] = field(default_factory=dict)
    blocks: deque[tuple[list[bytes], int]] = field(default_factory=deque)
    bytes: int = 0

    def add(self, digest: np.ndarray, rows: np.ndarray) -> None:
        names = [name.tobytes() for name in digest]
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
    """

    def __init__(self, store: FeatureStore, spaces: Sequence[FeatureSpace]) -> None:
        self._store = store
        self._spaces = tuple(spaces)
        self._kept = {space.id: _Kept() for space in spaces}

    def add(self, space_id: str, digest: np.ndarray, rows: np.ndarray) -> None:
        """Take in rows that were just computed.

        Parameters
        ----------
        space_id : str
        digest : ndarray of shape (n, 32), dtype uint8
        rows : ndarray of shape (n, D of that space)
            In the space's own dtype, as they are stored.
        """
        if space_id in self._kept:
            self._kept[space_id].add(digest, rows)

    def gather(self, digest: np.ndarray) -> np.ndarray:
        """Return the embeddings of images in all spaces, side by side, wherever they are.

        Parameters
        ----------
        digest : ndarray of shape (n, 32), dtype uint8
            SHA-256 of each image file's bytes.

        Returns
        -------
        ndarray of shape (n, D), dtype float32

        Raises
        ------
        CacheMissError
            As `FeatureStore.gather`.
        """
        return side_by_side(self._spaces, len(digest), lambda space_id, out: self._fill(out, space_id, digest))

    def _fill(self, out: np.ndarray, space_id: str, digest: np.ndarray) -> None:
        rows = self._kept[space_id].rows
        found = [rows.get(name.tobytes()) for name in digest]
        stored = np.array([row is None for row in found], bool)
        if stored.any():
            out[stored] = self._store.gather(space_id, Keys.plain(digest[stored]))
        for place in np.flatnonzero(~stored):
            out[place] = found[place]
