"""Single items in, batches to one worker: what has queued while it was busy goes through together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class FullError(Exception):
    """There is no room for more; the caller may come back later."""


class Room:
    """Counts what is inside, up to a limit.

    Parameters
    ----------
    limit : int
        The most that may be inside at once.

    Attributes
    ----------
    taken : int
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Keep things inside while the block lasts.

        Yields
        ------
        callable
            Lets so many more in. It raises `FullError` where they do not fit; none of these is inside then.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.taken + count > self.limit:
                raise FullError
            self.taken += count
            mine += count

        try:
            yield take
        finally:
            self.taken -= mine


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Hands items to a worker in batches; whoever waits for one gets its answer, or its own error.

    Nothing waits for a batch to fill up: while the worker is busy, items queue, and the next batch is what has queued.
    An item whose caller has gone is passed over. Where a batch fails, its items are tried one by one, so that one of
    them does not take the others down.

    Parameters
    ----------
    work : callable
        Takes a list of items, returns as many answers in their order. Called in a thread of its own, never twice at
        once.
    batch_size : int
        The most items of a batch.
    wait : float, default 0
        Seconds that a batch which is not full waits for more items.

    Attributes
    ----------
    items, batches : int
        How many went through.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Answer]], *, batch_size: int, wait: float = 0.0
    ) -> None:
        self._work = work
        self._batch_size = batch_size
        self._wait = wait
        self._queue: asyncio.Queue[_Waiting[Item, Answer]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.items = self.batches = 0

    async def submit(self, item: Item) -> Answer:
        """Queue an item and wait for its answer; where the caller is cancelled, the item is passed over."""
        waiting: _Waiting[Item, Answer] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = await self._gather()
            if batch:
                await self._process(batch)

    def close(self) -> None:
        """Let go of the thread, when nobody waits any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> list[_Waiting[Item, Answer]]:
        batch = [await self._queue.get()]
        if self._wait and self._queue.qsize() + 1 < self._batch_size:
            await asyncio.sleep(self._wait)
        while len(batch) < self._batch_size and not self._queue.empty():
            waiting = self._queue.get_nowait()
            if not waiting.answer.done():
                batch.append(waiting)
        return [waiting for waiting in batch if not waiting.answer.done()]

    async def _process(self, batch: Sequence[_Waiting[Item, Answer]]) -> None:
        try:
            items = [waiting.item for waiting in batch]
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
            pairs = list(zip(batch, answers, strict=True))
        # Whatever it was, it is for whoever waits to say, and never for the loop to end by.
        except Exception as error:  # noqa: BLE001
            await self._process_apart(batch, error)
            return
        self.items, self.batches = self.items + len(batch), self.batches + 1
        for waiting, answer in pairs:
            if not waiting.answer.done():
                waiting.answer.set_result(answer)

    async def _process_apart(self, batch: Sequence[_Waiting[Item, Answer]], error: Exception) -> None:
        if len(batch) > 1:
            for waiting in batch:
                await self._process([waiting])
        elif not batch[0].answer.done():
            batch[0].answer.set_exception(error)
