"""What unfinished work leaves in a cache: temporary files and folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from .publish import TEMPORARY_SUFFIX

# A writer on another machine cannot be seen from here; no write takes a day.
STALE_SECONDS = 86_400


def temporary_files(root: Path) -> Iterator[Path]:
    """Yield what unfinished writes and removals left below a cache's folder: files, and folders as a whole."""
    for path in root.rglob(f".*{TEMPORARY_SUFFIX}"):
        if not any(parent.name.endswith(TEMPORARY_SUFFIX) for parent in path.parents):
            yield path


def remove_stale(root: Path, clock: float) -> int:
    """Remove temporary files that are older than a day.

    Parameters
    ----------
    root : Path
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
