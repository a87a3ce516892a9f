"""Where a dataset lies: a path of this machine, or a URL, of which a `Path` would make ``s3:/bucket``."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeAlias

from ..errors import UsageError, printable
from .remote import EXTRAS, WEB, is_url, scheme_of

# What a path makes of a URL: two slashes become one.
_COLLAPSED = re.compile(rf"({'|'.join(EXTRAS)}):/[^/]")
_LOCAL = ("file", "local")


@dataclass(frozen=True, slots=True)
class Url:
    """A URL with what code asks of a `Path` without asking a disk; no `os.PathLike`, so that nothing opens it as one.

    Attributes
    ----------
    text : str
        Scheme in lower case, no slash at the end.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def scheme(self) -> str:
        """Such as "s3"."""
        return scheme_of(self.text)

    @property
    def name(self) -> str:
        """The last name of the path, or the bucket's where there is none; without the query of a web page."""
        rest = urllib.parse.unquote(self._rest) if self.scheme in WEB else self._rest
        return rest.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> Url:
        """The folder that it lies in; itself where that is a whole bucket or server."""
        folder = self._rest.rpartition("/")[0]
        return Url(f"{self.scheme}://{folder}") if folder else self

    @property
    def _rest(self) -> str:
        """What stands behind the scheme, without the query of a web page."""
        rest = self.text.partition("://")[2]
        return re.split("[?#]", rest, maxsplit=1)[0] if self.scheme in WEB else rest

    def resolve(self) -> Url:
        """Return itself: a URL is absolute."""
        return self

    def exists(self) -> bool:
        """Say yes: only listing it tells, and that says in one line that it is not there."""
        return True


Source: TypeAlias = Path | Url
Named: TypeAlias = str | os.PathLike[str] | Url  # as somebody may name one


def source_of(data: Named) -> Source:
    """Return a `Url` for a URL, and a `Path` for anything else.

    Parameters
    ----------
    data : str, path or Url
        ``file://`` names a path of this machine.

    Raises
    ------
    UsageError
        A URL that was made a path and lost a slash.
    """
    if isinstance(data, Url):
        return data
    text = str(data)  # os.fspath has nothing of a URL path
    if isinstance(data, PurePath) and _COLLAPSED.match(text) and not Path(text).exists():
        raise UsageError(f"{printable(text)} has lost a slash, as URLs do that are made paths; give the URL as text")
    if not is_url(text):
        return Path(data)
    scheme, rest = scheme_of(text), text.partition("://")[2]
    if scheme in _LOCAL:
        return Path(urllib.parse.unquote("/" + rest.partition("/")[2] if scheme == "file" else rest))
    return Url(f"{scheme}://{rest.rstrip('/')}")


def name_bytes(source: Source) -> bytes:
    """Return a path as the file system has it, or a URL, as bytes."""
    return os.fsencode(str(source))
