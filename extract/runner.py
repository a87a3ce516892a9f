"""The loop that joins reader, networks and writers, timing each stage.

Threads read, hash and decode ahead of the networks, and others write parts behind them; the queues between are bounded,
so memory does not depend on the number of images, and results are taken in the order of the listing, so the order of
rows on disk does not depend on timing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..cache.failures import Failures
from ..cache.names import Names
from ..cache.place import Place
from .access import access_to
from .batches import Batches, OnRows, Target
from .explain import Miss
from .gpu_decode import BATCH, gpu_decoder
from .options import RunOptions
from .pace import QUIET_IMAGES, Pace
from .phash import KnownHashes
from .reader import TOGETHER, Ahead, Item, Need, Reader
from .suspects import Watch
from .views import PLAIN, Views

logger = logging.getLogger("headstart.extract")

Steps = Generator[tuple[int, "Outcome"], None, "Outcome"]
Result = TypeVar("Result")
STAGES = ("list", "read", "decode", "forward", "write")
ESTIMATE_OVER = 64  # images, after the quiet ones at the start


@dataclass(slots=True)
class Outcome:
    """What a run found out and did.

    Attributes
    ----------
    digest : ndarray of shape (N, 32), dtype uint8
        Of every image that was read, by its index in the listing; zeros elsewhere.
    phash : ndarray of shape (N,), dtype uint64
        Perceptual hash of every image that was decoded for one or is known by its digest; 0 elsewhere.
    failures : Failures
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
    workers, writers, processes : int
        Threads that read and decoded, threads that wrote, and processes that shared the work.
    waiting : int
        Threads that waited for a store beside the workers.
    shards, retried : int
        Into how many pieces the work was cut for them, and how often one of those was begun again.
    device : str
        Kind of the device that the networks ran on, those of several with a plus between them; "none" where none ran.
    interrupted : bool
        The run was asked to stop before it was through.
    replaced : list of int
        Images of which another file was read than had been listed.
    misses : list of Miss
        Why images were embedded although another space holds them.
    tried : dict of bytes to str
        Suspects that were tried apart, and how they crashed; empty where they did not. By their digests.
    """

    digest: np.ndarray
    phash: np.ndarray
    failures: Failures = field(default_factory=Failures)
    images: int = 0
    embedded: dict[str, int] = field(default_factory=dict)
    animated: int = 0
    enlarged: int = 0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    seconds: float = 0.0
    workers: int = 1
    writers: int = 1
    waiting: int = 0
    processes: int = 1
    shards: int = 1
    retried: int = 0
    device: str = "none"
    interrupted: bool = False
    replaced: list[int] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    tried: dict[bytes, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, images: int) -> Outcome:
        """Return that of a run of so many images before it has looked at any."""
        return cls(np.zeros((images, 32), np.uint8), np.zeros(images, np.uint64))


@dataclass(frozen=True, slots=True)
class Work:
    """Images to look at.

    Attributes
    ----------
    names : Names, N
        Paths relative to `base`, or absolute.
    stat : ndarray of shape (N, 4), dtype int64
        What the files were when they were listed.
    todo : ndarray of shape (n,), dtype int64
        Which of them to look at, in this order.
    base : bytes
        Folder of the names.
    shares : int, default 1
        How many shares of this size the run was divided into.
    hashes : KnownHashes, optional
        The perceptual hashes that need not be computed. None where none are wanted at all.
    views : Views, default `PLAIN`
        Which views of an image are embedded.
    counts : ndarray of shape (N,), dtype int64, optional
        How many views each image has; all of them where it is None.
    ahead : int, default 0
        Rows that this process may come to in all, if more than those of this work.
    """

    names: Names
    stat: np.ndarray
    todo: np.ndarray
    base: bytes
    shares: int = 1
    hashes: KnownHashes | None = None
    views: Views = PLAIN
    counts: np.ndarray | None = None
    ahead: int = 0

    @property
    def rows(self) -> int:
        """How many rows the images to look at have in one space, those that are there already among them."""
        return len(self.todo) * self.views.count if self.counts is None else int(self.counts[self.todo].sum())

    def share(self, mine: np.ndarray, count: int) -> Work:
        """Return one of `count` shares, the rows `mine` of what is to do, with no more than their own names."""
        names = self.names.take(mine)
        counts = None if self.counts is None else self.counts[mine]
        return Work(names, self.stat[mine], np.arange(len(mine)), self.base, count, self.hashes, self.views, counts)


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a run is told to stop, and tells how it goes.

    Attributes
    ----------
    stopped : callable
        Asked before each image; when it says True the run ends, with what is under way on the device.
    progress : callable
        Told the number of images that went through since the last call.
    on_rate : callable
        Told once, after a while, how many images a second go through, and how many have.
    on_rows : callable
        Told the id of a feature space, keys and their rows (n, D) in the space's dtype, as they are computed; not where
        several processes share the work.
    """

    stopped: Callable[[], bool] = lambda: False
    progress: Callable[[int], None] = lambda _: None
    on_rate: Callable[[float, int], None] = lambda _rate, _done: None
    on_rows: OnRows = lambda _space, _keys, _rows: None


def run(work: Work, targets: Sequence[Target], options: RunOptions, cache: Place) -> Outcome:
    """Embed what the cache lacks; see `run_in_steps`."""
    return result_of(run_in_steps(work, targets, options, cache))


def result_of(steps: Generator[Any, None, Result]) -> Result:
    """Go through all steps of some work, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def run_in_steps(
    work: Work,
    targets: Sequence[Target],
    options: RunOptions,
    cache: Place,
    watch: Watch | None = None,
    hooks: Hooks | None = None,
) -> Steps:
    """Embed what the cache lacks, an image a step; closed before its end, it leaves what was written.

    Parameters
    ----------
    work : Work
    targets : sequence of Target
        The networks; each image is decoded once for all of them. What all of their spaces hold is read and hashed, and
        decoded only for a perceptual hash that is wanted and not known.
    options : RunOptions
    cache : Path or RemotePath
        Where figures about speed are remembered.
    watch : Watch, optional
        Decodes the images, so that one which ends the process is passed by next time.
    hooks : Hooks, optional

    Yields
    ------
    settled : int
        An index into the listing: of all images before it that were to be looked at, it is known what became of them.
    outcome : Outcome
        What has been found out so far; always the same object.

    Returns
    -------
    Outcome
        Without `embedded`, `misses` and `tried`.
    """
    hooks = hooks or Hooks()
    workers = options.threads
    outcome = Outcome.empty(len(work.names))
    outcome.workers = workers
    outcome.writers = sum(len(target.writers) for target in targets)
    with contextlib.ExitStack() as stack:
        embedder, gpu = targets[0].embedder, None
        if embedder.asked[0].decoder != "cpu":
            gpu = gpu_decoder(embedder.asked[0].decoder, embedder.device, options.max_pixels)
        if gpu is not None:
            stack.enter_context(gpu)
            if work.views.count > 1:
                logger.info("a picture that gets augmented views is decoded by the processor, not by the GPU")
        access = access_to(work.base, work.names, work.stat, work.todo)
        outcome.waiting = access.in_flight
        # Threads that wait for the GPU, or for a store, take no core.
        waiting = (2 * BATCH if gpu else 0) + access.in_flight
        pool = stack.enter_context(ThreadPoolExecutor(workers + waiting, thread_name_prefix="decode"))
        needs = [Need(target.embedder.preprocess, target.held, work.views) for target in targets]
        reader = Reader(
            work.base, needs, options.max_pixels, watch, work.stat, gpu, workers, work.hashes, work.counts, access
        )  # fmt: skip
        # Beside a GPU that decodes, threads wait for it picture by picture. Augmented views are made on a CPU.
        threads, together = (workers + BATCH, 1) if gpu and work.views.count == 1 else (workers, TOGETHER)
        if access.in_flight:
            threads, together = threads + access.in_flight, 1
        items = Ahead(pool, reader, work.names, work.todo, threads, QUIET_IMAGES, together, work.views.count)
        flow = _Flow(outcome, reader, targets, work, cache, hooks, items.wait)
        try:
            for item in items:
                outcome.interrupted = hooks.stopped()
                if outcome.interrupted:
                    flow.collect()
                    yield flow.settled, outcome
                    break
                flow.take(item)
                hooks.progress(1)
                yield flow.settled, outcome
            else:
                flow.finish()
                yield flow.settled, outcome
        finally:
            items.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if watch:
                watch.stop()
            flow.account()
            for target in targets:
                target.embedder.rest()
    return outcome


class _Flow:
    """Gives each image to the networks that need it, and keeps account of what became of it."""

    def __init__(
        self,
        outcome: Outcome,
        reader: Reader,
        targets: Sequence[Target],
        work: Work,
        cache: Place,
        hooks: Hooks,
        wait: Callable[[float], None],
    ) -> None:
        self._outcome = outcome
        self._reader = reader
        self._on_rate: Callable[[float, int], None] | None = hooks.on_rate
        self._batches = [
            Batches(
                target,
                work.views,
                Pace(target.embedder, max(work.rows, work.ahead), self._decoding, cache, wait),
                self._reject,
                hooks.on_rows,
            )
            for target in targets
        ]
        self._next = 0
        self._taken, self._todo = 0, len(work.todo)
        self._ordered = bool((np.diff(work.todo) > 0).all())
        self._begun: float | None = None
        self._loaded_first = 0.0
        self._timed_from = (0.0, 0)
        self._seen: dict[bytes, int] = {}  # of how many views images were taken, by their digests
        self._copies: dict[bytes, list[tuple[int, int]]] = {}  # further images of the same bytes, and of how many views
        self._rejected: dict[bytes, tuple[int, str]] = {}  # a view that cannot be kept, and why

    def take(self, item: Item) -> None:
        """Account for one image, and give it to the networks."""
        outcome = self._outcome
        self._taken += 1
        self._next = item.index + 1 if self._ordered else max(self._next, item.index + 1)
        if item.digest:
            outcome.digest[item.index] = np.frombuffer(item.digest, np.uint8)
            outcome.phash[item.index] = item.phash
        if item.reason:
            outcome.failures[item.index] = item.reason
        if item.replaced:
            outcome.replaced.append(item.index)
        outcome.animated += item.animated
        outcome.enlarged += item.enlarged
        rejected, reason = self._rejected.get(item.digest, (item.views, ""))
        if rejected < item.views:
            outcome.failures[item.index] = reason
            return
        seen = self._seen.get(item.digest, 0)
        if seen:
            self._copies.setdefault(item.digest, []).append((item.index, item.views))
        if item.inputs and item.views > seen:
            self._embed(item, seen)

    @property
    def settled(self) -> int:
        """The index of the first image that is under way, or of the one after the last that was taken."""
        pending = [item.index for item in (one.oldest for one in self._batches) if item is not None]
        if not self._ordered and (pending or self._taken < self._todo):
            return 0  # the lowest index may be under way, or not taken yet
        return min([self._next, *pending])

    def finish(self) -> None:
        """Embed what has been gathered."""
        for batches in self._batches:
            batches.finish()

    def collect(self) -> None:
        """Take in what is under way, and no more."""
        for batches in self._batches:
            batches.collect()

    def account(self) -> None:
        """Add up what each stage took."""
        stages, batches = self._outcome.stages, self._batches
        stages.update(self._reader.seconds)
        stages["forward"] = sum(one.forward for one in batches)
        stages["write"] = sum(one.writing for one in batches)
        if self._begun is not None:
            later = sum(one.loading for one in batches) - self._loaded_first
            self._outcome.seconds = time.perf_counter() - self._begun - later

    def _embed(self, item: Item, seen: int) -> None:
        """Give the views of an image to the networks, without the first `seen`, which a copy of it has brought."""
        self._seen[item.digest] = item.views
        self._outcome.images += not seen
        for batches, inputs in zip(self._batches, item.inputs, strict=True):
            for view, pixels in inputs.items():
                if view < seen:
                    continue
                batches.take(item, view, pixels)
                if self._begun is None:
                    self._loaded_first = batches.loading
                    self._begun = time.perf_counter()
        self._estimate()

    def _estimate(self) -> None:
        """Tell the rate of the whole run once decoding and networks have run beside each other for a while."""
        done = self._outcome.images
        if self._on_rate is None or done < QUIET_IMAGES or not any(one.count for one in self._batches):
            return
        since, before = self._timed_from
        if not before:
            self._timed_from = (time.perf_counter(), done)
        elif done >= before + ESTIMATE_OVER:
            self._on_rate((done - before) / (time.perf_counter() - since), done)
            self._on_rate = None

    def _decoding(self) -> tuple[float, int]:
        """Return the work of decoding for each of the networks that share it."""
        seconds, images = self._reader.work()
        return seconds / len(self._batches), images

    def _reject(self, item: Item, view: int, reason: str) -> None:
        """Count an image as a failure, and its copies as far as they have that view too."""
        if view < self._rejected.get(item.digest, (item.views, ""))[0]:
            self._rejected[item.digest] = view, reason
        for index, views in ((item.index, item.views), *self._copies.get(item.digest, ())):
            if views > view:
                self._outcome.failures.setdefault(index, reason)
