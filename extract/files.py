"""The file system: the bytes of one regular file, its status, and why it cannot be read.

Names are bytes throughout, because a file name need not be valid text: a name with a newline, a leading dash
or bytes that are no UTF-8 goes in and comes out unchanged. `printable` makes one fit for a message.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ..errors import DecodeError

SUFFIXES: frozenset[bytes] = frozenset(b"jpg jpeg jpe jfif png webp bmp gif tif tiff avif heic heif".split())
"""File name endings, in lower case and without the dot, that make a file an image to a folder's listing."""

Stat = tuple[int, int, int, int]
NO_STAT: Stat = (0, 0, 0, 0)
EMPTY_FILE = "empty file"
_LIMIT = 1 << 63

READABLE_BY_ALL = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
"""The bits of a file's mode by which anybody may read it."""

# O_NONBLOCK: opening a FIFO to which nobody writes would otherwise wait forever.
OPEN_FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    OPEN_FLAGS |= getattr(os, _flag, 0)

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
    return read_with_stat(path, max_bytes)[0]


def read_with_stat(path: bytes | str | Path, max_bytes: int = 1 << 30) -> tuple[bytes, Stat]:
    """Read one regular file as `read_regular` does, and say what was opened.

    Returns
    -------
    data : bytes
        The content, never empty.
    stat : Stat
        Of the very file that was read, whatever its name led to before.
    """
    try:
        descriptor = os.open(path, OPEN_FLAGS)
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


def _read_all(descriptor: int, max_bytes: int) -> tuple[bytes, Stat]:
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
        raise DecodeError(EMPTY_FILE)
    return data, stat_of(found)


def stat_of(found: os.stat_result) -> Stat:
    """Return what tells an unchanged file.

    Parameters
    ----------
    found : os.stat_result
        From `os.stat` or a directory entry.

    Returns
    -------
    tuple of int
        Size in bytes, mtime and ctime in nanoseconds, inode cut to 63 bits; each fits 64 bits with a sign.
    """
    return (
        found.st_size,
        _clipped(found.st_mtime_ns),
        _clipped(found.st_ctime_ns),
        found.st_ino & (_LIMIT - 1),
    )


def _clipped(time_ns: int) -> int:
    # A clock far beyond the year 2262 passes 63 bits of nanoseconds.
    return time_ns if -_LIMIT <= time_ns < _LIMIT else min(max(time_ns, -_LIMIT), _LIMIT - 1)


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
    if mode & READABLE_BY_ALL != READABLE_BY_ALL and not os.access(path, os.R_OK):
        return "permission denied"
    return None
