"""What queues while the worker is busy goes through together; nobody suffers for another's item."""

import asyncio
import contextlib
import threading

import pytest

from headstart.classify.serve.batcher import Batcher, FullError, Room


class Worker:
    """Doubles numbers, and waits for `go` before each batch but those of `open`; 13 is bad luck."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        assert self.go.wait(10)
        if 13 in numbers:
            raise ValueError("bad luck")
        return [2 * number for number in numbers]


@contextlib.asynccontextmanager
async def batching(worker, **options):
    batcher = Batcher(worker, **{"batch_size": 4, **options})
    running = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        running.cancel()
        batcher.close()


async def until(true):
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come to that")


async def queue_behind_one(batcher, worker, numbers):
    """Submit one number, and the others once the worker is busy with it."""
    first = asyncio.create_task(batcher.submit(0))
    await until(lambda: worker.batches == [[0]])
    others = [asyncio.create_task(batcher.submit(number)) for number in numbers]
    await asyncio.sleep(0.02)
    return [first, *others]


def test_what_queues_while_the_worker_is_busy_goes_through_together():
    async def main():
        worker = Worker()
        async with batching(worker) as batcher:
            tasks = await queue_behind_one(batcher, worker, range(1, 8))
            worker.go.set()
            assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12, 14]
            assert worker.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
            assert (batcher.items, batcher.batches) == (8, 3)

    asyncio.run(main())


def test_who_has_left_is_passed_over():
    async def main():
        worker = Worker()
        async with batching(worker) as batcher:
            tasks = await queue_behind_one(batcher, worker, range(1, 8))
            for task in tasks[2:6]:
                task.cancel()
            await asyncio.sleep(0)
            worker.go.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert worker.batches == [[0], [1, 6, 7]]

    asyncio.run(main())


def test_who_leaves_while_being_worked_on_harms_nobody():
    async def main():
        worker = Worker()
        async with batching(worker) as batcher:
            first, second = await queue_behind_one(batcher, worker, [1])
            first.cancel()
            worker.go.set()
            assert await second == 2

    asyncio.run(main())


def test_one_bad_item_does_not_take_its_batch_down():
    async def main():
        worker = Worker()
        async with batching(worker) as batcher:
            tasks = await queue_behind_one(batcher, worker, [1, 13, 2])
            worker.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [results[0], results[1], results[3]] == [0, 2, 4]
            assert isinstance(results[2], ValueError)
            assert worker.batches == [[0], [1, 13, 2], [1], [13], [2]]
            assert await batcher.submit(5) == 10

    asyncio.run(main())


def test_a_worker_that_loses_an_answer_is_found_out():
    async def main():
        async with batching(lambda items: [], batch_size=2) as batcher:
            with pytest.raises(ValueError, match="zip"):
                await batcher.submit(1)

    asyncio.run(main())


@pytest.mark.parametrize(("wait", "batches"), [(0.0, 2), (0.2, 1)])
def test_a_batch_waits_for_more_only_where_it_is_told_to(wait, batches):
    async def main():
        worker = Worker()
        worker.go.set()
        async with batching(worker, wait=wait) as batcher:
            first = asyncio.create_task(batcher.submit(1))
            await asyncio.sleep(0.05)
            await asyncio.gather(first, batcher.submit(2))
            assert len(worker.batches) == batches

    asyncio.run(main())


def test_a_room_lets_in_no_more_than_it_holds_and_gives_all_of_a_share_back():
    room = Room(10)
    with room.share() as take:
        take(6)
        with room.share() as other, pytest.raises(FullError):
            other(3)
            other(2)
        assert room.taken == 6
        take(4)
        with pytest.raises(FullError):
            take(1)
    assert room.taken == 0
