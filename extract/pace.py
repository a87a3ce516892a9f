"""How a network runs fastest here, found out from its first batches: their size, the cores it gets, compiling."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from ..cache.place import Place
from .compiling import Compiler
from .device import available_cores

if TYPE_CHECKING:
    from .embedder import Embedder

logger = logging.getLogger("headstart.extract")

TIMED_IMAGES = 48  # for one rate, at least; and at least two batches
TIMED_BATCHES = 2
QUIET_IMAGES = 64  # at the start, during which nothing should be decoded beside the network: the first batch and a rate
QUIET_SECONDS = 0.3  # that this may cost where the network was there at once
SHARED_ANEW = 128  # images after which the cores are divided anew
WORTH_TRYING = 50  # batches that must be left for other sizes to be tried
GAIN = 1.05  # a larger batch takes more memory: it has to be worth it
LARGEST = {"cpu": 64, "cuda": 1024, "mps": 256}

Steps = Generator[None, tuple[int, float], None]


def forward_threads(cores: int, forward: float, decode: float) -> int:
    """Return how many threads a forward pass should use beside threads that decode, on the same cores.

    Threads of one forward pass wait for each other layer by layer, so where a decoder has one of their cores they all
    lose. Each side gets the share of the cores that it needs.

    Parameters
    ----------
    cores : int
    forward, decode : float
        Seconds of one core that an image takes.

    Returns
    -------
    int
        From 1 to `cores`.
    """
    return max(1, min(cores, round(cores * forward / max(forward + decode, 1e-9))))


class Pace:
    """Sets up an embedder for speed while it works.

    Where a batch size was given, nothing is tried and nothing changed, so that rows stay the same bit for bit; with
    ``--compile always`` neither, for the network is compiled for one size.

    Parameters
    ----------
    embedder : Embedder
    images : int
        How many it may have to embed.
    decoding : callable
        Tells the seconds of one core that reading and decoding have taken so far, and of how many images.
    cache : Path or RemotePath
        Where figures are remembered.
    wait : callable
        Waits until what was read ahead is decoded, but no longer than as many seconds.
    """

    def __init__(
        self,
        embedder: Embedder,
        images: int,
        decoding: Callable[[], tuple[float, int]],
        cache: Place,
        wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._wait = wait
        self._embedder = embedder
        self._left = images
        self._decoding = decoding
        self._decoded = (0.0, 0)
        self._forward = 0.0  # seconds of one core that an image takes in the network, with nothing beside it
        self._quickest = math.inf  # seconds an image, of all batches that were timed: the others were disturbed
        self._since_shared = 0
        self._compiler = Compiler(embedder, cache)
        self._steps: Steps | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is tried any more, so that batches need not be timed one by one."""
        return self._steps is None

    def begin(self) -> None:
        """Prepare for the first batch, with the network loaded."""
        if self._embedder.faster is not None:  # an earlier run of this process has settled it
            return
        self._embedder.threads = None
        if self._embedder.run.compile == "always":
            self._compiler.compile()
            return
        if self._embedder.device.kind == "cpu" and not self._embedder.run.batch_size:
            self._wait(QUIET_SECONDS)  # in vain where the network took its time to load
        self._steps = self._tried()
        next(self._steps)

    def took(self, images: int, seconds: float) -> None:
        """Take note of a batch that went through."""
        self._left -= images
        if self._steps is not None:
            try:
                self._steps.send((images, seconds))
            except StopIteration:
                self._steps = None
        self._since_shared += images
        # A compiled network keeps its threads: for another number of them torch would compile it again.
        if self.settled and self._forward and self._embedder.faster is None and self._since_shared >= SHARED_ANEW:
            self._share_cores()

    def _tried(self) -> Steps:
        yield  # the first batch warms up
        rate = yield from self._rate()
        if self._embedder.run.batch_size:
            return
        if self._embedder.device.kind == "cpu":
            self._forward = self._threads * self._quickest
            self._share_cores()
        if self._left > WORTH_TRYING * self._embedder.batch_size:
            rate = yield from self._best_size(rate)
        if self._embedder.run.compile == "auto" and self._compiler.repays(self._left, rate):
            self._compiler.compile()
            yield  # the first compiled batch warms up
            self._compiler.judge(rate, (yield from self._rate()))

    def _rate(self) -> Generator[None, tuple[int, float], float]:
        """Return the images a second of the next few whole batches."""
        images, seconds, batches = 0, 0.0, 0
        while images < TIMED_IMAGES or batches < TIMED_BATCHES:
            count, spent = yield
            if count >= self._embedder.batch_size:
                images, seconds, batches = images + count, seconds + spent, batches + 1
                self._quickest = min(self._quickest, spent / count)
        return images / max(seconds, 1e-9)

    def _best_size(self, rate: float) -> Generator[None, tuple[int, float], float]:
        """Find the size of batches that is fastest, and return its rate: doubled or halved as long as that helps."""
        start = self._embedder.batch_size
        best, rate = yield from self._climb(start, rate, 2)
        if best == start:
            best, rate = yield from self._climb(start, rate, 0.5)
        self._embedder.resize_batch(best)
        logger.debug("batches of %d images: %.0f images/s in the network", best, rate)
        return rate

    def _climb(self, best: int, rate: float, factor: float) -> Generator[None, tuple[int, float], tuple[int, float]]:
        largest = LARGEST[self._embedder.device.kind]
        while 1 <= (size := int(best * factor)) <= largest and self._embedder.resize_batch(size) == size:
            yield  # a new size warms up
            found = yield from self._rate()
            if self._embedder.batch_size < size or found < GAIN * rate:  # memory was full, or it is not worth it
                break
            best, rate = size, found
        return best, rate

    def _share_cores(self) -> None:
        """Divide the cores between the network and the decoders by what both take; pictures come in all sizes."""
        decoded = self._decoding()
        work, images = (now - before for now, before in zip(decoded, self._decoded, strict=True))
        self._decoded, self._since_shared = decoded, 0
        if images:
            threads, before = self._threads, self._embedder.threads
            self._embedder.threads = forward_threads(threads, self._forward, work / images)
            if self._embedder.threads != (before or threads):
                logger.debug("the network gets %d of %d threads, decoding the others", self._embedder.threads, threads)

    @property
    def _threads(self) -> int:
        """How many threads the network may have at most."""
        return min(available_cores(), self._embedder.most_threads)
