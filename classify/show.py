"""Sample pictures of each class of a dataset, as one PNG: look at the data before a network does."""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.source import name_bytes
from ..errors import DataError, OutputError, UsageError, printable
from ..extract.elsewhere import location
from ..extract.files import some
from ..extract.images import SPLITS, ImageList, list_images
from ..extract.options import DEFAULT_MAX_PIXELS
from .grid_image import BARE, MAX_PICTURES, Block, Tile, as_png, draw_blocks
from .lettering import GREY, Line
from .result_file import check_file, check_no_input, write_file
from .thumbnails import Pixels, thumbnails

logger = logging.getLogger("headstart.classify")

COLUMNS = 10  # pictures in a row, before a class takes a second one
TRIES = 4  # pictures of a class that are tried for each that is wanted


@dataclass(frozen=True, slots=True)
class Shown:
    """A written grid of sample pictures.

    Attributes
    ----------
    out : Path
    bytes : int
        Size of the file.
    split : str
        The split that is shown; empty for all pictures.
    classes : dict of str to int
        How many pictures of each class are shown; ``""`` is the name of pictures without a label.
    n_images, n_classes : int
        How many there are to choose from.
    failures : dict of str to str
        Path, relative to the dataset's folder, to why the picture could not be read.
    """

    out: Path
    bytes: int
    split: str
    classes: dict[str, int]
    n_images: int
    n_classes: int
    failures: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``show --json``."""
        failures = [{"path": path, "error": reason} for path, reason in self.failures.items()]
        return {
            "out": str(self.out),
            "bytes": self.bytes,
            "split": self.split or "all",
            "classes": self.classes,
            "n_images": self.n_images,
            "n_classes": self.n_classes,
            "failures": failures,
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        split = f" of the {self.split} split" if self.split else ""
        classes = f"{self.n_classes} class{'es' if self.n_classes > 1 else ''}" if self.n_classes else "no labels"
        pictures = f"{sum(self.classes.values())} of {self.n_images} images{split}, {classes}"
        size = f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 1e6 else f"{self.bytes // 1000 + 1} kB"
        lines = [f"wrote {printable(self.out)}: {pictures}, {size}"]
        labelled = len(set(self.classes) - {""})
        if labelled < self.n_classes:
            lines.append(f"{labelled} of {self.n_classes} classes, evenly chosen by name; --max-classes shows more")
        if self.failures:
            named = [f"{printable(path)} ({reason})" for path, reason in self.failures.items()]
            lines.append(f"passed over {len(named)} that could not be read: {some(named)}")
        return lines


@dataclass(slots=True)
class _Row:
    """A class on its way into the grid: the pictures to try, in order, and what was made of them."""

    name: str
    counts: dict[str, int]
    waiting: list[int]
    wanted: int
    found: list[Pixels] = field(default_factory=list)

    def next_ones(self) -> list[int]:
        missing = self.wanted - len(self.found)
        taken, self.waiting = self.waiting[:missing], self.waiting[missing:]
        return taken

    def block(self, labelled: bool) -> Block:
        name = self.name or ("(no label)" if labelled else "")
        heading = [Line(name, size=18)] if name else []
        return Block(
            (*heading, Line(_told(self.counts), colour=GREY, size=13)), [Tile(pixels) for pixels in self.found]
        )


def _told(counts: dict[str, int]) -> str:
    if set(counts) <= {""}:
        total = counts.get("", 0)
        return f"{total} image{'s' if total != 1 else ''}"
    return ", ".join(f"{split or 'no split'} {count}" for split, count in counts.items())


def show(
    data: str | os.PathLike[str] = "data",
    out: str | os.PathLike[str] = "samples.png",
    *,
    per_class: int = 5,
    split: str | None = None,
    max_classes: int = 20,
    seed: int = 0,
    layout: str = "auto",
    overwrite: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Shown:
    """Draw sample pictures of each class into one PNG file.

    The pictures are whole, upright and as large as they fit, so that odd ones are seen. Those that cannot be read are
    passed over for the next. Where an image may have several labels it may stand under each of them.

    Parameters
    ----------
    data : path, default "data"
        As `extract` takes it.
    out : path, default "samples.png"
        The file, outside of the dataset's folder.
    per_class : int, default 5
        Pictures of each class.
    split : {"train", "val", "test"}, optional
        Which split is shown; all pictures where it is None.
    max_classes : int, default 20
        Of more classes, so many are shown, evenly chosen in the order of their names.
    seed : int, default 0
        Which pictures: the choice among those that are there depends on it and on their paths alone, so that it stays
        as others come.
    layout : {"auto", "splits", "classes"}, default "auto"
        How a folder is read.
    overwrite : bool, default False
        Replace a file that is there.
    max_pixels : int, default 89,478,485
        Larger pictures cannot be read.

    Returns
    -------
    Shown

    Raises
    ------
    UsageError
        A number is out of range, or `out` is no name of a PNG file.
    DataError
        There is no such dataset or split, more pictures than one grid takes are asked for, or none can be read.
    OutputError
        `out` is there already, is part of the dataset, or cannot be written.
    """
    out = Path(out)
    for name, value in (("per_class", per_class), ("max_classes", max_classes), ("max_pixels", max_pixels)):
        if value < 1:
            raise UsageError(f"{name} must be a whole number, 1 or more; got {value}")
    check_file(out, ".png", overwrite=overwrite)
    images = list_images(data, layout=layout)
    _check_outside(out, images)
    for note in images.notes:
        logger.info("note: %s", note)
    members = _members(images, split)
    rows = _rows(images, members, per_class, max_classes, seed)
    failures = _read(rows, images, max_pixels)
    if not any(row.found for row in rows):
        tried = [f"{printable(path)} ({reason})" for path, reason in failures.items()]
        raise DataError(f"no picture of {printable(data)} can be shown, of {len(tried)} that were tried: {some(tried)}")
    png = as_png(draw_blocks([row.block(bool(images.classes)) for row in rows], COLUMNS))
    write_file(out, png)
    classes = {row.name: len(row.found) for row in rows}
    return Shown(out, len(png), split or "", classes, int(members.sum()), len(images.classes), failures)


def _check_outside(out: Path, images: ImageList) -> None:
    """Refuse to write into the dataset, where the next `extract` would take the grid for one of its pictures."""
    if images.layout == "csv":
        check_no_input(out, (os.fsdecode(location(name_bytes(images.base), path)) for path in images.paths))
    elif isinstance(images.base, Path) and out.absolute().parent.resolve().is_relative_to(images.base.resolve()):
        raise OutputError(f"{printable(out)} lies in {printable(images.root)} itself; name a file elsewhere with --out")


def _members(images: ImageList, split: str | None) -> np.ndarray:
    """Return which images belong to the split, (N,) bool."""
    if split is None:
        return np.ones(len(images.paths), bool)
    if split not in SPLITS[1:]:
        raise UsageError(f"split must be one of {', '.join(SPLITS[1:])}; got {split!r}")
    members = np.asarray(images.split == SPLITS.index(split))
    if not members.any():
        there = [SPLITS[code] for code in np.unique(images.split) if code]
        found = f"it has {' and '.join(there)}" if there else "it names no splits; leave out --split"
        raise DataError(f"{printable(images.root)} has no {split} split: {found}")
    return members


def _rows(images: ImageList, members: np.ndarray, per_class: int, max_classes: int, seed: int) -> list[_Row]:
    """Choose the classes and, of each, the pictures to try."""
    labels = np.arange(len(images.classes))
    if len(labels) > max_classes:
        labels = np.linspace(0, len(labels) - 1, max_classes).round().astype(np.int64)
    rows = [_row(images, int(label), members, per_class, seed) for label in labels]
    unlabelled = _row(images, -1, members, per_class, seed)
    rows += [unlabelled] if unlabelled.waiting else []
    total = sum(min(per_class, len(row.waiting)) for row in rows)
    if max(total, len(rows)) > MAX_PICTURES:
        raise DataError(
            f"{total} pictures of {len(rows)} classes are more than the {MAX_PICTURES} that one grid takes; "
            "ask for fewer with --per-class or --max-classes"
        )
    return rows


def _row(images: ImageList, label: int, members: np.ndarray, per_class: int, seed: int) -> _Row:
    found = np.flatnonzero(_of_class(images, label) & members)
    counts = np.bincount(images.split[found], minlength=len(SPLITS))
    named = {name: int(count) for name, count in zip(SPLITS, counts, strict=True) if count}
    ranked = heapq.nsmallest(TRIES * per_class, found.tolist(), key=lambda index: _rank(images.paths[index], seed))
    return _Row(images.classes[label] if label >= 0 else "", named, ranked, per_class)


def _of_class(images: ImageList, label: int) -> np.ndarray:
    """Return which images have a label, or none where it is -1, (N,) bool."""
    if images.tags is None:
        return np.asarray(images.label == label)
    if label < 0:
        return np.asarray(images.tags.count <= 0)
    having = np.zeros(len(images.paths), bool)
    having[images.tags.rows[images.tags.index == label]] = True
    return having


def _rank(path: bytes, seed: int) -> bytes:
    return hashlib.sha256(b"%d:%s" % (seed, path)).digest()


def _read(rows: list[_Row], images: ImageList, max_pixels: int) -> dict[str, str]:
    """Read pictures of all rows together until each has what it wants or nothing is left; return the failures."""
    failures: dict[str, str] = {}
    base = name_bytes(images.base)
    while todo := list(_next_ones(rows)):
        paths = [location(base, images.paths[index]) for _, index in todo]
        for (row, index), made in zip(todo, thumbnails(paths, BARE, max_pixels), strict=True):
            if isinstance(made, str):
                failures[os.fsdecode(images.paths[index])] = made
            else:
                row.found.append(made)
    return failures


def _next_ones(rows: list[_Row]) -> Iterator[tuple[_Row, int]]:
    for row in rows:
        yield from ((row, index) for index in row.next_ones())
