"""Shards on a Ray cluster: each is a task that takes a few cores, and a GPU where the cluster has some.

Ray starts a process for each task that runs at once, keeps it, and gives it the next one. A task whose process dies is
handed in again by the run, which counts how often that happens. What a process tells while it works, that it has begun
and how far it is, goes to an actor that the run asks; without it the run goes on, and says less.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import HeadstartError
from ..options import RunOptions
from ..orders import Message, Order, Record, Token
from ..scale import CORES_EACH
from . import connect
from .connect import EngineError, ray_session
from .fitness import lacking, shared_token
from .shards import TRIES, Deaths, Report, Shards, is_late
from .task import Here, embed_shard

logger = logging.getLogger("headstart.extract")

IN_FLIGHT = 2  # shards a worker that Ray has: the one it is at, and the next
LOOK_EVERY = 5.0  # seconds between two looks at whether the cluster is there
TELL_EVERY = 0.5  # seconds between two messages of a process on how far it is, and between two questions for them
_POLL = 0.1  # seconds between two looks at whether to stop


@contextlib.contextmanager
def ray_engine(address: str, run: RunOptions) -> Iterator[RayEngine]:
    """Connect to a Ray cluster while the block lasts.

    Parameters
    ----------
    address : str
        As `ray_session` takes it.
    run : RunOptions

    Raises
    ------
    MissingExtraError, EngineError
        As `ray_session`.
    """
    before = connect.is_in_ray()
    # Where a process dies, Ray says so on standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        ray = ray_session(address)
        try:
            yield RayEngine(ray, address, run)
        finally:
            if not before:  # who has connected himself goes on
                ray.shutdown()


class RayEngine:
    """The nodes of a Ray cluster, and how many tasks they can do at once.

    Parameters
    ----------
    ray : module
    address : str
        For messages.
    run : RunOptions
        Where it says nothing of threads, a task takes four cores, or as many as the smallest node has; beside a GPU its
        share of the node's.
    """

    name = "ray"

    def __init__(self, ray: Any, address: str, run: RunOptions) -> None:
        self._ray = ray
        self._address = address
        self._run = run
        self._door = address if ":" in address else ray.get_runtime_context().gcs_address

    def check(self) -> None:
        """See whether the cluster's head still answers: a minute after its end, Ray would end this process too.

        Raises
        ------
        EngineError
            It does not.
        """
        with _answered(self._address):
            connect.knock(self._door)

    def workers(self) -> int:
        """Return how many tasks can be done at once."""
        return sum(self._on(node, self.task()) for node in self._nodes())

    def ready(self, stopped: Callable[[], bool]) -> int:
        """Wait until there is room for a task; see `Engine`."""
        deadline = time.monotonic() + connect.WORKERS_SECONDS
        while not (count := self.workers()) and not stopped():
            if time.monotonic() > deadline:
                raise EngineError(
                    f"no node of the Ray cluster at {self._address} has {self.task()} for a task in "
                    f"{connect.WORKERS_SECONDS:.0f} s; add one with `ray start --address=…`, or pass fewer --workers"
                )
            time.sleep(_POLL)
        return count

    def task(self) -> dict[str, float]:
        """Return what a task takes, by Ray's names of options."""
        nodes = self._nodes()
        with_gpu = [node for node in nodes if node.get("GPU")] if self._run.device in ("auto", "cuda") else []
        if with_gpu:
            each = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
            return {"num_cpus": self._run.workers or max(1, each), "num_gpus": 1}
        smallest = min((int(node.get("CPU", 0)) for node in nodes if node.get("CPU")), default=1)
        return {"num_cpus": self._run.workers or max(1, min(CORES_EACH, smallest))}

    def share(self, run: RunOptions) -> RunOptions:
        """Return what each may have of its machine's memory: those of one node divide it."""
        task = self.task()
        return replace(run, processes=max([1, *(self._on(node, task) for node in self._nodes())]))

    def run(self, shards: Shards, report: Report, stopped: Callable[[], bool]) -> Iterator[tuple[int, Record]]:
        """Have all shards done; see `Engine`."""
        shards = shards.elsewhere()
        with shared_token(shards) as token:
            self._check_nodes(token)
            yield from _Run(self._ray, self, shards, token, report, stopped).work()

    def _nodes(self) -> list[dict[str, float]]:
        """Return what each living node has."""
        with _answered(self._address):
            return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    @staticmethod
    def _on(node: dict[str, float], task: dict[str, float]) -> int:
        """Return how many tasks a node can do at once."""
        counts = [int(node.get("CPU", 0) // task["num_cpus"])]
        if "num_gpus" in task:
            counts.append(int(node.get("GPU", 0)))
        return min(counts)

    def _check_nodes(self, token: Token) -> None:
        """Ask each node that could do a task whether it is fit.

        Raises
        ------
        EngineError
            One is not: where a task goes is Ray's to say.
        """
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self.task()
        nodes = [node for node in self._ray.nodes() if node["Alive"] and self._on(node["Resources"], task)]
        asked = self._ray.remote(num_cpus=0, max_retries=0)(lacking)
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        answers = [asked.options(scheduling_strategy=place).remote(token) for place in there]
        for node, answer in zip(nodes, answers, strict=True):
            try:
                lack = self._ray.get(answer, timeout=connect.WORKERS_SECONDS)
            except GetTimeoutError:
                lack = f"has not answered in {connect.WORKERS_SECONDS:.0f} s; see its logs"
            except RayError as error:
                lack = f"cannot run this headstart ({type(error).__name__}: {_last_line(error)}): install it there"
            if lack:
                raise EngineError(f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']}) {lack}")


@contextlib.contextmanager
def _answered(address: str) -> Iterator[None]:
    """Say in one line that the cluster is gone, where it is."""
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, OSError, RuntimeError) as error:
        raise EngineError(
            f"the Ray cluster at {address} does not answer any more ({type(error).__name__}); what was embedded is in "
            "the cache, run again to go on"
        ) from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1]


class Ears:
    """Hears what tasks tell; an actor of the run, which takes no core."""

    def __init__(self) -> None:
        self._heard: list[tuple[int, int | None]] = []

    def hear(self, made: int, through: int | None = None) -> None:
        """Take note that a task has begun, or of how many of its images have gone through."""
        self._heard.append((made, through))

    def heard(self) -> list[tuple[int, int | None]]:
        """Return what was heard since this was asked last."""
        found, self._heard = self._heard, []
        return found


@dataclass(slots=True)
class _Try:
    """One task at Ray.

    Attributes
    ----------
    number : int
        Of its shard.
    made : int
        Its own number.
    submitted : float
        When.
    begun : float
        When a process was heard to have begun it; 0 while none was.
    """

    number: int
    made: int
    submitted: float
    begun: float = 0.0


@dataclass(slots=True)
class _Run:
    """One run, from its first task to its last."""

    ray: Any
    engine: RayEngine
    shards: Shards
    token: Token
    report: Report
    stopped: Callable[[], bool]
    waiting: deque[int] = field(init=False)
    under_way: dict[Any, _Try] = field(default_factory=dict)  # by the reference to the record to come
    deaths: Deaths = field(init=False)
    took: list[float] = field(default_factory=list)  # seconds that shards took
    made: int = 0
    task: Any = None
    threads: int = 1
    ears: Any = None
    answer: Any = None  # reference to what the ears have heard
    asked: float = 0.0
    heard: bool = False

    def __post_init__(self) -> None:
        self.waiting, self.deaths = deque(range(len(self.shards))), Deaths(self.report)

    def work(self) -> Iterator[tuple[int, Record]]:
        """Give records as they come."""
        takes = self.engine.task()
        self.threads = int(takes["num_cpus"])
        self.task = self.ray.remote(max_retries=0, **takes)(embed_as_task)
        self.ears = self.ray.remote(num_cpus=0)(Ears).remote()
        room, looked = IN_FLIGHT * self.shards.workers, time.monotonic()
        try:
            while (self.waiting or self.under_way) and not self.stopped():
                if time.monotonic() - looked > LOOK_EVERY:
                    self.engine.check()
                    looked = time.monotonic()
                while self.waiting and len(self.under_way) < room:
                    self._submit(self.waiting.popleft())
                if not self.waiting and len(self.under_way) < self.shards.workers:
                    self._help()
                self._listen()
                for reference in self.ray.wait(list(self.under_way), timeout=_POLL)[0]:
                    yield from self._finish(reference)
        finally:
            self._cancel()

    def _submit(self, number: int) -> None:
        self.made += 1
        reference = self.task.remote(self.shards.order(number, self.token), self.threads, self.made, self.ears)
        self.under_way[reference] = _Try(number, self.made, time.monotonic())

    def _help(self) -> None:
        """Hand one shard in a second time: one that is late, or that waits behind another while there is room."""
        now, numbers = time.monotonic(), Counter(attempt.number for attempt in self.under_way.values())
        for attempt in list(self.under_way.values()):
            # Where nothing is heard, one that was not begun looks like one that was.
            late = is_late(now - (attempt.begun or attempt.submitted), self.took)
            waits = self.heard and not attempt.begun and now - attempt.submitted > LOOK_EVERY
            if (late or waits) and numbers[attempt.number] == 1:
                logger.debug("%s goes to another process, too", self.shards.told(attempt.number))
                self._submit(attempt.number)
                return

    def _listen(self) -> None:
        """Take in what tasks have told."""
        if self.answer is None:
            if self.ears is not None and time.monotonic() - self.asked > TELL_EVERY:
                self.answer, self.asked = self.ears.heard.remote(), time.monotonic()
            return
        if not self.ray.wait([self.answer], timeout=0)[0]:
            return
        answer, self.answer = self.answer, None
        try:
            heard = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:  # its node has gone: there is less to be told
            logger.debug("nothing is heard of the tasks any more: %r", error)
            self.ears, self.heard = None, False
            return
        self.heard |= bool(heard)
        tries = {attempt.made: attempt for attempt in self.under_way.values()}
        for made, through in heard:
            attempt = tries.get(made)
            if attempt is not None and through is None:
                attempt.begun = time.monotonic()
            elif attempt is not None and through is not None:
                self.report.through(attempt.number, through)

    def _finish(self, reference: Any) -> Iterator[tuple[int, Record]]:
        """Take in a record, or hand a shard in again whose process has died."""
        from ray import exceptions as ray

        attempt = self.under_way.pop(reference, None)
        if attempt is None:  # it was done by two, and the other one came at the same time
            return
        number = attempt.number
        others = [other for other, one in self.under_way.items() if one.number == number]
        try:
            record = self.ray.get(reference)
        except ray.RayTaskError as error:
            raise error.cause if isinstance(error.cause, HeadstartError) else error from None
        except (
            ray.WorkerCrashedError, ray.NodeDiedError, ray.LocalRayletDiedError, ray.OutOfMemoryError,
            ray.ObjectLostError,
        ) as error:  # fmt: skip
            if self.deaths.are_too_many(number):
                raise EngineError(
                    f"{TRIES} processes of the Ray cluster ended over {self.shards.told(number)} "
                    f"({type(error).__name__}); what was embedded is in the cache, run again to go on: what they were "
                    "decoding is then tried apart"
                ) from error
            if not others:
                self.waiting.appendleft(number)
                self.report.again(number, f"a process of the Ray cluster ended ({type(error).__name__})")
            return
        for other in others:  # it ends with its part in hand, and nobody waits for it
            del self.under_way[other]
            self.ray.cancel(other)
        self.took.append(time.monotonic() - (attempt.begun or attempt.submitted))
        yield number, record

    def _cancel(self) -> None:
        """Interrupt what is under way, and wait for it: the parts in hand are finished."""
        with contextlib.suppress(Exception):  # where the cluster is gone, so are its tasks
            for reference in self.under_way:
                self.ray.cancel(reference)
            if self.under_way:
                self.ray.wait(list(self.under_way), num_returns=len(self.under_way), timeout=connect.LEAVE_SECONDS)


def embed_as_task(order: Order, threads: int, made: int, ears: Any) -> Record:
    """Do one shard, as a task; what is to be said to people comes with the record.

    Parameters
    ----------
    order : Order
    threads : int
    made : int
        Number of the task.
    ears : ActorHandle of Ears, or None

    Raises
    ------
    HeadstartError
        As `embed_shard`; the message names the node.
    """
    import ray

    said: list[tuple[int, str]] = []

    def say(through: int | None = None) -> None:
        if ears is not None:
            ears.hear.remote(made, through)

    def tell(message: Message) -> None:
        if message.through is not None:
            say(message.through)
        elif message.log is not None:
            said.append(message.log)

    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    here = Here(f"{node} process {os.getpid()}", threads, lambda: False, tell, TELL_EVERY)
    try:
        return replace(embed_shard(order, here, say), log=tuple(said))
    except HeadstartError as error:
        raise type(error)(f"node {node}: {error}") from error
