"""A team whose shards are on the workers of a cluster: small questions and small answers, and rows that never travel.

A worker that dies takes its shard with it. Another one is hired for it, does again what the shard was brought to, and
answers in its place: sums come out as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .. import __version__
from ..cache.part import Keys
from ..cache.store import FeatureStore
from ..errors import UsageError
from ..extract.engines.connect import EngineError, dask_client, ray_session, scheduler_answers
from ..extract.options import EngineOptions
from . import crew
from .share import Share
from .team import Team, share_of

logger = logging.getLogger("headstart.classify")

# Methods that change what a shard holds: whoever takes over from another does them again.
_BRINGS_ON = ("hold", "project", "begin", "deal", "keep")
_LOSSES_A_MEMBER = 3  # workers that are lost more often than that, for each that there was, are not lost by chance
_LARGE = 1 << 20  # bytes of an argument that does not travel by way of the scheduler
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Member:
    """A worker.

    Attributes
    ----------
    name : str
    machine : str
        Where it runs.
    threads : int
    """

    name: str
    machine: str
    threads: int


class Lost(Exception):  # noqa: N818  (no mistake of anybody's)
    """A worker went away before it answered, or came back without its shard."""


class Engine(Protocol):
    """Workers that call functions, of one kind of cluster."""

    def members(self) -> dict[str, Member]:
        """Return the workers that are there."""

    def share(self, arguments: tuple[Any, ...], names: Sequence[str]) -> tuple[Any, ...]:
        """Bring large arguments to the workers of these names, and return what stands for them."""

    def hire(self, name: str, key: str, *arguments: Any) -> Any:
        """Call `crew.hire` on a worker; return a ticket."""

    def ask(self, name: str, key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call `crew.work` on a worker; return a ticket."""

    def wait(self, tickets: Sequence[Any]) -> None:
        """Wait until one of the tickets may be done, for half a second at most."""

    def answer(self, ticket: Any) -> tuple[bool, Any]:
        """Return whether the ticket is done, and the answer.

        Raises
        ------
        Lost
        """

    def close(self, keys: Mapping[str, str]) -> None:
        """Let shards go, given by their names and where they are, and part."""


class ClusterTeam(Team):
    """Shards on the workers of a cluster, one each.

    Parameters
    ----------
    share : Share
        Of all images; they are divided as they are stored, so that each worker reads parts of its own.
    where : EngineOptions
        Of which cluster.
    memory : int
        Bytes that each may take; half of what is free there where it is 0.

    Raises
    ------
    UsageError, MissingExtraError, EngineError
        As `dask_client` and `ray_session`; nobody works there.
    """

    def __init__(self, share: Share, where: EngineOptions, memory: int) -> None:
        assert where.address is not None
        self.name = where.engine
        self._engine: Engine = DaskEngine(where.address) if where.engine == "dask" else RayEngine(where.address)
        members = self._engine.members()
        if not members:
            raise EngineError(f"no worker has joined the cluster at {where.address}: start some, and run again")
        super().__init__(replace(share, memory=memory), _divided(share, len(members)))
        self._run = secrets.token_hex(6)
        self._shares = [share_of(share, part, (number, len(self.parts))) for number, part in enumerate(self.parts)]
        self._homes = dict(enumerate(members))
        self._brought: dict[str, tuple[Any, ...]] = {}
        self._losses, self._most_losses = 0, _LOSSES_A_MEMBER * len(members)
        self._hired: set[int] = set()

    def _call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        if not self._hired:
            self._hire_all()
        sent = self._engine.share(arguments, sorted(set(self._homes.values())))
        answers: dict[int, Any] = {}
        tickets = {shard: self._ask(shard, method, sent) for shard in self._homes}
        while tickets:
            self._engine.wait(list(tickets.values()))
            for shard, ticket in list(tickets.items()):
                try:
                    done, answer = self._engine.answer(ticket)
                except Lost:
                    self._move(shard)
                    tickets[shard] = self._ask(shard, method, arguments)
                    continue
                if done:
                    answers[shard] = answer
                    del tickets[shard]
        if method in _BRINGS_ON:
            self._brought[method] = arguments
        return [answers[shard] for shard in sorted(answers)]

    def close(self) -> None:
        """Let all shards go, and part from the cluster."""
        self._engine.close({self._key(shard): self._homes[shard] for shard in self._hired})

    def _key(self, shard: int) -> str:
        return f"{self._run}-{shard}"

    def _ask(self, shard: int, method: str, arguments: tuple[Any, ...]) -> Any:
        return self._engine.ask(self._homes[shard], self._key(shard), method, arguments)

    def _hire_all(self) -> None:
        members = self._engine.members()
        tickets = {shard: self._hire(shard, members) for shard in self._homes}
        for shard, ticket in tickets.items():
            self._hired.add(shard)
            try:
                self._done(ticket)
            except Lost:
                self._move(shard)
        if not self.memory:
            # By what memory there is rows are put aside and dealt: who takes over a shard is to do it in the same way.
            for shard, granted in enumerate(self._call("granted", ())):
                self._shares[shard] = replace(self._shares[shard], memory=granted)

    def _hire(self, shard: int, members: Mapping[str, Member]) -> Any:
        home = members.get(self._homes[shard])
        threads, machine = (home.threads, home.machine) if home else (1, "")
        neighbours = sum(member.machine == machine for member in members.values())
        share = replace(self._shares[shard], threads=threads)
        return self._engine.hire(self._homes[shard], self._key(shard), share, max(1, neighbours), __version__)

    def _move(self, shard: int) -> None:
        """Give the rows of a worker that was lost to another, and bring it to where the first one was."""
        while True:
            self._losses += 1
            members = self._engine.members()
            others = [name for name in members if name != self._homes[shard]] or list(members)
            if not others or self._losses > self._most_losses:
                raise EngineError(
                    f"workers of the cluster go away as fast as they are given rows ({self._losses} times): see their "
                    "logs, most often for memory, and give each less with --memory"
                )
            load = [sum(home == name for home in self._homes.values()) for name in others]
            lost, self._homes[shard] = self._homes[shard], others[int(np.argmin(load))]
            logger.warning("worker %s is lost; its rows go to %s", lost, self._homes[shard])
            try:
                self._done(self._hire(shard, members))
                for method, arguments in self._brought.items():
                    self._done(self._ask(shard, method, arguments))
                return
            except Lost:
                continue

    def _done(self, ticket: Any) -> Any:
        """Wait for an answer."""
        while True:
            done, answer = self._engine.answer(ticket)
            if done:
                return answer
            self._engine.wait([ticket])


def _divided(share: Share, count: int) -> list[np.ndarray]:
    """Divide images into so many pieces of equal size, in the order in which their plain crops are stored."""
    if len(share.digest) < count:
        raise UsageError(f"{len(share.digest)} training images are too few for {count} workers: leave --engine out")
    index, _ = FeatureStore(share.root).index(share.spaces[0].id)
    return np.array_split(np.argsort(index.find(Keys.plain(share.digest)), kind="stable"), count)


class DaskEngine:
    """Workers of a Dask cluster.

    Dask's tasks keep nothing between them, and a shard is what is kept. So a shard lives in its worker's process, and
    tasks that are bound to that worker find it there; the future of its `crew.Lease` lets it go when this client parts,
    however it does. What joblib can do with such a cluster, tasks that go to any worker, would read all rows anew in
    each pass.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: Any = dask_client(address)
        self._leases: list[Any] = []
        self._there: set[str] = set(self.members())
        self._looked = time.monotonic()

    def members(self) -> dict[str, Member]:
        """Return the workers that are there."""
        with scheduler_answers(self._address, "run again"):
            there: dict[str, int] = self._client.nthreads()
        return {name: Member(name, name.rsplit(":", 1)[0], threads) for name, threads in sorted(there.items())}

    def share(self, arguments: tuple[Any, ...], names: Sequence[str]) -> tuple[Any, ...]:
        """Bring large arrays to the workers of these names, and return what stands for them."""
        if not any(map(_is_large, arguments)):
            return arguments
        members = self.members()
        there = [name for name in names if name in members]
        if not there:
            return arguments
        with scheduler_answers(self._address, "run again"):
            return tuple(
                self._client.scatter(value, workers=there, broadcast=True, hash=False) if _is_large(value) else value
                for value in arguments
            )

    def hire(self, name: str, key: str, *arguments: Any) -> Any:
        """Call `crew.hire` on a worker."""
        share, *others = arguments
        known = name in self.members()
        with scheduler_answers(self._address, "run again"):
            there = self._client.scatter(share, workers=[name], hash=False) if known else share
            lease = self._client.submit(crew.hire, key, there, *others, workers=[name], pure=False)
        self._leases.append(lease)
        return name, lease

    def ask(self, name: str, key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call `crew.work` on a worker."""
        # Arguments that stand for scattered arrays are looked up where they are the task's own, not within a tuple.
        with scheduler_answers(self._address, "run again"):
            return name, self._client.submit(_work, key, method, *arguments, workers=[name], pure=False)

    def wait(self, tickets: Sequence[Any]) -> None:
        """Wait until one of the tickets may be done, for half a second at most."""
        import distributed

        wait: Any = distributed.wait
        with self._client.as_current(), contextlib.suppress(TimeoutError, distributed.CancelledError):
            wait([future for _, future in tickets], timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")

    def answer(self, ticket: Any) -> tuple[bool, Any]:
        """Return whether the ticket is done, and the answer."""
        name, future = ticket
        if future.status == "finished":
            try:
                return True, future.result(timeout=60)
            except TimeoutError as error:  # it went away between the answer and its delivery
                raise Lost from error
        if future.status == "error":
            self._raise(future)
        if future.status in ("lost", "cancelled"):
            raise Lost
        if time.monotonic() - self._looked > _POLL_SECONDS:
            self._there, self._looked = set(self.members()), time.monotonic()
        if name not in self._there:
            future.cancel()
            raise Lost
        return False, None

    def close(self, keys: Mapping[str, str]) -> None:
        """Let shards go, and part."""
        try:
            there = self.members()
            gone = [
                self._client.submit(crew.dismiss, key, workers=[name], pure=False)
                for key, name in keys.items()
                if name in there
            ]
            if gone:
                self.wait([("", future) for future in gone])
        finally:
            self._leases.clear()
            self._client.close()

    def _raise(self, future: Any) -> None:
        from distributed.scheduler import KilledWorker

        error = future.exception()
        if isinstance(error, KilledWorker | crew.LackingShardError):
            raise Lost from error
        raise error


def _is_large(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.nbytes >= _LARGE


def _work(key: str, method: str, *arguments: Any) -> Any:
    return crew.work(key, method, arguments)


class RayEngine:
    """Workers of a Ray cluster: an actor on each node, which goes with this process."""

    def __init__(self, address: str) -> None:
        self._ray = ray_session(address)
        self._actors: dict[str, Any] = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                self._actors[node["NodeID"]] = self._actor(node)
        self._threads = {node["NodeID"]: int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes()}

    def members(self) -> dict[str, Member]:
        """Return the workers that are there."""
        return {name: Member(name, name, self._threads[name]) for name in sorted(self._actors)}

    def share(self, arguments: tuple[Any, ...], names: Sequence[str]) -> tuple[Any, ...]:
        """Put large arrays into the object store, and return what stands for them."""
        return tuple(self._ray.put(value) if _is_large(value) else value for value in arguments)

    def hire(self, name: str, key: str, *arguments: Any) -> Any:
        """Call `crew.hire` in an actor."""
        actor = self._actors[name]
        return name, actor, actor.hire.remote(key, *arguments)

    def ask(self, name: str, key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call `crew.work` in an actor."""
        actor = self._actors[name]
        return name, actor, actor.work.remote(key, method, *arguments)

    def wait(self, tickets: Sequence[Any]) -> None:
        """Wait until one of the tickets may be done, for half a second at most."""
        self._ray.wait([reference for _, _, reference in tickets], timeout=_POLL_SECONDS)

    def answer(self, ticket: Any) -> tuple[bool, Any]:
        """Return whether the ticket is done, and the answer."""
        name, actor, reference = ticket
        ready, _ = self._ray.wait([reference], timeout=0)
        if not ready:
            return False, None
        try:
            return True, self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, crew.LackingShardError):
                raise Lost from error
            raise error.cause from error
        except self._ray.exceptions.RayError as error:  # the actor, its node or an object of theirs is not there
            if self._actors.get(name) is actor:  # and not one that was started since, for another shard
                self._replace(name)
            raise Lost from error

    def close(self, keys: Mapping[str, str]) -> None:
        """End the actors, with all that they hold."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()

    def _actor(self, node: Mapping[str, Any]) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return self._ray.remote(_Actor).options(num_cpus=0, scheduling_strategy=where).remote()

    def _replace(self, name: str) -> None:
        """Start a new actor on a node that is still there."""
        del self._actors[name]
        for node in self._ray.nodes():
            if node["NodeID"] == name and node["Alive"]:
                self._actors[name] = self._actor(node)


class _Actor:
    """What runs in an actor of Ray."""

    def __init__(self) -> None:
        self._leases: list[crew.Lease] = []

    def hire(self, key: str, *arguments: Any) -> None:
        self._leases.append(crew.hire(key, *arguments))

    def work(self, key: str, method: str, *arguments: Any) -> Any:
        return crew.work(key, method, arguments)
