"""Batches of pictures for a network, decoded and augmented ahead of it in threads.

What comes out depends on the plan alone, never on threads or time: each picture's augmentation is drawn by a generator
of its own.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DataError, DecodeError, printable
from ...extract.access import read_anywhere
from ...extract.augment import Augment, image_seed, one_thread
from ...extract.decode import decode
from ...extract.options import RunOptions
from ...extract.preprocess import Preprocess
from .pictures import Subset

if TYPE_CHECKING:
    import torch

_AHEAD = 2  # batches that are read ahead, at least

Draw = Callable[[int], int]
"""From a picture's row to the seed of its augmentation."""


class Loader:
    """Reads, decodes and augments pictures in threads; counts the seconds that each stage takes.

    Parameters
    ----------
    preprocess : Preprocess
    run : RunOptions

    Attributes
    ----------
    seconds : dict of str to float
        Busy seconds of "read", "decode" and "augment", which resizing is part of, summed over threads.
    """

    def __init__(self, preprocess: Preprocess, run: RunOptions) -> None:
        self._preprocess = preprocess
        self._max_pixels = run.max_pixels
        self.workers = run.threads
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="load", initializer=one_thread)
        self._lock = threading.Lock()
        self.seconds = {"read": 0.0, "decode": 0.0, "augment": 0.0}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(
        self, subset: Subset, plan: Iterable[np.ndarray], preset: str = "none", draw: Draw = lambda _: 0
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield the batches of a plan, in its order.

        Parameters
        ----------
        subset : Subset
        plan : iterable of ndarray of shape (m,), dtype int64
            The rows of each batch.
        preset : str, default "none"
            Of `headstart.extract.augment.PRESETS`.
        draw : callable

        Yields
        ------
        rows : ndarray of shape (m,), dtype int64
        images : Tensor, (m, S, S, 3) uint8

        Raises
        ------
        DataError
            A picture cannot be read any more.
        """
        import torch

        augment = Augment(preset, self._preprocess)
        waiting: deque[tuple[np.ndarray, list[Future[np.ndarray]]]] = deque()
        plans, ahead = iter(plan), 0
        try:
            while True:
                while len(waiting) < _AHEAD or ahead < 4 * self.workers:
                    rows = next(plans, None)
                    if rows is None:
                        break
                    waiting.append((rows, [self._submit(subset, row, augment, draw(row)) for row in rows.tolist()]))
                    ahead += len(rows)
                if not waiting:
                    return
                rows, futures = waiting.popleft()
                ahead -= len(rows)
                yield rows, torch.from_numpy(np.stack([future.result() for future in futures]))
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()

    def _submit(self, subset: Subset, row: int, augment: Augment, seed: int) -> Future[np.ndarray]:
        return self._pool.submit(self._load, subset.names[row], augment, seed)

    def _load(self, name: bytes, augment: Augment, seed: int) -> np.ndarray:
        times = [time.perf_counter()]
        try:
            content, _ = read_anywhere(name)
            times.append(time.perf_counter())
            pixels = decode(content, max_pixels=self._max_pixels).pixels
        except DecodeError as error:
            raise DataError(
                f"{printable(name)} was read before and cannot be read now ({error}); put it back and run again with "
                "--resume, or begin anew with --overwrite"
            ) from error
        times.append(time.perf_counter())
        image = augment(pixels, seed)
        times.append(time.perf_counter())
        with self._lock:
            for stage, begin, end in zip(self.seconds, times, times[1:], strict=False):
                self.seconds[stage] += end - begin
        return image


def drawn_by(subset: Subset, seed: int, epoch: int) -> Draw:
    """Return the seeds of one epoch's augmentations: by the seed of the run, the epoch and the picture's content."""
    return lambda row: image_seed(seed, epoch, subset.digest[row].tobytes())


def in_order(count: int, size: int) -> Sequence[np.ndarray]:
    """Return batches of at most `size` rows that go through `count` rows in order."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def shuffled(count: int, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of one epoch of training: all rows, mixed, and dealt evenly to as few steps as can be.

    So no batch is a rest of a few rows, on which batch norms would fail, and none is larger than `size`.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    steps = max(1, -(-count // size))
    ends = np.arange(steps + 1) * count // steps
    return [order[start:stop] for start, stop in itertools.pairwise(ends.tolist())]
