"""A cache's files as objects in a bucket: listed, read by ranges, put as a whole, deleted.

There are no folders, no renames, no locks and no half-written objects here, so what `headstart.cache.publish` does for
a folder in five steps is one. What other modules want of either they ask `headstart.cache.storage`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import CacheError, DamagedFileError, HeadstartError, printable
from . import remote
from .place import Entry, RemotePath

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Given = TypeVar("Given")
Result = TypeVar("Result")

# What one request of a long read asks for: so much that its wait is small beside it, so little that a few of them at
# once are no memory to speak of.
RANGE = 4 << 20
# Small requests are mostly waiting, so many go at once; objects that are read as a whole keep two ranges each.
AT_ONCE = 32
STREAMS = 8
_WINDOW = 8  # times as many calls as are made at once are handed in
# Waits of half a minute in all: what a long run has computed is worth more of them than a question is.
PUT_TRIES = 9
PROBE = ".probe"
_UNREACHABLE = {"EndpointConnectionError", "ClientConnectorError", "ConnectTimeoutError", "ConnectionRefusedError"}
_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
# Of a range that did not come: the connection may have been cut, or the object be shorter than was listed.
_SHORT = {"ConnectionError", "InvalidRange", "416"}
# How to say who one is, by the scheme of the store.
_SIGN_IN = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}


def listed(folder: RemotePath) -> tuple[list[str], dict[str, Entry]]:
    """Return the names of what would be folders below a name, and of the objects straight below it; both in order."""
    store, key = _store(folder)
    with told(folder, "read"):
        try:
            found = remote.retried(lambda: store.ls(key, detail=True), str(folder))
        except FileNotFoundError as error:
            if _lacks_bucket(error):
                raise
            return [], {}
    named = sorted((info["name"].rstrip("/"), info) for info in found if info["name"].rstrip("/") != key)
    kinds = [(name.rpartition("/")[2], info) for name, info in named]
    return (
        [name for name, info in kinds if info["type"] == "directory"],
        {name: _entry(info) for name, info in kinds if info["type"] != "directory"},
    )


def everything(folder: RemotePath) -> dict[RemotePath, Entry]:
    """Return all objects below a name, at whatever depth."""
    store, key = _store(folder)
    with told(folder, "read"):
        found = remote.retried(lambda: store.find(key, detail=True), str(folder))
    return {folder / name[len(key) + 1 :]: _entry(info) for name, info in found.items() if name.startswith(f"{key}/")}


def looked_at(place: RemotePath) -> Entry:
    """Return what the store says of one object; FileNotFoundError where it is not there."""
    store, key = _store(place)
    with told(place, "read"):
        return _entry(remote.retried(lambda: store.info(key), str(place)))


def _entry(info: dict[str, Any]) -> Entry:
    when = info.get("LastModified") or info.get("mtime") or info.get("updated")
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return Entry(int(info.get("size") or 0), when.timestamp() if isinstance(when, datetime) else 0.0)


def read(place: RemotePath, start: int = 0, stop: int | None = None) -> bytes:
    """Read an object as a whole or from one byte to another; FileNotFoundError where it is not there."""
    with told(place, "read"):
        return remote.read_range(str(place), start, stop)


def publish(place: RemotePath, data: bytes, tries: int = PUT_TRIES) -> None:
    """Put an object, as a whole and in one request.

    Raises
    ------
    CacheError
        It cannot be written; what was there before is there still.
    """
    try:
        remote.put(str(place), data, tries)
    except HeadstartError:
        raise
    except OSError as error:
        raise write_error(error, place) from error


def check_writable(root: RemotePath) -> None:
    """Write a small object of a fixed name, which stays: whoever may write may not always delete."""
    publish(root / PROBE, b"headstart\n", remote.TRIES)


def time_at(root: RemotePath) -> float:
    """Return the time by the clock that stamps the objects of a cache, seconds since 1970."""
    check_writable(root)
    return looked_at(root / PROBE).modified


def delete(place: RemotePath) -> None:
    """Delete an object; one that has gone already is no error."""
    store, key = _store(place)
    with told(place, "delete"), contextlib.suppress(FileNotFoundError):
        remote.retried(lambda: store.rm_file(key), str(place))


def move(place: RemotePath, target: RemotePath) -> None:
    """Copy an object within the store, and delete it; FileNotFoundError where it is not there."""
    store, key = _store(place)
    to = remote.key_of(str(target))
    with told(place, "copy"):
        remote.retried(lambda: store.cp_file(key, to), str(place))
    delete(place)


def _store(place: RemotePath) -> tuple[Any, str]:
    return remote.filesystem(remote.scheme_of(str(place))), remote.key_of(str(place))


class ObjectFile:
    """An object that is read like a file: a range at a time, and the next one while this one is used.

    Memory is two ranges. A request that fails on the way, or brings less than the whole range, is made again; it takes
    no other, so a cut connection costs one range.

    Parameters
    ----------
    place : RemotePath
    start, stop : int
        What will be read of it, most likely: more is not asked for before it is wanted.
    """

    def __init__(self, place: RemotePath, start: int = 0, stop: int | None = None) -> None:
        self._place = place
        self._size = looked_at(place).size if place.size is None else place.size
        self._stop = self._size if stop is None else min(stop, self._size)
        self._at = start
        self._first = 0
        self._data = b""
        self._ahead: tuple[int, Future[bytes]] | None = None

    def __enter__(self) -> ObjectFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, counted from the object's beginning, or from its end; as that of a file."""
        self._at = offset + (self._size if whence == io.SEEK_END else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or its beginning, with what comes next; return how many bytes, 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not self._first <= self._at < self._first + len(self._data):
            self._data, self._first = self._next(len(view)), self._at
        begin = self._at - self._first
        piece = memoryview(self._data)[begin : begin + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def read(self, size: int) -> bytes:
        """Read so many bytes, fewer at the end."""
        buffer = bytearray(max(0, min(size, self._size - self._at)))
        view = memoryview(buffer)
        while view and (count := self.readinto(view)):
            view = view[count:]
        return bytes(buffer[: len(buffer) - len(view)])

    def _next(self, wanted: int) -> bytes:
        """Return the range that begins here, and ask for the one behind it."""
        ahead, self._ahead = self._ahead, None
        come = ahead is not None and ahead[0] == self._at
        data = ahead[1].result() if ahead and come else self._range(self._at, wanted)
        end = self._at + len(data)
        if data and end < self._stop:
            self._ahead = end, _readers().submit(self._range, end, 0)
        return data

    def _range(self, start: int, wanted: int) -> bytes:
        stop = min(start + RANGE, max(self._stop, min(start + wanted, self._size)))
        try:
            return read(self._place, start, stop) if start < stop else b""
        except CacheError as error:
            if _kinds(error) & _SHORT and (size := looked_at(self._place).size) != self._size:
                raise DamagedFileError(f"{self._place} is damaged: {size} bytes where {self._size} were") from error
            raise


@cache
def _readers() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(STREAMS, thread_name_prefix="range")


def mapped(call: Callable[[Given], Result], given: Iterable[Given], at_once: int = AT_ONCE) -> Iterator[Result]:
    """Yield what `call` returns for each, in order; many at once, for they wait for a store."""
    from concurrent.futures import ThreadPoolExecutor

    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(at_once, thread_name_prefix="bucket") as pool:
        try:
            for one in given:
                waiting.append(pool.submit(call, one))
                if len(waiting) >= _WINDOW * at_once:  # of millions, a few hundred are under way
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def told(place: RemotePath, doing: str) -> Iterator[None]:
    """Raise what goes wrong in the block as other files' troubles are raised: not there, or a `CacheError` of one line.

    Parameters
    ----------
    place : RemotePath
    doing : str
        The verb for what is done with it.
    """
    try:
        yield
    except HeadstartError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _lacks_bucket(error):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from error
        raise _trouble(error, place, doing) from error


def write_error(error: OSError, place: RemotePath, size: int = 0, safe: int | None = None) -> CacheError:
    """Turn a failed write into the error that a person can act on, as `headstart.cache.publish.write_error` does."""
    translated = error if isinstance(error, CacheError) and safe is None else _trouble(error, place, "write", safe)
    translated.size = size
    return translated


def _trouble(error: OSError, place: RemotePath, doing: str, safe: int | None = None) -> CacheError:
    """Return what is wrong, in one line: each kind of trouble has its own words, and says what to do."""
    counted = "" if safe is None else f"{safe} images are safe, "
    kinds, why = _kinds(error), _reason(error)
    other = "pass --cache with another place"
    if _lacks_bucket(error) or (doing == "write" and isinstance(error, FileNotFoundError)):
        text = f"there is no bucket {place.bucket}: {counted}make it, or {other}"
    elif isinstance(error, PermissionError) and any("Credential" in kind for kind in kinds):
        text = f"nothing says who wants to use {place.bucket} ({why}): {counted}{_SIGN_IN[remote.scheme_of(place.url)]}"
    elif kinds & _UNKNOWN:
        text = f"{place.bucket} does not accept the credentials that it was given ({why}): {counted}renew them"
    elif isinstance(error, PermissionError):
        text = f"no permission to {doing} {place} ({why}): {counted}ask whose bucket it is, or {other}"
    elif kinds & _UNREACHABLE:
        text = f"cannot reach the store of {place.bucket} ({why}): {counted}check the network, and run again"
    else:
        text = f"cannot {doing} {place} ({why}): {counted}run again"
    translated = CacheError(printable(text))
    translated.errno = errno.EACCES if isinstance(error, PermissionError) else error.errno
    return translated


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _kinds(error: BaseException) -> set[str]:
    """Return by which names an error and its causes go: their classes, and the codes of the store's answers."""
    found = set()
    for cause in _chain(error):
        found.add(type(cause).__name__)
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):
            found.add(str(answer.get("Error", {}).get("Code")))
    return found


def _reason(error: BaseException) -> str:
    """Return what the store, or the library that asks it, said first, on one line."""
    *_, first = _chain(error)
    answer = getattr(first, "response", None)
    said = answer.get("Error", {}).get("Message") if isinstance(answer, dict) else None
    return " ".join(str(said or first or type(first).__name__).split())[:200]


def _lacks_bucket(error: BaseException) -> bool:
    return "NoSuchBucket" in _kinds(error) or "bucket does not exist" in str(error)
