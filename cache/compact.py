"""Compaction: many small parts become few, copies and unwanted rows go, and nothing is lost whenever it is killed.

A merged part names the parts that it supersedes; readers drop those from that moment. They are deleted only after the
merged part is durable, has been read back and has its hash, and after a time of grace in which readers that had listed
the old ones finish. Killed at any step, what is left holds the same rows: before the merged part has its name, the old
ones; afterwards, the merged one, beside old ones that nobody looks at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import CacheError, CacheMissError, DamagedFileError, HeadstartError
from .datasets import all_digests_in_use, superfluous_listings
from .index import KeyIndex
from .part import MAX_SUPERSEDED, Keys, PartHead, check_part, copy_rows, recipes_of, write_part, written_at
from .place import Place, RemotePath
from .reading import PartGoneError, read_error, repeated
from .running import oldest_start
from .storage import delete, folders, is_empty, is_there, look_at, mapped, settle, size_below, time_at, write_error
from .store import FeatureStore
from .temporary import STALE_SECONDS, remove_stale
from .writer import PART_BYTES

GRACE_SECONDS = 600
# A large part is written anew for its copies alone where they are at least this share of it.
WORTHWHILE = 0.25


@dataclass(slots=True)
class Compaction:
    """What a compaction did.

    Attributes
    ----------
    root : Path or RemotePath
    parts_before, parts_after : int
        Parts that readers look at.
    rows : int
        Rows that readers see afterwards.
    copies, pruned : int
        Rows dropped because an earlier part holds them, and because no listing has their image any more.
    spared : int
        Rows that no listing has, kept because a run that may be about to list them is still going.
    deleted, waiting : int
        Superseded files that were deleted, and those whose time of grace is not over.
    listings, temporary : int
        Listings that no reader would take any more, and stale temporary files, both deleted.
    bytes : int
        By how much the cache became smaller; negative where old files wait for deletion.
    prune : bool
    """

    root: Place
    parts_before: int = 0
    parts_after: int = 0
    rows: int = 0
    copies: int = 0
    pruned: int = 0
    spared: int = 0
    deleted: int = 0
    waiting: int = 0
    listings: int = 0
    temporary: int = 0
    bytes: int = 0
    prune: bool = False

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache compact --json``."""
        names = [name for name in self.__slots__ if name not in ("root", "prune")]
        return {"cache": str(self.root), **{name: getattr(self, name) for name in names}}

    def lines(self) -> list[str]:
        """Return what a person needs to know."""
        lines = [
            f"{self.root}: {self.parts_before} parts became {self.parts_after}, {self.rows} rows; "
            f"dropped {self.copies} copies"
        ]
        if self.prune:
            lines.append(f"pruned {self.pruned} rows of images that no listing has any more")
        if self.spared:
            why = "a run is using this cache and may list their images; run again when it is done"
            if isinstance(self.root, RemotePath):
                why = f"{why}, a day after their writing at the earliest, for who uses a bucket cannot be seen"
            lines.append(f"kept {self.spared} more such rows: {why}, or with --now")
        what = f"{self.deleted} superseded parts, {self.listings} old listings, {self.temporary} temporary files"
        change = f"{abs(self.bytes) / 1e6:.1f} MB {'less' if self.bytes >= 0 else 'more, until the old parts go'}"
        lines.append(f"deleted {what}: {change}")
        if self.waiting:
            minutes = GRACE_SECONDS // 60
            lines.append(
                f"{self.waiting} superseded parts are kept for {minutes} minutes, for runs that still read them; "
                "run `headstart cache compact` again then, or with --now where nothing else uses the cache"
            )
        return lines


def compact(root: Place, *, prune: bool = False, now: bool = False) -> Compaction:
    """Merge small parts, drop copies, delete what is superseded.

    Safe beside any number of readers, writers and other compactions.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's folder; an absent one is no error.
    prune : bool, default False
        Drop the rows of images that no dataset has. While a run is going, none are dropped, for it may come to list
        them.
    now : bool, default False
        Wait for nobody: delete superseded files at once, and prune whatever is running.

    Returns
    -------
    Compaction

    Raises
    ------
    CacheError
        The cache cannot be written, or gave other bytes back than were written.
    CacheFormatError
        A part is of a newer format.
    DamagedFileError
        With `prune`: the latest listing of a dataset cannot be read, so what it holds is not known.
    """
    done = Compaction(root, prune=prune)
    if is_there(root):
        try:
            _compact(done, now=now)
        except HeadstartError:
            raise
        except OSError as error:
            raise write_error(error, root) from error
    return done


def _compact(done: Compaction, *, now: bool) -> None:
    root, store = done.root, FeatureStore(done.root)
    if not {"spaces", "datasets", "backbones"}.intersection(folders(root)) and not is_empty(root):
        raise CacheMissError(f"{root} is no cache of headstart: it has no folder `spaces`; name the folder of a cache")
    store.check_writable()
    for space_id in store.space_ids():
        store.heads(space_id)  # a part of a newer format is an error before anything is changed
    size, clock = size_below(root), time_at(root)
    wanted = _Wanted.of(root, clock, now=now) if done.prune else None
    for space_id in store.space_ids():
        _Space(store, space_id, wanted, clock, now=now).compact(done)
    for path in superfluous_listings(root):
        if now or clock - _modified(path) > GRACE_SECONDS:
            delete(path)
            done.listings += 1
    done.temporary = remove_stale(root, clock)
    done.bytes = size - size_below(root)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What pruning keeps: images of the datasets, and rows in parts written at `since` or later."""

    digest: KeyIndex
    since: float

    @classmethod
    def of(cls, root: Place, clock: float, *, now: bool) -> _Wanted:
        # Before the listings are read, so that no run slips in between. A run that goes on may come to list any row
        # that is there, written by it or found: while there is one, all are kept. Of runs that write to a bucket from
        # other machines nothing is known: what they have written lately is kept.
        since = time.time() if now or oldest_start(root) == float("inf") else 0.0
        if isinstance(root, RemotePath) and not now:
            since = min(since, clock - STALE_SECONDS)
        return cls(KeyIndex([Keys.plain(all_digests_in_use(root))]), since)

    def has(self, keys: Keys) -> np.ndarray:
        return np.asarray(self.digest.find(Keys.plain(keys.digest)) >= 0)


class _Space:
    """One feature space under compaction."""

    def __init__(self, store: FeatureStore, space_id: str, wanted: _Wanted | None, clock: float, *, now: bool) -> None:
        self.store = store
        self.space_id = space_id
        self.wanted = wanted
        self.clock = clock
        self.now = now
        self.spared = 0

    def compact(self, done: Compaction) -> None:
        done.parts_before += len(self.store.heads(self.space_id))
        repeated(self.store.root, lambda: self._merge(done))
        self._delete_superseded(done)
        heads = self.store.heads(self.space_id)
        done.parts_after += len(heads)
        done.rows += int(KeyIndex([head.keys for head in heads]).first().sum())
        done.spared += self.spared

    def _merge(self, done: Compaction) -> None:
        """Merge what is worth it, a group of parts at a time."""
        heads = self.store.heads(self.space_id)
        wanted = self._wanted_rows(heads)
        for group in _groups(heads, wanted, {path.name for path in self.store.parts(self.space_id)}):
            masks = [wanted[number] for number in group]
            if self.wanted is not None and not self.now and oldest_start(self.store.root) != float("inf"):
                masks = [np.ones_like(mask) for mask in masks]  # a run has begun meanwhile, and may count on them
            self._merge_group([heads[number] for number in group], masks, done)

    def _wanted_rows(self, heads: list[PartHead]) -> list[np.ndarray]:
        """Return for each part which rows are not pruned."""
        if self.wanted is None:
            return [np.ones(len(head.keys), bool) for head in heads]
        listed = [self.wanted.has(head.keys) for head in heads]
        young = [written_at(head.path) >= self.wanted.since for head in heads]
        spared = [head.keys[~mask] for head, mask, late in zip(heads, listed, young, strict=True) if late]
        self.spared = int(KeyIndex(spared).first().sum())
        return [mask | late for mask, late in zip(listed, young, strict=True)]

    def _merge_group(self, heads: list[PartHead], wanted: list[np.ndarray], done: Compaction) -> None:
        """Write one part in the place of several, and read it back.

        It holds every key of theirs that is wanted: none is left out because a part outside the group has it too, for
        another compaction may be leaving it out there at this moment, because it is here.
        """
        space = heads[0].space
        rows = [np.flatnonzero(mask) for mask in wanted]
        index = KeyIndex([head.keys[chosen] for head, chosen in zip(heads, rows, strict=True)])
        first = np.split(index.first(), index.starts[1:-1])
        rows = [chosen[mask] for chosen, mask in zip(rows, first, strict=True)]
        starts = np.cumsum([0, *(len(chosen) for chosen in rows)])
        embedding = np.empty((int(starts[-1]), space.dim), space.dtype)

        def copy(number: int) -> None:
            path, chosen, start = heads[number].path, rows[number], int(starts[number])
            places = np.arange(start, start + len(chosen))
            self._read(path, partial(copy_rows, path, chosen, embedding, places))

        list(mapped(copy, range(len(heads)), self.store.root, whole=True))
        keys = Keys.concatenate([head.keys[chosen] for head, chosen in zip(heads, rows, strict=True)])
        there = {path.name for path in self.store.parts(self.space_id)}
        names = _names_replaced(heads, there)
        folder = self.store.space_folder(self.space_id)
        self._read_back(write_part(folder, space, keys, embedding, recipes_of(heads), names))
        done.copies += len(index) - len(keys)
        pruned = [head.keys[~mask] for head, mask in zip(heads, wanted, strict=True)]
        done.pruned += int(KeyIndex(pruned).first().sum())

    def _read(self, path: Place, read: Callable[[], object]) -> None:
        if not self.store.read_part(path, read):
            raise PartGoneError(str(path))

    def _read_back(self, path: Place) -> None:
        try:
            _check_on_disk(path)
        except FileNotFoundError:
            return  # another compaction has merged and deleted it already
        except DamagedFileError as error:
            delete(path)
            raise CacheError(
                f"the disk gave other bytes back than were written to {path}; nothing was deleted, check the disk"
            ) from error
        except OSError as error:
            delete(path)  # the old parts serve as before
            raise read_error(error, path) from error

    def _delete_superseded(self, done: Compaction) -> None:
        deleted = 0
        for head in self.store.heads(self.space_id):
            if not head.supersedes and len(head.keys):
                continue
            there = {path.name: path for path in self.store.parts(self.space_id)}
            old = [there[name] for name in head.supersedes if name in there]
            empty = [head.path] if not len(head.keys) else []
            if not self.now and self.clock - _modified(head.path) <= GRACE_SECONDS:
                done.waiting += len(old) + len(empty)
            elif old or empty:
                deleted += self._delete(head.path, [*old, *empty])
        if deleted:
            settle(self.store.space_folder(self.space_id))
        done.deleted += deleted

    def _delete(self, merged: Place, old: list[Place]) -> int:
        """Delete what a merged part supersedes, after making sure that this is whole and has its name for good."""
        try:
            # Straight before they go, for a reader may have found it damaged since: then the old parts serve again.
            if not self.store.read_part(merged, partial(_check_on_disk, merged)):
                return 0
        except PartGoneError:
            return 0
        settle(merged.parent)  # whoever merged it may have died, or be about to, before he came to that
        list(mapped(delete, old, self.store.root))
        return len(old)


def _groups(heads: list[PartHead], wanted: list[np.ndarray], there: set[str]) -> list[list[int]]:
    """Choose the parts to be merged with each other: small ones, those with rows to drop, those with many copies."""
    index = KeyIndex([head.keys for head in heads])
    groups: list[list[int]] = []
    inside, names = KeyIndex([]), 0
    for number in _worthwhile(heads, wanted, index):
        head = heads[number]
        keys = head.keys[np.flatnonzero(wanted[number])]
        replaced = len(_names_replaced([head], there))
        joined = KeyIndex([inside.keys, keys])
        full = PART_BYTES // head.space.row_bytes
        if not groups or int(joined.first().sum()) > full or names + replaced > MAX_SUPERSEDED:
            groups.append([])
            joined, names = KeyIndex([keys]), 0
        groups[-1].append(number)
        inside, names = joined, names + replaced
    return [group for group in groups if len(group) > 1 or not wanted[group[0]].all()]


def _worthwhile(heads: list[PartHead], wanted: list[np.ndarray], index: KeyIndex) -> list[int]:
    """Return the parts that are worth merging; one with many copies comes straight behind the part it repeats."""
    owner = np.searchsorted(index.starts, index.find(index.keys), side="right") - 1
    small, followers = [], {}
    for number, (head, mask) in enumerate(zip(heads, wanted, strict=True)):
        if mask.sum() < PART_BYTES // head.space.row_bytes // 2 or not mask.all():
            small.append(number)
        originals = owner[index.starts[number] : index.starts[number + 1]]
        copies = originals[originals != number]
        if len(copies) and len(copies) >= WORTHWHILE * len(originals):
            followers[number] = int(np.bincount(copies).argmax())
    order: list[int] = []
    for number in sorted({*small, *followers, *followers.values()}):
        if number not in followers:
            order += [number, *(follower for follower, leader in followers.items() if leader == number)]
    return order + [number for number in followers if number not in order]


def _names_replaced(heads: list[PartHead], there: set[str]) -> list[str]:
    """Return the names of parts, and of those that they replaced and that have not been deleted yet."""
    older = {name for head in heads for name in head.supersedes} & there
    return [*(head.path.name for head in heads), *sorted(older)]


def _modified(path: Place) -> float:
    try:
        return look_at(path).modified
    except FileNotFoundError:
        return float("inf")  # another compaction was faster: nothing is to be done for it


def _check_on_disk(path: Place) -> None:
    _forget_cached(path)
    check_part(path)


def _forget_cached(path: Place) -> None:
    """Ask the kernel to forget what it holds of a file, so that reading it back asks the disk."""
    if isinstance(path, RemotePath) or not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
