"""Files that appear complete or not at all: written under a temporary name, synced, renamed, folder synced.

Nothing in headstart writes a file that it keeps in any other way. Ordinary writes are used, and not HDF5's own,
because a full disk gives them a clean `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import CacheError

logger = logging.getLogger("headstart.cache")

Buffer = bytes | bytearray | memoryview
TEMPORARY_SUFFIX = ".tmp"


def sortable_id(after: str = "") -> str:
    """Return a name that sorts by time: 14 hex digits of microseconds since 1970, then 10 random ones.

    Parameters
    ----------
    after : str, default ""
        An earlier id. The result sorts behind it even where the clock was set back in between.
    """
    micros = time.time_ns() // 1000
    if after:
        micros = max(micros, int(after[:14], 16) + 1)
    return f"{micros:014x}{secrets.token_hex(5)}"


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Make a folder and those above it that are missing, each durable in the one that holds it.

    A folder that is there already is made durable too: who made it may have died before he came to that.

    Parameters
    ----------
    folder : Path
        The folder; it may be there already.
    root : Path, optional
        A folder above that must be there: it is not made again when somebody has removed it.

    Raises
    ------
    CacheError
        A folder cannot be made, or `root` is not there.
    """
    if root is not None and not root.is_dir():
        raise write_error(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), root)
    levels: list[Path] = []
    for level in (folder, *folder.parents):
        if level == root or (root is None and levels and level.is_dir()):
            break
        levels.append(level)
    for level in reversed(levels):
        made = not level.is_dir()
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(level)  # noqa: PTH102  (one call that tests can make fail)
            sync_folder(level.parent)
        except OSError as error:
            if made or root is not None or not isinstance(error, PermissionError):
                raise write_error(error, level) from error
            logger.debug("%s is not ours to sync: %s", level.parent, error)


def publish(path: Path, data: Buffer | Sequence[Buffer]) -> None:
    """Write `data` to `path` durably; an existing file is replaced in one step.

    Parameters
    ----------
    path : Path
        The final name, in a folder that is there. It is not made: where somebody has removed the cache, a write must
        fail and not leave half of a new one.
    data : buffer or sequence of buffers
        The content; several buffers are written one after the other.

    Raises
    ------
    CacheError
        With the `errno` of the failed call and a message that says what to do. Nothing is left under `path` then
        but what was there before, and no temporary file either.
    """
    buffers = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
    temporary = temporary_path(path)
    try:
        try:
            _write(temporary, buffers)
            os.replace(temporary, path)  # noqa: PTH105  (one call that tests can make fail)
        except BaseException:
            discard(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path.parent, sum(memoryview(buffer).nbytes for buffer in buffers)) from error


def temporary_path(path: Path) -> Path:
    """Return a new name beside `path` for a file, or a folder, on its way to or from it."""
    return path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def discard(path: Path) -> None:
    """Remove a temporary file; where that fails too, it stays, and `headstart cache compact` removes it later."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s stays behind: %s", path, error)


def _write(path: Path, buffers: Sequence[Buffer]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view:
                view = view[os.write(descriptor, view[: 1 << 24]) :]
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # there fsync stops at the drive's own cache
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and say so
            raise
    finally:
        os.close(descriptor)


def write_error(error: OSError, folder: Path, size: int = 0, safe: int | None = None) -> CacheError:
    """Turn a failed write into the error that a person can act on.

    Parameters
    ----------
    error : OSError
        What the system said.
    folder : Path
        Where it was to be written.
    size : int, default 0
        Bytes that were to be written.
    safe : int, optional
        How many images of the run are in the cache for good; None where nobody knows.
    """
    megabytes = max(1, round(size / 1e6))
    code = error.errno
    reason = os.strerror(code) if code else str(error)
    counted = "" if safe is None else f"{safe} images are safe, "
    if code == errno.ENOSPC:
        text = f"disk full writing {folder}: {counted}free ~{megabytes} MB and run again"
    elif code in (errno.EROFS, errno.EACCES, errno.EPERM):
        text = f"{folder} is read-only: {counted}pass --cache with a folder that can be written"
    elif code in (errno.ENOTDIR, errno.EEXIST):
        text = f"a file is in the way of the folder {folder}: pass --cache with another one"
    elif code in (errno.ENOENT, errno.ESTALE):
        text = f"{folder} went away while it was in use: run again"
    else:
        name = errno.errorcode.get(code or 0, "error")
        text = f"cannot write {folder} ({name}: {reason}): {counted}free ~{megabytes} MB or mend it, and run again"
    translated = CacheError(text)
    translated.errno = code
    translated.size = size
    return translated
