"""DATA -> paths, labels, splits: folders of splits, folders of classes, a CSV, or a flat folder.

Only names and inodes are looked at here, never an image's content: whether a file is an image is for the decoder to
say. What the folders mean is in `layouts`, what the lines of a CSV mean in `csv_file`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..cache.datasets import load_listing
from ..cache.failures import Failures
from ..cache.names import GrowingNames, Names
from ..cache.place import Place
from ..cache.source import Named, Source, Url, name_bytes, source_of
from ..cache.tags import Tags
from ..errors import DataError, DataNotFoundError, UsageError, printable
from .access import all_examined_anywhere, examined_anywhere
from .csv_file import unique_lines
from .elsewhere import Found, found_at, found_below, location, timeless_note
from .files import SUFFIXES, os_reason, some, with_slashes
from .layouts import Reading, read_tree
from .tars import Tars, list_tars, named_tars, names_tars, tars_in
from .tree import Tree, walk

LAYOUTS: tuple[str, ...] = ("splits", "classes", "csv", "flat")
"""How DATA can be laid out."""

SPLITS: tuple[str, ...] = ("", "train", "val", "test")
"""Split names; the code of a split is its index, and 0 means that DATA says nothing."""

_SUFFIX_TEXT = " ".join(sorted("." + suffix.decode() for suffix in SUFFIXES))


@dataclass(frozen=True, slots=True, eq=False)
class ImageList:
    """The images of a dataset, N of them, sorted by the bytes of their paths.

    Attributes
    ----------
    root : Path or Url
        The folder, CSV file or tars as the user named them.
    base : Path or Url
        The folder that relative paths are relative to.
    layout : str
        One of `LAYOUTS`.
    classes : tuple of str
        Class names, sorted; bytes that are no UTF-8 are lone surrogates, as `os.fsdecode` has it.
    paths : Names, N
        Unique paths with ``/`` between names; absolute where the user or the CSV says so.
    label : ndarray of int32, shape (N,)
        Index into `classes`, -1 for none, and everywhere in a dataset of several labels an image.
    split : ndarray of uint8, shape (N,)
        Index into `SPLITS`.
    stat : ndarray of int64, shape (N, 4)
        Size in bytes, mtime and ctime in nanoseconds, inode cut to 63 bits; zeros where there is none.
    unreadable : Failures
        Index into `paths` -> reason, for what is known to be bad without opening it.
    notes : tuple of str
        Lines for people: what was ignored, and how DATA was read where that is in doubt.
    tags : Tags or None
        Labels of a dataset in which an image may have several; None for any other.
    """

    root: Source
    base: Source
    layout: str
    classes: tuple[str, ...]
    paths: Names
    label: npt.NDArray[np.int32]
    split: npt.NDArray[np.uint8]
    stat: npt.NDArray[np.int64]
    unreadable: Failures
    notes: tuple[str, ...]
    tags: Tags | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Images in the order in which they were met, before sorting; those outside the dataset still among them."""

    paths: Names
    label: npt.NDArray[np.int32]
    split: npt.NDArray[np.uint8]
    stats: npt.NDArray[np.int64]
    reasons: Failures
    keep: npt.NDArray[np.bool_]
    tags: Tags | None = None

    def taken(self, rows: npt.NDArray[np.int64]) -> _Rows:
        """Return some of them, in the order of their numbers in `rows`."""
        return _Rows(
            self.paths.take(rows), self.label[rows], self.split[rows], self.stats[rows], self.reasons.take(rows),
            self.keep[rows], self.tags and self.tags.take(rows),
        )  # fmt: skip


def list_images(data: Named, *, layout: str = "auto", cache: Place | None = None) -> ImageList:
    """List the images of a folder, a CSV file or tars, here or at a URL, with their labels and splits.

    Parameters
    ----------
    data : path, str or Url
        A folder, also one of tars; a CSV file with the columns ``path`` and ``label``, or ``labels`` where an image may
        have several, and, if wanted, ``split``; a tar, or several by braces, ``train-{0000..0009}.tar``.
    layout : str, default "auto"
        ``"auto"``, or one of `LAYOUTS` to say how DATA is to be read; with ``"flat"`` every image below a folder is
        taken, without labels.
    cache : Path or RemotePath, optional
        The cache's folder, whose latest listing tells what tars hold that have not changed; they are all gone through
        where it is None.

    Returns
    -------
    ImageList
        What was found; time and memory grow with the number of images.

    Raises
    ------
    UsageError
        The layout is unknown, or is not one for this kind of DATA.
    DataNotFoundError
        There is no such folder or file.
    DataError
        No images, a CSV that cannot be read as asked, or a store that cannot be listed.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UsageError(f"unknown layout {layout!r}; use auto, {', '.join(LAYOUTS)}")
    data = source_of(data)
    if names_tars(data):
        return _list_tars(data, named_tars(data), layout, cache)
    found = found_at(data) if isinstance(data, Url) else None
    is_folder = _is_folder(data) if isinstance(data, Path) else found is not None
    if layout != "auto" and is_folder == (layout == "csv"):
        kind = "folder" if is_folder else "file"
        raise UsageError(
            f"layout {layout!r} does not fit {printable(data)}, which is a {kind}; leave the layout to auto"
        )
    return _list_folder(data, found, layout, cache) if is_folder else _list_csv(data)


def _is_folder(data: Path) -> bool:
    mode = _status(data).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"{printable(data)} is neither a folder nor a regular file; name a folder of images or a CSV")
    return stat.S_ISDIR(mode)


def _status(data: Path) -> os.stat_result:
    try:
        return data.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataNotFoundError(
            f"no such folder or file: {printable(data)}; name a folder of images or a CSV with the columns path,label"
        ) from error
    except OSError as error:
        raise DataError(f"cannot look at {printable(data)}: {os_reason(error)}; check its permissions") from error
    except ValueError as error:
        raise DataError(f"{printable(data)} is no path: it holds a NUL byte; name a folder or a CSV file") from error


def _assembled(
    root: Source, base: Source, layout: str, classes: tuple[str, ...], rows: _Rows, notes: list[str]
) -> ImageList:
    if not (rows.keep.all() and rows.paths.ascends()):
        kept = np.flatnonzero(rows.keep)
        rows = rows.taken(kept[rows.paths.take(kept).order()])
    return ImageList(
        root=root,
        base=base,
        layout=layout,
        classes=classes,
        paths=rows.paths,
        label=rows.label,
        split=rows.split,
        stat=rows.stats,
        unreadable=rows.reasons,
        notes=tuple(notes),
        tags=rows.tags,
    )


# Folders


def _list_folder(data: Source, found: Found | None, layout: str, cache: Place | None) -> ImageList:
    if found is not None:
        tree, tars = found.tree, Tars(data, found.tars)
    else:
        assert isinstance(data, Path)
        tree = walk(os.fsencode(data))
        tars = Tars(data, {}) if tree.paths or not tree.ignored[".tar"] else tars_in(data)
    if tars.stats and not tree.paths:
        return _list_tars(data, tars, layout, cache)
    return _of_tree(data, data, tree, read_tree(tree, layout), [])


def _list_tars(data: Source, tars: Tars, layout: str, cache: Place | None) -> ImageList:
    tree, reading, notes = list_tars(
        tars, layout, lambda: None if cache is None else load_listing(cache, data)
    )  # fmt: skip
    return _of_tree(data, tars.base, tree, reading, [f"members of {len(tars.stats)} tar files", *notes])


def _of_tree(data: Source, base: Source, tree: Tree, reading: Reading, notes: list[str]) -> ImageList:
    rows = _rows_of_tree(tree, reading)
    if not rows.keep.any():
        raise DataError(_nothing_found(data, reading.layout, tree))
    notes += [*reading.notes, *_empty_classes(reading, rows), *_oddities(tree)]
    notes += timeless_note(rows.stats[rows.keep])
    return _assembled(data, base, reading.layout, reading.classes, rows, notes)


def _rows_of_tree(tree: Tree, reading: Reading) -> _Rows:
    label, split = np.asarray(reading.label, np.int32), np.asarray(reading.split, np.uint8)
    keep = np.asarray(reading.keep, bool)
    return _Rows(tree.paths, label[tree.folder], split[tree.folder], tree.stats, tree.reasons, keep[tree.folder])


def _nothing_found(data: Source, layout: str, tree: Tree) -> str:
    where = {"splits": "in split folders (train, val, test) ", "classes": "in class folders "}.get(layout, "")
    found = f"{len(tree.paths)} images elsewhere in it" if tree.paths else _ignored_text(tree) or "no files"
    return (
        f"no images in {printable(data)}: looked {where}for {_SUFFIX_TEXT}, found {found}; "
        "name a folder that holds images, or a CSV with the columns path,label"
    )


def _empty_classes(reading: Reading, rows: _Rows) -> list[str]:
    empty = np.setdiff1d(np.arange(len(reading.classes)), rows.label[rows.keep]).tolist()
    return [f"class folders without images: {some([printable(reading.classes[i]) for i in empty])}"] if empty else []


def _ignored_text(tree: Tree) -> str:
    total = tree.ignored.total()
    kinds = some([f"{suffix} {n}" for suffix, n in tree.ignored.most_common()])
    return f"{total} files that are no images ({kinds})" if total else ""


def _oddities(tree: Tree) -> list[str]:
    ignored = _ignored_text(tree)
    notes = [f"ignored {ignored}"] if ignored else []
    if tree.repeated:
        notes.append(f"skipped links to folders that are listed already: {some(sorted(tree.repeated))}")
    if tree.broken:
        notes.append(f"links that lead nowhere: {some(sorted(tree.broken))}")
    return notes


# Images and folders named one by one


def list_paths(paths: Iterable[Named]) -> ImageList:
    """List images and folders of images named one by one, without labels.

    Parameters
    ----------
    paths : iterable of path, str or Url
        Images of any name, folders, which are searched at any depth, and tars.

    Returns
    -------
    ImageList
        Layout ``flat``; a path is kept as it was named, so relative ones are relative to the working directory.

    Raises
    ------
    DataNotFoundError
        One of the paths is not there.
    DataError
        There are no images.
    """
    named = [source_of(path) for path in paths]
    files = _NamedFiles()
    for path in named:
        files.add(path)
    rows = files.rows()
    if not rows.paths:
        looked = some([printable(path) for path in named]) or "nothing"
        raise DataError(f"no images in {looked}: looked for {_SUFFIX_TEXT}; name images or a folder that holds some")
    local = [path for path in named if isinstance(path, Path)]
    base = Path(local[0].anchor) if local and all(path.is_absolute() for path in local) else Path.cwd()
    return _assembled(base, base, "flat", (), rows, files.notes + timeless_note(rows.stats))


class _NamedFiles:
    """Images and folders of images as they are named, in columns."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._paths = GrowingNames()
        self._stats: list[npt.NDArray[np.int64]] = [np.zeros((0, 4), np.int64)]
        self._reasons = Failures()

    def add(self, path: Source) -> None:
        """Take in an image, or all that a folder or a tar holds."""
        name = name_bytes(path)
        if names_tars(path):
            self._add_tars(path, named_tars(path))
        elif isinstance(path, Url) and path.suffix[1:].lower().encode() not in SUFFIXES:
            found = found_below(path)
            self._add_tree(path, found.tree, lambda below: location(name, below))
            if found.tars and not found.tree.paths:
                self._add_tars(path, Tars(path, found.tars))
        else:
            self._add_here(path, name)

    def _add_here(self, path: Source, name: bytes) -> None:
        found, reason = examined_anywhere(name)
        if reason == "not found":
            raise DataNotFoundError(f"no such image or folder: {printable(path)}; check the name")
        if reason != "is a directory":
            if reason is not None:
                self._reasons[len(self._paths)] = reason
            self._paths.append(name if isinstance(path, Url) else with_slashes(name))
            self._stats.append(np.array([found], np.int64))
            return
        tree = walk(name)
        prefix = b"" if name == b"." else with_slashes(name).rstrip(b"/") + b"/"
        self._add_tree(path, tree, lambda below: prefix + below)
        if isinstance(path, Path) and not tree.paths and tree.ignored[".tar"]:
            self._add_tars(path, tars_in(path))

    def _add_tars(self, path: Source, tars: Tars) -> None:
        tree, _, notes = list_tars(tars, "flat")
        base = b"" if tars.base == Path() else name_bytes(tars.base)
        self._add_tree(path, tree, lambda below: location(base, below))
        self.notes += notes

    def _add_tree(self, path: Source, tree: Tree, named: Callable[[bytes], bytes]) -> None:
        self._reasons.add(tree.reasons.moved(tree.reasons.rows + len(self._paths)))
        for part in tree.paths.parts():
            self._paths.extend([named(below) for below in part])
        self._stats.append(tree.stats)
        self.notes += _oddities(tree) if tree.paths else [f"no images in {printable(path)}", *_oddities(tree)]

    def rows(self) -> _Rows:
        """Return them sorted, each once."""
        paths, stats = self._paths.finished(), np.concatenate(self._stats)
        none, keep = np.full(len(paths), -1, np.int32), np.ones(len(paths), bool)
        rows = _Rows(paths, none, np.zeros(len(paths), np.uint8), stats, self._reasons, keep)
        if not paths.ascends():
            rows = rows.taken(paths.order())
            rows = rows.taken(np.flatnonzero(~rows.paths.repeats()))
        return rows


# CSV


def _list_csv(data: Source) -> ImageList:
    lines = unique_lines(data)
    if not lines.paths:
        raise DataError(f"{printable(data)} lists no images below its header; add lines of path,label")
    stats, reasons = all_examined_anywhere(name_bytes(data.parent), lines.paths)
    keep = np.ones(len(lines.paths), bool)
    rows = _Rows(lines.paths, lines.label, lines.split, stats, reasons, keep, lines.tags)
    notes = [f"merged {lines.merged} lines that say the same of an image"] if lines.merged else []
    return _assembled(data, data.parent, "csv", lines.classes, rows, notes + lines.doubts + timeless_note(stats))


# Counts


def count_table(images: ImageList) -> list[tuple[str, dict[str, int]]]:
    """Count the images of each class and split.

    Parameters
    ----------
    images : ImageList
        A listing.

    Returns
    -------
    list of (str, dict of str to int)
        For each class, in order, the number of images in each split that occurs (``""`` where DATA names none); last,
        where there are any, those without a label under the name ``""``. An image of several labels counts under each.
    """
    n_splits = len(SPLITS)
    cells = (images.label.astype(np.int64) + 1) * n_splits + images.split
    if images.tags is not None:
        below = (images.tags.index.astype(np.int64) + 1) * n_splits + images.split[images.tags.rows]
        cells = np.concatenate([cells[images.tags.count <= 0], below])
    table = np.bincount(cells, minlength=(len(images.classes) + 1) * n_splits).reshape(-1, n_splits)
    used = np.flatnonzero(table.sum(axis=0)).tolist()
    rows = [(name, {SPLITS[s]: int(table[i + 1, s]) for s in used}) for i, name in enumerate(images.classes)]
    if table[0].any():
        rows.append(("", {SPLITS[s]: int(table[0, s]) for s in used}))
    return rows
