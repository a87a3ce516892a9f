"""A thread that allocates from glibc's main arena, for forward passes that another thread asks for.

glibc gives each thread an arena to allocate from. Most are made of heaps of 64 MB, which go back to the kernel as soon
as nothing is in them, and what is larger is mapped each time, whatever thresholds `keep_freed_memory` has set. Only the
main arena keeps what was freed, and only the main thread is sure to have it. In a thread of a Dask worker, whose main
thread listens, EfficientNet-Lite0 took 30 ms an image where it takes 18 (`benchmarks/main_arena.py`): the kernel
cleared the pages of each layer's output anew.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")

# Threads that are tried, each of which takes another arena: glibc makes eight a core at most.
_TRIES = 512
_M_ARENA_MAX = -8  # malloc.h
_NOT_MAIN = 4  # the bit of a chunk's size by which glibc finds its arena again (malloc.c, NON_MAIN_ARENA)
_SMALL = 100  # bytes, which are never mapped for themselves
_mine = threading.local()
_turn = threading.Lock()


def in_main_arena(call: Callable[[], Result]) -> Result:
    """Return what `call` returns, computed by a thread of the main arena: this one if it has it, or one kept for that.

    Where there is no glibc, or no thread gets the main arena, this thread computes.
    """
    if has_main_arena():
        return call()
    with _turn:
        keeper = _keeper(os.getpid())
    return call() if keeper is None else keeper.result_of(call)


def has_main_arena() -> bool:
    """Tell whether this thread need not look for another one."""
    found: bool | None = getattr(_mine, "main", None)
    if found is None:
        library = _glibc()
        found = _mine.main = library is None or _is_main(library)
    return found


@cache
def _glibc() -> Any:
    """Return the C library, None where it is another one."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    return library


def _is_main(library: Any) -> bool:
    address: int | None = library.malloc(_SMALL)
    if address is None:
        return True
    size = ctypes.c_size_t.from_address(address - ctypes.sizeof(ctypes.c_size_t)).value
    library.free(address)
    return not size & _NOT_MAIN


@cache
def _keeper(_process: int) -> _Keeper | None:
    """Start threads until one has the main arena; the others wait for that, so that none takes the arena of another.

    A process that was forked has no threads but one, and so needs a keeper of its own.
    """
    library = _glibc()
    library.mallopt(_M_ARENA_MAX, 1)  # where glibc has not yet decided how many there may be, it makes no more
    others: list[_Keeper] = []
    try:
        for _ in range(_TRIES):
            try:
                keeper = _Keeper()
            except RuntimeError:  # there may be no more threads
                return None
            if keeper.result_of(has_main_arena):
                return keeper
            others.append(keeper)
    finally:
        for other in others:
            other.end()
    return None


class _Keeper:
    """A thread that does what it is given, one after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="main arena", daemon=True).start()

    def result_of(self, call: Callable[[], Result]) -> Result:
        """Return what a call returns or raises."""
        future: Future[Result] = Future()
        self._calls.put((call, future))
        return future.result()

    def end(self) -> None:
        """Let the thread end."""
        self._calls.put(None)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, future = given
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  (whoever waits for it raises it)
                future.set_exception(error)
            del call, future, given
