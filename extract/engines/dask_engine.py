"""Shards on a Dask cluster: each is a task, a few are handed to the scheduler at a time, it says where they go.

What a worker tells while it works, that it has begun, how far it is, what went wrong, goes by the scheduler's events.
A task that nobody wants any more, for the run was stopped or has died, learns that from the state of its own worker.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ...errors import HeadstartError
from ..options import RunOptions
from ..orders import Message, Order, Record
from .connect import LEAVE_SECONDS, EngineError, dask_client
from .dask_team import LOOK_EVERY, Client, Patience, Team, asked
from .fitness import shared_token
from .shards import TRIES, Report, Shards, is_late
from .task import Here, embed_shard

logger = logging.getLogger("headstart.extract")

Future: TypeAlias = Any  # of `distributed`, whose methods have no types

IN_FLIGHT = 2  # shards a worker that the scheduler has: the one it is at, and the next
TELL_EVERY = 0.5  # seconds between two messages of a worker on how far it is
RESULT_SECONDS = 30.0  # in which a record comes, once it is there
_POLL = 0.1  # seconds between two looks at whether to stop


@contextlib.contextmanager
def dask_engine(address: str, run: RunOptions) -> Iterator[DaskEngine]:
    """Connect to a scheduler while the block lasts.

    Parameters
    ----------
    address : str
        As `dask_client` takes it.
    run : RunOptions

    Raises
    ------
    MissingExtraError, EngineError
        As `dask_client`.
    """
    client = dask_client(address)  # which sets up the logging of the package
    with _quiet():
        try:
            yield DaskEngine(client, address, run)
        finally:
            client.close(timeout=2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what Dask's client logs of a connection that ends: the run says it in its own words."""
    ours = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [one.level for one in ours]
    if not logger.isEnabledFor(logging.DEBUG):
        for one in ours:
            one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(ours, before, strict=True):
            one.setLevel(level)


class DaskEngine:
    """The workers of a Dask cluster.

    Parameters
    ----------
    client : Client
    address : str
        For messages.
    run : RunOptions
    """

    name = "dask"

    def __init__(self, client: Client, address: str, run: RunOptions) -> None:
        self._client = client
        self._address = address
        self._wants_gpu = run.device in ("auto", "cuda")

    def workers(self) -> int:
        """Return how many workers are connected to the scheduler."""
        return len(self._addresses())

    def ready(self, stopped: Callable[[], bool]) -> int:
        """Wait for the first worker; see `Engine`."""
        patience = Patience(self._address)
        while not (count := self.workers()) and not stopped():
            patience.nobody_is_there()
            time.sleep(_POLL)
        return count

    def share(self, run: RunOptions) -> RunOptions:
        """Return what each may have of its machine's memory: those of one host divide it."""
        hosts = Counter(address.rsplit(":", 1)[0] for address in self._addresses())
        return replace(run, processes=max(hosts.values(), default=1))

    def run(self, shards: Shards, report: Report, stopped: Callable[[], bool]) -> Iterator[tuple[int, Record]]:
        """Have all shards done; see `Engine`."""
        shards = shards.elsewhere()
        with shared_token(shards) as token:
            team = Team(self._client, self._address, token, self._wants_gpu)
            yield from _Run(self._client, team, shards, report, stopped).work()

    def _addresses(self) -> list[str]:
        return list(asked(self._client, self._address, self._client.nthreads))


@dataclass(slots=True)
class _Try:
    """One task at the scheduler.

    Attributes
    ----------
    number : int
        Of its shard.
    future : Future
    workers : collection of str
        That it was given to.
    submitted : float
        When.
    reached : int
        How many images of the shard had gone through by then.
    worker : str
        That has begun it; empty while none has.
    begun : float
        When.
    ended : bool
        Whether the worker has come to the end of it, whatever that was.
    """

    number: int
    future: Future
    workers: Collection[str]
    submitted: float
    reached: int
    worker: str = ""
    begun: float = 0.0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class _Event:
    """What a worker said of a task."""

    key: str
    kind: str
    value: Any = None


@dataclass(slots=True)
class _Run:
    """One run, from its first task to its last."""

    client: Client
    team: Team
    shards: Shards
    report: Report
    stopped: Callable[[], bool]
    waiting: deque[int] = field(init=False)
    left: set[int] = field(init=False)
    tries: dict[str, _Try] = field(default_factory=dict)  # by their keys
    leaving: dict[str, _Try] = field(default_factory=dict)  # those that are not wanted, but were begun
    heard: queue.Queue[_Event] = field(default_factory=queue.Queue)
    took: list[float] = field(default_factory=list)  # seconds that shards took
    made: int = 0

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.shards)))
        self.left = set(self.waiting)

    @property
    def topic(self) -> str:
        """Under which workers tell of this run."""
        return f"headstart-{self.shards.name}"

    def work(self) -> Iterator[tuple[int, Record]]:
        """Give records as they come."""
        self.client.subscribe_topic(self.topic, lambda event: self.heard.put(_Event(*event[1])))
        try:
            while self.left and not self.stopped():
                self.team.look()
                self._hand_out()
                with contextlib.suppress(queue.Empty):
                    yield from self._take(self.heard.get(timeout=_POLL))
            self._leave(list(self.tries))
            if self.stopped():
                self._wait()
        finally:
            with contextlib.suppress(Exception):  # where the scheduler is gone, so are its tasks
                self._leave(list(self.tries))
                self.client.unsubscribe_topic(self.topic)

    def _hand_out(self) -> None:
        """Keep the scheduler supplied; when nothing is left, help those that wait for a slow worker."""
        self._miss_the_dead()
        free = set(self.team.fit) - {attempt.worker for attempt in self.leaving.values()}
        room = IN_FLIGHT * len(free) - len(self.tries)
        while room > 0 and self.waiting:
            self._submit(self.waiting.popleft(), free)
            room -= 1
        if not self.waiting and (idle := free - {attempt.worker for attempt in self.tries.values()}):
            self._help(idle)

    def _miss_the_dead(self) -> None:
        """Take back what was given to workers none of which is left, and expect nothing more of those that are gone."""
        for key, attempt in list(self.leaving.items()):
            if self.team.are_gone([attempt.worker]):
                del self.leaving[key]
        for key, attempt in list(self.tries.items()):
            if self.team.are_gone(attempt.workers):
                self._leave([key])
                self._again(attempt, "no worker that may do it is there any more")

    def _help(self, idle: set[str]) -> None:
        """Have workers that have nothing to do take over from one that is late."""
        now, numbers = time.monotonic(), Counter(attempt.number for attempt in self.tries.values())
        for key, attempt in list(self.tries.items()):
            if not attempt.worker and now - attempt.submitted > LOOK_EVERY:  # it waits for its turn somewhere
                self._leave([key])
            elif not attempt.worker or numbers[attempt.number] > 1 or not is_late(now - attempt.begun, self.took):
                continue
            logger.debug("%s goes to %s", self.shards.told(attempt.number), " or ".join(sorted(idle)))
            self._submit(attempt.number, idle)
            return

    def _submit(self, number: int, workers: Collection[str]) -> None:
        self.made += 1
        key = f"{self.topic}-{number}-{self.made}"
        future = self.client.submit(
            embed_on_worker, self.shards.order(number, self.team.token), self.topic, key, key=key, pure=False,
            retries=TRIES - 1, **self.team.placing(workers),
        )  # fmt: skip
        self.tries[key] = _Try(number, future, workers, time.monotonic(), self.report.reached(number))
        future.add_done_callback(lambda done: self.heard.put(_Event(done.key, "done")))

    def _take(self, event: _Event) -> Iterator[tuple[int, Record]]:
        attempt = self.tries.get(event.key)
        if attempt is None:
            self._heard_of_leaving(event)
            return
        if event.kind == "done":
            yield from self._finish(event.key, attempt)
        elif event.kind == "begun":
            if attempt.worker:
                self.report.again(attempt.number, f"worker {attempt.worker} did not come to the end")
            attempt.worker, attempt.begun, attempt.ended = event.value, time.monotonic(), False
        elif event.kind == "ended":
            attempt.ended = True
        elif event.kind == "through":
            self.report.through(attempt.number, event.value)
        elif event.kind == "log":
            self.report.log(*event.value)

    def _finish(self, key: str, attempt: _Try) -> Iterator[tuple[int, Record]]:
        """Take in the record of a task that is through."""
        if attempt.future.status == "pending":  # the worker that had its record has died: it is done again
            attempt.future.add_done_callback(lambda done: self.heard.put(_Event(done.key, "done")))
            return
        record = self._record(attempt)
        del self.tries[key]
        if record is None or record.outcome.interrupted:
            self._again(attempt, f"worker {attempt.worker} went away")
            return
        self._leave([other for other, one in self.tries.items() if one.number == attempt.number])
        self.took.append(time.monotonic() - attempt.begun)
        self.left.discard(attempt.number)
        yield attempt.number, record

    def _again(self, attempt: _Try, why: str) -> None:
        """Put a shard first among those that wait, unless somebody else is at it."""
        if all(other.number != attempt.number for other in self.tries.values()):
            self.report.again(attempt.number, why)
            self.waiting.appendleft(attempt.number)

    def _record(self, attempt: _Try) -> Record | None:
        """Return what a worker has, None where it does not answer any more."""
        from distributed import CancelledError, KilledWorker

        if attempt.future.status == "error" and isinstance(error := attempt.future.exception(), TimeoutError):
            raise error  # of the shard: a file system that gave up, and no worker that does not give its record
        try:
            record: Record = attempt.future.result(timeout=RESULT_SECONDS)
            return record
        except TimeoutError as error:
            logger.debug("%s has a record and does not give it: %r", attempt.worker, error)
            return None
        except KilledWorker as error:
            if self.report.reached(attempt.number) > attempt.reached:  # they went for another reason than the shard
                return None
            raise EngineError(
                f"{error.allowed_failures + 1} workers ended over {self.shards.told(attempt.number)}, the last of them "
                f"{error.last_worker.address}; what was embedded is in the cache, run again to go on: what they were "
                "decoding is then tried apart"
            ) from error
        except CancelledError as error:
            raise EngineError(
                "the Dask scheduler is gone, or has dropped the tasks of this run; what was embedded is in the cache, "
                "run again to go on"
            ) from error

    def _leave(self, keys: list[str]) -> None:
        """Tell the scheduler that nobody wants some tasks any more; who has begun one finishes the part in hand."""
        gone = [self.tries.pop(key) for key in keys]
        at_it = {key: attempt for key, attempt in zip(keys, gone, strict=True) if attempt.worker and not attempt.ended}
        self.leaving.update(at_it)
        if gone:
            self.client.cancel([attempt.future for attempt in gone], force=True)

    def _wait(self) -> None:
        """Wait for those that had begun such a task: nothing is written to the cache after the end."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.leaving and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._heard_of_leaving(self.heard.get(timeout=_POLL))

    def _heard_of_leaving(self, event: _Event) -> None:
        if event.kind == "ended":
            self.leaving.pop(event.key, None)


def embed_on_worker(order: Order, topic: str, key: str) -> Record:
    """Do one shard, as a task.

    Raises
    ------
    HeadstartError
        As `embed_shard`; the message names the worker.
    """
    from distributed import Status, get_worker

    worker = get_worker()

    def stopped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status not in (Status.running, Status.paused)

    def say(kind: str, value: Any = None) -> None:
        worker.log_event(topic, (key, kind, value))

    def tell(message: Message) -> None:
        if message.through is not None:
            say("through", message.through)
        elif message.log is not None:
            say("log", message.log)

    here = Here(f"{worker.address} on {socket.gethostname()}", worker.state.nthreads, stopped, tell, TELL_EVERY)
    try:
        return embed_shard(order, here, lambda: say("begun", worker.address))
    except HeadstartError as error:
        raise type(error)(f"worker {worker.address}: {error}") from error
    finally:
        say("ended")
