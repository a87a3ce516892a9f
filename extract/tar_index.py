"""What a tar holds: the header of each member, read in the order of its bytes, and nothing is ever unpacked.

The rules are webdataset's: members of one sample share the name up to the first dot behind the last slash; what follows
is what the member is, such as ``jpg`` or ``cls``. Names are only names, whatever is in them.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from ..errors import printable
from .files import SUFFIXES

BLOCK = 512
IN_TAR = "its tar"  # stands in every reason that a header gives, which another try does not change
CUT_OFF = f"cut off: {IN_TAR} ends within it"
_KEY = re.compile(rb"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # webdataset's base_plus_ext
_META = re.compile(rb"__[^/]*__(?:$|/)")  # what webdataset skips
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LABEL_BYTES = 1 << 20  # no label, and no JSON with one in it, is larger
_MOST_OFFSET = BLOCK << 31  # 1 TiB: what 31 bits can say


Readable = IO[bytes] | io.RawIOBase


@dataclass(frozen=True, slots=True)
class Member:
    """A picture in a tar.

    Attributes
    ----------
    name : bytes
        As it stands in the tar, without ``./`` before it.
    offset, size : int
        Where its bytes begin, and how many there are.
    label : str or None
        What its sample says that it is.
    reason : str or None
        Why it cannot be read.
    """

    name: bytes
    offset: int
    size: int
    label: str | None = None
    reason: str | None = None


@dataclass(slots=True)
class Index:
    """The pictures of a tar, in the order of their bytes, and what was odd about it.

    Attributes
    ----------
    members : list of Member
    others : int
        Members that are neither pictures nor labels of some.
    repeated : int
        Members left out because an earlier one has their name.
    damage : str or None
        Why what lies behind the last of `members` could not be read.
    """

    members: list[Member] = field(default_factory=list)
    others: int = 0
    repeated: int = 0
    damage: str | None = None


def read_index(file: Readable, size: int) -> Index:
    """Go through a tar from header to header.

    Parameters
    ----------
    file : binary file
        With ``seek`` and ``read``; it is gone through from its beginning to its end.
    size : int
        Bytes of the tar.

    Returns
    -------
    Index
        Up to the place from where on the tar is damaged.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    index, labels = Index(), _Labels()
    seen: set[bytes] = set()
    walk = _Headers(file, size)
    for info in walk:
        name = _name(info)
        parts = _KEY.fullmatch(name)
        if not (info.isreg() or info.islnk() or info.issym()) or parts is None or _META.match(name):
            index.others += not info.isdir()
            continue
        key, kind = parts[1], parts[2].lower()
        if name in seen:
            index.repeated += 1
        elif kind.rpartition(b".")[2] in SUFFIXES:
            seen.add(name)
            index.members.append(Member(name, info.offset_data, info.size, None, _refusal(info, size)))
        elif not (info.isreg() and labels.take(key, kind, info, file)):
            index.others += 1
    index.damage = walk.damage
    index.members = [labels.given(member) for member in index.members]
    return index


class _Headers:
    """The headers of a tar, one after the other, and why it ended before its end."""

    def __init__(self, file: Readable, size: int) -> None:
        self._file, self._size = file, size
        self.damage: str | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            tar = tarfile.open(fileobj=self._file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        except tarfile.TarError as error:
            self.damage = self._no_tar(error)
            return
        last = -1
        try:
            while (info := tar.next()) is not None:
                if info.offset <= last or info.size < 0:  # a header that leads back would be gone through for ever
                    self.damage = f"damaged at byte {info.offset}"
                    return
                last = info.offset
                tar.members = []  # type: ignore[attr-defined]  # or all headers would be kept
                yield info
        except (tarfile.TarError, ValueError, OverflowError, UnicodeError, RecursionError) as error:
            cut = tar.offset >= self._size
            self.damage = f"cut off at byte {self._size}" if cut else f"damaged at byte {tar.offset}: {error}"
            return
        self._check_end(tar.offset)

    def _check_end(self, offset: int) -> None:
        """Tell an end from what `tarfile` takes for one: a damaged header, or nothing where the tar was cut."""
        if offset >= self._size:
            self.damage = f"cut off: it ends at byte {self._size} without the mark of an end"
            return
        self._file.seek(offset)
        block = self._file.read(BLOCK)
        if len(block) < BLOCK:
            self.damage = f"cut off: it ends at byte {self._size} within a header"
        elif any(block):
            self.damage = f"damaged at byte {offset}: no header of a member"

    def _no_tar(self, error: Exception) -> str:
        self._file.seek(0)
        start = self._file.read(8)
        kind = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
        if kind:
            return f"compressed with {kind}, so that nothing can be read from its middle; uncompress it first"
        if not start:
            return "empty file"
        return f"no tar: {error}"


def _name(info: tarfile.TarInfo) -> bytes:
    name = os.fsencode(info.name)
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    return name.replace(b"\0", b"")


def _refusal(info: tarfile.TarInfo, size: int) -> str | None:
    if not info.isreg():
        return f"a link inside {IN_TAR}, to {printable(info.linkname)}"
    if info.issparse():
        return f"stored with holes inside {IN_TAR} (sparse)"
    if info.offset_data + info.size > size:
        return CUT_OFF
    if info.offset_data >= _MOST_OFFSET or info.offset_data % BLOCK:
        return f"lies beyond the first TiB of {IN_TAR}"
    return None


class _Labels:
    """What samples say of themselves: ``.cls``, or the field ``label`` of their ``.json``."""

    def __init__(self) -> None:
        self._cls: dict[bytes, str] = {}
        self._json: dict[bytes, str] = {}

    def take(self, key: bytes, kind: bytes, info: tarfile.TarInfo, file: Readable) -> bool:
        """Read a member that may hold a label; True where it was one."""
        if kind not in (b"cls", b"json") or info.size > _LABEL_BYTES:
            return False
        file.seek(info.offset_data)
        content = file.read(info.size)
        if len(content) < info.size:
            return False
        if kind == b"cls":
            text = content.decode("utf-8", "surrogateescape").replace("\0", "").strip()
            self._cls.setdefault(key, text)
            return True
        label = _label_of_json(content)
        if label is not None:
            self._json.setdefault(key, label)
        return label is not None

    def given(self, member: Member) -> Member:
        """Return a member with its label."""
        parts = _KEY.fullmatch(member.name)
        assert parts is not None
        label = self._cls.get(parts[1], self._json.get(parts[1]))
        return Member(member.name, member.offset, member.size, label or None, member.reason)


def _label_of_json(content: bytes) -> str | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = found.get("label") if isinstance(found, dict) else None
    if isinstance(label, bool) or not isinstance(label, str | int):
        return None
    text = str(label).replace("\0", "").strip()
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half of a character, which JSON may hold
        return None
    return text


class Ranges(io.RawIOBase):
    """A file that is read through `fetch`, a block at a time, each once where it is gone through in order.

    Parameters
    ----------
    fetch : callable
        Given the first byte and the one behind the last, returns them.
    size : int
        Bytes of the whole.
    block : int
        Bytes of one request.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, block: int) -> None:
        self._fetch, self._size, self._block = fetch, size, block
        self._place = 0
        self._start, self._data = 0, b""

    def seekable(self) -> bool:
        """Say that it can be gone through in any order."""
        return True

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is fetched."""
        self._place = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence] + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Read bytes from the place on, fewer only at the end."""
        stop = self._size if size < 0 else min(self._size, self._place + size)
        pieces = []
        while self._place < stop:
            if not self._start <= self._place < self._start + len(self._data):
                self._start = self._place
                self._data = self._fetch(self._start, min(self._size, self._start + self._block))
            piece = self._data[self._place - self._start : stop - self._start]
            pieces.append(piece)
            self._place += len(piece)
        return b"".join(pieces)
