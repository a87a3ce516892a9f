"""Pictures that end the process which decodes them: found out in a process of their own, listed, and passed by.

A decoder that bad bytes lead astray takes the whole process with it, and the next run would end at the same picture. So
a run notes in its file in ``CACHE/running/`` (`headstart.cache.running`) the SHA-256 of what each of its threads is
decoding, 32 bytes a thread; what a process has written survives its death. What a dead run was decoding is suspect:
it is only ever decoded in a child process, which hands the pixels back or dies in its stead. Most are innocent, as when
somebody pulled the plug. A dead run's file goes when all its suspects came back. Where one crashed again it stays, so
that the picture ends no other run, of whatever dataset or command.

All of this is a hint: nothing in the cache depends on it, and where the file cannot be written or locked nobody is
suspected. The notes are ordinary writes, a microsecond each. In a mapped page they would cost less, but a page for
which a full disk has no room (on btrfs, say) ends the process by SIGBUS, where a write says so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..cache.place import Place
from ..cache.publish import discard
from ..cache.running import announced
from ..errors import CacheError, DecodeError
from .decode import Decoded, decode
from .python import environment

logger = logging.getLogger("headstart.extract")

TIME_LIMIT = 60  # seconds to decode one picture; the largest ones take a few
FORGOTTEN_AFTER = 30 * 86_400  # seconds; by then a suspect that no run has met is not coming back
_START_LIMIT = 60  # seconds that a busy machine may take to start Python
_DIGEST = 32
_NOTHING = bytes(_DIGEST)
_BEGUN = b"begun"
_MOST_BYTES = 1 << 16  # of a file that is read: two thousand threads


class _CrashError(DecodeError):
    """The child process did not survive the picture, or was not left the time to."""


@dataclass(frozen=True, slots=True)
class _DeadRun:
    """The file of a run that died, what it was decoding, and when it last said so, seconds since 1970."""

    path: Path
    digests: frozenset[bytes]
    died: float


class Watch:
    """Decodes the pictures of one run, so that a picture which ends a run ends only that one.

    Use it as a context manager, from the run's first picture to its last.

    Parameters
    ----------
    cache : Path or RemotePath
        The cache's folder, which is there.
    descriptor : int or None
        The file of this run, as `headstart.cache.running.running` gives it; None for none.
    alone : bool, default True
        Whether all of the run's pictures come this way. If not, the files of dead runs stay until `forget`.
    """

    def __init__(self, cache: Place, descriptor: int | None, *, alone: bool = True) -> None:
        self._cache = cache
        self._alone = alone
        self._dead: list[_DeadRun] = []
        self._suspects: frozenset[bytes] = frozenset()
        self._met: set[bytes] = set()
        self._crashes: dict[bytes, str] = {}
        self._trial = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._notes = _Notes(descriptor)

    def __enter__(self) -> Watch:
        self._dead = _dead_runs(self._cache)
        self._suspects = frozenset[bytes]().union(*(run.digests for run in self._dead))
        if self._suspects:
            logger.debug("earlier runs died while they decoded %d images: those are tried apart", len(self._suspects))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notes.close()
        if kind is None and self._alone:
            _forget(self._dead, self.tried)

    def decode(self, digest: bytes, data: bytes, max_pixels: int) -> Decoded:
        """Decode one picture; any number of threads may call this at once.

        Parameters
        ----------
        digest : bytes
            SHA-256 of `data`.
        data, max_pixels
            As for `headstart.extract.decode.decode`.

        Returns
        -------
        Decoded

        Raises
        ------
        DecodeError
            The bytes are no image that can be decoded, or have ended a run and the process that tried them again.
        """
        if digest in self._suspects:
            return self._try(digest, data, max_pixels)
        with self._notes.noting(digest):
            return decode(data, max_pixels=max_pixels)

    def suspects(self, digest: bytes) -> bool:
        """Tell whether a picture may have ended a run: nobody but `decode` should touch it."""
        return digest in self._suspects

    def noting(self, digest: bytes) -> contextlib.AbstractContextManager[None]:
        """Note that the calling thread waits for somebody else to decode a picture while the block lasts."""
        return self._notes.noting(digest)

    @property
    def tried(self) -> dict[bytes, str]:
        """Suspects that were met, and how they crashed; empty where they did not."""
        return {digest: self._crashes.get(digest, "") for digest in self._met}

    def stop(self) -> None:
        """Wait for no suspect any longer: nobody will ask for what is being decoded now."""
        self._stopped.set()
        child = self._child
        if child is not None:
            child.kill()

    def _try(self, digest: bytes, data: bytes, max_pixels: int) -> Decoded:
        with self._trial:  # one at a time: each takes the memory of a Python and of a picture
            if digest in self._crashes:
                raise DecodeError(self._crashes[digest])
            try:
                decoded = self._decode_apart(data, max_pixels)
            except _CrashError as error:
                self._crashes[digest] = str(error)
                raise
            finally:
                self._met.add(digest)
        if decoded is not None:
            return decoded
        with self._notes.noting(digest):
            return decode(data, max_pixels=max_pixels)

    def _decode_apart(self, data: bytes, max_pixels: int) -> Decoded | None:
        """Decode in a child process; None where it did not come as far as to begin."""
        order = json.dumps({"max_pixels": max_pixels, "seconds": TIME_LIMIT}).encode("ascii")
        try:
            answer, status = self._ask(order + b"\n" + data)
        except OSError as error:
            logger.debug("a suspect is decoded here, for no process could be started: %s", error)
            return None
        begun, _, answer = answer.partition(b"\n")
        if begun != _BEGUN:
            logger.debug("a suspect is decoded here, for the process for it ended with %d", status)
            return None
        line, _, pixels = answer.partition(b"\n")
        found: dict[str, Any] = json.loads(line) if line else {"shape": [1]}
        if "reason" in found:
            raise DecodeError(found["reason"])
        if math.prod(found["shape"]) != len(pixels):
            raise _CrashError(_reason(status))
        return Decoded(np.frombuffer(pixels, np.uint8).reshape(found["shape"]).copy(), found["animated"])

    def _ask(self, question: bytes) -> tuple[bytes, int]:
        """Run `main` on a question in a child process; return its answer and exit status, below 0 for a signal."""
        self._check_stopped()
        if not sys.executable:
            raise FileNotFoundError("Python does not say where its program is")
        # A session of its own: Ctrl-C is for the run to answer, and no sign of a bad picture.
        with subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment(), start_new_session=True,
        ) as child:  # fmt: skip
            self._child = child
            if self._stopped.is_set():  # just now
                child.kill()
            try:
                answer, _ = child.communicate(question, timeout=TIME_LIMIT + _START_LIMIT)
            except subprocess.TimeoutExpired:
                child.kill()
                answer, _ = child.communicate()
                return answer, -signal.SIGALRM
            finally:
                self._child = None
        self._check_stopped()
        return answer, child.returncode

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise _CrashError("not tried again, for the run was stopped")


def forget(cache: Place, tried: Mapping[bytes, str]) -> None:
    """Remove the files of dead runs that have nothing more to say, once several processes have tried their suspects.

    Parameters
    ----------
    cache : Path or RemotePath
    tried : mapping of bytes to str
        As `Watch.tried`, of all of them.
    """
    _forget(_dead_runs(cache), tried)


def _forget(dead: list[_DeadRun], tried: Mapping[bytes, str]) -> None:
    for run in dead:
        if any(tried.get(digest) for digest in run.digests):
            continue
        if run.digests <= tried.keys() or time.time() - run.died > FORGOTTEN_AFTER:
            discard(run.path)


def _reason(status: int) -> str:
    if status == -signal.SIGALRM:
        return f"hangs its decoder (no end after {TIME_LIMIT} s)"
    names = {-number: number.name for number in signal.Signals}
    return f"crashes its decoder ({names.get(status, f'exit status {status}')})"


class _Slot(threading.local):
    """Where one thread writes in the file of the run, and what it holds while it does."""

    place = -1

    def __init__(self) -> None:
        self.lock = threading.Lock()


class _Notes:
    """What each thread of a living run is decoding, in the file of the run: a digest or zeros."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._slot = _Slot()
        self._slots = itertools.count(0, _DIGEST)
        # Of each thread its own: at one for all they would queue, twice a picture, while the interpreter's lock, which
        # a write lets go of, makes them queue already.
        self._locks: list[threading.Lock] = []

    def close(self) -> None:
        """Write no more: whoever opened the file is about to close it."""
        self._descriptor = None
        # Nobody may write to a number that has been closed and given to another file: who is writing now is waited for.
        for lock in list(self._locks):
            with lock:
                pass

    @contextlib.contextmanager
    def noting(self, digest: bytes) -> Iterator[None]:
        """Note that the calling thread is decoding these bytes while the block lasts."""
        self._write(digest)
        try:
            yield
        finally:
            self._write(_NOTHING)

    def _write(self, digest: bytes) -> None:
        slot = self._slot
        if slot.place < 0:
            slot.place = next(self._slots)
            self._locks.append(slot.lock)
        with slot.lock:
            descriptor = self._descriptor
            if descriptor is None:
                return
            try:
                os.pwrite(descriptor, digest, slot.place)
            except OSError as error:
                logger.debug("what is being decoded is noted no longer: %s", error)
                self._descriptor = None


def _dead_runs(cache: Place) -> list[_DeadRun]:
    try:
        return [run for path, alive in announced(cache) if not alive and (run := _dead_run(path)) is not None]
    except CacheError as error:
        logger.debug("nobody is suspected: %s", error)
        return []


def _dead_run(path: Path) -> _DeadRun | None:
    """Read the file of a run that died; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            notes, died = file.read(_MOST_BYTES), os.fstat(file.fileno()).st_mtime
    except OSError as error:
        logger.debug("%s is passed over: %s", path, error)
        return None
    slots = (notes[place : place + _DIGEST] for place in range(0, len(notes) - _DIGEST + 1, _DIGEST))
    return _DeadRun(path, frozenset(slots) - {_NOTHING}, died)


def main() -> None:
    """Decode what stands on standard input, in the child process of a `Watch`, and answer on standard output.

    The question is a line of JSON, then the picture's bytes. The answer is a line when decoding begins, a line of JSON
    when it is through, then the pixels.
    """
    import resource

    answer = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not print into the answer
    line, _, data = sys.stdin.buffer.read().partition(b"\n")
    order = json.loads(line)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: no dump of it is wanted
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(order["seconds"])  # ends the process also where no Python runs, and when nobody waits for it any more
    with os.fdopen(answer, "wb") as stream:
        stream.write(_BEGUN + b"\n")
        stream.flush()
        found: dict[str, Any] = {}
        pixels = b""
        try:
            decoded = decode(data, max_pixels=order["max_pixels"])
            found, pixels = {"shape": decoded.pixels.shape, "animated": decoded.animated}, decoded.pixels.tobytes()
        except DecodeError as error:
            found = {"reason": str(error)}
        signal.alarm(0)
        stream.write(json.dumps(found).encode("ascii") + b"\n" + pixels)


if __name__ == "__main__":
    main()
