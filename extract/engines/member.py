"""One of this machine's processes that share a run: orders come on standard input, answers go to standard output.

Which cores it may use is its argument, as numbers with commas between them.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import traceback
from types import FrameType

from ..orders import Message, Order, receive, send
from .task import Here, Tell, embed_shard

logger = logging.getLogger("headstart.extract")


def main() -> None:
    """Do shards as long as orders for them come, or until what is under way is not wanted any more."""
    stream, lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # a library that prints must not print between the messages

    stopped = threading.Event()

    def tell(message: Message) -> None:
        with lock:
            try:
                send(stream, message)
            except BrokenPipeError:  # the run has died: finish the part in hand
                stopped.set()

    signal.signal(signal.SIGTERM, _leave)
    cores = [int(number) for number in sys.argv[1].split(",")]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    else:
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
    logger.propagate = False
    try:
        _work(_orders(stopped), stopped, tell)
    except Exception as error:  # noqa: BLE001  (the run raises it again)
        tell(Message(error=(type(error).__name__, str(error)), trace=traceback.format_exc()))
        sys.exit(1)


def _work(orders: queue.Queue[Order | None], stopped: threading.Event, tell: Tell) -> None:
    here = Here(f"process {os.getpid()}", None, stopped.is_set, tell)
    while (order := orders.get()) is not None:
        tell(Message(record=embed_shard(order, here)))


def _orders(stopped: threading.Event) -> queue.Queue[Order | None]:
    """Return the orders as they come; when none can come any more, the run has closed its end, or has died."""
    orders: queue.Queue[Order | None] = queue.Queue()

    def take() -> None:
        try:
            while True:
                orders.put(receive(0))
        except EOFError:
            stopped.set()
            orders.put(None)

    threading.Thread(target=take, daemon=True).start()
    return orders


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once, but as any program ends: what was announced in the cache is taken back."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
