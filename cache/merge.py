"""Take in a cache from another machine: the rows that this one lacks, and the listings of datasets it has not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..errors import CacheMissError, DamagedFileError, HeadstartError, UsageError
from . import block
from .datasets import listing_paths
from .index import KeyIndex
from .listing import read_listing
from .part import PartHead, copy_rows, write_part
from .place import Place, below
from .reading import gone_or_unreadable, read_error, repeated
from .storage import is_there, make_folder, publish, read_whole, same
from .store import FeatureStore

logger = logging.getLogger("headstart.cache")


@dataclass(slots=True)
class Merge:
    """What was taken in.

    Attributes
    ----------
    root, other : Path or RemotePath
    rows, known : int
        Rows that were taken in, and rows that were there already.
    spaces : int
        Feature spaces that rows were taken into.
    datasets : list of str
        Roots of the datasets whose listings were taken in.
    kept : list of str
        Roots of the datasets that both have; ours were kept.
    bad : list of tuple of (str, str)
        Files of the other cache that are damaged or of a newer format, and why; nothing of them was taken.
    """

    root: Place
    other: Place
    rows: int = 0
    known: int = 0
    spaces: int = 0
    datasets: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status of the command: 1 where something could not be taken."""
        return 1 if self.bad else 0

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache merge --json``."""
        return {
            "cache": str(self.root),
            "other": str(self.other),
            "rows": self.rows,
            "known": self.known,
            "spaces": self.spaces,
            "datasets": self.datasets,
            "kept": self.kept,
            "bad": [{"part": part, "error": error} for part, error in self.bad],
        }

    def lines(self) -> list[str]:
        """Return what a person needs to know."""
        lines = [
            f"{self.root}: took {self.rows} rows in {self.spaces} feature spaces and {len(self.datasets)} datasets "
            f"from {self.other}; {self.known} rows were there already"
        ]
        lines += [f"  kept our own listing of {root}" for root in self.kept]
        return lines + [f"  not taken: {part}: {error}" for part, error in self.bad]


def merge(root: Place, other: Place, *, progress: Callable[[int], None] = lambda _: None) -> Merge:
    """Take in what another cache holds and this one lacks. The other one is only read.

    Rows are checked byte for byte and written as parts of our own, so the two never depend on each other. What backbone
    requests resolved to is not taken: that is found anew in seconds, and depends on the machine.

    Parameters
    ----------
    root : Path or RemotePath
        The cache that takes; made where it is missing.
    other : Path or RemotePath
        The cache that gives.
    progress : callable
        Told the number of rows since the last call.

    Raises
    ------
    CacheMissError
        `other` is no cache.
    UsageError
        Both are the same.
    CacheError
        The cache cannot be written.
    """
    if not is_there(other / "spaces"):
        raise CacheMissError(f"{other} is no cache of headstart: it has no folder `spaces`; name the folder of a cache")
    if same(root, other):
        raise UsageError(f"{root} and {other} are the same cache; name another")
    done = Merge(root, other)
    ours, theirs = FeatureStore(root), FeatureStore(other)
    ours.check_writable()
    for space_id in theirs.space_ids():
        before = done.rows
        repeated(other, partial(_merge_space, ours, theirs, space_id, done, progress))
        done.spaces += done.rows > before
    _merge_listings(root, other, done)
    return done


def _merge_space(
    ours: FeatureStore, theirs: FeatureStore, space_id: str, done: Merge, progress: Callable[[int], None]
) -> None:
    """Take what one space has more; begun again where a compaction over there takes a part away, it takes the rest."""
    heads, bad = theirs.survey(space_id)
    index = ours.index(space_id)[0]
    known, had, before = index, 0, done.rows
    for head in heads:
        lacking = np.flatnonzero((known.find(head.keys) < 0) & KeyIndex([head.keys]).first())
        had += int((index.find(head.keys) >= 0).sum())
        if lacking.size and _take(ours, theirs, head, lacking, done, prepared=done.rows > before):
            known = KeyIndex([known.keys, head.keys[lacking]])
        progress(len(head.keys))
    done.known += had
    done.bad += [(below(path, theirs.root), str(error)) for path, error in bad]


def _take(
    ours: FeatureStore, theirs: FeatureStore, head: PartHead, rows: np.ndarray, done: Merge, *, prepared: bool
) -> bool:
    """Copy rows of one part; False where it turns out to be damaged."""
    embedding = np.empty((len(rows), head.space.dim), head.space.dtype)
    try:
        copy_rows(head.path, rows, embedding, np.arange(len(rows)))
    except DamagedFileError as error:
        done.bad.append((below(head.path, theirs.root), str(error)))
        return False
    except OSError as error:
        raise gone_or_unreadable(error, head.path) from error
    if not prepared:
        ours.prepare(head.space, theirs.facts(head.space.id))
    write_part(ours.space_folder(head.space.id), head.space, head.keys[rows], embedding, head.recipes)
    done.rows += len(rows)
    return True


def _merge_listings(root: Place, other: Place, done: Merge) -> None:
    """Copy the listings of datasets that we have none of; where both have some, ours are the ones that we know of."""
    mine = {path.parent.name for path in listing_paths(root)}
    named: dict[str, str] = {}
    for path in listing_paths(other):  # the latest first: a merge that is interrupted leaves no older one in its place
        dataset = path.parent.name
        try:
            listing = read_listing(path)
            block.check_image(path, block.read_header(path))
            data = read_whole(path)
        except FileNotFoundError:
            continue  # a compaction over there took it: a later one says the same
        except OSError as error:
            done.bad.append((below(path, other), str(read_error(error, path))))
            continue
        except HeadstartError as error:
            done.bad.append((below(path, other), str(error)))
            continue
        named.setdefault(dataset, listing.root)
        if dataset not in mine:
            make_folder(root / "datasets" / dataset, root)
            publish(root / "datasets" / dataset / path.name, data)
    for dataset, name in named.items():
        (done.kept if dataset in mine else done.datasets).append(name)
