"""Which runs are going on: each keeps a locked file in ``CACHE/running/`` while it lives.

These files are hints. No reader and no writer needs them: they tell a compaction that rows which no listing has yet may
get one, and the next run which images were being decoded when a run died. Where the file system refuses locks there are
no hints.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .publish import discard, make_folder, sortable_id

logger = logging.getLogger("headstart.cache")

FOLDER = "running"
SUFFIX = ".run"


@contextlib.contextmanager
def running(root: Path, content: bytes = b"") -> Iterator[int | None]:
    """Announce a run while the block lasts.

    Parameters
    ----------
    root : Path
        The cache's folder, which is there.
    content : bytes, default b""
        What the file begins with.

    Yields
    ------
    int or None
        A descriptor of the file, open for reading and writing; None where it cannot be made or locked.
    """
    path = root / FOLDER / f"{sortable_id()}{SUFFIX}"
    descriptor = _locked(path, content)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            discard(path)
            os.close(descriptor)


def _locked(path: Path, content: bytes) -> int | None:
    descriptor = None
    try:
        make_folder(path.parent, path.parent.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags, 0o666)
        if try_lock(descriptor):
            os.ftruncate(descriptor, len(content))
            os.pwrite(descriptor, content, 0)
            return descriptor
    except OSError as error:
        logger.debug("the run is not announced in %s: %s", path.parent, error)
    if descriptor is not None:
        os.close(descriptor)
        discard(path)
    return None


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file if nobody has it; it is given back when the file is closed or the process ends.

    Raises
    ------
    OSError
        Here files cannot be locked.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError("no locks on this system") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def announced(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the file of each run that was announced, and whether the run is still going."""
    for path in sorted((root / FOLDER).glob(f"*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.debug("%s is taken for a run that goes on: %s", path, error)
            yield path, True
            continue
        try:
            alive = not try_lock(descriptor)
        except OSError as error:
            logger.debug("%s is taken for a run that goes on: %s", path, error)
            alive = True
        finally:
            os.close(descriptor)
        yield path, alive


def oldest_start(root: Path) -> float:
    """Return when the oldest run that is still going began, seconds since 1970; infinity where there is none."""
    starts = [int(path.name[:14], 16) / 1e6 for path, alive in announced(root) if alive]
    return min(starts, default=float("inf"))
