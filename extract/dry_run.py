"""What an extraction would do, and why: nothing is embedded and nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..cache.datasets import load_listing
from ..cache.index import KeyIndex
from ..cache.listing import Listing
from ..cache.place import Place
from ..cache.source import source_of
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from .engines.choice import division
from .explain import Miss, misses
from .features import spaces_as_json
from .images import ImageList
from .options import EngineOptions, RunOptions, SpaceOptions
from .plan import failure_rules, recall_listing, to_look_at
from .registry import find
from .resolve import recalled, resolve
from .views import PLAIN, Views


@dataclass(frozen=True, slots=True)
class DryRun:
    """What an extraction would do.

    Attributes
    ----------
    root, cache, backbone : str
    spaces : list of FeatureSpace
        Without those of backbones whose weights, which are part of a space, are not on this machine.
    absent : list of str
        Those backbones.
    an_image : int
        Rows that an image has at most, in all spaces.
    images, reused, failed : int
        Images listed, rows served from the cache, and images left out because they failed before and have not changed.
    failed_rows : int
        The rows that those would have, in one space.
    views : Views
    engine : str
        Where it would be done: "local", "dask" or "ray".
    workers, shards : int
        How many processes there are now that would share the work, and into how many pieces it would be cut for them.
    new, changed, unread, again : int
        Images whose bytes would have to be read: that the latest listing does not have; that have another size, time or
        inode than there; that the latest run did not come to read; and that are read again because that was asked for,
        or because they were written so shortly before they were listed that they may have changed since.
    missing : int
        Rows of images whose bytes are known that would be computed, those of copies once.
    misses : list of Miss
        Those of `missing` that other spaces hold.
    """

    root: str
    cache: str
    backbone: str
    spaces: list[FeatureSpace]
    absent: list[str]
    an_image: int
    images: int
    reused: int
    failed: int
    new: int
    changed: int
    unread: int
    again: int
    missing: int
    misses: list[Miss]
    failed_rows: int
    views: Views
    engine: str
    workers: int
    shards: int

    @property
    def to_read(self) -> int:
        """Images that would be read and hashed; they are embedded only where the cache lacks their bytes."""
        return self.new + self.changed + self.unread + self.again

    @property
    def _rows(self) -> str:
        """What is counted, where it is not images."""
        return " rows" if self.an_image > 1 else ""

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``extract --dry-run --json``."""
        counts = ("images", "reused", "missing", "new", "changed", "unread", "again")
        return {
            "dry_run": True,
            "backbone": self.backbone,
            "cache": self.cache,
            "space": self.spaces[0].id if self.spaces else None,
            "spaces": spaces_as_json(self.spaces),
            **{name: getattr(self, name) for name in counts},
            "failed": self.failed_rows,
            **self.views.summary(),
            "views_split": self.views.split,
            "to_read": self.to_read,
            "engine": self.engine,
            "workers": self.workers,
            "shards": self.shards,
            "misses": [asdict(miss) for miss in self.misses],
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        views = f" x {self.views.count} views ({self.views.augment})" if self.views.count > 1 else ""
        lines = [
            f"dry run, nothing was written: {self.images} images{views}, {self.reused}{self._rows} in the cache, "
            f"{self.failed} failed before"
        ]
        if self.missing:
            where = "these feature spaces" if len(self.spaces) + len(self.absent) > 1 else "this feature space"
            lines.append(f"{self.missing}{self._rows} would be embedded: the cache {self.cache} lacks them in {where}")
            lines += [f"  {miss.line()}" for miss in self.misses]
        if self.to_read:
            reasons = [
                (self.new, "new"),
                (self.changed, "changed by size, time or inode"),
                (self.unread, "not reached by the latest run"),
                (self.again, "to be read again (asked for, or written just before they were listed)"),
            ]
            text = ", ".join(f"{count} {reason}" for count, reason in reasons if count)
            each = f" in up to {self.an_image} rows each" if self.an_image > 1 else ""
            lines.append(f"{self.to_read} would be read, and embedded{each} where their bytes are new: {text}")
        lines += [f"the weights of {name} are not on this machine: they would be downloaded" for name in self.absent]
        if self.shards > 1 or self.engine != "local":
            where = "processes of this machine" if self.engine == "local" else f"workers of {self.engine}"
            lines.append(f"in {self.shards} shards, for {self.workers} {where}")
        if not self.missing and not self.to_read:
            lines.append("nothing would be done")
        return lines


def dry_run(
    store: FeatureStore,
    images: ImageList,
    asked: Sequence[Sequence[SpaceOptions]],
    run_options: RunOptions,
    *,
    rehash: bool = False,
    retry_failed: bool = False,
    views: Views = PLAIN,
    engine: EngineOptions,
) -> DryRun:
    """Find out what `headstart.extract` would do with the same arguments.

    Where a request is new to the cache, its weights are loaded to know the feature space, but never downloaded. A
    cluster is asked how many workers it has.

    Raises
    ------
    BackboneError
        As the run itself would.
    """
    device = None if engine.local else "cpu"
    found = {group[0].backbone: _spaces(store, group, run_options, device) for group in asked}
    spaces = [space for group in found.values() for space in group]
    rules, scanned_ns = failure_rules(run_options.max_pixels), time.time_ns()
    listing = recall_listing(
        store.root, images, rules, scanned_ns=scanned_ns, rehash=rehash, retry_failed=retry_failed,
        spaces=[space.id for space in spaces], views=views,
    )  # fmt: skip
    absent = [name for name, group in found.items() if not group]
    held = [KeyIndex([head.keys for head in store.survey(space.id)[0]]) for space in spaces]
    held += [KeyIndex([])] * sum(len(group) for group in asked if group[0].backbone in absent)
    todo, counts = to_look_at(listing, held, views), views.counts(listing.split)
    known = todo[listing.known[todo]]
    digest = listing.digest[known]
    missing = sum(views.lacking_rows(index, digest, counts[known]) for index in held)
    lacking = [digest[views.lacking(index, digest, np.ones(len(known), np.int64)) > 0] for index in held]
    failed_rows = int(counts[listing.failures.rows].sum())
    counts[listing.failures.rows] = counts[todo[~listing.known[todo]]] = 0
    workers, shards = division(engine, run_options, int(todo.size))
    return DryRun(
        root=listing.root,
        cache=str(store.root),
        backbone=asked[0][0].backbone,
        spaces=spaces,
        absent=absent,
        an_image=len(held) * views.count,
        images=len(listing),
        reused=len(held) * int(counts.sum()) - missing,
        failed=len(listing.failures),
        missing=missing,
        failed_rows=failed_rows,
        views=views,
        engine=engine.engine,
        workers=workers,
        shards=shards,
        misses=[
            miss
            for space, digest in zip(spaces, lacking, strict=False)  # the rest is of absent weights
            for miss in misses(store, space, np.unique(digest, axis=0), [space.id for space in spaces])
        ],
        **_reasons_to_read(store.root, listing, todo[~listing.known[todo]]),
    )


def _spaces(
    store: FeatureStore, asked: Sequence[SpaceOptions], run_options: RunOptions, device: str | None
) -> list[FeatureSpace]:
    known = [recalled(options, store.root) for options in asked]
    if all(known):
        return list({space.id: space for space in known if space is not None}.values())
    if asked[0].weights == "default" and not find(asked[0].backbone).weights_here():
        return []
    return list(resolve(asked, run_options, store.root, write=False, device=device).spaces)


def _reasons_to_read(cache: Place, listing: Listing, rows: np.ndarray) -> dict[str, int]:
    """Count by reason the images whose bytes are not known."""
    previous = load_listing(cache, source_of(listing.source))
    was = np.full(len(rows), -1) if previous is None else previous.paths.find(listing.paths.take(rows))
    there = was >= 0
    same, read = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    if previous is not None and len(previous):
        same = there & (previous.stat[was] == listing.stat[rows]).all(axis=1)
        read = same & previous.known[was]
    counts = {"new": ~there, "changed": there & ~same, "unread": same & ~read, "again": read}
    return {name: int(mask.sum()) for name, mask in counts.items()}
