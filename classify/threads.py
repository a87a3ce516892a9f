"""Libraries of linear algebra kept to one thread while threads of our own share the work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_turn = threading.RLock()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let products of numpy use one thread, in the whole process; whoever asks for it meanwhile waits for his turn.

    The limit is the process's: of two that overlap, the second would take the first one's limit for what it has to put
    back. Nothing is lost by waiting, as each uses all cores.
    """
    from threadpoolctl import threadpool_limits

    with _turn, threadpool_limits(1):
        yield
