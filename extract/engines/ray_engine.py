"""Shards on a Ray cluster: each is a task that takes a few cores, and a GPU where the cluster has some.

Ray starts a process for each task that runs at once, keeps it, and gives it the next one. A task whose process dies is
handed in again by the run, which counts how often that happens.
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
from .shards import TRIES, Report, Shards
from .task import Here, embed_shard

logger = logging.getLogger("headstart.extract")

IN_FLIGHT = 2  # shards a worker that Ray has: the one it is at, and the next
LOOK_EVERY = 5.0  # seconds between two looks at whether the cluster is there
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
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self.task()
        nodes = [node for node in self._ray.nodes() if node["Alive"] and self._on(node["Resources"], task)]
        asked = self._ray.remote(num_cpus=0, max_retries=0)(lacking)
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        answers = [asked.options(scheduling_strategy=place).remote(token) for place in there]
        for node, answer in zip(nodes, answers, strict=True):
            try:
                lack = self._ray.get(answer, timeout=connect.WORKERS_SECONDS)
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
    under_way: dict[Any, int] = field(default_factory=dict)  # shards by the reference to the record to come
    deaths: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.shards)))

    def work(self) -> Iterator[tuple[int, Record]]:
        """Give records as they come."""
        task = self.ray.remote(max_retries=0, **self.engine.task())(embed_as_task)
        threads = int(self.engine.task()["num_cpus"])
        room, looked = IN_FLIGHT * self.shards.workers, time.monotonic()
        try:
            while (self.waiting or self.under_way) and not self.stopped():
                if time.monotonic() - looked > LOOK_EVERY:
                    self.engine.check()
                    looked = time.monotonic()
                while self.waiting and len(self.under_way) < room:
                    number = self.waiting.popleft()
                    self.under_way[task.remote(self.shards.order(number, self.token), threads)] = number
                for reference in self.ray.wait(list(self.under_way), timeout=_POLL)[0]:
                    yield from self._finish(reference)
        finally:
            self._cancel()

    def _finish(self, reference: Any) -> Iterator[tuple[int, Record]]:
        """Take in a record, or hand a shard in again whose process has died."""
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

        number = self.under_way.pop(reference)
        try:
            yield number, self.ray.get(reference)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, HeadstartError) else error from None
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            self.deaths[number] += 1
            if self.deaths[number] == TRIES:
                raise EngineError(
                    f"{TRIES} processes of the Ray cluster ended over {self.shards.told(number)} "
                    f"({type(error).__name__}); what was embedded is in the cache, run again to go on: what they were "
                    "decoding is then tried apart"
                ) from error
            self.waiting.appendleft(number)
            self.report.again(number, f"a process of the Ray cluster ended ({type(error).__name__})")

    def _cancel(self) -> None:
        """Interrupt what is under way, and wait for it: the parts in hand are finished."""
        with contextlib.suppress(Exception):  # where the cluster is gone, so are its tasks
            for reference in self.under_way:
                self.ray.cancel(reference)
            if self.under_way:
                self.ray.wait(list(self.under_way), num_returns=len(self.under_way), timeout=connect.LEAVE_SECONDS)


def embed_as_task(order: Order, threads: int) -> Record:
    """Do one shard, as a task; what is to be said to people comes with the record.

    Raises
    ------
    HeadstartError
        As `embed_shard`; the message names the node.
    """
    import ray

    said: list[tuple[int, str]] = []

    def tell(message: Message) -> None:
        if message.log is not None:
            said.append(message.log)

    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    here = Here(f"{node} process {os.getpid()}", threads, lambda: False, tell)
    try:
        return replace(embed_shard(order, here), log=tuple(said))
    except HeadstartError as error:
        raise type(error)(f"node {node}: {error}") from error
