"""A CSV of images: its lines -> path, label or labels, and split, each checked where it stands."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..cache.remote import is_url
from ..cache.source import Source, Url, source_of
from ..cache.tags import BAR
from ..errors import DataError, HeadstartError, printable
from .elsewhere import csv_path, opened_csv
from .files import os_reason, some, with_slashes
from .layouts import SPLIT_CODE


@dataclass(frozen=True, slots=True)
class Line:
    """What one line of a CSV says of an image.

    Attributes
    ----------
    number : int
        Where it stands, the header being line 1.
    label : str
        The class; empty for none, and where there are `labels`.
    split : int
        The code of the split, 0 for none.
    labels : tuple of str, or None
        In a CSV with the column ``labels`` all that the image has, sorted, each once; None in any other.
    """

    number: int
    label: str
    split: int
    labels: tuple[str, ...] | None = None

    @property
    def says(self) -> tuple[object, ...]:
        """What it says of the image."""
        return self.label, self.labels, self.split


def unique_lines(data: Source) -> tuple[dict[bytes, Line], int]:
    """Read a CSV of images, one line for each.

    Parameters
    ----------
    data : Path or Url
        A regular file or an object, in UTF-8, whose first line names the columns ``path``, ``label`` or ``labels``,
        and, if wanted, ``split``. A cell of ``labels`` holds names with bars between them, ``cat|dog``, or nothing.

    Returns
    -------
    lines : dict of bytes to Line
        For each path, relative to the CSV's folder or absolute, what its line says; in the order of the file.
    merged : int
        How many lines repeated another.

    Raises
    ------
    DataError
        A line that cannot be used, or two that contradict each other; the message names the line.
    """
    lines: dict[bytes, Line] = {}
    merged = 0
    for path, line in _csv_lines(data):
        first = lines.setdefault(path, line)
        if first is line:
            continue
        if first.says != line.says:
            where = f"{printable(data)}, lines {first.number} and {line.number}"
            raise DataError(f"{where}: {printable(path)} has more than one {_difference(first, line)}")
        merged += 1
    return lines, merged


def _difference(first: Line, line: Line) -> str:
    """Say what two lines of one image disagree on, and what to do."""
    if first.labels != line.labels:
        return "set of labels; keep one of the lines, with all names in it, as in cat|dog"
    return ("label" if first.label != line.label else "split") + "; keep one of the lines"


def doubtful_names(lines: Collection[Line]) -> list[str]:
    """Say where the names of labels look as if something else than a bar stood between them; at most one line."""
    if any(len(line.labels or ()) > 1 for line in lines):
        return []
    names = {name for line in lines for name in line.labels or () if "," in name or ";" in name}
    shown = some([printable(name) for name in sorted(names)])
    return [f"taken as one label each: {shown}; several names need bars between them, as in cat|dog"] if names else []


def _csv_lines(data: Source) -> Iterator[tuple[bytes, Line]]:
    with _opened(data) as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = _columns(data, next(reader, []))
            for row in reader:
                if row:
                    yield _parsed(data, reader.line_num, row, columns)
        except csv.Error as error:
            raise DataError(
                f"{printable(data)}, line {reader.line_num}: broken CSV ({error}); mend the quoting"
            ) from error


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


def _parsed(data: Source, number: int, row: list[str], columns: dict[str, int]) -> tuple[bytes, Line]:
    try:
        text = {name: row[index].strip() for name, index in columns.items()}
        split = SPLIT_CODE[text.get("split", "").lower()]
        label, labels = text.get("label", ""), _names(text["labels"]) if "labels" in text else None
        for name in (label, *(labels or ())):
            if "\0" in name:
                raise DataError(f"the label {printable(name)} holds a NUL byte; name the class otherwise")
        return _checked_path(row[columns["path"]], data), Line(number, label, split, labels)
    except IndexError:
        reason = f"{len(row)} fields, the header promises more; fill in the line"
    except KeyError:
        reason = f"unknown split {printable(text['split'])!r}; use train, val or test, or leave it empty"
    except DataError as error:
        reason = str(error)
    raise DataError(f"{printable(data)}, line {number}: {reason}")


def _names(cell: str) -> tuple[str, ...]:
    names = {name.strip() for name in cell.split(BAR)} if cell else set()
    if "" in names:
        raise DataError(f"the labels '{printable(cell[:60])}' hold an empty name; take out the bar, or name the label")
    return tuple(sorted(names))


def _checked_path(text: str, data: Source) -> bytes:
    if "\0" in text:
        raise DataError(f"the path {printable(text)} holds a NUL byte; name a file")
    if is_url(text):
        named = source_of(text)
        if isinstance(named, Url):
            return csv_path(text)
        text = str(named)
    path = with_slashes(os.fsencode(text))
    if isinstance(data, Url) and os.path.isabs(path):  # noqa: PTH117  (names are bytes)
        # Whoever may write to a store does not choose which files of this machine are read.
        raise DataError(f"{printable(text)} lies on this machine, and the CSV does not; name it by a URL")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]  # ./a and a are one image
    if not parts:
        raise DataError("the path is empty; name an image")
    return (b"/" if path.startswith(b"/") else b"") + b"/".join(parts)
