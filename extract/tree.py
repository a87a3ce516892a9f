"""The image files below a folder: one walk that follows links and reads each real folder once."""

from __future__ import annotations

import errno
import heapq
import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, compress

import numpy as np
import numpy.typing as npt

from ..cache.failures import Failures
from ..cache.names import GrowingNames, Names
from ..errors import DataError, printable
from .files import NO_STAT, SUFFIXES, Stat, os_reason, refusal, stat_of
from .status import asked, plain

SKIPPED_NAMES = frozenset((b"__MACOSX", b"@eaDir"))
_ENDINGS = tuple(b"." + suffix for suffix in SUFFIXES)
_AT_ONCE = 512  # an entry keeps its status, about a kilobyte: more of them leave the processor's cache
_FEW = 32  # from so many on, columns cost less than a line of Python for each image


@dataclass(slots=True)
class Tree:
    """What lies below a folder.

    Attributes
    ----------
    folders : list of bytes
        Every folder that was read, relative to the root with ``/`` between names; the root is ``b""``.
    paths : Names
        Image files, relative likewise, in no particular order.
    folder : ndarray of int64, shape (N,)
        For each path, the index in `folders` of the folder that it belongs to.
    stats : ndarray of int64, shape (N, 4)
        For each path, as `stat_of` has it; zeros where there is none.
    reasons : Failures
        For paths that cannot be read, why.
    ignored : Counter of str
        Files without an image suffix, counted by suffix.
    repeated : list of str
        Links to folders that had been read already, fit for printing.
    broken : list of str
        Links without an image suffix that lead nowhere, fit for printing.
    """

    folders: list[bytes] = field(default_factory=list)
    paths: Names = field(default_factory=lambda: Names.of(()))
    folder: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    stats: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    reasons: Failures = field(default_factory=Failures)
    ignored: Counter[str] = field(default_factory=Counter)
    repeated: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def walk(root: bytes) -> Tree:
    """Find the image files below a folder, following links and reading each real folder once.

    Names with a leading dot, ``__MACOSX`` and ``@eaDir`` are passed over. One status call is made for each image.

    Parameters
    ----------
    root : bytes
        The folder.

    Returns
    -------
    Tree
        Folders and files; what cannot be read is listed with its reason.

    Raises
    ------
    DataError
        The root itself cannot be read.
    """
    walker = _Walker(root)
    # Real folders go first: a folder that is also linked to is then listed where it really lies.
    while walker.pending or walker.links:
        walker.visit(walker.pending.pop() if walker.pending else heapq.heappop(walker.links))
    walker.settle_image_named()
    return walker.finished()


class _Walker:
    """The state of one walk: folders still to read, folders seen, and the tree so far."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.tree = Tree()
        self.pending: list[bytes] = [b""]
        self.links: list[bytes] = []
        self.seen: set[tuple[int, int]] = set()
        self.image_named: list[tuple[bytes, int]] = []
        # The columns of the tree while they grow.
        self.paths = GrowingNames()
        self.folder = array("q")
        self.stats = array("q")

    def finished(self) -> Tree:
        """Return the tree, with its columns."""
        self.tree.paths = self.paths.finished()
        self.tree.folder = np.frombuffer(self.folder, np.int64)
        self.tree.stats = np.frombuffer(self.stats, np.int64).reshape(-1, 4)
        return self.tree

    def visit(self, relative: bytes) -> None:
        """Read one folder, unless it has been read under another name."""
        folder = os.path.join(self.root, relative) if relative else self.root  # noqa: PTH118  (names are bytes)
        try:
            found = os.stat(folder)  # noqa: PTH116  (names are bytes)
            if (found.st_dev, found.st_ino) in self.seen:
                self.tree.repeated.append(printable(relative))
                return
            self.seen.add((found.st_dev, found.st_ino))
            with os.scandir(folder) as scan:
                entries = [entry for entry in scan if not entry.name.startswith(b".")]
        except OSError as error:
            self._unreadable_folder(relative, os_reason(error))
            return
        index = self._add_folder(relative)
        prefix = relative + b"/" if relative else b""
        while entries:
            self._place_all(entries[-_AT_ONCE:], prefix, index)
            del entries[-_AT_ONCE:]

    def _place_all(self, entries: list[os.DirEntry[bytes]], prefix: bytes, folder: int) -> None:
        others = self._add_plain(entries, prefix, folder) if len(entries) >= _FEW else entries
        for entry in others:
            if entry.name not in SKIPPED_NAMES:
                self._place(entry, prefix + entry.name, folder)

    def _add_plain(self, entries: list[os.DirEntry[bytes]], prefix: bytes, folder: int) -> Iterable[os.DirEntry[bytes]]:
        """Add the images of a folder that are regular files at once, and return what needs a closer look."""
        is_image = [entry.name.lower().endswith(_ENDINGS) for entry in entries]
        images = list(compress(entries, is_image))
        answers = asked(map(os.DirEntry.stat, images), len(images))
        regular = plain(answers)
        self.paths.extend([prefix + entry.name for entry in compress(images, regular.tolist())])
        self.folder.extend([folder] * int(regular.sum()))
        self.stats.frombytes(answers[regular, :4].tobytes())
        others = [entry for entry, image in zip(entries, is_image, strict=True) if not image]
        return chain(compress(images, (~regular).tolist()), others)

    def _place(self, entry: os.DirEntry[bytes], relative: bytes, folder: int) -> None:
        dot = relative.rfind(b".") + 1
        suffix = relative[dot:].lower() if dot else b""
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False  # a link that cannot be followed: the status call below says why
        if is_folder:
            if suffix in SUFFIXES:
                self.image_named.append((relative, folder))
            self._queue(entry, relative)
        elif suffix in SUFFIXES:
            self._add_image(entry, relative, folder)
        else:
            self._ignore(entry, relative, suffix)

    def _queue(self, entry: os.DirEntry[bytes], relative: bytes) -> None:
        if entry.is_symlink():
            heapq.heappush(self.links, relative)
        else:
            self.pending.append(relative)

    def _add_image(self, entry: os.DirEntry[bytes], relative: bytes, folder: int) -> None:
        try:
            found = entry.stat()
        except OSError as error:
            self._add(relative, folder, NO_STAT, _link_reason(entry, error))
            return
        self._add(relative, folder, stat_of(found), refusal(found, entry.path))

    def _add(self, relative: bytes, folder: int, found: Stat, reason: str | None) -> None:
        if reason is not None:
            self.tree.reasons[len(self.paths)] = reason
        self.paths.append(relative)
        self.folder.append(folder)
        self.stats.extend(found)

    def _add_folder(self, relative: bytes) -> int:
        self.tree.folders.append(relative)
        return len(self.tree.folders) - 1

    def _unreadable_folder(self, relative: bytes, reason: str) -> None:
        if not relative:
            raise DataError(
                f"cannot read the folder {printable(self.root)}: {reason}; name a folder that can be listed"
            )
        self._add(relative, self._add_folder(relative), NO_STAT, reason)

    def _ignore(self, entry: os.DirEntry[bytes], relative: bytes, suffix: bytes) -> None:
        self.tree.ignored[printable(b"." + suffix) if suffix and b"/" not in suffix else "no suffix"] += 1
        if entry.is_symlink():
            try:
                entry.stat()
            except OSError as error:  # perhaps a class folder on a disk that is not mounted
                self.tree.broken.append(f"{printable(relative)} ({_link_reason(entry, error)})")

    def settle_image_named(self) -> None:
        """Turn folders with an image's name that hold no image into unreadable images."""
        if not self.image_named:
            return
        found = self.paths.so_far()
        paths = found.take(found.order())
        for relative, folder in self.image_named:
            below = relative + b"/"
            position = bisect_left(paths, below)
            if position == len(paths) or not paths[position].startswith(below):
                self._blank(relative)
                self._add(relative, folder, NO_STAT, "is a directory")

    def _blank(self, relative: bytes) -> None:
        # Indices into `folders` must hold, so an entry is emptied in place: it has no files, and so adds none.
        for index, folder in enumerate(self.tree.folders):
            if folder == relative or folder.startswith(relative + b"/"):
                self.tree.folders[index] = b""


def _link_reason(entry: os.DirEntry[bytes], error: OSError) -> str:
    if error.errno == errno.ENOENT and entry.is_symlink():
        return "dangling link"
    return os_reason(error)
