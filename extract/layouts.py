"""What the folders of a dataset mean: a tree of image files -> the class and split of each folder.

How a folder is read, unless told otherwise:

- ``splits``: every sub-folder that holds images is named ``train``, ``val``, ``valid``, ``validation`` or ``test``,
  alone or followed by ``-``, ``_``, ``.`` or a space and anything, and one is for training; inside, a folder is a
  class.
- ``classes``: sub-folders hold images; each is a class.
- ``flat``: the images lie directly inside, without labels.

Below a class folder images are found at any depth. Everything is decided by folder, so the cost is that of the
number of folders and hardly of images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import printable
from .files import some
from .tree import Tree

SPLIT_CODE: dict[str, int] = {"": 0, "train": 1, "val": 2, "valid": 2, "validation": 2, "test": 3}
"""The words that name a split, in lower case, and the codes of the splits."""

BESIDE = "images that lie beside the class folders"

_SPLIT_FOLDER = re.compile(rb"(train|val|valid|validation|test)(?:[-_. ].*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a layout makes of the F folders of a tree.

    Attributes
    ----------
    layout : str
        ``splits``, ``classes`` or ``flat``.
    classes : tuple of str
        Class names, sorted, by `os.fsdecode`.
    label : list of int, length F
        Class of the images of each folder, -1 for none.
    split : list of int, length F
        Split code of the images of each folder, 0 for none.
    keep : list of bool, length F
        Whether the images of the folder belong to the dataset.
    notes : tuple of str
        Lines for people: how the tree was read where that is in doubt, and what was left out.
    """

    layout: str
    classes: tuple[str, ...]
    label: list[int]
    split: list[int]
    keep: list[bool]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Folder:
    """One folder: its path as names, and how many images lie directly in it."""

    parts: tuple[bytes, ...]
    count: int

    @property
    def split(self) -> int:
        return split_code(self.parts[0]) if self.parts else 0


def split_code(name: bytes) -> int:
    """Return the code of the split that a folder's name stands for.

    Parameters
    ----------
    name : bytes
        A folder's own name, such as ``b"train-cat-rabbit"``.

    Returns
    -------
    int
        1 for train, 2 for val, 3 for test, 0 for a name of no split, such as ``b"valley"``.
    """
    match = _SPLIT_FOLDER.fullmatch(name)
    return SPLIT_CODE[match[1].decode().lower()] if match else 0


def read_tree(tree: Tree, layout: str = "auto") -> Reading:
    """Decide what the folders of a tree mean.

    Parameters
    ----------
    tree : Tree
        What lies below DATA.
    layout : str, default "auto"
        ``auto``, ``splits``, ``classes`` or ``flat``; ``flat`` takes every image at any depth, without labels.

    Returns
    -------
    Reading
        Labels and splits by folder.
    """
    count = np.bincount(tree.folder, minlength=len(tree.folders))
    folders = [
        _Folder(tuple(path.split(b"/")) if path else (), n)
        for path, n in zip(tree.folders, count.tolist(), strict=True)
    ]
    doubts = []
    if layout == "auto":
        layout = _detected(_tops(folders))
        doubts = _doubts(folders) if layout == "classes" else []
    return _READERS[layout](folders, doubts)


def _tops(folders: list[_Folder]) -> dict[bytes, int]:
    """Count the images of each sub-folder of the root, at any depth."""
    totals: dict[bytes, int] = {}
    for folder in folders:
        if folder.parts:
            totals[folder.parts[0]] = totals.get(folder.parts[0], 0) + folder.count
    return totals


def _detected(tops: dict[bytes, int]) -> str:
    # A folder without images, such as one of annotations, does not make split folders into classes.
    holding = [name for name, n in tops.items() if n]
    codes = [split_code(name) for name in holding]
    if 1 in codes and all(codes):
        return "splits"
    return "classes" if holding else "flat"


def _doubts(folders: list[_Folder]) -> list[str]:
    """Say why folders with a split's name were read as classes."""
    tops = _tops(folders)
    splits = sorted(printable(name) for name in tops if split_code(name))
    others = sorted(printable(name) for name in tops if tops[name] and not split_code(name))
    if splits:
        why = f"{some(others)} is no split" if others else "no split folder for training holds images"
        return [f"read as classes, although {some(splits)} may be a split: {why}; --layout splits reads it as one"]
    inside = {folder.parts[1] for folder in folders if len(folder.parts) > 1}
    if len(tops) == 1 and any(split_code(name) == 1 for name in inside):
        return [f"read as one class, although {others[0]} holds split folders; name that folder as DATA to use them"]
    return []


def _as_flat(folders: list[_Folder], notes: list[str]) -> Reading:
    n = len(folders)
    return Reading("flat", (), [-1] * n, [0] * n, [True] * n, tuple(notes))


def _as_classes(folders: list[_Folder], notes: list[str]) -> Reading:
    names = [folder.parts[0] if folder.parts else None for folder in folders]
    classes, label = _numbered(names)
    keep = [name is not None for name in names]
    notes = notes + _strays(folders, keep)
    return Reading("classes", classes, label, [0] * len(folders), keep, tuple(notes))


def _as_splits(folders: list[_Folder], notes: list[str]) -> Reading:
    bare = _bare_splits(folders)
    names = [_class_in_split(folder, bare) for folder in folders]
    classes, label = _numbered(names)
    keep = [
        name is not None or bool(folder.parts and folder.parts[0] in bare)
        for name, folder in zip(names, folders, strict=True)
    ]
    notes = notes + _strays(folders, keep) + _foreign(folders)
    return Reading("splits", classes, label, [folder.split for folder in folders], keep, tuple(notes))


_READERS: dict[str, Callable[[list[_Folder], list[str]], Reading]] = {
    "flat": _as_flat,
    "classes": _as_classes,
    "splits": _as_splits,
}


def _bare_splits(folders: list[_Folder]) -> set[bytes]:
    """Name the split folders whose images all lie directly inside, and so have no labels."""
    direct = {folder.parts[0] for folder in folders if len(folder.parts) == 1 and folder.count and folder.split}
    classed = {folder.parts[0] for folder in folders if len(folder.parts) > 1 and folder.count}
    return direct - classed


def _class_in_split(folder: _Folder, bare: set[bytes]) -> bytes | None:
    if len(folder.parts) > 1 and folder.split and folder.parts[0] not in bare:
        return folder.parts[1]
    return None


def _numbered(names: Iterable[bytes | None]) -> tuple[tuple[str, ...], list[int]]:
    """Sort the class names that occur, and give each folder its class's number."""
    decoded = [None if name is None else os.fsdecode(name) for name in names]
    classes = tuple(sorted({name for name in decoded if name is not None}))
    number = {name: index for index, name in enumerate(classes)}
    return classes, [-1 if name is None else number[name] for name in decoded]


def _strays(folders: list[_Folder], keep: list[bool]) -> list[str]:
    stray = sum(
        folder.count
        for folder, kept in zip(folders, keep, strict=True)
        if not kept and (folder.split or not folder.parts)
    )
    return [f"ignored {stray} {BESIDE}"] if stray else []


def _foreign(folders: list[_Folder]) -> list[str]:
    outside = {name: n for name, n in _tops(folders).items() if not split_code(name)}
    if not outside:
        return []
    return [
        f"ignored folders that are no split: {some(sorted(map(printable, outside)))} ({sum(outside.values())} images)"
    ]
