"""Rows on their way into a feature space, cut into parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import CacheError
from .part import Keys, write_part
from .publish import write_error
from .space import FeatureSpace

PART_BYTES = 64 << 20
FIRST_PART_SECONDS = 2.0
LONGEST_PART_SECONDS = 30.0


class PartWriter:
    """Collects rows and cuts them into parts: after 2 s, then at doubling intervals to 30 s, or at 64 MiB.

    So a killed process loses seconds of work, and a long one leaves few files. ``HEADSTART_PART_SECONDS`` fixes the
    interval, for tests. Use it as a context manager: leaving it publishes what is left, whatever the reason.

    Parameters
    ----------
    folder : Path
        The folder of the feature space, which `FeatureStore.prepare` has made.
    space : FeatureSpace
    on_part : callable, optional
        Called with the number of rows that are safe, after each part.
    expected : int, default 0
        About how many rows will come: how much room to ask for when the disk is full.

    Attributes
    ----------
    published : int
        Rows that are safe.
    """

    def __init__(
        self,
        folder: Path,
        space: FeatureSpace,
        on_part: Callable[[int], None] | None = None,
        expected: int = 0,
    ) -> None:
        self._expected = expected
        self._folder = folder
        self._space = space
        self._on_part = on_part
        self._fixed = float(os.environ.get("HEADSTART_PART_SECONDS") or 0)
        self._interval = self._fixed or FIRST_PART_SECONDS
        self._rows: list[np.ndarray] = []
        self._digests: list[np.ndarray] = []
        self._bytes = 0
        self._since = time.monotonic()
        self.published = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def add(self, digest: np.ndarray, embedding: np.ndarray) -> None:
        """Add rows of view 0.

        Parameters
        ----------
        digest : ndarray of shape (n, 32), dtype uint8
        embedding : ndarray of shape (n, D)
            Converted to the space's dtype.

        Raises
        ------
        CacheError
            A part could not be written. What was published before is safe.
        """
        rows = np.ascontiguousarray(embedding, dtype=self._space.dtype)
        self._rows.append(rows)
        self._digests.append(digest)
        self._bytes += rows.nbytes
        if self._bytes >= PART_BYTES or time.monotonic() - self._since >= self._interval:
            self.flush()
            if not self._fixed:
                self._interval = min(2 * self._interval, LONGEST_PART_SECONDS)

    def flush(self) -> None:
        """Publish what was added since the last part."""
        if self._rows:
            rows = np.concatenate(self._rows)
            keys = Keys.plain(np.concatenate(self._digests))
            self._rows, self._digests, self._bytes = [], [], 0
            self._publish(keys, rows)
        self._since = time.monotonic()

    def _publish(self, keys: Keys, rows: np.ndarray) -> None:
        try:
            write_part(self._folder, self._space, keys, rows, {})
        except CacheError as error:
            if isinstance(error.__cause__, OSError):
                left = max(error.size, (self._expected - self.published) * self._space.row_bytes)
                raise write_error(error.__cause__, self._folder, left, self.published) from error
            raise
        self.published += len(rows)
        if self._on_part:
            self._on_part(self.published)
