"""One of the processes that share the work of a run: takes its order on standard input, answers on standard output."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from ..cache.running import running
from ..cache.store import FeatureStore
from ..errors import HeadstartError
from .orders import Message, Order, receive, send
from .resolve import resolve
from .runner import Outcome
from .work import Hooks, embed_work

logger = logging.getLogger("headstart.extract")

Tell = Callable[[Message], None]


class _ToParent(logging.Handler):
    """Sends log records to the parent, which shows them."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Message(log=(record.levelno, record.getMessage())))


def main() -> None:
    """Do one share of a run: the order comes on standard input, messages go to standard output."""
    stream, lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # a library that prints must not print between the messages

    def tell(message: Message) -> None:
        with lock:
            send(stream, message)

    order = receive(sys.stdin.buffer)
    assert isinstance(order, Order)
    logger.setLevel(logging.INFO if order.number == 0 else logging.WARNING)
    logger.addHandler(_ToParent(tell))
    logger.propagate = False
    try:
        tell(Message(outcome=_do(order, _stopped_by_end_of(os.dup(0)), tell)))
    except Exception as error:  # noqa: BLE001  (the parent raises it again)
        tell(Message(error=(type(error).__name__, str(error))))
        sys.exit(1)


def _do(order: Order, stopped: threading.Event, tell: Tell) -> Outcome:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order.cores)
    else:
        os.environ["OMP_NUM_THREADS"] = str(len(order.cores))
    store = FeatureStore(order.cache)
    with running(store.root) as descriptor:
        embedders = [resolve(group, order.run, store.root) for group in order.asked]
        spaces = [space.id for embedder in embedders for space in embedder.spaces]
        if spaces != order.spaces:
            raise HeadstartError("the weights changed while the run began; run again")
        held = {space: store.index(space)[0] for space in spaces}
        hooks = Hooks(
            stopped.is_set,
            lambda count: tell(Message(progress=count)),
            lambda rate, done: tell(Message(rate=(rate, done))),
        )
        return embed_work(store, embedders, held, order.work, descriptor, hooks)


def _stopped_by_end_of(descriptor: int) -> threading.Event:
    """Return what is set when nothing more can come: the parent has closed its end, or has died."""
    stopped = threading.Event()

    def wait() -> None:
        os.read(descriptor, 1)  # of no Python object, whose lock this thread would hold when the process ends
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()
    return stopped


if __name__ == "__main__":
    main()
