"""What unfinished work leaves in a cache: temporary files and folders."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .place import Place
from .publish import TEMPORARY_SUFFIX

OWN_FOLDERS = ("spaces", "datasets", "backbones", "quarantine", "running")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}" + re.escape(TEMPORARY_SUFFIX), re.DOTALL)
# A writer on another machine cannot be seen from here; no write takes a day.
STALE_SECONDS = 86_400


def temporary_files(root: Place) -> Iterator[Path]:
    """Yield what unfinished writes and removals left in a cache's own folders: files, and folders as a whole.

    A bucket has none: an object that was not put as a whole is not there.
    """
    if not isinstance(root, Path):
        return
    yield from (path for path in _named(root) if path.is_file())
    for name in OWN_FOLDERS:
        for folder, below, _ in os.walk(root / name):
            found = list(_named(Path(folder)))
            yield from found
            below[:] = [inner for inner in below if Path(folder, inner) not in found]


def _named(folder: Path) -> Iterator[Path]:
    """Yield what has a name that `headstart.cache.publish.temporary_path` gives."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  (names alone)
    except FileNotFoundError:
        return
    yield from (folder / name for name in names if is_temporary(name))


def is_temporary(name: str) -> bool:
    """Tell whether a name is one that `headstart.cache.publish.temporary_path` gives."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale(root: Place, clock: float) -> int:
    """Remove temporary files that are older than a day.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's folder.
    clock : float
        The time now by the clock of the file system, seconds since 1970.

    Returns
    -------
    int
        How many were removed.
    """
    count = 0
    for path in list(temporary_files(root)):
        try:
            if clock - path.stat().st_mtime <= STALE_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        count += 1
    return count
