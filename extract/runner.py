"""The loop that joins reader, networks and writers, timing each stage.

Threads read, hash and decode ahead of the networks, and others write parts behind them; the queues between are bounded,
so memory does not depend on the number of images, and results are taken in the order of the listing, so what lies on
disk does not depend on timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .batches import Batches, Target
from .device import available_cores
from .explain import Miss
from .options import RunOptions
from .pace import QUIET_IMAGES, Pace
from .reader import Ahead, Item, Reader
from .suspects import Watch

STAGES = ("list", "read", "decode", "forward", "write")
ESTIMATE_AFTER = 3  # timed batches; the first one warms up and does not count


@dataclass(slots=True)
class Outcome:
    """What a run found out and did.

    Attributes
    ----------
    digest : ndarray of shape (N, 32), dtype uint8
        Of every image that was read, by its index in the listing; zeros elsewhere.
    failures : dict of int to str
    images : int
        Images that went through a network.
    embedded : dict of str to int
        Rows computed of images that did not fail, by feature space.
    animated, enlarged : int
        Images of which the first frame was taken; images smaller than the crop.
    stages : dict of str to float
        Busy seconds of each stage, summed over threads.
    seconds : float
        Wall time from the moment when the first network was ready, without the time that others took to load.
    workers, processes : int
        Threads that read and decoded, and processes that shared the work.
    interrupted : bool
        The run was asked to stop before it was through.
    replaced : list of int
        Images of which another file was read than had been listed.
    misses : list of Miss
        Why images were embedded although another space holds them.
    """

    digest: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)
    images: int = 0
    embedded: dict[str, int] = field(default_factory=dict)
    animated: int = 0
    enlarged: int = 0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    seconds: float = 0.0
    workers: int = 1
    processes: int = 1
    interrupted: bool = False
    replaced: list[int] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


def run(
    names: list[bytes],
    stat: np.ndarray,
    todo: np.ndarray,
    base: bytes,
    targets: Sequence[Target],
    options: RunOptions,
    cache: Path,
    *,
    watch: Watch | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
    on_rate: Callable[[float, int], None] = lambda _rate, _done: None,
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
    targets : sequence of Target
        The networks; each image is decoded once for all of them. What all of their spaces hold is read and hashed, not
        decoded.
    options : RunOptions
    cache : Path
        Where figures about speed are remembered.
    watch : Watch, optional
        Decodes the images, so that one which ends the process is passed by next time.
    stopped : callable
        Asked between batches; the run ends when it says True.
    progress : callable
        Told the number of images that went through since the last call.
    on_rate : callable
        Told once, after a few timed batches, how many images a second go through, and how many have.

    Returns
    -------
    Outcome
        Without `embedded` and `misses`.
    """
    outcome = Outcome(np.zeros((len(names), 32), np.uint8), workers=options.workers or available_cores())
    reader = Reader(base, [target.need for target in targets], options.max_pixels, watch, stat)
    flow = _Flow(outcome, reader, targets, todo.size, cache, on_rate)
    with ThreadPoolExecutor(outcome.workers, thread_name_prefix="decode") as pool:
        items = Ahead(pool, reader, names, todo, outcome.workers, QUIET_IMAGES)
        try:
            for item in items:
                flow.take(item)
                progress(1)
                outcome.interrupted = stopped()
                if outcome.interrupted:
                    break
            else:
                flow.finish()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if watch:
                watch.stop()
            flow.account()
    return outcome


class _Flow:
    """Gives each image to the networks that need it, and keeps account of what became of it."""

    def __init__(
        self,
        outcome: Outcome,
        reader: Reader,
        targets: Sequence[Target],
        images: int,
        cache: Path,
        on_rate: Callable[[float, int], None],
    ) -> None:
        self._outcome = outcome
        self._reader = reader
        self._on_rate: Callable[[float, int], None] | None = on_rate
        self._batches = [
            Batches(target, Pace(target.embedder, images, self._decoding, cache), self._reject) for target in targets
        ]
        self._begun: float | None = None
        self._loaded_first = 0.0
        self._timed_from = (0.0, 0)
        self._seen: set[bytes] = set()
        self._copies: dict[bytes, list[int]] = {}  # further images of the same bytes
        self._rejected: dict[bytes, str] = {}

    def take(self, item: Item) -> None:
        """Account for one image, and give it to the networks."""
        outcome = self._outcome
        if item.digest:
            outcome.digest[item.index] = np.frombuffer(item.digest, np.uint8)
        if item.reason:
            outcome.failures[item.index] = item.reason
        if item.replaced:
            outcome.replaced.append(item.index)
        outcome.animated += item.animated
        outcome.enlarged += item.enlarged
        if item.digest in self._rejected:
            outcome.failures[item.index] = self._rejected[item.digest]
        elif item.digest in self._seen:
            self._copies.setdefault(item.digest, []).append(item.index)
        elif item.pixels:
            self._embed(item)

    def finish(self) -> None:
        """Embed what has been gathered."""
        for batches in self._batches:
            batches.finish()

    def account(self) -> None:
        """Add up what each stage took."""
        stages, batches = self._outcome.stages, self._batches
        stages.update(self._reader.seconds)
        stages["forward"] = sum(one.forward for one in batches)
        stages["write"] = sum(one.writing for one in batches)
        if self._begun is not None:
            later = sum(one.loading for one in batches) - self._loaded_first
            self._outcome.seconds = time.perf_counter() - self._begun - later

    def _embed(self, item: Item) -> None:
        self._seen.add(item.digest)
        self._outcome.images += 1
        for batches, pixels in zip(self._batches, item.pixels, strict=True):
            if pixels is not None:
                batches.take(item, pixels)
                if self._begun is None:
                    self._loaded_first = batches.loading
                    self._begun = time.perf_counter()
        self._estimate()

    def _estimate(self) -> None:
        """Tell the rate of the whole run once the first network has had its first few batches."""
        count = self._batches[0].count
        if self._on_rate is None or count == 0:
            return
        if self._timed_from[1] == 0:  # the first batch warms up
            self._timed_from = (time.perf_counter(), self._outcome.images)
        elif count > ESTIMATE_AFTER:
            since, before = self._timed_from
            self._on_rate((self._outcome.images - before) / (time.perf_counter() - since), self._outcome.images)
            self._on_rate = None

    def _decoding(self) -> tuple[float, int]:
        """Return the work of decoding for each of the networks that share it."""
        seconds, images = self._reader.work()
        return seconds / len(self._batches), images

    def _reject(self, item: Item, reason: str) -> None:
        self._rejected[item.digest] = reason
        for index in (item.index, *self._copies.get(item.digest, ())):
            self._outcome.failures[index] = reason
