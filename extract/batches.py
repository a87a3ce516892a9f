"""One network's share of a run: images gathered into batches, sent through the network, rows handed to the writers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cache.index import KeyIndex
from ..cache.part import Keys
from ..cache.writer import PartWriter
from .pace import Pace
from .plan import NOT_FINITE
from .preprocess import Pixels
from .reader import Item
from .views import Views

if TYPE_CHECKING:
    from .embedder import Embedder, Pending

OnRows = Callable[[str, Keys, np.ndarray], None]
# Batches that are on a GPU while the next one is gathered.
IN_FLIGHT = 1


@dataclass(frozen=True, slots=True)
class Target:
    """What one network has to do in a run.

    Attributes
    ----------
    embedder : Embedder
    held : tuple of KeyIndex
        What the cache holds in each of the embedder's spaces.
    writers : tuple of PartWriter
        Where rows of each space go.
    """

    embedder: Embedder
    held: tuple[KeyIndex, ...]
    writers: tuple[PartWriter, ...]


class Batches:
    """Takes views of images, gives rows to the writers.

    Parameters
    ----------
    target : Target
    views : Views
    pace : Pace
        Told how long each batch took; it sets the embedder up for speed.
    reject : callable
        Told the item, the view and the reason where a row cannot be kept.
    on_rows : callable
        Told the id of a space, keys and their rows (n, D) in the space's dtype, as they are computed.

    Attributes
    ----------
    count : int
        Batches.
    loading, forward : float
        Seconds that loading the network took, and that its device was busy.
    """

    def __init__(
        self,
        target: Target,
        views: Views,
        pace: Pace,
        reject: Callable[[Item, int, str], None],
        on_rows: OnRows = lambda _space, _keys, _rows: None,
    ) -> None:
        self._target = target
        self._views = views
        self._on_rows = on_rows
        self._embedder = target.embedder
        self._pace = pace
        self._reject = reject
        self._items: list[tuple[Item, int]] = []  # with the number of the view
        self._pixels: list[Pixels] = []
        self._waiting: deque[tuple[list[tuple[Item, int]], Pending]] = deque()
        self._loaded = False
        self.count = 0
        self.loading = self.forward = 0.0

    def take(self, item: Item, view: int, pixels: Pixels) -> None:
        """Add one view of an image; send a batch through the network when it is full."""
        if not self._loaded:
            self._load()
        self._items.append((item, view))
        self._pixels.append(pixels)
        if len(self._items) >= self._embedder.batch_size:
            self._send()

    def finish(self) -> None:
        """Embed what has been gathered, and wait until all rows are safe."""
        if self._items:
            self._send()
        self.collect()
        for writer in self._target.writers:
            writer.flush()

    def collect(self) -> None:
        """Take in what is under way on the device."""
        while self._waiting:
            self._collect(*self._waiting.popleft())

    @property
    def oldest(self) -> Item | None:
        """The first image that was taken and whose rows are not written yet."""
        under_way = self._waiting[0][0] if self._waiting else self._items
        return under_way[0][0] if under_way else None

    @property
    def writing(self) -> float:
        """Seconds that writing parts has taken, beside the rest."""
        return sum(writer.seconds for writer in self._target.writers)

    def _load(self) -> None:
        begin = time.perf_counter()
        self._embedder.load()
        self._pace.begin()
        self._loaded = True
        self.loading = time.perf_counter() - begin

    def _send(self) -> None:
        self._waiting.append((self._items, self._embedder.begin(self._pixels)))
        self._items, self._pixels = [], []
        on_gpu = self._embedder.device.kind == "cuda" and self._pace.settled
        while len(self._waiting) > (IN_FLIGHT if on_gpu else 0):
            self._collect(*self._waiting.popleft())

    def _collect(self, items: list[tuple[Item, int]], pending: Pending) -> None:
        rows = pending.rows()
        self._write(items, self._embedder.columns(rows))
        seconds = pending.seconds()
        self.forward += seconds
        self.count += 1
        self._pace.took(len(items), seconds)

    def _write(self, items: list[tuple[Item, int]], columns: Sequence[np.ndarray]) -> None:
        good = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in columns])
        hint = "; pass --store-dtype float32" if columns[0].dtype == np.float16 else ""
        for place in np.flatnonzero(~good):
            item, view = items[place]
            self._reject(item, view, f"{NOT_FINITE}{f', that of view {view}' if view else ''}{hint}")
        digests = np.frombuffer(b"".join(item.digest for item, _ in items), np.uint8).reshape(-1, 32)
        keys = self._views.keys_of(digests, np.array([view for _, view in items]))
        spaces = self._embedder.spaces
        for space, rows, held, writer in zip(spaces, columns, self._target.held, self._target.writers, strict=True):
            wanted = good & (held.find(keys) < 0)
            stored = np.ascontiguousarray(rows[wanted], space.dtype)
            writer.add(keys[wanted], stored)
            self._on_rows(space.id, keys[wanted], stored)
