"""Which runs are going on: each keeps a locked file in ``CACHE/running/`` while it lives.

These files are hints. No reader and no writer needs them: they tell a compaction that rows which no listing has yet may
get one, and the next run which images were being decoded when a run died. Where the file system refuses locks there are
no hints. A bucket has no locks: who uses one announces that in a temporary folder of this machine, for it alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .place import Place
from .publish import discard, make_folder, sortable_id, temporary_path
from .reading import files

logger = logging.getLogger("headstart.cache")

FOLDER = "running"
SUFFIX = ".run"
_FLAGS = 0
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    _FLAGS |= getattr(os, _name, 0)


@contextlib.contextmanager
def running(root: Place) -> Iterator[int | None]:
    """Announce a run while the block lasts.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's place, which is there.

    Yields
    ------
    int or None
        A descriptor of the file, open for writing what a later run should know if this one dies; None where the file
        cannot be made or locked.
    """
    path = _folder(root) / f"{sortable_id()}{SUFFIX}"
    descriptor = _announce(path, root)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            discard(path)
            os.close(descriptor)


def _folder(root: Place) -> Path:
    """Return where the runs of a cache are announced."""
    if isinstance(root, Path):
        return root / FOLDER
    import tempfile  # which takes a while

    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"headstart-{user}", hashlib.sha256(str(root).encode()).hexdigest()[:16], FOLDER)


def _announce(path: Path, root: Place) -> int | None:
    """Make a locked file. It gets its name once it is locked: until then others would take its owner for dead."""
    temporary = temporary_path(path)
    try:
        make_folder(path.parent, root if isinstance(root, Path) else None)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    except OSError as error:
        logger.debug("the run is not announced: %s", error)
        return None
    try:
        _lock(descriptor, shared=False)
        os.replace(temporary, path)  # noqa: PTH105  (one call that tests can make fail)
    except OSError as error:
        logger.debug("the run is not announced: %s", error)
        os.close(descriptor)
        discard(temporary)
        return None
    return descriptor


def _lock(descriptor: int, *, shared: bool) -> None:
    """Lock an open file; the lock is given back when the file is closed or the process ends.

    Raises
    ------
    OSError
        Somebody has it (BlockingIOError), or here files cannot be locked.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError(errno.ENOLCK, "no locks on this system") from error
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def announced(root: Place) -> Iterator[tuple[Path, bool]]:
    """Yield the file of each run that was announced, and whether the run is still going; in doubt it is.

    Raises
    ------
    CacheError
        The folder cannot be read: it is not known who runs.
    """
    for path in files(_folder(root), SUFFIX):
        try:
            yield path, _is_alive(path)
        except FileNotFoundError:
            continue


def _is_alive(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        logger.debug("%s is taken for a run that goes on: %s", path, error)
        return True
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return True
        _lock(descriptor, shared=True)  # several may look at once
    except OSError as error:
        logger.debug("%s is taken for a run that goes on: %s", path, error)
        return True
    finally:
        os.close(descriptor)
    return False


def oldest_start(root: Place) -> float:
    """Return when the oldest run that is still going began, seconds since 1970; infinity where there is none."""
    starts = []
    for path, alive in announced(root):
        with contextlib.suppress(ValueError):  # not a name of ours
            starts += [int(path.name[:14], 16) / 1e6] if alive else []
    return min(starts, default=float("inf"))
