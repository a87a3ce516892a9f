"""The one door to the place of a cache: a folder of this machine (`reading`, `publish`), or a bucket (`bucket`).

All other modules of the cache name files by a `Place` and ask here for what is there; which of the two it is, nobody
else needs to know but for what buckets do not have: locks, temporary files, and times of use.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from ..errors import CacheError, DamagedFileError, HeadstartError
from . import bucket, reading
from . import publish as folder_writes
from .place import Entry, Place, RemotePath
from .publish import Buffer, temporary_path

logger = logging.getLogger("headstart.cache")

Given = TypeVar("Given")
Result = TypeVar("Result")
Rest = ParamSpec("Rest")

# More threads than this gain nothing: two of them read from the page cache as fast as memory allows.
READ_THREADS = 4


class Readable(Protocol):
    """A file of the cache, open for reading, whether it is one or an object."""

    def __enter__(self) -> Self:
        """Return the file itself."""

    def __exit__(self, *exception: Any) -> None:
        """Close it."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a position, from the beginning (0) or the end (2)."""

    def tell(self) -> int:
        """Return the position of the next byte."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill the beginning of a buffer; return how many bytes, 0 at the end."""

    def read(self, size: int, /) -> bytes:
        """Read so many bytes, fewer at the end."""


def open_file(place: Place, start: int = 0, stop: int | None = None) -> Readable:
    """Open a file for reading, from `start` to `stop` as far as is known: a bucket is asked for no more than that.

    Raises
    ------
    FileNotFoundError
        It is not there.
    DamagedFileError, CacheError, OSError
        As `headstart.cache.reading.open_regular`; of a bucket, CacheError alone.
    """
    return bucket.ObjectFile(place, start, stop) if isinstance(place, RemotePath) else reading.open_regular(place)


def read_whole(place: Place) -> bytes:
    """Read all bytes of a file; raises as `open_file`."""
    if isinstance(place, RemotePath):
        return bucket.read(place)
    with reading.open_regular(place) as file:
        return file.readall()


def twice(read: Callable[Concatenate[Place, Rest], Result]) -> Callable[Concatenate[Place, Rest], Result]:
    """Let a reader of one file, its first argument, believe in damage of an object only where it finds it again.

    A transfer may have gone wrong, or the object been written anew, between the listing and the reading.
    """

    @functools.wraps(read)
    def sure(place: Place, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        try:
            return read(place, *args, **kwargs)
        except DamagedFileError as error:
            if not isinstance(place, RemotePath):
                raise
            logger.debug("%s; read again", error)
            return read(RemotePath(place.url), *args, **kwargs)

    return sure


@twice
def read_json(place: Place) -> Any:
    """Read a small JSON file of the cache.

    Raises
    ------
    DamagedFileError
        It is no JSON, or no file.
    FileNotFoundError
        It is not there.
    CacheError
        It cannot be read.
    """
    try:
        return json.loads(read_whole(place))
    except HeadstartError:  # which has said all
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{place} is damaged: {error}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(place)) from error
    except OSError as error:
        raise reading.read_error(error, place) from error


def folders(place: Place) -> list[str]:
    """Return the names of the folders in a folder, in order, without hidden ones; none where there is no such folder.

    Raises
    ------
    CacheError
        It cannot be read: what is in it is not known, which is not the same as nothing.
    """
    if isinstance(place, RemotePath):
        return [name for name in bucket.listed(place)[0] if not name.startswith(".")]
    return reading.folders(place)


def files(place: Place, suffix: str) -> list[Place]:
    """Return the files in a folder whose names end in `suffix`, in order, without hidden ones; raises as `folders`."""
    if isinstance(place, RemotePath):
        found = bucket.listed(place)[1].items()
        return [
            RemotePath(str(place / name), entry.size)
            for name, entry in found
            if name.endswith(suffix) and not name.startswith(".")
        ]
    return list(reading.files(place, suffix))


def entries(folder: Place) -> dict[str, Entry]:
    """Return size and time of the files in a folder by their names; raises as `folders`."""
    return bucket.listed(folder)[1] if isinstance(folder, RemotePath) else reading.entries(folder)


def is_there(place: Place) -> bool:
    """Tell whether there is a folder, which in a bucket is one with something in it."""
    return any(bucket.listed(place)) if isinstance(place, RemotePath) else place.exists()


def is_empty(folder: Place) -> bool:
    """Tell whether nothing is in a folder that is there."""
    if isinstance(folder, RemotePath):
        names, found = bucket.listed(folder)
        return not names and not set(found) - {bucket.PROBE}
    return not any(folder.iterdir())


def same(one: Place, other: Place) -> bool:
    """Tell whether two names are of one folder."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.exists() and one.samefile(other)
    return one == other


def look_at(place: Place) -> Entry:
    """Return size and time of a file; FileNotFoundError where it is not there."""
    if isinstance(place, RemotePath):
        return bucket.looked_at(place)
    found = place.stat()
    return Entry(found.st_size, found.st_mtime)


def size_of(place: Place) -> int:
    """Return the bytes of a file, as the listing that it comes from says where there was one."""
    return place.size if isinstance(place, RemotePath) and place.size is not None else look_at(place).size


def size_below(root: Place) -> int:
    """Return how many bytes the files of a folder and of those in it have."""
    if isinstance(root, RemotePath):
        return sum(entry.size for entry in bucket.everything(root).values())
    return reading.size_below(root)


def mapped(
    call: Callable[[Given], Result], given: Sequence[Given], root: Place, *, whole: bool = False
) -> Iterator[Result]:
    """Yield what `call` returns for each, in order; for a cache in a bucket many at once, for they wait.

    Parameters
    ----------
    call : callable
    given : sequence
    root : Path or RemotePath
        The cache.
    whole : bool, default False
        Whether each reads a part as a whole, so that fewer at once are enough, and more would take memory.
    """
    if isinstance(root, Path) or len(given) < 2:
        return map(call, given)
    return bucket.mapped(call, given, bucket.STREAMS if whole else bucket.AT_ONCE)


def threads(root: Place) -> int:
    """Return how many parts of a cache to read at once, all of their bytes."""
    return bucket.STREAMS if isinstance(root, RemotePath) else READ_THREADS


def publish(place: Place, data: Buffer | Sequence[Buffer]) -> None:
    """Write a file that appears complete or not at all, and stays; one that is there is replaced in one step.

    Raises
    ------
    CacheError
        What went wrong, and what to do about it. What was there before is there still, and nothing else.
    """
    if isinstance(place, RemotePath):
        bucket.publish(place, data if isinstance(data, bytes) else b"".join(_buffers(data)))
    else:
        folder_writes.publish(place, data)


def _buffers(data: Buffer | Sequence[Buffer]) -> Iterable[Buffer]:
    return [data] if isinstance(data, bytes | bytearray | memoryview) else data


def make_folder(folder: Place, root: Place | None = None) -> None:
    """Make a folder, below `root`, which is there; in a bucket there is nothing to make."""
    if isinstance(folder, Path):
        folder_writes.make_folder(folder, root if isinstance(root, Path) else None)


def settle(folder: Place) -> None:
    """Make changes in a folder durable, which a bucket does by itself."""
    if isinstance(folder, Path):
        folder_writes.sync_folder(folder)


def check_writable(root: Place) -> None:
    """Make the folder of a cache where it is missing, and try to write in it.

    Raises
    ------
    OSError
        That cannot be done.
    """
    if isinstance(root, RemotePath):
        bucket.check_writable(root)
        return
    probe = temporary_path(root / "probe")
    make_folder(root)
    probe.touch(exist_ok=False)
    probe.unlink()


def time_at(root: Place) -> float:
    """Return the time by the clock that stamps the cache's files, seconds since 1970; it may differ from ours."""
    if isinstance(root, RemotePath):
        return bucket.time_at(root)
    probe = temporary_path(root / "probe")
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def delete(place: Place) -> None:
    """Delete a file; one that has gone already is no error."""
    if isinstance(place, RemotePath):
        bucket.delete(place)
    else:
        place.unlink(missing_ok=True)


def set_aside(place: Place, root: Place) -> Place | None:
    """Move a damaged file out of the way.

    Returns
    -------
    Place or None
        Where it is now; None where another process was faster.

    Raises
    ------
    OSError
        It stays where it is.
    """
    if isinstance(place, RemotePath):
        target = root / "quarantine" / place.name
        assert isinstance(target, RemotePath)
        try:
            bucket.move(place, target)
        except FileNotFoundError:
            return None
        return target
    assert isinstance(root, Path)
    return _renamed_aside(place, root)


def _renamed_aside(path: Path, root: Path) -> Path | None:
    refused: OSError | None = None
    # Where something is in the way of the folder, another name will do: what is no part is not read.
    for target in (root / "quarantine" / path.name, path.with_suffix(".damaged")):
        try:
            make_folder(target.parent, root)
            os.replace(path, target)  # noqa: PTH105  (one call that tests can make fail)
        except OSError as error:
            if not os.path.lexists(path):
                return None
            refused = error
            continue
        return target
    assert refused is not None
    raise refused


def remove_folder(folder: Place) -> int:
    """Remove a folder with all that is in it, and return its bytes.

    On a disk it is out of sight in one step, so that a kill in between leaves all of it or a temporary folder. In a
    bucket its objects go one by one, what describes them last: a kill leaves some of the parts, each of them whole.

    Raises
    ------
    CacheError
        That cannot be done.
    """
    if isinstance(folder, RemotePath):
        found = bucket.everything(folder)
        for of_parts in (True, False):
            list(bucket.mapped(bucket.delete, [place for place in found if place.name.endswith(".h5") is of_parts]))
        return sum(entry.size for entry in found.values())
    if folder.is_symlink():
        raise CacheError(f"{folder} is a link: remove it and the folder that it leads to yourself")
    aside = temporary_path(folder)
    try:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        os.replace(folder, aside)  # noqa: PTH105  (one call that tests can make fail)
        folder_writes.sync_folder(folder.parent)
        shutil.rmtree(aside)
    except OSError as error:
        raise folder_writes.write_error(error, folder.parent) from error
    return size


def write_error(error: OSError, folder: Place, size: int = 0, safe: int | None = None) -> CacheError:
    """Turn a failed write into the error that a person can act on; see `headstart.cache.publish.write_error`."""
    if isinstance(folder, RemotePath):
        return bucket.write_error(error, folder, size, safe)
    return folder_writes.write_error(error, folder, size, safe)
