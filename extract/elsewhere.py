"""DATA that is not on this machine: what a URL is, and the tree of pictures below it."""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..cache.listing import CTIME
from ..cache.names import GrowingNames
from ..cache.remote import WEB, filesystem, is_url, key_of, scheme_of
from ..cache.source import Source, Url, name_bytes
from ..errors import DataError, printable
from .bucket import UNKNOWN_TIME, asked, examined_objects, objects_below, quoted
from .files import SUFFIXES, Stat
from .tree import SKIPPED_NAMES, Tree
from .web import links_below

_PAGES = ("text/html", "application/xhtml+xml", "")
_TAR = b"tar"
CSV_START = 1 << 16  # bytes of a CSV that are looked at before its lines are


def location(base: bytes, name: bytes) -> bytes:
    """Return where an image lies: a path of this machine, or a URL; see `locator`."""
    return locator(base)(name)


def locator(base: bytes) -> Callable[[bytes], bytes]:
    """Return what tells of the names of a dataset where its images lie.

    Parameters
    ----------
    base : bytes
        The folder or URL that names are relative to.

    Returns
    -------
    callable
        Given a name that is relative, or absolute, or a URL itself, it returns a path of this machine or a URL. Below a
        URL a name is nothing but a name, whatever is in it, unless it is a URL.
    """
    folder = os.fsdecode(base)
    if not is_url(folder):
        return lambda name: name if is_named_by_url(name) else os.path.join(base, name)  # noqa: PTH118  (bytes)
    prefix, web = base.rstrip(b"/") + b"/", scheme_of(folder) in WEB

    def below(name: bytes) -> bytes:
        return name if is_named_by_url(name) else prefix + (quoted(name).encode() if web else name)

    return below


def is_named_by_url(name: bytes) -> bool:
    """Tell whether the name of an image is a URL itself, as it may be in a CSV."""
    return b"://" in name and is_url(os.fsdecode(name))


def found_at(url: Url) -> Found | None:
    """List what lies below a URL; None where it is one object, which has to be a CSV then.

    Raises
    ------
    DataError, DataNotFoundError
        Nothing is there, or it cannot be listed.
    """
    if url.suffix.lower() == ".csv":
        return None
    if url.scheme in WEB:
        details = asked(lambda: filesystem(url.scheme).info(str(url)), url)
        return found_below(url) if str(details.get("mimetype") or "") in _PAGES else None
    found = found_below(url)
    if found.empty:
        asked(lambda: filesystem(url.scheme).info(key_of(str(url))), url)
        return None
    return found


class Found:
    """What lies below a URL: its pictures as a tree, and its tars.

    Attributes
    ----------
    tree : Tree
    tars : dict of bytes to Stat
        Files that end in .tar, by their names.
    empty : bool
        Nothing is there, not even what is passed over.
    """

    def __init__(self, entries: Iterable[tuple[bytes, Stat, str | None]]) -> None:
        self.tree = Tree()
        paths = GrowingNames()
        self.tars: dict[bytes, Stat] = {}
        self.empty = True
        self._places: dict[bytes, int] = {}
        stats, folders = array("q"), array("q")
        for name, stat, reason in entries:
            self.empty = False
            if is_hidden(name) or b"\0" in name:  # by which names are kept apart, and which no file has
                continue
            suffix = _suffix(name)
            if is_named_by_url(name):  # as a name it would lead elsewhere: whoever writes here does not choose that
                reason = "its name is a URL"
            if suffix in SUFFIXES:
                if reason is not None:
                    self.tree.reasons[len(paths)] = reason
                paths.append(name)
                folders.append(self._place(name.rpartition(b"/")[0]))
                stats.extend(stat)
                continue
            if suffix == _TAR and reason is None:
                self.tars[name] = stat
            self.tree.ignored[printable(b"." + suffix) if suffix else "no suffix"] += 1
        self.tree.paths = paths.finished()
        self.tree.folder = np.frombuffer(folders, np.int64)
        self.tree.stats = np.frombuffer(stats, np.int64).reshape(-1, 4)

    def _place(self, folder: bytes) -> int:
        if folder not in self._places:
            self._places[folder] = len(self.tree.folders)
            self.tree.folders.append(folder)
        return self._places[folder]


def _suffix(name: bytes) -> bytes:
    own = name.rpartition(b"/")[2]
    return own.rpartition(b".")[2].lower() if b"." in own else b""


def found_below(url: Url) -> Found:
    """List what lies below a URL; hidden names are passed over as in a folder.

    Raises
    ------
    DataError, DataNotFoundError
        It cannot be listed.
    """
    return Found(_on_pages(url) if url.scheme in WEB else ((name, stat, None) for name, stat in objects_below(url)))


def is_hidden(name: bytes) -> bool:
    """Tell whether a name, or a folder in it, is one that a folder's listing passes over."""
    return any(part.startswith(b".") or part in SKIPPED_NAMES for part in name.split(b"/"))


def _on_pages(url: Url) -> Iterator[tuple[bytes, Stat, str | None]]:
    names = sorted(set(links_below(url)))
    wanted = [name for name in names if _suffix(name) in (*SUFFIXES, _TAR) and not is_hidden(name)]
    base = name_bytes(url)
    known = dict(zip(wanted, examined_objects([os.fsdecode(location(base, name)) for name in wanted]), strict=True))
    for name in names:
        stat, reason = known.get(name, ((0, 0, 0, 0), None))
        yield name, stat, reason


def timeless_note(stats: np.ndarray) -> list[str]:
    """Say that images, (N, 4) int64, have nothing by which an unchanged one is told; no line where none has."""
    count = int((stats[:, CTIME] == UNKNOWN_TIME).sum())
    said = "their server does not say when they were written, so they are read again by each extract"
    return [f"{count} pictures: {said}"] if count else []


def opened_csv(data: Source) -> io.TextIOWrapper:
    """Open a CSV as text, of any bytes; one that lies elsewhere is read at once.

    Raises
    ------
    DataError, DataNotFoundError
        It cannot be read from there.
    OSError
        It cannot be opened here.
    """
    if isinstance(data, Url):
        content = asked(lambda: filesystem(data.scheme).cat_file(key_of(str(data))), data)
        raw: io.BytesIO | io.FileIO = io.BytesIO(content)
    else:
        raw = io.FileIO(data)
    # surrogateescape lets a path of any bytes through, and os.fsencode gives those bytes back.
    return io.TextIOWrapper(
        io.BufferedReader(raw, CSV_START), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def csv_path(text: str) -> bytes:
    """Return an image's URL in a CSV as its name: as it stands, with the scheme in lower case."""
    if any(ord(character) < 32 for character in text):
        raise DataError(f"the URL {printable(text)} holds a control character; escape it")
    scheme = scheme_of(text)
    return os.fsencode(scheme + text[len(scheme) :])
