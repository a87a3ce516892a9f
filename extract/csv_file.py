"""A CSV of images: its lines -> path, label or labels, and split, each checked where it stands."""

from __future__ import annotations

import csv
import io
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache.names import GrowingNames, Names
from ..cache.remote import is_url
from ..cache.source import Source, Url, source_of
from ..cache.tags import BAR, Tags
from ..errors import DataError, HeadstartError, printable
from .elsewhere import csv_path, opened_csv
from .files import os_reason, some, with_slashes
from .layouts import SPLIT_CODE

_REMEMBERED = 1 << 15  # cells of labels and splits


@dataclass(frozen=True, slots=True)
class Lines:
    """What the lines of a CSV say of N images, in columns.

    Attributes
    ----------
    paths : Names, N
        Relative to the CSV's folder or absolute; sorted, each once.
    label : ndarray of int32, shape (N,)
        Index into `classes`, -1 for none, and everywhere in a CSV with the column ``labels``.
    split : ndarray of uint8, shape (N,)
        Codes of the splits, 0 for none.
    classes : tuple of str
        Names of labels, sorted.
    tags : Tags or None
        In a CSV with the column ``labels`` those of each image; None in any other.
    merged : int
        How many lines repeated another.
    """

    paths: Names
    label: np.ndarray
    split: np.ndarray
    classes: tuple[str, ...]
    tags: Tags | None
    merged: int

    @property
    def doubts(self) -> list[str]:
        """Say where names look as if something else than a bar stood between them; at most one line."""
        if self.tags is None or (self.tags.count > 1).any():
            return []
        shown = some([printable(name) for name in self.classes if "," in name or ";" in name])
        said = f"taken as one label each: {shown}; several names need bars between them, as in cat|dog"
        return [said] if shown else []


def unique_lines(data: Source) -> Lines:
    """Read a CSV of images, one line for each.

    Parameters
    ----------
    data : Path or Url
        A regular file or an object, in UTF-8, whose first line names the columns ``path``, ``label`` or ``labels``,
        and, if wanted, ``split``. A cell of ``labels`` holds names with bars between them, ``cat|dog``, or nothing.

    Returns
    -------
    Lines
        No object is kept for a line while it is read, but 22 bytes and those of its path and labels.

    Raises
    ------
    DataError
        A line that cannot be used, or two that contradict each other; the message names the line.
    """
    with _opened(data) as file:
        reader = csv.reader(file, strict=True)
        try:
            growing = _Growing(data, _columns(data, next(reader, [])))
            growing.extend(reader)
        except csv.Error as error:
            raise DataError(
                f"{printable(data)}, line {reader.line_num}: broken CSV ({error}); mend the quoting"
            ) from error
    return growing.unique()


class _Growing:
    """The lines of a CSV on their way into columns; labels are numbered as they are met."""

    def __init__(self, data: Source, columns: dict[str, int]) -> None:
        self._data, self._elsewhere = data, isinstance(data, Url)
        self._path, self._split = columns["path"], columns.get("split")
        self._several = "labels" in columns
        self._label = columns["labels" if self._several else "label"]
        self._code: dict[str, int] = {}
        self._codes_of, self._split_of = _Remembered(self._codes), _Remembered(_split_code)
        self._paths = GrowingNames()
        self._numbers, self._splits = array("q"), array("B")
        # How many labels a line has, and their codes.
        self._counts, self._labels = array("B" if not self._several else "i"), array("i")

    def extend(self, reader: Any) -> None:
        """Take in all lines of a reader."""
        try:
            for row in reader:
                if row:
                    self._append(reader.line_num, row)
        except (csv.Error, DataError):
            self.unique()  # where two lines further up contradict each other, that is told first
            raise

    def _append(self, number: int, row: list[str]) -> None:
        try:
            path, cell, split = row[self._path], row[self._label], "" if self._split is None else row[self._split]
            code, labels, name = self._split_of[split], self._codes_of[cell], self._checked(path)
        except IndexError:
            reason = f"{len(row)} fields, the header promises more; fill in the line"
        except KeyError:
            reason = f"unknown split {printable(split.strip())!r}; use train, val or test, or leave it empty"
        except DataError as error:
            reason = str(error)
        else:
            self._paths.append(name)
            self._numbers.append(number)
            self._splits.append(code)
            self._counts.append(len(labels))
            self._labels.extend(labels)
            return
        raise DataError(f"{printable(self._data)}, line {number}: {reason}")

    def _checked(self, path: str) -> bytes:
        name = _checked_path(path)
        if self._elsewhere and name.startswith(b"/"):
            # Whoever may write to a store does not choose which files of this machine are read.
            raise DataError(f"{printable(path)} lies on this machine, and the CSV does not; name it by a URL")
        return name

    def _codes(self, cell: str) -> tuple[int, ...]:
        """Return the numbers of the labels that a cell names, in the order of the names."""
        text = cell.strip()
        names = _names(text) if self._several else (text,) * bool(text)
        for name in names:
            if "\0" in name:
                raise DataError(f"the label {printable(name)} holds a NUL byte; name the class otherwise")
        return tuple(self._code.setdefault(name, len(self._code)) for name in names)

    def unique(self) -> Lines:
        """Return the lines sorted by their paths, each once.

        Raises
        ------
        DataError
            Two contradict each other.
        """
        paths, classes = self._paths.finished(), tuple(sorted(self._code))
        number = {name: index for index, name in enumerate(classes)}
        # Sorted names have ascending numbers, because classes are sorted.
        index = np.array([number[name] for name in self._code], np.int32)[np.frombuffer(self._labels, np.int32)]
        tags = Tags(np.asarray(self._counts, np.int32), index)
        split = np.frombuffer(self._splits, np.uint8)
        merged = 0
        if not paths.ascends():
            order = paths.order()
            paths, tags, split = paths.take(order), tags.take(order), split[order]
            again = paths.repeats()
            merged = int(again.sum())
            if merged:
                self._check(paths, tags, split, again, np.frombuffer(self._numbers, np.int64)[order])
                once = np.flatnonzero(~again)
                paths, tags, split = paths.take(once), tags.take(once), split[once]
        label = np.full(len(paths), -1, np.int32)
        if not self._several:
            label[tags.count > 0] = tags.index
        return Lines(paths, label, split, classes, tags if self._several else None, merged)

    def _check(self, paths: Names, tags: Tags, split: np.ndarray, again: np.ndarray, number: np.ndarray) -> None:
        """Raise where a line says something else of an image than the first one of it; all are sorted by path."""
        first = np.flatnonzero(~again)[np.cumsum(~again) - 1][again]
        other = np.flatnonzero(again)
        of_labels = _differing(tags, first, other)
        wrong = np.flatnonzero(of_labels | (split[first] != split[other]))
        if not wrong.size:
            return
        place = wrong[np.argmin(number[other[wrong]])]
        lines = f"lines {number[first[place]]} and {number[other[place]]}"
        what = "split; keep one of the lines"
        if of_labels[place]:
            what = "set of labels; keep one of the lines, with all names in it, as in cat|dog"
            what = what if self._several else "label; keep one of the lines"
        path = printable(paths[int(first[place])])
        raise DataError(f"{printable(self._data)}, {lines}: {path} has more than one {what}")


class _Remembered(dict[str, Any]):
    """What a function makes of cells, which are often the same; as many as fit a few megabytes."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    def __missing__(self, cell: str) -> Any:
        if len(self) >= _REMEMBERED:
            self.clear()
        made = self[cell] = self._make(cell)
        return made


def _differing(tags: Tags, first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Tell which images of two lists of rows, (n,) int64 each, have other labels than the one in the other list."""
    differing = np.asarray(tags.count[first] != tags.count[other])
    alike = np.flatnonzero(~differing)
    left, right = tags.take(first[alike]), tags.take(other[alike])
    differing[alike[left.rows[left.index != right.index]]] = True
    return differing


def _split_code(cell: str) -> int:
    return SPLIT_CODE[cell.strip().lower()]


def _opened(data: Source) -> io.TextIOWrapper:
    try:
        file = opened_csv(data)
        start: bytes = file.buffer.peek()  # type: ignore[attr-defined]  # of a BufferedReader
    except OSError as error:
        if isinstance(error, HeadstartError):
            raise
        raise DataError(f"cannot read {printable(data)}: {os_reason(error)}; check its permissions") from error
    if b"\0" in start.split(b"\n", 1)[0]:
        file.close()
        raise DataError(f"{printable(data)} is no CSV in UTF-8; name a folder, or a CSV with the columns path,label")
    return file


def _columns(data: Source, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    if {"label", "labels"} <= set(names):
        choice = "keep label where an image has one class, labels where it may have several, as in cat|dog"
        raise DataError(f"{printable(data)}: line 1 names the columns label and labels; {choice}")
    label = "labels" if "labels" in names else "label"
    missing = [name for name in ("path", label) if name not in names]
    if missing:
        missing_text = " and ".join(missing) + (" is missing" if len(missing) == 1 else " are missing")
        found = printable(",".join(header)[:60]) or "nothing"
        wanted = f"line 1 must name the columns path,{label}[,split], {missing_text}"
        raise DataError(f"{printable(data)}: {wanted} (found: {found}); add the header, or name a folder")
    return {name: names.index(name) for name in ("path", label, "split") if name in names}


def _names(cell: str) -> tuple[str, ...]:
    names = {name.strip() for name in cell.split(BAR)} if cell else set()
    if "" in names:
        raise DataError(f"the labels '{printable(cell[:60])}' hold an empty name; take out the bar, or name the label")
    return tuple(sorted(names))


def _checked_path(text: str) -> bytes:
    if "\0" in text:
        raise DataError(f"the path {printable(text)} holds a NUL byte; name a file")
    if is_url(text):
        named = source_of(text)
        if isinstance(named, Url):
            return csv_path(text)
        text = str(named)
    path = with_slashes(os.fsencode(text))
    if path and not (path.startswith(b".") or path.endswith(b"/") or b"//" in path or b"/." in path):
        return path  # as nearly all are
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]  # ./a and a are one image
    if not parts:
        raise DataError("the path is empty; name an image")
    return (b"/" if path.startswith(b"/") else b"") + b"/".join(parts)
