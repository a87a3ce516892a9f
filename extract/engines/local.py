"""Processes of this machine, one or more a GPU: they take one shard after the other, and share only the cache.

Each is a Python of its own that does what a single process would do with the images of its shards, and is announced in
the cache by itself. It ends when its standard input ends: when the run is through or has been asked to stop, or has
died. When a process dies, its shard goes to another one, and a new one takes its place; when a shard has ended three,
the run gives up.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ... import errors
from ...errors import HeadstartError
from ..device import visible_gpus
from ..options import RunOptions
from ..orders import Message, Order, Record, receive, send
from ..python import environment
from ..scale import split_cores
from .shards import TRIES, Deaths, Report, Shards

logger = logging.getLogger("headstart.extract")

MEMBER = f"{__package__}.member"  # the module that a process runs
_POLL = 0.1  # seconds between two looks at whether to stop


class LocalEngine:
    """Several processes of this machine.

    Parameters
    ----------
    count : int
        How many.
    on_gpus : bool
        Whether each of them has an NVIDIA GPU, or a share of one.
    """

    name = "local"

    def __init__(self, count: int, on_gpus: bool) -> None:
        self._count = count
        self._on_gpus = on_gpus

    def workers(self) -> int:
        """Return how many processes there will be."""
        return self._count

    def ready(self, _stopped: Callable[[], bool]) -> int:
        """Return how many processes there will be; they are started when there is a shard for them."""
        return self._count

    def share(self, run: RunOptions) -> RunOptions:
        """Return what each may have of the threads and of the memory."""
        workers = None if run.workers is None else max(1, run.workers // self._count)
        return replace(run, workers=workers, processes=self._count)

    def run(self, shards: Shards, report: Report, stopped: Callable[[], bool]) -> Iterator[tuple[int, Record]]:
        """Have all shards done; see `Engine`."""
        count = min(self._count, len(shards))
        yield from _Crew(shards, report, stopped, count, visible_gpus() if self._on_gpus else []).work()


@dataclass(eq=False, slots=True)
class _Member:
    """One process, and the shard that it is at.

    Attributes
    ----------
    place : int
        Which of the cores and GPUs it has.
    process : Popen
    orders : Queue
        What it is given; None when nothing more comes.
    shard : int or None
    at_work : bool
        Whether it has come to a picture by now.
    """

    place: int
    process: subprocess.Popen[bytes]
    orders: queue.Queue[Order | None] = field(default_factory=queue.Queue)
    shard: int | None = None
    at_work: bool = False

    def stop(self) -> None:
        """Ask it to finish what it has in hand; who has not come to a picture yet has nothing to finish."""
        self.orders.put(None)
        if not self.at_work:
            self.process.terminate()
        elif self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(OSError):  # it has gone already
                self.process.stdin.close()


class _Crew:
    """The processes of one run, from their start to their end."""

    def __init__(
        self, shards: Shards, report: Report, stopped: Callable[[], bool], count: int, gpus: list[str]
    ) -> None:
        self._shards = shards
        self._report = report
        self._stopped = stopped
        self._gpus = gpus
        self._cores = split_cores(count)
        self._waiting = deque(range(len(shards)))
        self._left = len(shards)  # without a record
        self._deaths = Deaths(report)
        self._members: dict[int, _Member] = {}  # by their places
        self._said: queue.Queue[tuple[_Member, Message | None]] = queue.Queue()
        self._failure: Exception | None = None
        self._stopping = False

    def work(self) -> Iterator[tuple[int, Record]]:
        """Give records as they come; stop all when asked to, or when a shard has failed."""
        try:
            while self._left and (self._members or not self._stopping):
                if not self._stopping and (self._failure is not None or self._stopped()):
                    self._stop()
                if not self._stopping:
                    self._hand_out()
                with contextlib.suppress(queue.Empty):
                    yield from self._take(*self._said.get(timeout=_POLL))
        except BaseException:  # Ctrl-C for the second time, say: nobody finishes anything
            for member in self._members.values():
                member.process.terminate()
            raise
        finally:
            self._stop()
            for member in self._members.values():
                member.process.wait()
        if self._failure is not None:
            raise self._failure

    def _hand_out(self) -> None:
        """Give shards to those who have none; start a process for each place without one, while shards wait."""
        for place in range(len(self._cores)):
            if not self._waiting:
                return
            member = self._members.get(place) or self._start(place)
            if member.shard is None:
                member.shard = self._waiting.popleft()
                member.orders.put(self._shards.order(member.shard))

    def _take(self, member: _Member, message: Message | None) -> Iterator[tuple[int, Record]]:
        """Take in what a process said, None for its end."""
        number = member.shard
        if message is None:
            del self._members[member.place]
            if number is not None and self._failure is None and not self._stopping:
                self._mourn(member, number)
        elif message.record is not None and number is not None:
            member.shard = None
            self._left -= 1
            yield number, message.record
        elif message.error is not None:
            logger.debug("process %d failed:\n%s", member.place + 1, message.trace)
            self._failure = self._failure or _rebuilt(*message.error)
        elif message.log is not None:
            self._report.log(*message.log)
        elif message.through is not None and number is not None:
            member.at_work = True
            self._report.through(number, message.through)

    def _mourn(self, member: _Member, number: int) -> None:
        """Put the shard of a process that has died first among those that wait, unless it has ended several."""
        status = member.process.returncode
        why = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if not self._deaths.are_too_many(number):
            self._waiting.appendleft(number)
            self._report.again(number, f"process {member.place + 1} of {len(self._cores)} ended with {why}")
            return
        self._failure = HeadstartError(
            f"{TRIES} processes ended over {self._shards.told(number)}, the last with {why}; what was embedded is in "
            "the cache, run again to go on: what they were decoding is then tried apart"
        )

    def _start(self, place: int) -> _Member:
        variables = environment()
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        cores = ",".join(map(str, self._cores[place]))
        try:
            # A session of its own: Ctrl-C is for the run to answer.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", MEMBER, cores],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise HeadstartError(
                f"process {place + 1} of {len(self._cores)} could not be started ({error.strerror}); pass "
                "--processes with a smaller number"
            ) from error
        member = self._members[place] = _Member(place, process)
        threading.Thread(target=self._serve, args=(member,), daemon=True).start()
        return member

    def _serve(self, member: _Member) -> None:
        """Pass orders to a process, and what it answers to the run; in a thread of its own."""
        process = member.process
        assert process.stdin is not None and process.stdout is not None
        try:
            while (order := member.orders.get()) is not None:
                send(process.stdin, order)
                while True:
                    message: Message = receive(process.stdout.fileno())
                    self._said.put((member, message))
                    if message.record is not None:
                        break
        except (EOFError, OSError, ValueError) as error:  # it has ended, or its input was closed
            logger.debug("process %d says no more: %r", member.place + 1, error)
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            process.wait()
            self._said.put((member, None))

    def _stop(self) -> None:
        self._stopping = True
        for member in self._members.values():
            member.stop()


def _rebuilt(kind: str, text: str) -> Exception:
    """Return the error that a process met."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HeadstartError):
        return found(text)
    return RuntimeError(f"in a process of this run: {kind}: {text}")
