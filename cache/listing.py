"""Listings of datasets: which image had which bytes, label and split when it was last looked at.

A listing is what makes a warm run cheap: a file whose size, times and inode are those of the listing is not read again.
Labels live here and never in the key of an embedding, so a relabelled image costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CacheFormatError, DamagedFileError
from . import block
from .failures import ARRAY as WHY
from .failures import Failures
from .names import AT_ONCE, Names, same_column
from .place import Place
from .publish import sortable_id
from .source import Source, name_bytes, source_of
from .space import ID_LENGTH, canonical_json
from .storage import files, make_folder, publish, twice
from .tags import ARRAYS, Tags

LISTING_FORMAT = 1
# Of listings with so many failures that their reasons are kept in columns: the newest that is read.
COLUMNS_FORMAT = 2
_NAME = re.compile(r"0[0-9a-f]{23}\.h5")
SPLITS = ("", "train", "val", "test")
# Columns of `stat`. On Windows the third is the time of creation, which an edit leaves as it is.
SIZE, MTIME, CTIME, INODE = range(4)
# A file written this close to the moment it was listed may be written again within one tick of the file system's
# clock and look the same: git's "racily clean" rule. FAT counts in steps of 2 s, all others in finer ones.
RACY_NS = 2_000_000_000
# A row of `stat` that no file has.
NEVER = -1
# Arrays that not every listing has.
OPTIONAL = (*ARRAYS, "phash", WHY)


@dataclass(frozen=True, slots=True)
class Listing:
    """One dataset as it was found, in columns.

    Attributes
    ----------
    root : str
        The folder or CSV file as the user named it.
    source : str
        The same, resolved.
    layout : str
        How it was read: "splits", "classes", "csv" or "flat".
    classes : tuple of str
        Class names, in the order of the labels.
    paths : Names, N
        As the file system has them, relative to the folder (for a CSV file, its folder), with "/" between folders;
        sorted, unique.
    label : ndarray of shape (N,), dtype int32
        Index into `classes`; -1 where there is none, and everywhere in a dataset of several labels an image.
    split : ndarray of shape (N,), dtype uint8
        Index into `SPLITS`; 0 where the dataset does not say.
    stat : ndarray of shape (N, 4), dtype int64
        Size in bytes, mtime and ctime in nanoseconds, inode.
    digest : ndarray of shape (N, 32), dtype uint8
        SHA-256 of the bytes; zeros where they were never read.
    phash : ndarray of shape (N,), dtype uint64
        Perceptual hash of the picture; 0 where it is not known, as in listings that were written before there was one.
    failures : Failures
        Why an image could not be used, by its index.
    spaces : tuple of str
        Ids of the feature spaces that the run asked for.
    request : dict
        What cannot be read off a space but is needed to embed more images in it: the weights option, the seed.
    rules : str
        What decided on `failures`: decoder rules, limits, optional decoders. A failure is final while they last.
    scanned_ns : int
        When the files were looked at, nanoseconds since 1970.
    tags : Tags or None
        Labels of a dataset in which an image may have several; None for any other.
    """

    root: str
    source: str
    layout: str
    classes: tuple[str, ...]
    paths: Names
    label: np.ndarray
    split: np.ndarray
    stat: np.ndarray
    digest: np.ndarray
    failures: Failures = field(default_factory=Failures)
    spaces: tuple[str, ...] = ()
    request: dict[str, Any] = field(default_factory=dict)
    rules: str = ""
    scanned_ns: int = 0
    tags: Tags | None = None
    phash: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", Names.of(self.paths))  # any sequence serves
        object.__setattr__(self, "failures", Failures.of(self.failures))
        if not self.phash.size:  # nothing is known of any
            object.__setattr__(self, "phash", np.zeros(len(self.paths), np.uint64))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def known(self) -> np.ndarray:
        """Which images' bytes were read, (N,) bool."""
        words = np.ascontiguousarray(self.digest).view(np.uint64)  # four of 8 bytes are faster than 32 bytes
        return np.asarray((words[:, 0] | words[:, 1] | words[:, 2] | words[:, 3]) != 0)

    @property
    def usable(self) -> np.ndarray:
        """Which images were read and did not fail, (N,) bool."""
        mask = self.known
        mask[self.failures.rows] = False
        return mask

    @property
    def partial(self) -> bool:
        """Whether images of the dataset may be in the cache that this listing does not tell of.

        It was limited, or some images were not read: the run was interrupted, or their disk was not there.
        """
        return bool(self.request.get("limit")) or not bool(self.known.all())

    def says_the_same(self, newer: Listing) -> bool:
        """Tell whether `newer` adds nothing to this one, and this one already shows every file as old enough."""
        names = ("root", "source", "layout", "classes", "paths", "failures", "spaces", "request", "rules", "tags")
        columns = ("label", "split", "stat", "digest", "phash")
        return (
            all(getattr(self, name) == getattr(newer, name) for name in names)
            and all(same_column(getattr(self, name), getattr(newer, name)) for name in columns)
            and bool(settled(self.stat, self.scanned_ns).all())
        )

    @property
    def dataset_id(self) -> str:
        """The id under which the dataset's listings are kept."""
        return dataset_id(source_of(self.source))


def dataset_id(root: Source) -> str:
    """Return the first 16 hex digits of the SHA-256 of the resolved path of a dataset, or of its URL."""
    return hashlib.sha256(name_bytes(root.resolve())).hexdigest()[:ID_LENGTH]


def save_listing(cache: Place, listing: Listing) -> Place:
    """Publish a listing; it becomes the dataset's latest.

    Parameters
    ----------
    cache : Path or RemotePath
        The cache's folder, which is there.
    listing : Listing
    """
    folder = cache / "datasets" / listing.dataset_id
    latest = max((path.stem for path in files(folder, ".h5") if is_listing(path)), default="")
    path = folder / f"{sortable_id(after=latest)}.h5"
    arrays = {
        "path": listing.paths.joined,
        "label": np.asarray(listing.label, "<i4"),
        "split": np.asarray(listing.split, "|u1"),
        "stat": np.asarray(listing.stat, "<i8"),
        "digest": np.asarray(listing.digest, "|u1"),
        "phash": np.asarray(listing.phash, "<u8"),
        "classes": _text(list(listing.classes)),
        **listing.failures.arrays(),
        **({} if listing.tags is None else listing.tags.arrays()),
    }
    attributes: dict[str, str | int] = {
        "schema": COLUMNS_FORMAT if WHY in arrays else LISTING_FORMAT,
        "root": canonical_json(listing.root),
        "source": canonical_json(listing.source),
        "layout": listing.layout,
        "spaces": canonical_json(listing.spaces),
        "request": canonical_json(listing.request),
        "rules": listing.rules,
        "scanned_ns": listing.scanned_ns,
        "partial": int(listing.partial),
    }
    make_folder(folder, cache)
    publish(path, block.build(arrays, attributes))
    return path


def is_listing(path: Place) -> bool:
    """Tell whether the name is that of a listing, of a time before the year 2112."""
    return _NAME.fullmatch(path.name) is not None


def _text(value: list[str]) -> np.ndarray:
    return np.frombuffer(canonical_json(value).encode("ascii"), np.uint8)


@twice
def read_listing(path: Place) -> Listing:
    """Read one listing, every byte that is used checked."""
    header = block.read_header(path)
    schema = header.attributes.get("schema")
    if isinstance(schema, int) and schema > COLUMNS_FORMAT:
        raise CacheFormatError(
            f"{path} was written by format {schema}, this reads up to {COLUMNS_FORMAT}; upgrade headstart"
        )
    columns = ("path", "label", "split", "stat", "digest", "failed", "reason", "classes")
    optional = tuple(name for name in OPTIONAL if name in header.arrays)
    arrays = block.read_arrays(path, header, columns + optional)
    try:
        listing = _assembled(header, arrays)
        _check(listing)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it does not hold what a listing holds ({error})") from error
    return listing


def _check(listing: Listing) -> None:
    """Raise ValueError where a file that is whole holds what no run has written."""
    count = len(listing.paths)
    shapes = {"label": (count,), "split": (count,), "stat": (count, 4), "digest": (count, 32), "phash": (count,)}
    if any(getattr(listing, name).shape != shape for name, shape in shapes.items()):
        raise ValueError("columns of another shape")
    words = (listing.root, listing.source, listing.layout, listing.rules, *listing.classes, *listing.spaces)
    if not all(isinstance(word, str) and "\0" not in word for word in words) or not isinstance(listing.request, dict):
        raise ValueError("no text where text should be")
    if not isinstance(listing.scanned_ns, int):
        raise ValueError("values of another kind")
    if count and not (listing.label.min() >= -1 and listing.label.max() < len(listing.classes)):
        raise ValueError("labels without a class")
    failed = listing.failures.rows
    if (count and listing.split.max() >= len(SPLITS)) or (len(failed) and not 0 <= failed[0] <= failed[-1] < count):
        raise ValueError("splits or failures out of range")
    if listing.tags is not None:
        listing.tags.check(count, len(listing.classes))
        if (listing.label != -1).any():
            raise ValueError("one label and several")


def _assembled(header: block.Header, arrays: dict[str, np.ndarray]) -> Listing:
    paths = Names.read(arrays["path"])
    return Listing(
        root=json.loads(header.attributes["root"]),
        source=json.loads(header.attributes["source"]),
        layout=header.attributes["layout"],
        classes=tuple(json.loads(arrays["classes"].tobytes())),
        paths=paths,
        label=arrays["label"],
        split=arrays["split"],
        stat=arrays["stat"],
        digest=arrays["digest"],
        failures=Failures.read(arrays),
        spaces=tuple(json.loads(header.attributes["spaces"])),
        request=json.loads(header.attributes["request"]),
        rules=header.attributes["rules"],
        scanned_ns=header.attributes["scanned_ns"],
        tags=Tags.read(arrays),
        phash=arrays.get("phash", np.zeros(len(paths), np.uint64)),
    )


def carry_over(previous: Listing, paths: Names, stat: np.ndarray) -> np.ndarray:
    """Find for each file the row of an earlier listing that still describes its bytes.

    Parameters
    ----------
    previous : Listing
        The earlier listing, of the same base folder.
    paths : Names, N
    stat : ndarray of shape (N, 4), dtype int64
        What the file system says now.

    Returns
    -------
    ndarray of shape (N,), dtype int64
        Rows of `previous`, -1 where the file is new, was touched, or was listed too soon after it was written.
    """
    rows = previous.paths.find(Names.of(paths))
    same = _same_rows(previous.stat, rows, stat) & settled(stat, previous.scanned_ns)
    return np.where(same, rows, -1)


def _same_rows(table: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Tell where a row of a table, none where it is -1, is the one that is wanted, (N,) bool."""
    same = np.zeros(len(rows), bool)
    for start in range(0, len(rows) if len(table) else 0, AT_ONCE):
        some = slice(start, start + AT_ONCE)
        same[some] = (rows[some] >= 0) & (table[rows[some]] == wanted[some]).all(axis=1)
    return same


def settled(stat: np.ndarray, scanned_ns: int) -> np.ndarray:
    """Tell which files, (N, 4) int64, were old enough when they were looked at for an edit to show in their status."""
    return np.asarray(_changed(stat) < scanned_ns - RACY_NS)


def _changed(stat: np.ndarray) -> np.ndarray:
    # ctime cannot be set back, so an edit that restores size and mtime is still seen; Windows has mtime alone.
    return np.asarray(stat[:, MTIME] if sys.platform == "win32" else stat[:, CTIME])
