"""Reads that fail: a part that a compaction has replaced, a disk that does not answer."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import CacheError

logger = logging.getLogger("headstart.cache")
Read = TypeVar("Read")

# A compaction replaces parts while readers read; each time the reader lists again, and this often is no accident.
MAX_LISTINGS = 100


class PartGoneError(Exception):
    """A part that was listed is not there any more: a compaction replaced it, so the folder is to be listed again."""


def repeated(root: Path, read: Callable[[], Read]) -> Read:
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


def gone_or_unreadable(error: OSError, path: Path) -> PartGoneError | CacheError:
    """Tell a part that is not there any more from one that cannot be read."""
    # A network file system says ESTALE of what another machine has removed.
    return PartGoneError(str(path)) if error.errno in (errno.ENOENT, errno.ESTALE) else read_error(error, path)


def read_error(error: OSError, path: Path) -> CacheError:
    """Turn a failed read of a file of the cache into an error that names it."""
    name = errno.errorcode.get(error.errno or 0, "error")
    translated = CacheError(f"cannot read {path} ({name}: {error.strerror}); mend the disk or its permissions")
    translated.errno = error.errno
    return translated
