"""How the bytes of an image are come by: a file of this machine, an object of a store, a member of a tar."""

from __future__ import annotations

import os
import re
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from ..cache.failures import Failures
from ..cache.listing import CTIME, INODE, MTIME, SIZE
from ..cache.names import Names
from ..cache.remote import is_url
from ..errors import DecodeError
from .bucket import (
    IN_FLIGHT,
    MAX_BYTES,
    examined_all,
    examined_objects,
    read_object,
    read_part,
    reason_of,
    stat_of_object,
)
from .elsewhere import is_named_by_url, locator
from .files import EMPTY_FILE, NO_STAT, OPEN_FLAGS, Stat, os_reason, read_with_stat, stat_of
from .status import all_examined, examined
from .tar_index import BLOCK
from .tars import FETCHED, INSIDE, examined_member, offset_of, split_member, tar_mark

_OTHER_TAR = "the tar is another one by now; run again"
_MASK = (1 << 32) - 1
_UNKNOWN: Stat = (-1, 0, 0, 0)
_ELSEWHERE = re.compile(rb"://|\.tar/", re.IGNORECASE)
_PIECE = 1 << 22  # bytes of names that are looked through at a time
_AHEAD = 3  # ranges of a tar that are fetched before they are needed
_GAP = 256 << 10  # bytes between two members that are rather fetched than skipped
_OF_TARS = 8  # fetches of tars at a time: each is large


class Access(Protocol):
    """Reads images by their numbers in a listing.

    Attributes
    ----------
    in_flight : int
        How many reads should wait at a time beside those that decode; 0 for files of this machine.
    """

    in_flight: int

    def read(self, number: int, name: bytes) -> tuple[bytes, Stat]:
        """Return the bytes of one image, and what was read.

        Raises
        ------
        DecodeError
            It cannot be read; the message is the reason alone.
        """


class Files:
    """Files of this machine."""

    in_flight = 0

    def __init__(self, base: bytes) -> None:
        self._base = base

    def read(self, number: int, name: bytes) -> tuple[bytes, Stat]:
        """Return the bytes of a file, and what it is."""
        return read_with_stat(os.path.join(self._base, name))  # noqa: PTH118  (bytes, one call an image)


def access_to(base: bytes, names: Sequence[bytes], stat: np.ndarray | None, todo: np.ndarray) -> Access:
    """Return what reads some images of a listing.

    Parameters
    ----------
    base : bytes
        Folder or URL of the names.
    names : sequence of bytes, N
    stat : ndarray of shape (N, 4), dtype int64, optional
        What they were when they were listed; zeros where it is None.
    todo : ndarray of shape (n,), dtype int64
        Which of them will be read, each once, in about this order.
    """
    if not is_url(os.fsdecode(base)) and not _any_has(names, todo, _ELSEWHERE):
        return Files(base)
    return _Anywhere(base, names, stat, todo)


def _any_has(names: Sequence[bytes], todo: np.ndarray, wanted: re.Pattern[bytes]) -> bool:
    """Tell whether a pattern stands in any of the names; where they are in columns, those of others count too."""
    if not isinstance(names, Names):
        return any(wanted.search(names[row]) for row in todo.tolist())
    joined = names.joined  # looked through piece by piece, without an object a name
    return any(wanted.search(joined[start : start + _PIECE + 8].tobytes()) for start in range(0, len(joined), _PIECE))


def _some(names: Sequence[bytes], todo: np.ndarray) -> Iterable[bytes]:
    return names.take(todo) if isinstance(names, Names) else (names[row] for row in todo.tolist())


class _Anywhere:
    """Images that lie in several kinds of places."""

    def __init__(self, base: bytes, names: Sequence[bytes], stat: np.ndarray | None, todo: np.ndarray) -> None:
        self._locate, self._stat = locator(base), stat
        self._tars: dict[bytes, _Tar | None] = {}
        self._pool = ThreadPoolExecutor(_OF_TARS, "fetch")  # starts no thread before there is something to fetch
        remote = False
        members: dict[bytes, array[int]] = {}
        for row, name in zip(todo.tolist(), _some(names, todo), strict=True):
            path = self._locate(name)
            remote |= is_url(os.fsdecode(path))
            tar = (split_member(path) or (None,))[0]
            if tar is not None and self._is_tar(tar):
                members.setdefault(tar, array("q")).append(row)
        for tar, rows in members.items():
            if (found := self._tars[tar]) is not None and stat is not None:
                own = stat[np.array(rows)]
                found.expect((own[:, INODE] >> 32) * BLOCK, own[:, SIZE])
        self.in_flight = (_OF_TARS if members else IN_FLIGHT) if remote else 0

    def read(self, number: int, name: bytes) -> tuple[bytes, Stat]:
        """Return the bytes of an image, and what was read."""
        path = self._locate(name)
        listed = NO_STAT if self._stat is None else _as_stat(self._stat[number])
        tar = (split_member(path) or (None,))[0]
        if tar is not None and (found := self._tars.get(tar)) is not None and found.there():
            return found.read(listed), listed
        if is_url(os.fsdecode(path)):
            return read_object(os.fsdecode(path), listed)
        return read_with_stat(path)

    def _is_tar(self, path: bytes) -> bool:
        """Tell whether what is named like a tar is one, and no folder."""
        if path not in self._tars:
            self._tars[path] = _opened(path, self._pool)
        return self._tars[path] is not None


def _as_stat(row: np.ndarray) -> Stat:
    size, mtime, ctime, inode = row.tolist()
    return size, mtime, ctime, inode


def _opened(path: bytes, pool: ThreadPoolExecutor) -> _Tar | None:
    if is_url(os.fsdecode(path)):
        return _RemoteTar(os.fsdecode(path), pool)
    return _LocalTar(path) if os.path.isfile(path) else None  # noqa: PTH113  (names are bytes)


def _check_size(listed: Stat) -> None:
    if listed[SIZE] > MAX_BYTES:
        raise DecodeError(f"{listed[SIZE]} bytes exceed the limit of {MAX_BYTES} for one file")
    if listed[SIZE] <= 0:
        raise DecodeError(EMPTY_FILE)


def _check_tar(tar: Stat, listed: Stat) -> None:
    same = (tar[MTIME], tar[CTIME], tar_mark(tar)) == (listed[MTIME], listed[CTIME], listed[INODE] & _MASK)
    if not same:
        raise DecodeError(_OTHER_TAR)


class _Tar(Protocol):
    def there(self) -> bool: ...

    def expect(self, starts: np.ndarray, sizes: np.ndarray) -> None: ...

    def read(self, listed: Stat) -> bytes: ...


class _LocalTar:
    """Members of a tar of this machine, each read where it lies."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def there(self) -> bool:
        """Say yes: it was looked for."""
        return True

    def expect(self, starts: np.ndarray, sizes: np.ndarray) -> None:
        """Take note of nothing: the system reads ahead."""

    def read(self, listed: Stat) -> bytes:
        """Return the bytes of a member."""
        _check_size(listed)
        try:
            descriptor = os.open(self._path, OPEN_FLAGS)
            try:
                _check_tar(stat_of(os.fstat(descriptor)), listed)
                data = _read_at(descriptor, offset_of(listed[INODE]), listed[SIZE])
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DecodeError(os_reason(error)) from error
        if len(data) < listed[SIZE]:
            raise DecodeError(_OTHER_TAR)
        return data


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, size)
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


class _RemoteTar:
    """Members of a tar in a store, fetched many at a time in large ranges, each byte once.

    A range is begun with when the first of its members is wanted, or one of those shortly before it, and is dropped
    when its last member has been taken. So memory holds a few ranges more than there are readers, at most.
    """

    def __init__(self, url: str, pool: ThreadPoolExecutor) -> None:
        self._url, self._pool = url, pool
        self._starts: list[int] = []
        self._ranges: list[_Range] = []
        self._lock = threading.Lock()
        self._stat: Stat | OSError | None = None

    def there(self) -> bool:
        """Tell whether there is such an object, and what is called a tar is no folder."""
        return not isinstance(self._asked(), FileNotFoundError)

    def expect(self, starts: np.ndarray, sizes: np.ndarray) -> None:
        """Plan the ranges by which members will be fetched, each of them once.

        Parameters
        ----------
        starts, sizes : ndarray of shape (n,), dtype int64
            Where each begins, and how many bytes it has.
        """
        last: _Range | None = None
        order = np.argsort(starts, kind="stable")
        for start, size in zip(starts[order].tolist(), sizes[order].tolist(), strict=True):
            stop = start + size
            if last is None or start > last.stop + _GAP or stop - last.start > FETCHED:
                last = _Range(self._url, start, stop)
                self._starts.append(start)
                self._ranges.append(last)
            last.take(stop)

    def read(self, listed: Stat) -> bytes:
        """Return the bytes of a member."""
        offset = offset_of(listed[INODE])
        place = bisect_right(self._starts, offset) - 1
        found = self._ranges[place]
        try:
            _check_size(listed)
            try:
                _check_tar(self._tar(), listed)
                for one in self._ranges[place : place + 1 + _AHEAD]:
                    one.begin(self._pool)
                return found.bytes(self._pool, offset, listed[SIZE])
            except OSError as error:
                raise DecodeError(reason_of(error)) from error
        finally:
            found.taken()

    def _tar(self) -> Stat:
        found = self._asked()
        if isinstance(found, OSError):
            raise found
        return found

    def _asked(self) -> Stat | OSError:
        """Ask once what the tar is now, for all of its members."""
        with self._lock:
            if self._stat is None:
                try:
                    self._stat = stat_of_object(self._url)
                except OSError as error:
                    self._stat = error
            return self._stat


class _Range:
    """Some bytes of an object, from shortly before they are needed until the last of those who need them has come."""

    def __init__(self, url: str, start: int, stop: int) -> None:
        self._url = url
        self.start, self.stop = start, stop
        self._left = 0
        self._lock = threading.Lock()
        self._data: Future[bytes] | None = None

    def take(self, stop: int) -> None:
        """Make room for one more member, which ends at `stop`."""
        self.stop = max(self.stop, stop)
        self._left += 1

    def begin(self, pool: ThreadPoolExecutor) -> Future[bytes] | None:
        """Fetch the bytes, unless that has begun; None where nobody needs them any more."""
        with self._lock:
            if self._data is None and self._left > 0:
                self._data = pool.submit(read_part, self._url, self.start, self.stop)
            return self._data

    def bytes(self, pool: ThreadPoolExecutor, offset: int, size: int) -> bytes:
        """Return the bytes of a member.

        Raises
        ------
        OSError
            They cannot be fetched; nobody tries again.
        """
        data = self.begin(pool)
        assert data is not None  # as long as one of those who need it has not come
        return data.result()[offset - self.start : offset - self.start + size]

    def taken(self) -> None:
        """Drop the bytes where nobody else needs them."""
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self._data = None


def in_order_of_bytes(names: Sequence[bytes], stat: np.ndarray, todo: np.ndarray) -> np.ndarray:
    """Return which images to read, (n,) int64, those of a tar in the order in which their bytes lie in it."""
    if not _any_has(names, todo, INSIDE):
        return todo
    number: dict[bytes, int] = {}
    which = array("q")
    for name in _some(names, todo):
        parts = split_member(name)
        which.append(-1 if parts is None else number.setdefault(parts[0], len(number)))
    of_tar = np.array(which)
    offset = np.where(of_tar < 0, 0, stat[todo, INODE] >> 32)
    return np.asarray(todo[np.lexsort((offset, of_tar))])


def all_examined_anywhere(base: bytes, names: Names) -> tuple[np.ndarray, Failures]:
    """Do for many images what `status.all_examined` does for files; objects are asked for many at once.

    Parameters
    ----------
    base : bytes
        Folder or URL that names are relative to.
    names : Names, N

    Returns
    -------
    stats : ndarray of shape (N, 4), dtype int64
    reasons : Failures
        Of those that cannot be read.
    """
    elsewhere = is_url(os.fsdecode(base))
    remote = [elsewhere or is_named_by_url(name) for name in names]
    rows = np.flatnonzero(np.array(remote, bool))
    if not rows.size:
        return all_examined(base, names)
    stats, reasons = np.zeros((len(names), len(NO_STAT)), np.int64), Failures()
    here = np.setdiff1d(np.arange(len(names)), rows)
    if here.size:
        stats[here], found = all_examined(base, names.take(here))
        reasons.add(found.moved(here[found.rows]))
    urls = [os.fsdecode(location) for location in map(locator(base), names.take(rows))]
    for row, (stat, reason) in zip(rows.tolist(), examined_all(urls), strict=True):
        stats[row] = stat
        if reason is not None:
            reasons[row] = reason
    return stats, reasons


def examined_anywhere(path: bytes) -> tuple[Stat, str | None]:
    """Return what an image is that is named by itself, wherever it lies, and why it cannot be read."""
    member = examined_member(path)
    if member is not None:
        return member
    return examined_objects([os.fsdecode(path)])[0] if is_url(os.fsdecode(path)) else examined(path)


def read_anywhere(path: bytes | str) -> tuple[bytes, Stat]:
    """Read an image that is named by itself, wherever it lies, and say what was read.

    Raises
    ------
    DecodeError
        It cannot be read; the message is the reason alone.
    """
    path = os.fsencode(path)
    member = examined_member(path)
    if member is None:
        remote = is_url(os.fsdecode(path))
        return read_object(os.fsdecode(path), _UNKNOWN) if remote else read_with_stat(path)
    stat, reason = member
    if reason is not None:
        raise DecodeError(reason)
    return access_to(b"", [path], np.array([stat], np.int64), np.zeros(1, np.int64)).read(0, path)


def is_there(path: bytes | str) -> bool:
    """Tell whether an image is still where it lay, as far as that is known without asking a store."""
    path = os.fsencode(path)
    parts = split_member(path)
    if is_url(os.fsdecode(path)) or os.path.exists(path):  # noqa: PTH110  (False where it may not be looked at)
        return True
    return parts is not None and os.path.isfile(parts[0])  # noqa: PTH113
