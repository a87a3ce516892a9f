"""Several processes on one machine, one or more a GPU: the list is split between them, and only the cache is shared.

Each is a Python of its own that does what a single process would do with its share of the images, and is announced in
the cache by itself. It ends when its standard input ends: when the parent has been asked to stop, or has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .. import errors
from ..cache.store import FeatureStore
from ..errors import HeadstartError
from .device import available_cores, visible_gpus
from .embedder import Embedder
from .options import RunOptions
from .orders import Message, Order, receive, send
from .python import environment
from .runner import Hooks, Outcome, Work
from .suspects import forget

logger = logging.getLogger("headstart.extract")

MEMBER = f"{__package__}.member"  # the module that a process runs
WORTH_A_PROCESS = 64  # images; a process takes seconds to start
_WORTH_MORE = 20_000  # images a GPU from which more processes on it repay their start
_MOST_ON_A_GPU = 4  # each keeps a copy of the network and a context, half a gigabyte, in the GPU's memory
_CORES_EACH = 4  # that one process can use before its threads wait for each other
_POLL = 0.1  # seconds between two looks at whether to stop


def processes_for(run: RunOptions, embedders: Sequence[Embedder], images: int, *, at_once: bool = False) -> int:
    """Return in how many processes to embed `images`: as many as asked for, else what keeps the GPUs busy.

    Threads of one process queue for the interpreter's lock, and a GPU waits for them. So a long run has up to four
    processes on each GPU, but one where rows are wanted `at_once`; small work gets fewer. `docs/speed.md` has what that
    was worth.
    """
    wanted = run.processes
    if wanted is None:
        wanted = 1
        if images > WORTH_A_PROCESS and embedders[0].device.kind == "cuda":
            gpus = len(visible_gpus())
            wanted = gpus if at_once else _for_gpus(gpus, embedders, images)
    return max(1, min(wanted, -(-images // WORTH_A_PROCESS)))


def _for_gpus(gpus: int, embedders: Sequence[Embedder], images: int) -> int:
    on_gpu = any(asked.decoder == "gpu" for embedder in embedders for asked in embedder.asked)
    if on_gpu or images < _WORTH_MORE * gpus:
        return gpus
    return gpus * max(1, min(_MOST_ON_A_GPU, available_cores() // gpus // _CORES_EACH))


def embed_in_processes(
    store: FeatureStore, embedders: Sequence[Embedder], work: Work, count: int, hooks: Hooks
) -> Outcome:
    """Embed images in `count` processes; see `headstart.extract.work.embed_work`.

    Raises
    ------
    HeadstartError
        One of the processes failed; the others have stopped after the part in hand.
    """
    shares = np.array_split(work.todo, count)
    cores = _split_cores(count)
    on_gpus = embedders[0].device.kind == "cuda"
    networks = [(list(embedder.spaces), list(embedder.asked)) for embedder in embedders]
    run = replace(embedders[0].run, workers=_share_of(embedders[0].run.workers, count), processes=count)
    orders = [
        Order(number, store.root, networks, run, work.share(mine, count), cores[number])
        for number, mine in enumerate(shares)
    ]
    for embedder in embedders:  # which may have been loaded to find out its spaces
        embedder.unload()
    logger.info("embedding in %d processes of %d images each", count, len(shares[0]))
    whole = _joined(_Crew(orders, on_gpus, hooks).work(), shares, len(work.names))
    forget(store.root, whole.tried)
    return whole


def _share_of(workers: int | None, count: int) -> int | None:
    return None if workers is None else max(1, workers // count)


def _split_cores(count: int) -> list[list[int]]:
    """Divide the cores that this process may use; where there are fewer than processes, they share."""
    if not hasattr(os, "sched_getaffinity"):
        return [list(range(max(1, available_cores() // count)))] * count
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        return [[cores[number % len(cores)]] for number in range(count)]
    return [part.tolist() for part in np.array_split(np.array(cores), count)]


def _joined(outcomes: list[Outcome | None], shares: list[np.ndarray], images: int) -> Outcome:
    """Put what the processes did together as if one had done it."""
    whole = Outcome.empty(images)
    whole.workers, whole.processes = 0, len(outcomes)
    for outcome, rows in zip(outcomes, shares, strict=True):
        if outcome is None:  # it was stopped before it began
            whole.interrupted = True
            continue
        whole.digest[rows] = outcome.digest
        whole.phash[rows] = outcome.phash
        whole.failures.add(outcome.failures.moved(rows[outcome.failures.rows]))
        whole.replaced += [int(rows[place]) for place in outcome.replaced]
        whole.images += outcome.images
        whole.animated += outcome.animated
        whole.enlarged += outcome.enlarged
        whole.workers += outcome.workers
        whole.writers += outcome.writers
        whole.interrupted |= outcome.interrupted
        whole.tried.update(outcome.tried)
        whole.seconds = max(whole.seconds, outcome.seconds)
        for stage, seconds in outcome.stages.items():
            whole.stages[stage] += seconds
    return whole


class _Crew:
    """The processes of one run, from their start to their end."""

    def __init__(self, orders: list[Order], on_gpus: bool, hooks: Hooks) -> None:
        self._orders = orders
        self._hooks = hooks
        self._gpus = visible_gpus() if on_gpus else []
        self._said: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._at_work: list[threading.Event] = []
        self._outcomes: dict[int, Outcome] = {}
        self._failure: Exception | None = None
        self._stopping = False

    def work(self) -> list[Outcome | None]:
        """Wait for all; stop them when asked to, or when one has failed."""
        try:
            for order in self._orders:
                if not self._hooks.stopped():
                    self._start(order)
            left = len(self._processes)
            while left:
                if not self._stopping and (self._failure is not None or self._hooks.stopped()):
                    self._stop()
                with contextlib.suppress(queue.Empty):
                    left -= self._ends(*self._said.get(timeout=_POLL))
        except BaseException:  # Ctrl-C for the second time, say: nobody finishes anything
            for process in self._processes:
                process.terminate()
            raise
        finally:
            self._stop()
            for process in self._processes:
                process.wait()
        if self._failure is not None:
            raise self._failure
        return [self._outcomes.get(number) for number in range(len(self._orders))]

    def _ends(self, number: int, message: Message | None) -> bool:
        """Take in what a process said; True when that was its end."""
        if message is None:
            if number not in self._outcomes and self._failure is None and not self._stopping:
                self._failure = self._death(number)
            return True
        if message.outcome is not None:
            self._outcomes[number] = message.outcome
        elif message.error is not None:
            logger.debug("process %d of %d failed:\n%s", number + 1, len(self._orders), message.trace)
            self._failure = self._failure or _rebuilt(*message.error)
        else:
            self._pass_on(number, message)
        return False

    def _start(self, order: Order) -> None:
        variables = environment()
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self._gpus[order.number % len(self._gpus)]
        try:
            # A session of its own: Ctrl-C is for the parent to answer.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", MEMBER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise HeadstartError(
                f"process {order.number + 1} of {len(self._orders)} could not be started ({error.strerror}); pass "
                "--processes with a smaller number"
            ) from error
        self._processes.append(process)
        self._at_work.append(threading.Event())
        threading.Thread(target=self._listen, args=(order, process, self._at_work[-1]), daemon=True).start()

    def _listen(self, order: Order, process: subprocess.Popen[bytes], at_work: threading.Event) -> None:
        assert process.stdin is not None and process.stdout is not None
        try:
            send(process.stdin, order)
            while isinstance(message := receive(process.stdout), Message):
                if message.progress:
                    at_work.set()
                self._said.put((order.number, message))
        except (EOFError, OSError) as error:  # it has ended, or died within a message
            logger.debug("process %d says no more: %r", order.number, error)
        finally:
            process.stdout.close()
            process.wait()
            self._said.put((order.number, None))

    def _stop(self) -> None:
        """Ask all to finish what they have in hand; who has not come to a picture yet has nothing to finish."""
        self._stopping = True
        for process, at_work in zip(self._processes, self._at_work, strict=True):
            if not at_work.is_set():
                process.terminate()
            elif process.stdin is not None and not process.stdin.closed:
                with contextlib.suppress(OSError):  # it has gone already
                    process.stdin.close()

    def _pass_on(self, number: int, message: Message) -> None:
        self._hooks.progress(message.progress)
        if message.log is not None:
            logger.log(message.log[0], "%s", message.log[1])
        if message.rate is not None and number == 0:
            rate, done = message.rate
            self._hooks.on_rate(rate * len(self._orders), done * len(self._orders))

    def _death(self, number: int) -> HeadstartError:
        status = self._processes[number].returncode
        why = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return HeadstartError(
            f"process {number + 1} of {len(self._orders)} ended with {why}; what was embedded is in the cache, run "
            "again to go on: what it was decoding is then tried apart"
        )


def _rebuilt(kind: str, text: str) -> Exception:
    """Return the error that a process met."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HeadstartError):
        return found(text)
    return RuntimeError(f"in a process of this run: {kind}: {text}")
