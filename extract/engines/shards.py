"""A run in pieces: the images to look at are cut into shards, an engine has them done, their records make the whole."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ...cache.place import Place
from ...cache.publish import sortable_id
from ...cache.store import FeatureStore
from ...errors import printable
from ..embedder import Embedder
from ..options import RunOptions, SpaceOptions
from ..orders import Network, Order, Record, Token
from ..runner import Hooks, Outcome, Work
from ..suspects import forget

logger = logging.getLogger("headstart.extract")

SHARD_IMAGES = 2000
# Before each shard a worker looks at what the cache holds, which takes the longer the more that is. So of very many
# images a shard has so many that there are no more shards than this.
SHARDS_AT_MOST = 2000
SHARDS_A_WORKER = 4  # at least, so that one that comes late at the end holds up a small part of the run
LEAST_IMAGES = 16  # of a shard that nobody asked for: fewer are not worth a part of their own
TRIES = 3  # of a shard that ends those who do it, and comes no further meanwhile
SLOW = 3  # times as long as the median takes a shard that is given to a second worker
ESTIMATE_AFTER = 3.0  # seconds of work from which the rest is estimated
ESTIMATE_OVER = 64  # images


class Engine(Protocol):
    """Where shards are done."""

    name: str

    def workers(self) -> int:
        """Return how many processes there are to do shards; on a cluster that may change."""

    def ready(self, stopped: Callable[[], bool]) -> int:
        """Wait until there is a worker, or until `stopped` says True, and return how many there are.

        Raises
        ------
        EngineError
            None has come.
        """

    def share(self, run: RunOptions) -> RunOptions:
        """Return how each of the workers goes about its share."""

    def run(self, shards: Shards, report: Report, stopped: Callable[[], bool]) -> Iterator[tuple[int, Record]]:
        """Have all shards done, in any order; those whose worker dies are done again.

        Closed before its end, or when `stopped` says True, it lets those who work finish the part in hand, and gives no
        further shard out.

        Parameters
        ----------
        shards : Shards
        report : Report
            Told how it goes.
        stopped : callable

        Yields
        ------
        number : int
            Of a shard, each once.
        record : Record

        Raises
        ------
        HeadstartError
            A shard failed, or has ended those who did it several times; or the engine is gone.
        """


@dataclass(frozen=True, slots=True)
class Shards:
    """The work of a run, cut into pieces; the order for each is made when it is asked for.

    Attributes
    ----------
    name : str
        Of the run.
    cache : Path or RemotePath
    networks : list of tuple of (list of FeatureSpace, list of SpaceOptions)
    run : RunOptions
    work : Work
    rows : list of ndarray of int64
        The images of each shard, by their places in `work`.
    workers : int
        How many share them.
    hashes_of : str or None
        As `Order` has it.
    """

    name: str
    cache: Place
    networks: list[Network]
    run: RunOptions
    work: Work
    rows: list[np.ndarray]
    workers: int
    hashes_of: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, number: int) -> int:
        """Return how many images a shard has."""
        return len(self.rows[number])

    def order(self, number: int, token: Token | None = None) -> Order:
        """Return what is to be done for one shard."""
        work = self.work.share(self.rows[number], len(self))
        # What each worker may still come to do, by which it finds its pace: as if the shards before were done.
        left = work.rows * -(-(len(self) - number) // self.workers)
        work = replace(work, hashes=None, ahead=left)
        return Order(self.name, number, self.cache, self.networks, self.run, work, self.hashes_of, token)

    def told(self, number: int) -> str:
        """Return what a shard is called in a message."""
        first = self.work.names[int(self.rows[number][0])]
        return f"shard {number + 1} of {len(self)} ({self.images(number)} images from {printable(first)} on)"

    def weights(self) -> tuple[bytes, ...]:
        """Return the files that networks are loaded from, as far as the user has named them."""
        named = {asked.weights for _, options in self.networks for asked in options} - {"default", "none"}
        return tuple(sorted(os.fsencode(name) for name in named))

    def elsewhere(self) -> Shards:
        """Return the same for workers that may have another working directory."""
        networks = [(spaces, [_absolute(asked) for asked in options]) for spaces, options in self.networks]
        cache = self.cache.absolute() if isinstance(self.cache, Path) else self.cache
        return replace(self, cache=cache, networks=networks)


def _absolute(asked: SpaceOptions) -> SpaceOptions:
    if asked.weights in ("default", "none") or not Path(asked.weights).exists():
        return asked
    return replace(asked, weights=str(Path(asked.weights).absolute()))


def shard_count(images: int, workers: int, most: int | None = None) -> int:
    """Return into how many shards to cut so many images.

    Parameters
    ----------
    images, workers : int
    most : int, optional
        Images a shard, where the user says it. Else as many as `SHARD_IMAGES`, or more, so that there are no more than
        `SHARDS_AT_MOST`, or fewer, so that there are `SHARDS_A_WORKER` for each worker, but not fewer than
        `LEAST_IMAGES`.
    """
    if most is None:
        most = max(SHARD_IMAGES, -(-images // SHARDS_AT_MOST))
        most = max(LEAST_IMAGES, min(most, -(-images // (SHARDS_A_WORKER * max(workers, 1)))))
    return max(1, -(-images // most))


def is_late(seconds: float, took: Sequence[float]) -> bool:
    """Tell whether a shard has been under way for so long that a second worker is to do it, by what others took."""
    return len(took) > 1 and seconds > SLOW * statistics.median(took)


class Report:
    """What is heard of a run while its shards are done.

    Parameters
    ----------
    shards : Shards
    hooks : Hooks

    Attributes
    ----------
    retried : int
        How often a shard was begun again.
    """

    def __init__(self, shards: Shards, hooks: Hooks) -> None:
        self._shards = shards
        self._hooks = hooks
        self._through = [0] * len(shards)
        self._begun: tuple[float, int] | None = None
        self._estimated = False
        self.retried = 0

    def through(self, number: int, images: int) -> None:
        """Take note of how many images of a shard have gone through; where it was begun again, the most counts."""
        gained = images - self._through[number]
        if gained <= 0:
            return
        self._through[number] = images
        self._hooks.progress(gained)
        self._estimate()

    def reached(self, number: int) -> int:
        """Return how many images of a shard have gone through, whoever did them."""
        return self._through[number]

    def again(self, number: int, why: str) -> None:
        """Say that a shard has to be begun again."""
        self.retried += 1
        logger.warning("%s: %s is embedded again, but for what was published", why, self._shards.told(number))

    def log(self, level: int, text: str) -> None:
        """Show a line from elsewhere."""
        logger.log(level, "%s", text)

    def _estimate(self) -> None:
        """Tell the rate of the run once a few seconds of it have passed."""
        now, done = time.monotonic(), sum(self._through) if not self._estimated else 0
        if self._begun is None:
            self._begun = now, done
        since, before = self._begun
        if not self._estimated and now - since >= ESTIMATE_AFTER and done - before >= ESTIMATE_OVER:
            self._estimated = True
            self._hooks.on_rate((done - before) / (now - since), done)


def embed_in_shards(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    work: Work,
    engine: Engine,
    hooks: Hooks,
    *,
    shard_images: int | None = None,
    hashes_of: str | None = None,
) -> Outcome:
    """Embed images by an engine; see `headstart.extract.work.embed_work`.

    Parameters
    ----------
    store : FeatureStore
    embedders : sequence of Embedder
    work : Work
    engine : Engine
    hooks : Hooks
        `on_rows` is not told of anything.
    shard_images : int, optional
        Images a shard; found out where it is None.
    hashes_of : str, optional
        The dataset whose latest listing knows perceptual hashes; none are found out where it is None.

    Raises
    ------
    HeadstartError
        As `Engine.run`. What was embedded stays in the cache.
    """
    for embedder in embedders:  # which may have been loaded to find out its spaces
        embedder.unload()
    workers = max(1, engine.ready(hooks.stopped))
    rows = np.array_split(work.todo, shard_count(len(work.todo), workers, shard_images))
    networks = [(list(embedder.spaces), list(embedder.asked)) for embedder in embedders]
    shards = Shards(sortable_id(), store.root, networks, engine.share(embedders[0].run), work, rows, workers, hashes_of)
    logger.info("embedding in %d shards of %d images, %d at once", len(shards), len(rows[0]), min(workers, len(shards)))
    report, whole = Report(shards, hooks), Whole(shards)
    for number, record in engine.run(shards, report, hooks.stopped):
        for level, text in record.log:
            report.log(level, text)
        report.through(number, shards.images(number) if not record.outcome.interrupted else 0)
        whole.add(number, record)
    outcome = whole.outcome()
    outcome.retried = report.retried
    forget(store.root, outcome.tried)
    return outcome


class Deaths:
    """How often shards have ended those who did them: a machine that is taken away is no fault of the shard.

    Parameters
    ----------
    report : Report
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count: dict[int, int] = {}
        self._reached: dict[int, int] = {}

    def are_too_many(self, number: int) -> bool:
        """Take note of a death; tell whether there were `TRIES` without that the shard has come any further."""
        reached = self._report.reached(number)
        further = reached > self._reached.get(number, 0)
        self._reached[number] = reached
        self._count[number] = 1 if further else self._count.get(number, 0) + 1
        return self._count[number] >= TRIES


class Whole:
    """Records of shards, put together as if one process had done all."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._left = len(shards)
        self._outcome = Outcome.empty(len(shards.work.names))
        # By worker: seconds that it worked; threads that read, and that wrote.
        self._seconds: dict[str, float] = {}
        self._threads: dict[str, tuple[int, int, int]] = {}
        self._devices: set[str] = set()

    def add(self, number: int, record: Record) -> None:
        """Take in what became of a shard."""
        whole, found, rows = self._outcome, record.outcome, self._shards.rows[number]
        self._left -= 1
        whole.digest[rows] = found.digest
        whole.phash[rows] = found.phash
        whole.failures.add(found.failures.moved(rows[found.failures.rows]))
        whole.replaced += [int(rows[place]) for place in found.replaced]
        whole.images += found.images
        whole.animated += found.animated
        whole.enlarged += found.enlarged
        whole.interrupted |= found.interrupted
        whole.tried.update(found.tried)
        for stage, seconds in found.stages.items():
            whole.stages[stage] += seconds
        self._seconds[record.worker] = self._seconds.get(record.worker, 0.0) + found.seconds
        self._threads[record.worker] = found.workers, found.writers, found.waiting
        self._devices |= {found.device} - {"none"}

    def outcome(self) -> Outcome:
        """Return the whole."""
        whole = self._outcome
        whole.interrupted |= self._left > 0
        whole.seconds = max(self._seconds.values(), default=0.0)
        whole.workers = sum(readers for readers, _, _ in self._threads.values())
        whole.writers = sum(writers for _, writers, _ in self._threads.values())
        whole.waiting = sum(waiting for _, _, waiting in self._threads.values())
        whole.processes = len(self._threads)
        whole.shards = len(self._shards)
        whole.device = "+".join(sorted(self._devices)) or "none"
        return whole
