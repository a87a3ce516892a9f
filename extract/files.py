"""The file system: the bytes of one regular file, and the image files below a folder.

Names are bytes throughout, because a file name need not be valid text: a name with a newline, a leading dash
or bytes that are no UTF-8 goes in and comes out unchanged. `printable` makes one fit for a message.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, DecodeError, printable

SUFFIXES: frozenset[bytes] = frozenset(b"jpg jpeg jpe jfif png webp bmp gif tif tiff avif heic heif".split())
"""File name endings, in lower case and without the dot, that make a file an image to a folder's listing."""

Stat = tuple[int, int, int, int]
NO_STAT: Stat = (0, 0, 0, 0)

_SKIPPED_NAMES = frozenset((b"__MACOSX", b"@eaDir"))
_READABLE_BY_ALL = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
# O_NONBLOCK: opening a FIFO to which nobody writes would otherwise wait forever.
_OPEN_FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _OPEN_FLAGS |= getattr(os, _flag, 0)

_REASONS = {
    errno.ENOENT: "not found",
    errno.ENOTDIR: "not found",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "symlink loop",
    errno.EISDIR: "is a directory",
    errno.ENXIO: "not a regular file",
    errno.ENAMETOOLONG: "name too long",
}


def os_reason(error: OSError) -> str:
    """Say in a few words why the operating system refused.

    Parameters
    ----------
    error : OSError
        What was raised.

    Returns
    -------
    str
        Such as ``"permission denied"``; for a rare error the system's own words in lower case.
    """
    known = _REASONS.get(error.errno or 0)
    return known or (error.strerror or type(error).__name__).lower()


def with_slashes(path: bytes) -> bytes:
    """Return a path with ``/`` between names, whatever the system's separator.

    Parameters
    ----------
    path : bytes
        A path as the system writes it.

    Returns
    -------
    bytes
        The same path; unchanged where the separator is ``/``.
    """
    return path if os.sep == "/" else path.replace(os.fsencode(os.sep), b"/")


def some(names: Sequence[str], limit: int = 3) -> str:
    """Join names for a message, the first few and a count of the others.

    Parameters
    ----------
    names : sequence of str
        What to name, in order.
    limit : int, default 3
        How many are named in full.

    Returns
    -------
    str
        Such as ``"a, b, c and 4 more"``.
    """
    text = ", ".join(names[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text


def read_regular(path: bytes | str | Path, max_bytes: int = 1 << 30) -> bytes:
    """Read one regular file, whole, through one descriptor.

    What is opened is looked at before it is read, so that a FIFO, a socket or a device never hangs the reader.

    Parameters
    ----------
    path : bytes, str or Path
        The file; links are followed.
    max_bytes : int, default 2**30
        The largest size that is read, in bytes.

    Returns
    -------
    bytes
        The content, never empty.

    Raises
    ------
    DecodeError
        The file is missing, forbidden, empty, too large or no regular file; the message is the reason alone.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise DecodeError(os_reason(error)) from error
    except ValueError as error:  # a NUL inside the name
        raise DecodeError("not found (the name holds a NUL byte)") from error
    try:
        return _read_all(descriptor, max_bytes)
    except OSError as error:
        raise DecodeError(os_reason(error)) from error
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, max_bytes: int) -> bytes:
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        raise DecodeError("is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError("not a regular file")
    if found.st_size > max_bytes:
        raise DecodeError(f"{found.st_size} bytes exceed the limit of {max_bytes} for one file")
    data = os.read(descriptor, found.st_size)
    while len(data) < found.st_size:  # a short read, or a file that has just been cut
        more = os.read(descriptor, found.st_size - len(data))
        if not more:
            break
        data += more
    if not data:
        raise DecodeError("empty file")
    return data


def stat_of(found: os.stat_result) -> Stat:
    """Return what tells an unchanged file.

    Parameters
    ----------
    found : os.stat_result
        From `os.stat` or a directory entry.

    Returns
    -------
    tuple of int
        Size in bytes, mtime and ctime in nanoseconds, inode cut to 63 bits.
    """
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & 0x7FFF_FFFF_FFFF_FFFF)


def refusal(found: os.stat_result, path: bytes) -> str | None:
    """Say why a file that exists cannot be read as an image, judging by its inode alone.

    Parameters
    ----------
    found : os.stat_result
        The file's status, links followed.
    path : bytes
        The file.

    Returns
    -------
    str or None
        The reason; None for a regular file that may be read.
    """
    mode = found.st_mode
    if stat.S_ISDIR(mode):
        return "is a directory"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    # Asking the kernel costs a system call a file; one that everybody may read needs no question.
    if mode & _READABLE_BY_ALL != _READABLE_BY_ALL and not os.access(path, os.R_OK):
        return "permission denied"
    return None


@dataclass(slots=True)
class Tree:
    """What lies below a folder.

    Attributes
    ----------
    folders : list of bytes
        Every folder that was read, relative to the root with ``/`` between names; the root is ``b""``.
    paths : list of bytes
        Image files, relative likewise, in no particular order.
    folder : list of int
        For each path, the index in `folders` of the folder that it belongs to.
    stats : list of tuple
        For each path, as `stat_of` has it; zeros where there is none.
    reasons : dict of int to str
        For paths that cannot be read, why.
    ignored : Counter of str
        Files without an image suffix, counted by suffix.
    repeated : list of str
        Links to folders that had been read already, fit for printing.
    broken : list of str
        Links without an image suffix that lead nowhere, fit for printing.
    """

    folders: list[bytes] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    folder: list[int] = field(default_factory=list)
    stats: list[Stat] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    repeated: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def walk(root: bytes) -> Tree:
    """Find the image files below a folder, following links and reading each real folder once.

    Names with a leading dot, ``__MACOSX`` and ``@eaDir`` are passed over. One status call is made for each image.

    Parameters
    ----------
    root : bytes
        The folder.

    Returns
    -------
    Tree
        Folders and files; what cannot be read is listed with its reason.

    Raises
    ------
    DataError
        The root itself cannot be read.
    """
    walker = _Walker(root)
    # Real folders go first: a folder that is also linked to is then listed where it really lies.
    while walker.pending or walker.links:
        walker.visit(walker.pending.pop() if walker.pending else heapq.heappop(walker.links))
    walker.settle_image_named()
    return walker.tree


class _Walker:
    """The state of one walk: folders still to read, folders seen, and the tree so far."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.tree = Tree()
        self.pending: list[bytes] = [b""]
        self.links: list[bytes] = []
        self.seen: set[tuple[int, int]] = set()
        self.image_named: list[tuple[bytes, int]] = []

    def visit(self, relative: bytes) -> None:
        """Read one folder, unless it has been read under another name."""
        folder = os.path.join(self.root, relative) if relative else self.root  # noqa: PTH118  (names are bytes)
        try:
            found = os.stat(folder)  # noqa: PTH116  (names are bytes)
            if (found.st_dev, found.st_ino) in self.seen:
                self.tree.repeated.append(printable(relative))
                return
            self.seen.add((found.st_dev, found.st_ino))
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            self._unreadable_folder(relative, os_reason(error))
            return
        index = self._add_folder(relative)
        prefix = relative + b"/" if relative else b""
        for entry in entries:
            if not entry.name.startswith(b".") and entry.name not in _SKIPPED_NAMES:
                self._place(entry, prefix + entry.name, index)

    def _place(self, entry: os.DirEntry[bytes], relative: bytes, folder: int) -> None:
        dot = relative.rfind(b".") + 1
        suffix = relative[dot:].lower() if dot else b""
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False  # a link that cannot be followed: the status call below says why
        if is_folder:
            if suffix in SUFFIXES:
                self.image_named.append((relative, folder))
            self._queue(entry, relative)
        elif suffix in SUFFIXES:
            self._add_image(entry, relative, folder)
        else:
            self._ignore(entry, relative, suffix)

    def _queue(self, entry: os.DirEntry[bytes], relative: bytes) -> None:
        if entry.is_symlink():
            heapq.heappush(self.links, relative)
        else:
            self.pending.append(relative)

    def _add_image(self, entry: os.DirEntry[bytes], relative: bytes, folder: int) -> None:
        try:
            found = entry.stat()
        except OSError as error:
            self._add(relative, folder, NO_STAT, _link_reason(entry, error))
            return
        self._add(relative, folder, stat_of(found), refusal(found, entry.path))

    def _add(self, relative: bytes, folder: int, found: Stat, reason: str | None) -> None:
        if reason is not None:
            self.tree.reasons[len(self.tree.paths)] = reason
        self.tree.paths.append(relative)
        self.tree.folder.append(folder)
        self.tree.stats.append(found)

    def _add_folder(self, relative: bytes) -> int:
        self.tree.folders.append(relative)
        return len(self.tree.folders) - 1

    def _unreadable_folder(self, relative: bytes, reason: str) -> None:
        if not relative:
            raise DataError(
                f"cannot read the folder {printable(self.root)}: {reason}; name a folder that can be listed"
            )
        self._add(relative, self._add_folder(relative), NO_STAT, reason)

    def _ignore(self, entry: os.DirEntry[bytes], relative: bytes, suffix: bytes) -> None:
        self.tree.ignored[printable(b"." + suffix) if suffix and b"/" not in suffix else "no suffix"] += 1
        if entry.is_symlink():
            try:
                entry.stat()
            except OSError as error:  # perhaps a class folder on a disk that is not mounted
                self.tree.broken.append(f"{printable(relative)} ({_link_reason(entry, error)})")

    def settle_image_named(self) -> None:
        """Turn folders with an image's name that hold no image into unreadable images."""
        if not self.image_named:
            return
        paths = sorted(self.tree.paths)
        for relative, folder in self.image_named:
            below = relative + b"/"
            position = bisect_left(paths, below)
            if position == len(paths) or not paths[position].startswith(below):
                self._blank(relative)
                self._add(relative, folder, NO_STAT, "is a directory")

    def _blank(self, relative: bytes) -> None:
        # Indices into `folders` must hold, so an entry is emptied in place: it has no files, and so adds none.
        for index, folder in enumerate(self.tree.folders):
            if folder == relative or folder.startswith(relative + b"/"):
                self.tree.folders[index] = b""


def _link_reason(entry: os.DirEntry[bytes], error: OSError) -> str:
    if error.errno == errno.ENOENT and entry.is_symlink():
        return "dangling link"
    return os_reason(error)
