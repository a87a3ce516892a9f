"""One of the processes that share the work of a run: takes its order on standard input, answers on standard output."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

from ..cache.running import running
from ..cache.store import FeatureStore
from .embedder import Embedder
from .orders import Message, Order, receive, send
from .runner import Hooks, Outcome
from .work import embed_work

logger = logging.getLogger("headstart.extract")

Tell = Callable[[Message], None]

TOLD_EVERY = 0.1  # seconds; a message for each of thousands of images a second would keep the parent busy


class _ToParent(logging.Handler):
    """Sends log records to the parent, which shows them."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Message(log=(record.levelno, record.getMessage())))


class _Progress:
    """Tells the parent how many images went through: at the first one, and then a few times a second."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._count = 0
        self._told = -math.inf

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._told >= TOLD_EVERY:
            self.tell()

    def tell(self) -> None:
        self._tell(Message(progress=self._count))
        self._count, self._told = 0, time.monotonic()


def main() -> None:
    """Do one share of a run: the order comes on standard input, messages go to standard output."""
    stream, lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # a library that prints must not print between the messages

    stopped = threading.Event()

    def tell(message: Message) -> None:
        with lock:
            try:
                send(stream, message)
            except BrokenPipeError:  # the parent has died: finish the part in hand
                stopped.set()

    signal.signal(signal.SIGTERM, _leave)
    try:
        order = receive(sys.stdin.buffer)
    except EOFError:  # stopped before it began
        return
    assert isinstance(order, Order)
    logger.setLevel(logging.INFO if order.number == 0 else logging.WARNING)
    logger.addHandler(_ToParent(tell))
    logger.propagate = False
    _set_at_end_of(os.dup(0), stopped)
    try:
        tell(Message(outcome=_do(order, stopped, tell)))
    except Exception as error:  # noqa: BLE001  (the parent raises it again)
        tell(Message(error=(type(error).__name__, str(error)), trace=traceback.format_exc()))
        sys.exit(1)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once, but as any program ends: what was announced in the cache is taken back."""
    sys.exit(128 + signal.SIGTERM)


def _do(order: Order, stopped: threading.Event, tell: Tell) -> Outcome:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order.cores)
    else:
        os.environ["OMP_NUM_THREADS"] = str(len(order.cores))
    store = FeatureStore(order.cache)
    with running(store.root) as descriptor:
        embedders = [Embedder(spaces, asked, order.run) for spaces, asked in order.networks]
        held = {space.id: store.index(space.id)[0] for spaces, _ in order.networks for space in spaces}
        progress = _Progress(tell)
        hooks = Hooks(stopped.is_set, progress.add, lambda rate, done: tell(Message(rate=(rate, done))))
        outcome = embed_work(store, embedders, held, order.work, descriptor, hooks)
        progress.tell()
        return outcome


def _set_at_end_of(descriptor: int, stopped: threading.Event) -> None:
    """Set an event when nothing more can come: the parent has closed its end, or has died."""

    def wait() -> None:
        os.read(descriptor, 1)  # of no Python object, whose lock this thread would hold when the process ends
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main()
