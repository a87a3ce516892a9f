"""Reads that fail: a part that a compaction has replaced, a disk that does not answer."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import stat
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import TypeVar

from ..errors import CacheError, DamagedFileError
from .place import Entry, Place

logger = logging.getLogger("headstart.cache")
Read = TypeVar("Read")

# A compaction replaces parts while readers read; each time the reader lists again, and this often is no accident.
MAX_LISTINGS = 100


class PartGoneError(Exception):
    """A part that was listed is not there any more: a compaction replaced it, so the folder is to be listed again."""


def open_regular(path: Path) -> io.FileIO:
    """Open a file of the cache for reading, if it is a file: a FIFO under its name would make everybody wait.

    Raises
    ------
    DamagedFileError
        It is something else than a file, or a link that leads nowhere.
    FileNotFoundError, OSError
        It is not there, or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DamagedFileError(f"{path} is damaged: it is a link that leads nowhere") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFileError(f"{path} is damaged: it is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, in order, without hidden ones; none where there is no such folder.

    Raises
    ------
    CacheError
        The folder cannot be read: what is in it is not known, which is not the same as nothing.
    """
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise read_error(error, path) from error


def files(path: Path, suffix: str) -> list[Path]:
    """Return the paths in a folder whose names end in `suffix`, in order, without hidden ones; raises as `folders`."""
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if e.name.endswith(suffix) and not e.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise read_error(error, path) from error
    return [path / name for name in names]


def entries(folder: Path) -> dict[str, Entry]:
    """Return size and time of what is in a folder by its name; raises as `folders`."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it has gone while we looked
                    stat = entry.stat()
                    found[entry.name] = Entry(stat.st_size, stat.st_mtime)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise read_error(error, folder) from error
    return found


def size_below(root: Path) -> int:
    """Return how many bytes the files in a folder and in those below it have."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118  (os.walk gives strings)
            except FileNotFoundError:
                continue
    return total


def repeated(root: Place, read: Callable[[], Read]) -> Read:
    """Return what `read` returns, calling it again where a part of the cache at `root` went away while it read.

    Raises
    ------
    CacheError
        That happened a hundred times: something else than a compaction removes parts.
    """
    for _ in range(MAX_LISTINGS):
        try:
            return read()
        except PartGoneError as gone:
            logger.debug("a part went away while the cache was read: %s", gone)
    raise CacheError(f"parts of the cache {root} go away as fast as they are read; see what removes them")


def gone_or_unreadable(error: OSError, path: Place) -> PartGoneError | CacheError:
    """Tell a part that is not there any more from one that cannot be read."""
    # A network file system says ESTALE of what another machine has removed.
    return PartGoneError(str(path)) if error.errno in (errno.ENOENT, errno.ESTALE) else read_error(error, path)


def read_error(error: OSError, path: Place) -> CacheError:
    """Turn a failed read of a file of the cache into an error that names it."""
    if isinstance(error, CacheError):  # as a store's troubles are, from the beginning
        again = copy(error)  # raised from the error, which itself would be its own cause
        again.errno = error.errno
        return again
    name = errno.errorcode.get(error.errno or 0, "error")
    translated = CacheError(f"cannot read {path} ({name}: {error.strerror}); mend the disk or its permissions")
    translated.errno = error.errno
    return translated
