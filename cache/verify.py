"""Every byte of a cache against what was written: parts, descriptions, listings, what backbone requests resolved to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from ..errors import CacheError, CacheFormatError, CacheMissError, DamagedFileError, HeadstartError
from . import block, memo
from .datasets import listing_paths
from .listing import read_listing
from .part import check_part
from .place import Place, below
from .reading import read_error
from .storage import files, size_of, threads
from .store import FeatureStore


@dataclass(slots=True)
class Verification:
    """What a check of a cache found.

    Attributes
    ----------
    root : Path or RemotePath
    parts, rows : int
        Parts that were checked, and rows of those that are good.
    bytes : int
        Size of the parts that were checked.
    bad : list of tuple of (str, str)
        Each file that is not what it should be, relative to the cache, and why.
    sampled : int
        Rows that were computed anew from their images.
    max_difference : float or None
        The largest difference of a number between the cache and the new computation, as a share of the largest number
        of its row; None where nothing was sampled.
    """

    root: Place
    parts: int = 0
    rows: int = 0
    bytes: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    sampled: int = 0
    max_difference: float | None = None
    on_stdout: ClassVar[bool] = True

    @property
    def status(self) -> int:
        """The exit status of the command: 1 where something is bad."""
        return 1 if self.bad else 0

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache verify --json``."""
        return {
            "cache": str(self.root),
            "parts": self.parts,
            "rows": self.rows,
            "bytes": self.bytes,
            "bad": [{"part": part, "error": error} for part, error in self.bad],
            "sampled": self.sampled,
            "max_difference": self.max_difference,
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        verdict = f"{len(self.bad)} bad files" if self.bad else "all good"
        lines = [f"{self.root}: {self.parts} parts, {self.rows} rows, {self.bytes / 1e6:.1f} MB checked: {verdict}"]
        lines += [f"  bad: {part}: {error}" for part, error in self.bad]
        if self.max_difference is not None:
            lines.append(
                f"{self.sampled} images embedded anew: the largest difference is {self.max_difference:.1e} of a row's "
                "largest number"
            )
        return lines


def verify(root: Place) -> Verification:
    """Check every byte of a cache; damaged files are set aside, a lost description of a space is written again.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's folder; an absent one has no parts.

    Returns
    -------
    Verification
    """
    found = Verification(root)
    store = FeatureStore(root)
    for space_id in store.space_ids():
        _check_description(store, space_id, found)
        _check_parts(store, space_id, found)
    for path in listing_paths(root):
        _check(store, path, partial(_check_listing, path), found)
    for path in files(root / "backbones", ".json"):
        _check(store, path, partial(memo.check, path), found)
    return found


def _check_parts(store: FeatureStore, space_id: str, found: Verification) -> None:
    paths = store.parts(space_id)
    with ThreadPoolExecutor(threads(store.root), thread_name_prefix="verify") as pool:
        for path, result in zip(paths, pool.map(_examine, paths), strict=True):
            if isinstance(result, FileNotFoundError):  # a compaction took it
                continue
            found.parts += 1
            if isinstance(result, Exception):
                _note(store, path, result, found)
            else:
                found.rows += result[0]
                found.bytes += result[1]


def _examine(path: Place) -> tuple[int, int] | OSError | HeadstartError:
    """Return rows and bytes of a good part, or what is wrong with it."""
    try:
        return check_part(path), size_of(path)
    except (OSError, HeadstartError) as error:
        return error


def _check(store: FeatureStore, path: Place, check: Callable[[], object], found: Verification) -> None:
    try:
        check()
    except FileNotFoundError:
        return
    except (OSError, HeadstartError) as error:
        _note(store, path, error, found)


def _note(store: FeatureStore, path: Place, error: OSError | HeadstartError, found: Verification) -> None:
    """Put a bad file on the list; a damaged one is set aside, one of a newer format or that cannot be read stays."""
    if isinstance(error, DamagedFileError):
        store.quarantine(path, error)
    elif isinstance(error, OSError) and not isinstance(error, HeadstartError):
        error = read_error(error, path)
    found.bad.append((below(path, store.root), str(error)))


def _check_listing(path: Place) -> None:
    block.check_image(path, block.read_header(path))
    read_listing(path)


def _check_description(store: FeatureStore, space_id: str, found: Verification) -> None:
    path = store.space_folder(space_id) / "space.json"
    try:
        store.described_space(space_id)
    except CacheFormatError as error:
        found.bad.append((below(path, store.root), str(error)))
    except CacheMissError as error:
        if store.parts(space_id):  # a run that begins makes the folder first
            found.bad.append((below(path, store.root), f"{error}{_mended(store, space_id)}"))
    except HeadstartError as error:
        found.bad.append((below(path, store.root), f"{error}{_mended(store, space_id)}"))


def _mended(store: FeatureStore, space_id: str) -> str:
    """Write the description of a space again from one of its parts, and say whether that was possible."""
    try:
        store.prepare(store.space(space_id))
    except CacheError as error:
        return f"; it could not be written again ({error})"
    except HeadstartError:
        return ""
    return "; written again from the parts of the space"
