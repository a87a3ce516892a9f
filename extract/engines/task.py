"""What a worker does: one shard after the other, with the networks that it has loaded for the first of them.

A process may be given several shards at once, as a Dask worker of several threads is. They are done one after the
other, each with all the threads of the worker: the network is there once, and its threads would only wait for others.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ...cache.datasets import load_listing
from ...cache.index import KeyIndex
from ...cache.part import PartHead
from ...cache.place import Place
from ...cache.running import running
from ...cache.source import source_of
from ...cache.store import FeatureStore
from ..embedder import Embedder
from ..memory import give_back_memory
from ..options import RunOptions
from ..orders import Message, Order, Record
from ..phash import KnownHashes
from ..runner import Hooks, Outcome
from ..work import embed_work
from .connect import EngineError
from .fitness import lacking

logger = logging.getLogger("headstart.extract")

Tell = Callable[[Message], None]

TOLD_EVERY = 0.1  # seconds; a message for each of thousands of images a second would keep the run busy
KEPT_SECONDS = 60.0  # that networks stay loaded after a shard
_LOOK_EVERY = 0.1  # seconds between two looks at whether a shard that waits for its turn is wanted at all


@dataclass(frozen=True, slots=True)
class Here:
    """Who does a shard, and how it hears and is heard.

    Attributes
    ----------
    worker : str
        What this process is called.
    threads : int or None
        That it may use; None for one a core that it may run on.
    stopped : callable
        Says True when nobody wants the rest any more.
    tell : callable
        Takes messages.
    tell_every : float, default `TOLD_EVERY`
        Seconds between two messages on how far it has come.
    """

    worker: str
    threads: int | None
    stopped: Callable[[], bool]
    tell: Tell
    tell_every: float = TOLD_EVERY


def embed_shard(order: Order, here: Here, begun: Callable[[], None] = lambda: None) -> Record:
    """Embed the images of one shard that the cache lacks by now.

    Parameters
    ----------
    order : Order
    here : Here
    begun : callable
        Called when it is this shard's turn.

    Raises
    ------
    EngineError
        This process is not fit for the run.
    HeadstartError
        As the run itself would meet it.
    """
    with _turn(here.stopped) as ours:
        if not ours:
            outcome = Outcome.empty(len(order.work.names))
            outcome.interrupted = True
            return Record(here.worker, outcome)
        begun()
        try:
            with _told(here.tell, logging.INFO if order.number == 0 else logging.WARNING):
                return Record(here.worker, _embed(order, here))
        finally:
            _kept.keep_for_a_while()


@dataclass(slots=True)
class _Kept:
    """What a process keeps from one shard to the next.

    Attributes
    ----------
    lock : Lock
        Held while a shard is done.
    timer : Timer or None
        Frees all of it when no further shard comes: a worker of a cluster lives on, and has other things to do.
    run_name : str
        Of the run that `heads` and `hashes` belong to.
    key : str
        What leads to the embedders.
    heads : dict of str to dict of place to PartHead
        The parts that have been read, by space: they never change.
    hashes : KnownHashes or None
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    timer: threading.Timer | None = None
    run_name: str = ""
    key: str = ""
    embedders: list[Embedder] = field(default_factory=list)
    heads: dict[str, dict[Place, PartHead]] = field(default_factory=dict)
    hashes: KnownHashes | None = None

    def begin(self, order: Order, threads: int | None) -> None:
        """Take up a run, if this is the first shard of one.

        Raises
        ------
        EngineError
            This process is not fit for it.
        """
        if self.run_name == order.run_name:
            return
        if order.token is not None and (lack := lacking(order.token)):
            raise EngineError(lack)
        self.heads = {}
        self.hashes = None if order.hashes_of is None else _hashes(order.cache, order.hashes_of)
        key = repr((order.networks, order.run))
        if key != self.key:
            self.forget_networks()
            run = _run_of(order.run, threads)
            self.embedders = [Embedder(spaces, asked, run) for spaces, asked in order.networks]
            for embedder in self.embedders:
                embedder.cores = threads
            self.key = key
        self.run_name = order.run_name

    def keep_for_a_while(self) -> None:
        """Free all of it when nothing has come for a while."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = threading.Timer(KEPT_SECONDS, _let_go)
        self.timer.daemon = True
        self.timer.start()

    def forget_networks(self) -> None:
        """Let go of the networks."""
        for embedder in self.embedders:
            embedder.unload()
        self.embedders, self.key, self.run_name = [], "", ""

    def held(self, store: FeatureStore, space_id: str) -> KeyIndex:
        """Return what the cache holds by now, reading no part twice."""
        heads = store.heads(space_id, self.heads.setdefault(space_id, {}))
        return KeyIndex([head.keys for head in heads])


_kept = _Kept()


def _let_go() -> None:
    """Free what this process keeps of runs, unless it is at one."""
    if _kept.lock.acquire(blocking=False):
        try:
            _kept.forget_networks()
            _kept.heads, _kept.hashes = {}, None
            give_back_memory()  # which forward passes keep; a worker's scheduler looks at what its process has
        finally:
            _kept.lock.release()


@contextlib.contextmanager
def _turn(stopped: Callable[[], bool]) -> Iterator[bool]:
    """Wait until no other shard is done in this process; False where this one is not wanted any more."""
    ours = _kept.lock.acquire(blocking=False)
    while not ours and not stopped():
        ours = _kept.lock.acquire(timeout=_LOOK_EVERY)
    try:
        yield ours
    finally:
        if ours:
            _kept.lock.release()


def _embed(order: Order, here: Here) -> Outcome:
    _kept.begin(order, here.threads)
    store = FeatureStore(order.cache)
    with running(store.root) as descriptor:
        held = {space.id: _kept.held(store, space.id) for spaces, _ in order.networks for space in spaces}
        progress = _Progress(here)
        work = replace(order.work, hashes=_kept.hashes)
        outcome = embed_work(store, _kept.embedders, held, work, descriptor, Hooks(here.stopped, progress.add))
        progress.tell()
        return outcome


def _run_of(run: RunOptions, threads: int | None) -> RunOptions:
    """Return how this process goes about its work, with no more threads than it may have."""
    return run if threads is None else replace(run, workers=min(run.workers or threads, threads))


def _hashes(cache: Place, dataset: str) -> KnownHashes:
    listing = load_listing(cache, source_of(dataset))
    if listing is None:
        return KnownHashes.of(np.zeros((0, 32), np.uint8), np.zeros(0, np.uint64))
    return KnownHashes.of(listing.digest, listing.phash)


class _Progress:
    """Tells how many images of a shard went through: at the first one, and then now and then."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._count = 0
        self._told = -math.inf

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._told >= self._here.tell_every:
            self.tell()

    def tell(self) -> None:
        self._here.tell(Message(through=self._count))
        self._told = time.monotonic()


@contextlib.contextmanager
def _told(tell: Tell, level: int) -> Iterator[None]:
    """Hand what is logged while a shard is done to the run, which shows it."""
    handler, before = _ToRun(tell, level), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _ToRun(logging.Handler):
    """Sends log records to the run."""

    def __init__(self, tell: Tell, level: int) -> None:
        super().__init__(level)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Message(log=(record.levelno, record.getMessage())))
