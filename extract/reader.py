"""File names in, the networks' input out: each file is read, hashed and decoded once, whatever is made of it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.index import KeyIndex
from ..cache.listing import INODE
from ..cache.names import Names
from ..errors import DecodeError
from .access import Access, Files
from .decode import Decoded, decode
from .files import EMPTY_FILE, Stat
from .options import DEFAULT_MAX_PIXELS
from .phash import SIDE, KnownHashes, phash
from .preprocess import Pixels, Preprocess
from .suspects import Watch
from .views import PLAIN, Maker, Views

if TYPE_CHECKING:
    from .gpu_decode import GpuDecoder, Inputs

# What a perceptual hash is made from where the picture itself stays on a GPU: all of it, small.
WHOLE = Preprocess(resize=(SIDE, SIDE), crop=SIDE)

TOGETHER = 8  # images that a thread reads for one task


@dataclass(frozen=True, slots=True)
class Item:
    """One image on its way: its index in the listing, and what is known of it by now.

    `inputs` has for each network those views of the image that it needs, by number, without those whose rows the cache
    holds already; it is empty where none needs any. `views` is how many views the image has; `reason` is set when it is
    a failure; `replaced` says that another file was read than had been listed; `phash` is the perceptual hash, 0 where
    it is not known.
    """

    index: int
    digest: bytes = b""
    inputs: tuple[Mapping[int, Pixels], ...] = ()
    views: int = 1
    reason: str = ""
    replaced: bool = False
    animated: bool = False
    enlarged: bool = False
    phash: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """What one network needs of an image, and which images it does not need.

    Attributes
    ----------
    preprocess : Preprocess
    held : sequence of KeyIndex
        The rows that the cache holds in each of the network's spaces.
    views : Views, default `PLAIN`
        Which views an image has.
    """

    preprocess: Preprocess
    held: Sequence[KeyIndex]
    views: Views = PLAIN
    maker: Maker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "maker", self.views.maker(self.preprocess))

    def lacking(self, digest: bytes, count: int) -> frozenset[int]:
        """Return which of the first `count` views of this image lack a row in any of the spaces."""
        return frozenset().union(*(self.views.lacking_of_one(index, digest, count) for index in self.held))


class Reader:
    """Turns file names into networks' input, in threads; counts the seconds that reading and decoding take.

    Parameters
    ----------
    base : bytes
        Folder of the names.
    needs : sequence of Need
        One a network.
    max_pixels : int, optional
    watch : Watch, optional
        Decodes the images, so that one which ends the process is passed by next time.
    stat : ndarray of shape (N, 4), dtype int64, optional
        What the files were when they were listed.
    gpu : GpuDecoder, optional
        Takes as many pictures as it has room for.
    workers : int, optional
        How many pictures are decoded at once beside those; any number where it is None.
    hashes : KnownHashes, optional
        The perceptual hashes that need not be computed. None where none are wanted at all.
    counts : ndarray of shape (N,), dtype int64, optional
        How many views each image has; all those of the networks' needs where it is None.
    access : Access, optional
        Where names lead to; files of this machine where it is None.
    """

    def __init__(
        self,
        base: bytes,
        needs: Sequence[Need],
        max_pixels: int = DEFAULT_MAX_PIXELS,
        watch: Watch | None = None,
        stat: np.ndarray | None = None,
        gpu: GpuDecoder | None = None,
        workers: int | None = None,
        hashes: KnownHashes | None = None,
        counts: np.ndarray | None = None,
        access: Access | None = None,
    ) -> None:
        self._hashes = hashes
        self._counts = counts
        self._access = access or Files(base)
        self._needs = needs
        self._max_pixels = max_pixels
        self._watch = watch
        self._stat = stat
        self._gpu = gpu
        self._cores: contextlib.AbstractContextManager[Any] = (
            threading.BoundedSemaphore(workers)
            if workers and (gpu or self._access.in_flight)
            else contextlib.nullcontext()
        )
        self._lock = threading.Lock()
        self.seconds = {"read": 0.0, "decode": 0.0}
        self._work = 0.0
        self._decoded = 0

    def work(self) -> tuple[float, int]:
        """Return the seconds of one core that decoding has taken so far, and how many views came of it."""
        return self._work, self._decoded

    def read(self, number: int, name: bytes) -> Item:
        """Read one file once; digest and pixels come from the same bytes."""
        begin, work = time.perf_counter(), time.thread_time()
        try:
            data, found = self._access.read(number, name)
        except DecodeError as error:
            self._count("read", begin)
            # An empty file has been read; what could not be read has no digest, and is tried again next time.
            return Item(number, hashlib.sha256(b"").digest() if str(error) == EMPTY_FILE else b"", reason=str(error))
        digest, replaced = hashlib.sha256(data).digest(), self._is_another(number, found)
        begin = self._count("read", begin)
        count = self._count_of(number)
        wanted = [need.lacking(digest, count) for need in self._needs]
        item = Item(number, digest, views=count, replaced=replaced, phash=self._known_hash(digest))
        if not any(wanted):
            return self._hashed(item, data) if self._lacks_hash(item) else item
        made = self._on_gpu(item, data, wanted) if self._gpu else None
        if made is None:
            with self._cores:
                return self._on_cpu(item, data, wanted, work)
        inputs = tuple(
            {0: made[need.preprocess][0]} if views else {} for need, views in zip(self._needs, wanted, strict=True)
        )
        enlarged = any(larger for _, larger in made.values())
        found_hash = _hash_of(made[WHOLE][0]) if self._lacks_hash(item) else item.phash
        return replace(item, inputs=inputs, enlarged=enlarged, phash=found_hash)

    def _count_of(self, number: int) -> int:
        return self._needs[0].views.count if self._counts is None else int(self._counts[number])

    def _known_hash(self, digest: bytes) -> int:
        return 0 if self._hashes is None else self._hashes.of_one(digest)

    def _lacks_hash(self, item: Item) -> bool:
        return self._hashes is not None and not item.phash

    def _hashed(self, item: Item, data: bytes) -> Item:
        """Decode a picture for its perceptual hash alone; it is no failure of a picture that it has none."""
        begin = time.perf_counter()
        try:
            with self._cores:
                return replace(item, phash=int(phash(self._decode(item.digest, data).pixels)))
        except DecodeError:
            return item
        finally:
            self._count("decode", begin)

    def _on_gpu(self, item: Item, data: bytes, wanted: Sequence[frozenset[int]]) -> Inputs | None:
        """Have a picture decoded by the GPU, if it takes it; all views but the plain one are made on a CPU."""
        if self._gpu is None or (self._watch and self._watch.suspects(item.digest)):
            return None
        if any(views - {0} for views in wanted):
            return None
        crops = {need.preprocess for need, views in zip(self._needs, wanted, strict=True) if views}
        if self._lacks_hash(item):
            crops.add(WHOLE)
        with self._watch.noting(item.digest) if self._watch else contextlib.nullcontext():
            answer = self._gpu.offer(data, crops)
            return None if answer is None else answer.result()

    def _on_cpu(self, item: Item, data: bytes, wanted: Sequence[frozenset[int]], work: float) -> Item:
        """Decode a picture and make its views in this thread, whose processor time was `work` before it read it."""
        begin = time.perf_counter()
        try:
            decoded = self._decode(item.digest, data)
        except DecodeError as error:
            return replace(item, reason=str(error))
        finally:
            self._count("decode", begin)
        spent = time.thread_time() - work
        import torch  # noqa: F401  (takes seconds the first time, which are not those of this stage)

        begin, work = time.perf_counter(), time.thread_time() - spent
        made = self._made(decoded.pixels, item.digest, wanted)
        inputs = tuple(
            {view: made[need.preprocess, view][0] for view in sorted(views)}
            for need, views in zip(self._needs, wanted, strict=True)
        )
        enlarged = any(larger for _, larger in made.values())
        found_hash = int(phash(decoded.pixels)) if self._lacks_hash(item) else item.phash
        self._count("decode", begin, time.thread_time() - work, len({view for _, view in made}))
        return replace(item, inputs=inputs, animated=decoded.animated, enlarged=enlarged, phash=found_hash)

    def _made(
        self, pixels: np.ndarray, digest: bytes, wanted: Iterable[frozenset[int]]
    ) -> dict[tuple[Preprocess, int], tuple[np.ndarray, bool]]:
        """Make every view that any network lacks, once for all networks that prepare pictures alike."""
        made: dict[tuple[Preprocess, int], tuple[np.ndarray, bool]] = {}
        for need, views in zip(self._needs, wanted, strict=True):
            for view in views:
                if (need.preprocess, view) not in made:
                    made[need.preprocess, view] = need.maker(pixels, digest, view)
        return made

    def _is_another(self, number: int, found: Stat) -> bool:
        """Tell whether a name led to another file than when it was listed: a folder may have been swapped since."""
        if self._stat is None:
            return False
        listed = tuple(self._stat[number].tolist())
        return listed[:INODE] != found[:INODE] or (listed[INODE] != 0 and listed[INODE] != found[INODE])

    def _decode(self, digest: bytes, data: bytes) -> Decoded:
        if self._watch:
            return self._watch.decode(digest, data, self._max_pixels)
        return decode(data, max_pixels=self._max_pixels)

    def _count(self, stage: str, begin: float, work: float = 0.0, inputs: int = 0) -> float:
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - begin
            self._work += work
            self._decoded += inputs
        return now


def _hash_of(whole: Pixels) -> int:
    """Return the perceptual hash of a picture that a GPU decoded, from its small view `WHOLE`."""
    return int(phash(whole if isinstance(whole, np.ndarray) else whole.cpu().numpy()))


class Ahead:
    """Items in the order of `todo`, a bounded number of them read ahead, the first ones from the start.

    Each task of the pool reads a few images, one after the other: handing a task over makes both threads queue for the
    interpreter's lock, which is dear where a picture takes half a millisecond.

    Parameters
    ----------
    pool : ThreadPoolExecutor
    reader : Reader
    names : Names
    todo : ndarray of shape (n,), dtype int64
    workers : int
        Threads of the pool.
    quiet : int, default 0
        How many items are handed out before more are read, as far as they were read ahead.
    together : int, default `TOGETHER`
        How many images a task has at most; fewer where there are few for each thread.
    views : int, default 1
        How many views an image has: the more, the fewer images are read ahead, down to 2 for each thread.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        reader: Reader,
        names: Names,
        todo: np.ndarray,
        workers: int,
        quiet: int = 0,
        together: int = TOGETHER,
        views: int = 1,
    ) -> None:
        self._pool = pool
        self._reader = reader
        self._names = names
        self._todo = todo
        self._asked = 0  # of these, how many images are read or being read
        self._taken = 0
        # 4 inputs of networks a worker and 64 more, of 150 kB each at 224 pixels; but 2 images a worker, so all work
        self._ahead = max(2 * workers, (4 * workers + 64) // views)
        self._together = max(1, min(together // views, len(self._todo) // (4 * workers)))
        self._quiet = -(-quiet // views)
        self._stopped = False
        self._waiting: deque[Future[list[Item]]] = deque()
        self._refill()

    def __iter__(self) -> Iterator[Item]:
        while self._waiting:
            items = self._waiting.popleft().result()
            for item in items:
                self._taken += 1
                if self._taken >= self._quiet or self._taken == self._asked:
                    self._refill()
                yield item

    def wait(self, seconds: float) -> None:
        """Wait until all that is read ahead has been read, but not for longer than `seconds`."""
        wait(self._waiting, seconds)

    def stop(self) -> None:
        """Begin with no further image, for nobody asks for more: those of a task may be large ones."""
        self._stopped = True

    def _refill(self) -> None:
        while self._asked < len(self._todo) and self._asked + self._together <= self._taken + self._ahead:
            numbers = self._todo[self._asked : self._asked + self._together].tolist()
            self._asked += len(numbers)
            self._waiting.append(self._pool.submit(self._read, numbers))

    def _read(self, numbers: list[int]) -> list[Item]:
        return [self._reader.read(number, self._names[number]) for number in numbers if not self._stopped]
