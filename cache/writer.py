"""Rows on their way into a feature space, cut into parts, which are written while more rows come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CacheError
from .part import Keys, write_part
from .place import Place
from .space import FeatureSpace
from .storage import write_error

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

PART_BYTES = 64 << 20  # of a part that `headstart cache compact` makes
# Of a part that a run cuts: in all three copies of it are in memory when it is built, which the size of a run's memory
# should not show. `compact` merges them.
CUT_BYTES = 16 << 20
FIRST_PART_SECONDS = 2.0
LONGEST_PART_SECONDS = 30.0


class PartWriter:
    """Collects rows and cuts them into parts: after 2 s, then at doubling intervals to 30 s, or at 16 MiB.

    So a killed process loses seconds of work, and a long one leaves few files. Parts are written by a thread, one at a
    time, so that a slow disk does not hold up the network; a second one waits for the first.
    ``HEADSTART_PART_SECONDS`` fixes the interval, for tests. Use it as a context manager: leaving it publishes what is
    left, whatever the reason.

    Parameters
    ----------
    folder : Path or RemotePath
        The folder of the feature space, which `FeatureStore.prepare` has made.
    space : FeatureSpace
    on_part : callable, optional
        Called with the number of rows that are safe, after each part, by the thread that writes.
    expected : int, default 0
        About how many bytes the run that this is part of will write: how much room to ask for when the disk is full.
    alone : bool, default True
        Whether the run's rows all come this way, so that those published here are all that is safe.
    recipes : dict, optional
        Description of each augmentation recipe in the keys, by its id in decimal.

    Attributes
    ----------
    published : int
        Rows that are safe.
    seconds : float
        Time that building and writing parts took, in that thread.
    """

    def __init__(
        self,
        folder: Place,
        space: FeatureSpace,
        on_part: Callable[[int], None] | None = None,
        expected: int = 0,
        *,
        alone: bool = True,
        recipes: dict[str, Any] | None = None,
    ) -> None:
        self._recipes = recipes or {}
        self._expected = expected
        self._alone = alone
        self._folder = folder
        self._space = space
        self._on_part = on_part
        self._fixed = float(os.environ.get("HEADSTART_PART_SECONDS") or 0)
        self._interval = self._fixed or FIRST_PART_SECONDS
        self._rows: list[np.ndarray] = []
        self._keys: list[Keys] = []
        self._bytes = 0
        self._since = time.monotonic()
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None
        self.published = 0
        self.seconds = 0.0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.flush()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def add(self, keys: Keys, embedding: np.ndarray) -> None:
        """Add rows.

        Parameters
        ----------
        keys : Keys
            Of n rows.
        embedding : ndarray of shape (n, D)
            Converted to the space's dtype.

        Raises
        ------
        CacheError
            A part, this one or the one before it, could not be written. What was published before is safe.
        """
        if self._under_way is not None and self._under_way.done():
            self._wait()
        rows = np.ascontiguousarray(embedding, dtype=self._space.dtype)
        self._rows.append(rows)
        self._keys.append(keys)
        self._bytes += rows.nbytes
        if self._bytes >= CUT_BYTES or time.monotonic() - self._since >= self._interval:
            self._cut()
            if not self._fixed:
                self._interval = min(2 * self._interval, LONGEST_PART_SECONDS)

    def flush(self) -> None:
        """Publish what was added since the last part, and wait until it is safe."""
        self._cut()
        self._wait()

    def _cut(self) -> None:
        self._wait()
        if self._rows:
            rows, keys = np.concatenate(self._rows), Keys.concatenate(self._keys)
            self._rows, self._keys, self._bytes = [], [], 0
            self._under_way = self._thread().submit(self._publish, keys, rows)
        self._since = time.monotonic()

    def _wait(self) -> None:
        """Wait for the part under way."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _thread(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(1, thread_name_prefix="part")
        return self._pool

    def _publish(self, keys: Keys, rows: np.ndarray) -> None:
        begin = time.perf_counter()
        try:
            write_part(self._folder, self._space, keys, rows, self._recipes)
        except CacheError as error:
            if isinstance(error.__cause__, OSError):
                left = max(error.size, self._expected - self.published * self._space.row_bytes)
                safe = self.published if self._alone else None
                raise write_error(error.__cause__, self._folder, left, safe) from error
            raise
        finally:
            self.seconds += time.perf_counter() - begin
        self.published += len(rows)
        if self._on_part:
            self._on_part(self.published)
