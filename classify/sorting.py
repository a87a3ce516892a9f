"""Pictures copied into folders by what a model says of them, without harm to anything that is there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cache.publish import discard, make_folder, temporary_path
from ..cache.source import Source, Url
from ..errors import CacheError, DecodeError, OutputError, printable
from ..extract.access import read_anywhere
from ..extract.files import os_reason, some
from .prediction import Prediction

logger = logging.getLogger("headstart.classify")

UNSURE = "_unsure"
NONE = "_none"
LONGEST = 100  # bytes of a folder's name
LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems
_LONGEST_SUFFIX = 20
_DIGITS = 16  # of the digest of a name that had to be changed
_FORBIDDEN = frozenset('/\\<>:"|?*')
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in "0123456789")}
)


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """Name a folder for each class, such that none leads elsewhere and no two are one on any file system.

    A class whose name is safe keeps it. Others, and those that differ from another in case alone, get what is safe of
    theirs with some of its SHA-256 behind it, so that the name of a class never depends on which others there are but
    for that. ``_unsure`` and ``_none`` are never a class's.

    Parameters
    ----------
    classes : sequence of str
        Unique names, of any characters.

    Returns
    -------
    dict of str to str
    """
    changed = {name: f"{_cleaned(name)}-{_digest(name)[:_DIGITS]}" for name in classes}
    sharing = Counter(_folded(name) for name in classes)
    taken = {_folded(name) for name in (UNSURE, NONE, *changed.values())}
    return {
        name: name
        if _cleaned(name) == name and sharing[_folded(name)] == 1 and _folded(name) not in taken
        else changed[name]
        for name in classes
    }


def _cleaned(name: str) -> str:
    """Return a name without what is forbidden or has a meaning in folders' names on Linux, macOS or Windows."""
    kept = "".join(c if c.isprintable() and c not in _FORBIDDEN else "_" for c in name)
    kept = kept.encode("utf-8")[:LONGEST].decode("utf-8", "ignore").rstrip(". ").lstrip()
    if kept.startswith("."):
        kept = "_" + kept.lstrip(".")
    if kept.split(".")[0].rstrip().casefold() in _DEVICES:
        kept = f"_{kept}"
    return kept or "_"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


class Sorter:
    """Copies pictures into a folder for each class, below one that the user named.

    A copy appears whole under its name or not at all, has the picture's time of change, and never replaces a file:
    where another picture has the name, the copy gets some of its own SHA-256 in its name. Where the same picture is
    there already, nothing is done. Links below the folder are not followed.

    Parameters
    ----------
    out : Path
        The folder; it is made where it is missing.
    classes : sequence of str
        Those of the model.
    inputs : iterable of path
        What is to be classified: pictures and folders of pictures.

    Raises
    ------
    OutputError
        The folder cannot be made, or the copies would lie in a folder of the inputs, so that the next run would take
        them for pictures to classify.

    Attributes
    ----------
    copied : Counter of str
        Copies that were made, by the name of their folder.
    there : int
        Copies that were there already.
    unread : int
        Pictures that could not be read, now or before.
    """

    def __init__(self, out: Path, classes: Sequence[str], inputs: Iterable[Source] = ()) -> None:
        self.out = out
        self.copied: Counter[str] = Counter()
        self.there = self.unread = 0
        self._names = folder_names(classes)
        self._ready: set[str] = set()
        self._check(inputs)
        if os.path.lexists(out) and not out.is_dir():
            raise OutputError(f"{printable(out)} is no folder; name another with --sort-into")
        try:
            make_folder(out.absolute())
        except CacheError as error:
            raise OutputError(str(error).replace("--cache", "--sort-into")) from error
        self._root = os.path.realpath(out)

    def take(self, row: Prediction) -> None:
        """Copy one picture to where its prediction says.

        Raises
        ------
        OutputError
            The disk refuses, or something is in the way of a folder.
        """
        if row.error is not None:
            self.unread += 1
            return
        try:
            data, found = read_anywhere(row.path)
        except DecodeError as error:
            logger.warning("%s was not copied: %s", printable(row.path), error)
            self.unread += 1
            return
        for folder in self._folders(row):
            with self._told():
                self._copy(row.path, data, found[1], folder)

    def summary(self) -> dict[str, Any]:
        """Return what ``predict --json`` has under ``sorted``."""
        return {
            "out": str(self.out),
            "copied": self.copied.total(),
            "there": self.there,
            "unread": self.unread,
            "folders": dict(sorted(self.copied.items())),
        }

    def tell(self) -> None:
        """Say on the log what was done."""
        folders = some([f"{name} {count}" for name, count in self.copied.most_common()], 8)
        each = f" ({folders})" if folders else ""
        logger.info("copied %d pictures into %s%s", self.copied.total(), self.out, each)
        if self.there:
            logger.info("%d were there already", self.there)
        if self.unread:
            logger.info("%d were not copied, for they could not be read", self.unread)
        changed = [f"{printable(name)} -> {folder}" for name, folder in self._names.items() if name != folder]
        if changed:
            logger.info("classes whose folder has another name: %s", some(changed))

    def _check(self, inputs: Iterable[Source]) -> None:
        targets = [Path(os.path.realpath(self.out / name)) for name in (*self._names.values(), UNSURE, NONE)]
        for path in inputs:
            if isinstance(path, Url) or not path.is_dir():
                continue
            folder = Path(os.path.realpath(path))
            if any(target.is_relative_to(folder) for target in targets):
                raise OutputError(
                    f"--sort-into {printable(self.out)} would put copies into {printable(path)}, whose pictures are to "
                    "be classified: the next run would take the copies for more; name a folder outside"
                )

    def _folders(self, row: Prediction) -> list[str]:
        if row.unsure:
            return [UNSURE]
        labels = [row.label or ""] if row.labels is None else row.labels
        return [self._names[label] for label in labels] or [NONE]

    def _copy(self, path: str, data: bytes, mtime_ns: int, folder: str) -> None:
        if os.path.realpath(path).startswith(os.path.join(self._root, folder) + os.sep):  # noqa: PTH118
            self.there += 1  # it is a copy itself
            return
        into = self._folder(folder)
        for name in _candidates(os.path.basename(path), data):  # noqa: PTH119  (of any bytes)
            target = into / name
            if not os.path.lexists(target) and _put(target, data, mtime_ns):
                self.copied[folder] += 1
                return
            if _holds(target, data):
                self.there += 1
                return
        raise OutputError(f"{printable(target)} is in the way of a copy of {printable(path)}; move it away")

    def _folder(self, name: str) -> Path:
        """Return one of the folders, a real one and no link to another."""
        folder = self.out / name
        if name not in self._ready:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                what = "a link" if folder.is_symlink() else "a file"
                raise OutputError(
                    f"{printable(folder)} is {what} and in the way of the folder of a class; move it away, or name "
                    "another folder with --sort-into"
                )
            self._ready.add(name)
        return folder

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the system says into a line that helps."""
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            full = errno.errorcode.get(error.errno or 0) in ("ENOSPC", "EDQUOT")
            why = "the disk is full" if full else os_reason(error)
            raise OutputError(
                f"a picture was not copied into {printable(self.out)}: {why}; {self.copied.total()} were copied; "
                f"{'free some space' if full else 'mend it'} and run again, nothing is copied twice"
            ) from error


def _candidates(name: str, data: bytes) -> Iterator[str]:
    """Yield the names that a copy may have: the picture's own, then with more and more of its SHA-256."""
    yield name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  (pathlib would refuse some names)
    if len(os.fsencode(suffix)) > _LONGEST_SUFFIX:
        stem, suffix = name, ""
    digest = hashlib.sha256(data).hexdigest()
    for digits in (8, len(digest)):
        behind = f"-{digest[:digits]}{suffix}"
        room = LONGEST_NAME - len(os.fsencode(behind))
        yield os.fsdecode(os.fsencode(stem)[:room]) + behind


def _holds(target: Path, data: bytes) -> bool:
    """Tell whether a file, and no link to one, has this content."""
    status = os.lstat(target)
    return stat.S_ISREG(status.st_mode) and status.st_size == len(data) and target.read_bytes() == data


def _put(target: Path, data: bytes, mtime_ns: int) -> bool:
    """Write a file under a name that nothing has; False where something got it in the meantime."""
    temporary = temporary_path(target.with_name("copy"))  # whose name is short enough, whatever that of the target
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
        return _named(temporary, target)
    finally:
        discard(temporary)


def _named(temporary: Path, target: Path) -> bool:
    """Give a file its name, unless that is taken."""
    try:
        os.link(temporary, target)  # unlike a rename, it never replaces
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(target):
            return False
        os.rename(temporary, target)  # noqa: PTH104
    return True
