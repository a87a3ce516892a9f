"""The loop that joins reader, backbone and writer, timing each stage.

Threads read, hash and decode ahead of the network; the queue between them is bounded, so memory does not depend on the
number of images, and results are taken in the order of the listing, so what lies on disk does not depend on timing.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..cache.index import KeyIndex
from ..cache.listing import INODE
from ..cache.part import Keys
from ..cache.writer import PartWriter
from ..errors import DecodeError
from .decode import Decoded, decode
from .device import available_cores
from .embedder import Embedder
from .explain import Miss
from .files import EMPTY_FILE, Stat, read_with_stat
from .plan import NOT_FINITE
from .preprocess import to_input
from .suspects import Watch

STAGES = ("list", "read", "decode", "forward", "write")
ESTIMATE_AFTER = 3  # timed batches; the first one warms up and does not count


@dataclass(frozen=True, slots=True)
class Item:
    """One image on its way: its index in the listing, and what is known of it by now.

    `pixels` is None when the cache holds the image already; `reason` is set when the image is a failure; `replaced`
    says that another file was read than had been listed.
    """

    index: int
    digest: bytes = b""
    pixels: np.ndarray | None = None
    reason: str = ""
    replaced: bool = False
    animated: bool = False
    enlarged: bool = False


@dataclass(slots=True)
class Outcome:
    """What a run found out and did.

    Attributes
    ----------
    digest : ndarray of shape (N, 32), dtype uint8
        Of every image that was read, by its index in the listing; zeros elsewhere.
    failures : dict of int to str
    embedded : int
        Rows computed.
    animated, enlarged : int
        Images of which the first frame was taken; images smaller than the crop.
    stages : dict of str to float
        Busy seconds of each stage, summed over threads.
    seconds : float
        Wall time from the moment when the network was ready.
    workers : int
        Threads that read and decoded.
    interrupted : bool
        The run was asked to stop before it was through.
    replaced : list of int
        Images of which another file was read than had been listed.
    misses : list of Miss
        Why images were embedded although another space holds them.
    """

    digest: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)
    embedded: int = 0
    animated: int = 0
    enlarged: int = 0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    seconds: float = 0.0
    workers: int = 1
    interrupted: bool = False
    replaced: list[int] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


class Reader:
    """Turns file names into network input, in threads; counts the seconds that reading and decoding take."""

    def __init__(
        self,
        base: bytes,
        embedder: Embedder,
        index: KeyIndex,
        watch: Watch | None = None,
        stat: np.ndarray | None = None,
    ) -> None:
        self._base = base
        self._embedder = embedder
        self._index = index
        self._watch = watch
        self._lock = threading.Lock()
        self._stat = stat
        self.seconds = {"read": 0.0, "decode": 0.0}

    def read(self, number: int, name: bytes) -> Item:
        """Read one file once; digest and pixels come from the same bytes."""
        begin = time.perf_counter()
        try:
            data, found = read_with_stat(os.path.join(self._base, name))  # noqa: PTH118  (bytes, one call an image)
        except DecodeError as error:
            self._count("read", begin)
            # An empty file has been read; what could not be read has no digest, and is tried again next time.
            return Item(number, hashlib.sha256(b"").digest() if str(error) == EMPTY_FILE else b"", reason=str(error))
        digest, replaced = hashlib.sha256(data).digest(), self._is_another(number, found)
        begin = self._count("read", begin)
        if self._index.find(Keys.plain(np.frombuffer(digest, np.uint8)[None]))[0] >= 0:
            return Item(number, digest, replaced=replaced)
        try:
            decoded = self._decode(digest, data)
        except DecodeError as error:
            return Item(number, digest, reason=str(error), replaced=replaced)
        finally:
            self._count("decode", begin)
        import torch  # noqa: F401  (takes seconds the first time, which are not those of this stage)

        begin = time.perf_counter()
        pixels, enlarged = to_input(decoded.pixels, self._embedder.preprocess)
        self._count("decode", begin)
        return Item(number, digest, pixels, replaced=replaced, animated=decoded.animated, enlarged=enlarged)

    def _is_another(self, number: int, found: Stat) -> bool:
        """Tell whether a name led to another file than when it was listed: a folder may have been swapped since."""
        if self._stat is None:
            return False
        listed = tuple(self._stat[number].tolist())
        return listed[:INODE] != found[:INODE] or (listed[INODE] != 0 and listed[INODE] != found[INODE])

    def _decode(self, digest: bytes, data: bytes) -> Decoded:
        limit = self._embedder.run.max_pixels
        return self._watch.decode(digest, data, limit) if self._watch else decode(data, max_pixels=limit)

    def _count(self, stage: str, begin: float) -> float:
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - begin
        return now


def run(
    names: list[bytes],
    stat: np.ndarray,
    todo: np.ndarray,
    base: bytes,
    embedder: Embedder,
    index: KeyIndex,
    writer: PartWriter,
    *,
    watch: Watch | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
    on_rate: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """Embed what the cache lacks.

    Parameters
    ----------
    names : list of bytes, N
        Paths relative to `base`, or absolute.
    stat : ndarray of shape (N, 4), dtype int64
        What the files were when they were listed.
    todo : ndarray of shape (n,), dtype int64
        Which of them to look at, in this order.
    base : bytes
        Folder of the names.
    embedder : Embedder
    index : KeyIndex
        What the cache holds in the embedder's space; those images are read and hashed, not decoded.
    writer : PartWriter
    watch : Watch, optional
        Decodes the images, so that one which ends the process is passed by next time.
    stopped : callable
        Asked between batches; the run ends when it says True.
    progress : callable
        Told the number of images that went through since the last call.
    on_rate : callable
        Told once, after a few timed batches, how many images a second go through the network.

    Returns
    -------
    Outcome
    """
    outcome = Outcome(np.zeros((len(names), 32), np.uint8), workers=embedder.run.workers or available_cores())
    reader = Reader(base, embedder, index, watch, stat)
    collector = _Batches(outcome, embedder, writer, on_rate)
    with ThreadPoolExecutor(outcome.workers, thread_name_prefix="decode") as pool:
        items = _Ahead(pool, reader, names, todo, outcome.workers)
        try:
            for item in items:
                collector.take(item)
                progress(1)
                outcome.interrupted = stopped()
                if outcome.interrupted:
                    break
            else:
                collector.finish()
            outcome.seconds = time.perf_counter() - collector.begun
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if watch:
                watch.stop()
            outcome.stages.update(reader.seconds)
    return outcome


class _Ahead:
    """Items in the order of `todo`, a bounded number of them read ahead, the first ones from the start."""

    def __init__(
        self, pool: ThreadPoolExecutor, reader: Reader, names: list[bytes], todo: np.ndarray, workers: int
    ) -> None:
        self._submit = lambda number: pool.submit(reader.read, number, names[number])
        self._numbers = iter(todo.tolist())
        ahead = 4 * workers + 64  # of network inputs, 150 kB each at 224 pixels
        self._waiting: deque[Future[Item]] = deque(map(self._submit, itertools.islice(self._numbers, ahead)))

    def __iter__(self) -> Iterator[Item]:
        while self._waiting:
            item = self._waiting.popleft().result()
            self._waiting.extend(map(self._submit, itertools.islice(self._numbers, 1)))
            yield item


class _Batches:
    """Gathers pixels into batches, sends them through the network, and hands the rows to the writer."""

    def __init__(
        self, outcome: Outcome, embedder: Embedder, writer: PartWriter, on_rate: Callable[[float], None]
    ) -> None:
        self._outcome = outcome
        self._embedder = embedder
        self._writer = writer
        self._on_rate = on_rate
        self.begun = time.perf_counter()
        self._batch: list[Item] = []
        self._batches = 0
        self._timed_from = (0.0, 0)
        self._seen: set[bytes] = set()
        self._copies: dict[bytes, list[int]] = {}  # further images of the same bytes
        self._rejected: dict[bytes, str] = {}

    def take(self, item: Item) -> None:
        """Account for one image; embed a batch when it is full."""
        if item.digest:
            self._outcome.digest[item.index] = np.frombuffer(item.digest, np.uint8)
        if item.reason:
            self._outcome.failures[item.index] = item.reason
        if item.replaced:
            self._outcome.replaced.append(item.index)
        self._outcome.animated += item.animated
        self._outcome.enlarged += item.enlarged
        if item.digest in self._rejected:
            self._outcome.failures[item.index] = self._rejected[item.digest]
        elif item.digest in self._seen:
            self._copies.setdefault(item.digest, []).append(item.index)
        elif item.pixels is not None:
            if not self._seen:
                self._embedder.load()
                self.begun = time.perf_counter()
            self._seen.add(item.digest)
            self._batch.append(item)
        if self._batch and len(self._batch) >= self._embedder.batch_size:
            self.finish()

    def finish(self) -> None:
        """Embed what has been gathered."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        begin = time.perf_counter()
        rows = self._embedder.embed(np.stack([item.pixels for item in batch if item.pixels is not None]))
        middle = time.perf_counter()
        self._write(batch, rows)
        self._outcome.stages["forward"] += middle - begin
        self._outcome.stages["write"] += time.perf_counter() - middle
        self._estimate()

    def _estimate(self) -> None:
        self._batches += 1
        if self._batches == 1:  # the first batch warms up
            self._timed_from = (time.perf_counter(), self._outcome.embedded)
        elif self._batches == 1 + ESTIMATE_AFTER:
            since, before = self._timed_from
            self._on_rate((self._outcome.embedded - before) / (time.perf_counter() - since))

    def _write(self, batch: list[Item], rows: np.ndarray) -> None:
        good = np.isfinite(rows).all(axis=1)
        hint = "; pass --store-dtype float32" if rows.dtype == np.float16 else ""
        for place in np.flatnonzero(~good):
            item = batch[place]
            self._rejected[item.digest] = f"{NOT_FINITE}{hint}"
            for index in (item.index, *self._copies.get(item.digest, ())):
                self._outcome.failures[index] = self._rejected[item.digest]
        digests = np.frombuffer(b"".join(item.digest for item in batch), np.uint8).reshape(-1, 32)
        self._writer.add(digests[good], rows[good])
        self._outcome.embedded += int(good.sum())
