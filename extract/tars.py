"""Tars of pictures as DATA: which there are, and the tree of their members, whose paths begin with a tar's name.

A member's status is made so that a tar which has not changed need not be opened: its size, the times of its tar, and
in place of the inode where its bytes begin, in blocks of 512 bytes, before 32 bits of a hash of what tells its tar from
others. So a reader finds the bytes by the listing alone, and a listing tells an unchanged tar by its members.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from ..cache.bucket import mapped
from ..cache.listing import CTIME, INODE, MTIME, SIZE, SPLITS, Listing, settled
from ..cache.names import GrowingNames, Names
from ..cache.remote import is_url
from ..cache.source import Source, Url, name_bytes, source_of
from ..errors import DataError, DataNotFoundError, printable
from .bucket import IN_FLIGHT, hash63, read_part, reason_of, stat_of_object, told, unquoted
from .elsewhere import location
from .files import NO_STAT, Stat, os_reason, stat_of
from .layouts import BESIDE, Reading, read_tree, split_code
from .tar_index import BLOCK, IN_TAR, Index, Member, Ranges, read_index
from .tree import Tree

logger = logging.getLogger("headstart.extract")

SUFFIX = ".tar"
INSIDE = re.compile(rb"\.tar/", re.IGNORECASE)  # what stands between a tar's name and a member's
FETCHED = 8 << 20  # bytes of one request
_AT_ONCE = 4  # tars that are gone through side by side
_MOST = 100_000  # tars that braces may name
_PACKED = re.compile(r"\.(tgz|tbz2?|txz|tzst|tar\.\w+)", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_UNREAD = "cannot be read"
_SLASH = "\0"  # stands for a slash in a label that becomes the name of a folder
_MASK = (1 << 32) - 1
_going_through = threading.Lock()
SPLIT_NAMES = tuple(name.encode() for name in SPLITS)


@dataclass(frozen=True, slots=True)
class Tars:
    """The tars that DATA names.

    Attributes
    ----------
    base : Path or Url
        What their names are relative to.
    stats : dict of bytes to Stat
        What each is, by its name.
    """

    base: Source
    stats: dict[bytes, Stat]


# Which tars


def names_tars(data: Source) -> bool:
    """Tell whether DATA is a tar, or several by braces, ``train-{0000..0009}.tar``, and no folder.

    Raises
    ------
    DataError
        It is a compressed tar.
    """
    text = str(data)
    if (match := _PACKED.search(text)) and text.endswith(match[0]) and not _is_folder(data):
        raise DataError(
            f"{printable(text)} is a compressed tar, from the middle of which nothing can be read; uncompress it, or "
            "pack the pictures with plain tar: they are compressed already"
        )
    return are_tars(data)


def are_tars(data: Source) -> bool:
    """Tell the same of DATA that was listed once."""
    return str(data).lower().endswith(SUFFIX) and not _is_folder(data)


def _is_folder(data: Source) -> bool:
    return isinstance(data, Path) and data.is_dir()


def named_tars(data: Source) -> Tars:
    """Return the tars that DATA names, with what each is.

    Raises
    ------
    DataNotFoundError, DataError
        One of them is not there, or cannot be looked at.
    """
    texts = expanded(str(data))
    base = base_of(data)
    prefix = "" if base == Path() else str(base).rstrip("/") + "/"
    names = [unquoted(prefix, name_bytes(source_of(text))[len(os.fsencode(prefix)) :]) for text in texts]
    return Tars(base, dict(zip(names, _examined(base, names), strict=True)))


def base_of(data: Source) -> Source:
    """Return what the names of tars, named one by one or by braces, are relative to."""
    if "{" not in str(data):
        return data.parent
    before = str(data).partition("{")[0]
    folder = before.rpartition("/")[0] if "/" in before else ""
    return source_of(folder or ("/" if before.startswith("/") else "."))


def expanded(text: str) -> list[str]:
    """Return the names that braces stand for: ``{a,b}`` and ``{000..129}``, zeros kept, as a shell has them.

    Raises
    ------
    DataError
        They stand for more than 100,000.
    """
    pieces = _BRACES.split(text)
    choices = [[piece] if number % 2 == 0 else _choices(piece) for number, piece in enumerate(pieces)]
    if int(np.prod([len(choice) for choice in choices], dtype=np.float64)) > _MOST:
        raise DataError(f"{printable(text)} stands for more than {_MOST} tars; name fewer at a time")
    return list(dict.fromkeys("".join(choice) for choice in product(*choices)))


def _choices(piece: str) -> list[str]:
    ends = _RANGE.fullmatch(piece)
    if ends is None:
        return piece.split(",") if "," in piece else ["{" + piece + "}"]
    first, last = int(ends[1]), int(ends[2])
    if abs(last - first) >= _MOST:
        raise DataError(f"{{{piece}}} stands for more than {_MOST} tars; name fewer at a time")
    width = max(len(ends[1]), len(ends[2])) if ends[1].startswith("0") or ends[2].startswith("0") else 0
    return [
        f"{number:0{width}}" for number in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1)
    ]


def tars_in(folder: Path) -> Tars:
    """Return the tars in a folder, at any depth; hidden names are passed over."""
    names = []
    for where, below, files in os.walk(os.fsencode(folder), followlinks=False):
        below[:] = [name for name in below if not name.startswith(b".")]
        inside = os.path.relpath(where, os.fsencode(folder))
        names += [
            name if inside == b"." else inside + b"/" + name
            for name in files
            if name.lower().endswith(SUFFIX.encode()) and not name.startswith(b".")
        ]
    return Tars(folder, dict(zip(sorted(names), _examined(folder, sorted(names)), strict=True)))


def _examined(base: Source, names: Sequence[bytes]) -> list[Stat]:
    if isinstance(base, Url):
        urls = [os.fsdecode(location(name_bytes(base), name)) for name in names]
        return list(mapped(lambda url: told(lambda: stat_of_object(url), url), urls, IN_FLIGHT))
    return [_stat_of_file(location(name_bytes(base), name)) for name in names]


def _stat_of_file(path: bytes) -> Stat:
    try:
        found = os.stat(path)  # noqa: PTH116  (names are bytes)
    except OSError as error:
        if error.errno and os_reason(error) == "not found":
            raise DataNotFoundError(f"no such tar: {printable(path)}; check the name and the braces") from error
        raise DataError(f"cannot look at {printable(path)}: {os_reason(error)}; check its permissions") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{printable(path)} is no regular file; name a tar, or a folder of some")
    return stat_of(found)


# The status of a member


def member_stat(tar: Stat, offset: int, size: int) -> Stat:
    """Return what tells an unchanged member of a tar, and where its bytes begin."""
    return size, tar[MTIME], tar[CTIME], (offset // BLOCK) << 32 | tar_mark(tar)


def tar_mark(tar: Stat) -> int:
    """Return 32 bits of a hash of what tells a tar from others beside its times."""
    return hash63(b"%d:%d" % (tar[SIZE], tar[INODE])) & _MASK


def offset_of(inode: int) -> int:
    """Return where the bytes of a member begin, by the column of its status that a file has its inode in."""
    return (inode >> 32) * BLOCK


def is_of_tar(stats: np.ndarray, tar: Stat) -> bool:
    """Tell whether members, (n, 4) int64, were listed in a tar that is still the same."""
    same = (stats[:, MTIME] == tar[MTIME]) & (stats[:, CTIME] == tar[CTIME])
    return bool((same & (stats[:, INODE] & _MASK == tar_mark(tar))).all())


# What is in them


def list_tars(
    tars: Tars, layout: str, previous: Callable[[], Listing | None] = lambda: None
) -> tuple[Tree, Reading, list[str]]:
    """List the members of tars, and what their labels, their folders and the tars' names make of them.

    A tar that is damaged, or was cut off, is a picture that cannot be read, under its own name; what lies before the
    damage is listed.

    Parameters
    ----------
    tars : Tars
    layout : str
        "auto", or how the names of tars and the folders in them are to be read.
    previous : callable
        Returns the latest listing of the same DATA: a tar that has not changed since is not opened.

    Returns
    -------
    tree : Tree
    reading : Reading
    notes : list of str
    """
    listing = previous()
    if listing is not None and not listing.request.get("limit") and listing.tags is None:
        known = _Listed(listing)
        growing = _listed(tars, layout, known)
        reading = growing.reading(layout)
        if not known.used or (growing.labelled == known.labelled and reading.layout == listing.layout):
            return growing.tree, reading, growing.notes
    growing = _listed(tars, layout, None)  # nothing is known, or it was read in another way then
    return growing.tree, growing.reading(layout), growing.notes


def _listed(tars: Tars, layout: str, known: _Listed | None) -> _Growing:
    growing = _Growing(_are_splits(tars, layout))
    new = {name: tar for name, tar in tars.stats.items() if known is None or not known.add_to(growing, name, tar)}
    if new:
        logger.info("listing %d tars, %.1f MB", len(new), sum(tar[SIZE] for tar in new.values()) / 1e6)
    with ThreadPoolExecutor(_AT_ONCE, "tar") as pool:
        growing.add(new, list(pool.map(lambda item: _Packed.of(_index(tars.base, *item)), new.items())))
    growing.finish()
    return growing


def _are_splits(tars: Tars, layout: str) -> bool:
    """Tell whether the names of tars, or of the folders that they lie in, are to be read as those of split folders."""
    codes = {split_code(name.partition(b"/")[0]) for name in tars.stats}
    return layout in ("auto", "splits") and 1 in codes and 0 not in codes


def _index(base: Source, name: bytes, tar: Stat) -> Index:
    path = location(name_bytes(base), name)
    logger.debug("listing %s, %.1f MB", printable(path), tar[SIZE] / 1e6)
    try:
        if isinstance(base, Url):
            url = os.fsdecode(path)
            return read_index(Ranges(lambda start, stop: read_part(url, start, stop), tar[SIZE], FETCHED), tar[SIZE])
        with open(path, "rb") as file:  # noqa: PTH123  (names are bytes)
            return read_index(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        reason = reason_of(error) if isinstance(base, Url) else os_reason(error)
        return Index(damage=f"{_UNREAD}: {reason}")


@dataclass(frozen=True, slots=True)
class _Packed:
    """The n pictures of a tar in columns: an object each would take a gigabyte for a few million."""

    names: Names
    offset: np.ndarray
    size: np.ndarray
    labels: list[str | None]
    reasons: dict[int, str]
    others: int
    repeated: int
    damage: str | None

    @classmethod
    def of(cls, index: Index) -> _Packed:
        members, labels = index.members, dict[str | None, str | None]()
        return cls(
            Names.of(member.name for member in members),
            np.array([member.offset for member in members], np.int64),
            np.array([member.size for member in members], np.int64),
            [labels.setdefault(member.label, member.label) for member in members],  # each text once
            {place: member.reason for place, member in enumerate(members) if member.reason},
            index.others,
            index.repeated,
            index.damage,
        )


class _Growing:
    """The tree of the members of tars while it grows."""

    def __init__(self, splits: bool) -> None:
        self.tree = Tree()
        self.notes: list[str] = []
        self._paths = GrowingNames()
        self._splits = splits
        self.labelled = False  # whether samples say what they are, and the folders in the tars do not count
        self._damaged: list[tuple[bytes, bytes, Stat, str]] = []
        self._places: dict[bytes, int] = {}
        self._folders: list[np.ndarray] = [np.zeros(0, np.int64)]
        self._stats: list[np.ndarray] = [np.zeros((0, 4), np.int64)]

    def place(self, folder: bytes) -> int:
        """Return the number of a folder."""
        if folder not in self._places:
            self._places[folder] = len(self.tree.folders)
            self.tree.folders.append(folder)
        return self._places[folder]

    def extend(self, paths: list[bytes], stats: np.ndarray, folders: np.ndarray, reasons: dict[int, str]) -> None:
        """Take in members; `reasons` by their place among these."""
        first = len(self._paths)
        self.tree.reasons.update({first + place: reason for place, reason in reasons.items()})
        self._paths.extend(paths)
        self._stats.append(stats)
        self._folders.append(folders)

    def add(self, tars: dict[bytes, Stat], indices: Sequence[_Packed]) -> None:
        """Take in the members of tars that were gone through."""
        self.labelled |= any(label is not None for index in indices for label in index.labels)
        for (name, tar), index in zip(tars.items(), indices, strict=True):
            self._add(name, tar, index)
        for count, words in (
            (sum(index.others for index in indices), "members of tars that are neither pictures nor labels: ignored"),
            (sum(index.repeated for index in indices), "members of tars with the name of an earlier one: left out"),
        ):
            self.notes += [f"{count} {words}"] if count else []

    def _add(self, name: bytes, tar: Stat, index: _Packed) -> None:
        top = name.partition(b"/")[0] if self._splits else b""
        own = map(self._folder, index.names, index.labels)
        folders = np.array([self.place(b"/".join(filter(None, (top, folder)))) for folder in own], np.int64)
        stats = np.empty((len(folders), 4), np.int64)
        stats[:] = member_stat(tar, 0, 0)
        stats[:, SIZE] = index.size
        stats[:, INODE] += (index.offset // BLOCK) << 32
        self.extend([name + b"/" + member for member in index.names], stats, folders, index.reasons)
        if index.damage:
            self._damaged.append((name, top, member_stat(tar, 0, tar[SIZE]), index.damage))

    def _folder(self, name: bytes, label: str | None) -> bytes:
        """Return the folder that stands for a member's class: its label's, or where no sample has one, its own."""
        if self.labelled:
            return as_folder(label) if label else b""
        return b"/".join(_folders_of(name))

    def finish(self) -> None:
        """Put the columns into the tree, and damaged tars, each as a picture of some class, or it would be left out."""
        names = (folder.partition(b"/")[2] if self._splits else folder for folder in self.tree.folders)
        some_class = next(filter(None, names), b"")
        for name, top, stat_, damage in self._damaged:
            folder = self.place(b"/".join(filter(None, (top, some_class))))
            self.extend([name], np.array([stat_], np.int64), np.array([folder], np.int64), {0: damage})
        self.tree.paths = self._paths.finished()
        self.tree.folder, self.tree.stats = np.concatenate(self._folders), np.concatenate(self._stats)

    def reading(self, layout: str) -> Reading:
        """Decide what the folders mean."""
        if layout == "auto" and self._splits:
            layout = "splits"
        elif layout == "auto" and self.labelled:
            layout = "classes"
        reading = read_tree(self.tree, layout)
        if self.labelled:
            notes = [note.replace(BESIDE, "images without a label in their tar") for note in reading.notes]
            reading = replace(reading, notes=tuple(notes))
        return _with_slashes(reading) if any(_SLASH in name for name in reading.classes) else reading


def _folders_of(member: bytes) -> list[bytes]:
    """Return the names of the folders that a member of a tar lies in."""
    return [part for part in member.split(b"/")[:-1] if part not in (b"", b".", b"..")]


def as_folder(label: str) -> bytes:
    """Return the name of the folder that stands for a label."""
    return os.fsencode(label.replace("/", _SLASH))


def _with_slashes(reading: Reading) -> Reading:
    """Return a reading with the classes as they are called, sorted anew."""
    names = [name.replace(_SLASH, "/") for name in reading.classes]
    order = sorted(range(len(names)), key=names.__getitem__)
    new = {old: place for place, old in enumerate(order)} | {-1: -1}
    classes = tuple(names[old] for old in order)
    return replace(reading, classes=classes, label=[new[label] for label in reading.label])


class _Listed:
    """The members of tars as an earlier listing has them.

    Attributes
    ----------
    used : int
        Tars whose members were taken from it.
    labelled : bool
        Whether some class is none of the folders that its picture lies in: samples said what they are.
    """

    def __init__(self, listing: Listing) -> None:
        self.used = 0
        self.labelled = False
        self._listing, self._known = listing, listing.known
        self._rows: dict[bytes, array[int]] = {}
        labels = [as_folder(name) for name in listing.classes]
        for row, (path, label) in enumerate(zip(listing.paths, listing.label.tolist(), strict=True)):
            match = INSIDE.search(path)
            tar = path[: match.end() - 1] if match else path
            self._rows.setdefault(tar, array("q")).append(row)
            if match and label >= 0 and not self.labelled:
                folders = _folders_of(path[match.end() :])
                self.labelled = labels[label] not in (*folders, b"/".join(folders))

    def add_to(self, growing: _Growing, name: bytes, tar: Stat) -> bool:
        """Take in the members of a tar without opening it; False where it is not known as it is now."""
        listing, rows = self._listing, np.array(self._rows.get(name, ()), np.int64)
        stats = listing.stat[rows]
        if not rows.size or not is_of_tar(stats, tar) or not settled(stats, listing.scanned_ns).all():
            return False
        kinds, which = np.unique(np.stack([listing.split[rows], listing.label[rows]]), axis=1, return_inverse=True)
        folders = np.array([growing.place(self._folder(*kind)) for kind in kinds.T.tolist()], np.int64)
        paths = list(listing.paths.take(rows))
        failed = {place: why for place, why in listing.failures.take(rows).items() if not self._known[rows[place]]}
        reasons = {place: why for place, why in failed.items() if paths[place] == name or IN_TAR in why}
        if any(why.startswith(_UNREAD) for why in reasons.values()):  # the disk or the network may be there now
            return False
        growing.extend(paths, stats, folders[which.reshape(-1)], reasons)
        growing.labelled |= self.labelled  # what comes to them is read as they were
        self.used += 1
        return True

    def _folder(self, split: int, label: int) -> bytes:
        names = (SPLIT_NAMES[split], as_folder(self._listing.classes[label]) if label >= 0 else b"")
        return b"/".join(filter(None, names))


# A member by its name alone


@lru_cache(maxsize=128)
def _members_of(path: bytes, _tar: Stat) -> dict[bytes, Member]:
    base = source_of(os.fsdecode(path)).parent
    name = unquoted(str(base), path[len(name_bytes(base)) + 1 :])
    return {member.name: member for member in _index(base, name, _tar).members}


def split_member(path: bytes) -> tuple[bytes, bytes] | None:
    """Divide what leads into a tar into the tar's path and the member's name; None where nothing is named like one."""
    match = INSIDE.search(path)
    return (path[: match.end() - 1], path[match.end() :]) if match else None


def examined_member(path: bytes) -> tuple[Stat, str | None] | None:
    """Return what a member of a tar is, and why it cannot be read; None where the path does not lead into a tar.

    The tar is gone through, once in a while.
    """
    parts = split_member(path)
    if parts is None:
        return None
    try:
        remote = is_url(os.fsdecode(parts[0]))
        tar = stat_of_object(os.fsdecode(parts[0])) if remote else _stat_of_file(parts[0])
    except (OSError, DataError):  # a folder, for one
        return None
    with _going_through:
        member = _members_of(parts[0], tar).get(unquoted(os.fsdecode(parts[0]), parts[1]))
    if member is None:
        return NO_STAT, "not found"
    return member_stat(tar, member.offset, member.size), member.reason
