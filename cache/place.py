"""Where a cache and its files are: paths of this machine, or URLs of objects in a bucket, which behave like paths.

A place is only a name. What is there is asked through `headstart.cache.storage`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ..errors import UsageError, printable
from .remote import is_url

# Stores in which an object is there as a whole or not at all, and that list what they hold.
BUCKETS = ("s3", "gs")
# What a path makes of a URL: two slashes become one.
_COLLAPSED = re.compile(rf"({'|'.join(BUCKETS)}):[/\\][^/\\]")


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """The name of an object, or of what stands before the names of several, as in ``s3://bucket/prefix``.

    It has those methods of `pathlib.Path` that ask no disk. It is no `os.PathLike`, so that nothing opens a file of
    this machine by a URL.

    Attributes
    ----------
    url : str
        Without a slash at its end.
    size : int or None
        Bytes of the object, where the listing that it comes from has said so; it takes no part in comparisons.
    """

    url: str
    size: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def bucket(self) -> str:
        """The URL up to the name of its bucket."""
        return "/".join(self.url.split("/", 3)[:3])

    @property
    def parent(self) -> RemotePath:
        """What stands before the last slash; of a bucket, itself."""
        return self if self.url == self.bucket else RemotePath(self.url.rpartition("/")[0])

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.rpartition(".")[0] or self.name

    def absolute(self) -> RemotePath:
        """Return itself: a URL says all."""
        return self


Place: TypeAlias = Path | RemotePath


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a file without reading it.

    Attributes
    ----------
    size : int
        Bytes.
    modified : float
        When it was written, seconds since 1970, by the clock of the file system or the store.
    """

    size: int
    modified: float


def below(place: Place, root: Place) -> str:
    """Return the name of a file of a cache within it."""
    return (
        str(place.relative_to(root))
        if isinstance(place, Path) and isinstance(root, Path)
        else str(place)[len(str(root)) + 1 :]
    )


def place_of(given: str | os.PathLike[str] | RemotePath) -> Place:
    """Return the place of a cache that somebody named.

    Parameters
    ----------
    given : str, path or RemotePath
        A folder, or the URL of a bucket and what shall stand before the names of the objects in it.

    Raises
    ------
    UsageError
        A URL of another kind, one that names no bucket, or one that was made a path and lost a slash.
    """
    if isinstance(given, RemotePath):
        return given
    text = str(given)
    if _COLLAPSED.match(text):
        raise UsageError(f"{printable(text)} has lost a slash, as URLs do that are made paths; give the URL as text")
    if not is_url(text):
        return Path(given)
    scheme, _, rest = text.partition("://")
    names = [name for name in rest.split("/") if name]
    if scheme.lower() not in BUCKETS:
        known = " or ".join(f"{name}://bucket/prefix" for name in BUCKETS)
        raise UsageError(f"a cache cannot be at {printable(text)}; pass --cache with a folder, {known}")
    if not names or rest.startswith("/"):
        raise UsageError(f"{printable(text)} names no bucket; pass --cache {scheme.lower()}://bucket/prefix")
    return RemotePath("/".join([f"{scheme.lower()}:/", *names]))
