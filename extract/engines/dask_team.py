"""Who is there to do shards on a Dask cluster, and who of them is fit for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...errors import HeadstartError
from ..orders import Token
from . import connect
from .connect import EngineError, scheduler_answers
from .fitness import lacking

logger = logging.getLogger("headstart.extract")

Client: TypeAlias = Any  # of `distributed`, whose methods have no types

GPU = "GPU"  # the resource by which workers say that they have one
LOOK_EVERY = 2.0  # seconds between two looks at who is there
FIT_SECONDS = 5.0  # that a worker that does not say what it lacks is waited for, where others are fit


def asked(client: Client, address: str, question: Callable[[], Any]) -> Any:
    """Return what the scheduler answers.

    Raises
    ------
    EngineError
        It does not.
    """
    with scheduler_answers(address, "what was embedded is in the cache, run again to go on"):
        if client.status != "running":
            raise ConnectionError(client.status)
        return question()


@dataclass(slots=True)
class Patience:
    """How long nobody has been there to do anything."""

    address: str
    since: float = 0.0

    def nobody_is_there(self, hanging: int = 0) -> None:
        """Say so at first, and give up in the end.

        Parameters
        ----------
        hanging : int
            How many are there, but do not answer.

        Raises
        ------
        EngineError
            This has lasted for too long.
        """
        if not self.since:
            self.since = time.monotonic()
            logger.warning(
                "%s the Dask scheduler at %s: waiting for %.0f s",
                f"no answer from {hanging} workers of" if hanging else "no worker is connected to",
                self.address, connect.WORKERS_SECONDS,
            )  # fmt: skip
        if time.monotonic() - self.since > connect.WORKERS_SECONDS:
            if hanging:
                raise EngineError(
                    f"{hanging} workers of the Dask scheduler at {self.address} have not answered in "
                    f"{connect.WORKERS_SECONDS:.0f} s; see their logs, and start them anew"
                )
            raise EngineError(
                f"no worker has connected to the Dask scheduler at {self.address} in {connect.WORKERS_SECONDS:.0f} s; "
                f"start some with `dask worker {self.address}`"
            )


@dataclass(frozen=True, slots=True)
class _Fitness:
    """What a worker says of itself: what it lacks for the run, if anything, and whether it declares a GPU."""

    lacks: str
    gpu: bool


def _fitness(token: Token, dask_worker: Any) -> _Fitness:
    """Find out whether this worker is fit for a run; Dask puts the worker in for its argument."""
    return _Fitness(lacking(token), bool(dask_worker.state.total_resources.get(GPU)))


class _Question:
    """A worker is asked whether it is fit, by a thread: one that hangs lets nobody wait but that."""

    def __init__(self, client: Client, worker: str, token: Token) -> None:
        self.answer: object = None
        self._answered = threading.Event()
        self._deadline = time.monotonic() + FIT_SECONDS
        threading.Thread(target=self._ask, args=(client, worker, token), daemon=True, name="fitness").start()

    def _ask(self, client: Client, worker: str, token: Token) -> None:
        try:
            self.answer = client.run(_fitness, token, workers=[worker], on_error="return").get(worker)
        except Exception as error:  # noqa: BLE001  (of the way there: it has gone, or the scheduler has)
            self.answer = OSError(str(error))
        self._answered.set()

    def is_answered(self) -> bool:
        """Wait for the answer, as long as a worker may take that does not hang, and tell whether it is there."""
        return self._answered.wait(max(0.0, self._deadline - time.monotonic()))


class Team:
    """The workers that are there and fit for a run; those that come later are taken in, the others named once."""

    def __init__(self, client: Client, address: str, token: Token, wants_gpu: bool) -> None:
        self._client = client
        self._address = address
        self._wants_gpu = wants_gpu
        self._known: dict[str, _Fitness] = {}
        self._asked: dict[str, _Question] = {}
        self._named: set[str] = set()
        self._there: set[str] = set()
        self._looked = -LOOK_EVERY
        self._patience: Patience | None = None
        self.token = token

    def look(self) -> None:
        """See who is there, at most every few seconds.

        Raises
        ------
        EngineError
            The scheduler is gone, or there have been no workers for too long, or all of them lack something.
        """
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._there = set(asked(self._client, self._address, self._client.nthreads))
        self._ask(sorted(self._there - self._known.keys()))
        self._looked = time.monotonic()
        known = self._there & self._known.keys()
        if known and not self.fit and known == self._there:
            worker = min(known)
            raise EngineError(f"worker {worker} {self._known[worker].lacks}")
        if self.fit:
            self._patience = None
        else:
            self._patience = self._patience or Patience(self._address)
            self._patience.nobody_is_there(hanging=len(self._there - self._known.keys()))

    @property
    def fit(self) -> list[str]:
        """Addresses of those that may be given work: all that are fit, or those with a GPU if there are any."""
        fit = [worker for worker in sorted(self._there) if worker in self._known and not self._known[worker].lacks]
        with_gpu = [worker for worker in fit if self._known[worker].gpu]
        return with_gpu if with_gpu and self._wants_gpu else fit

    def placing(self, workers: Collection[str]) -> dict[str, Any]:
        """Return how the scheduler is told to place a task on one of some workers.

        On no others, should these die: where a task may go elsewhere at need (`allow_other_workers`), any idle worker
        steals it, whether it was named, and has the resource, or not.
        """
        with_gpu = self._wants_gpu and any(self._known[worker].gpu for worker in workers)
        return {"workers": sorted(workers), "resources": {GPU: 1} if with_gpu else None}

    def are_gone(self, workers: Collection[str]) -> bool:
        """Tell whether none of some workers is there any more."""
        return self._there.isdisjoint(workers)

    def _ask(self, workers: list[str]) -> None:
        """Take in what workers say of themselves; those that hang are left out until they say it."""
        for worker in workers:
            if worker not in self._asked:
                self._asked[worker] = _Question(self._client, worker, self.token)
        for worker in workers:
            if not self._asked[worker].is_answered():
                continue
            answer = self._asked.pop(worker).answer
            if isinstance(answer, OSError) and not isinstance(answer, HeadstartError):
                continue  # it has just gone
            if not isinstance(answer, _Fitness):
                answer = _Fitness(
                    f"cannot run this headstart ({type(answer).__name__}: {answer}): install it there", False
                )
            self._known[worker] = answer
        if self.fit:
            for worker in sorted(self._known.keys() - self._named):
                self._named.add(worker)
                if self._known[worker].lacks:
                    logger.warning("worker %s %s; the run goes on without it", worker, self._known[worker].lacks)
