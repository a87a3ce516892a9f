"""What an extraction would do, and why: nothing is embedded and nothing is written."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.datasets import load_listing
from ..cache.index import KeyIndex
from ..cache.listing import Listing
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from .embedder import Embedder
from .explain import Miss, misses
from .images import ImageList
from .options import RunOptions, SpaceOptions
from .plan import failure_rules, recall_listing, to_look_at
from .registry import find


@dataclass(frozen=True, slots=True)
class DryRun:
    """What an extraction would do.

    Attributes
    ----------
    root, cache, backbone : str
    space : FeatureSpace or None
        None where the weights, which are part of it, are not on this machine.
    images, reused, failed : int
        Images listed, served from the cache, and left out because they failed before and have not changed.
    new, changed, unread, again : int
        Images whose bytes would have to be read: that the latest listing does not have; that have another size, time or
        inode than there; that the latest run did not come to read; and that are read again because that was asked for,
        or because they were written so shortly before they were listed that they may have changed since.
    missing : int
        Images whose bytes are known and that would be embedded.
    misses : list of Miss
        Those of `missing` that other spaces hold.
    """

    root: str
    cache: str
    backbone: str
    space: FeatureSpace | None
    images: int
    reused: int
    failed: int
    new: int
    changed: int
    unread: int
    again: int
    missing: int
    misses: list[Miss]

    @property
    def to_read(self) -> int:
        """Images that would be read and hashed; they are embedded only where the cache lacks their bytes."""
        return self.new + self.changed + self.unread + self.again

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``extract --dry-run --json``."""
        counts = ("images", "reused", "failed", "missing", "new", "changed", "unread", "again")
        return {
            "dry_run": True,
            "backbone": self.backbone,
            "cache": self.cache,
            "space": self.space.id if self.space else None,
            **{name: getattr(self, name) for name in counts},
            "to_read": self.to_read,
            "misses": [asdict(miss) for miss in self.misses],
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        lines = [
            f"dry run, nothing was written: {self.images} images, {self.reused} in the cache, "
            f"{self.failed} failed before"
        ]
        if self.missing:
            lines.append(f"{self.missing} would be embedded: the cache {self.cache} lacks them in this feature space")
            lines += [f"  {miss.line()}" for miss in self.misses]
        if self.to_read:
            reasons = [
                (self.new, "new"),
                (self.changed, "changed by size, time or inode"),
                (self.unread, "not reached by the latest run"),
                (self.again, "to be read again (asked for, or written just before they were listed)"),
            ]
            text = ", ".join(f"{count} {reason}" for count, reason in reasons if count)
            lines.append(f"{self.to_read} would be read, and embedded where their bytes are new: {text}")
        if self.space is None:
            lines.append(f"the weights of {self.backbone} are not on this machine: they would be downloaded")
        if not self.missing and not self.to_read:
            lines.append("nothing would be done")
        return lines


def dry_run(
    store: FeatureStore,
    images: ImageList,
    asked: SpaceOptions,
    run_options: RunOptions,
    *,
    rehash: bool = False,
    retry_failed: bool = False,
) -> DryRun:
    """Find out what `headstart.extract` would do with the same arguments.

    Where a request is new to the cache, its weights are loaded to know the feature space, but never downloaded.

    Raises
    ------
    BackboneError
        As the run itself would.
    """
    space = _space(store, asked, run_options)
    rules, scanned_ns = failure_rules(run_options.max_pixels), time.time_ns()
    listing = recall_listing(
        store.root, images, rules, scanned_ns=scanned_ns, rehash=rehash, retry_failed=retry_failed,
        space=space.id if space else "",
    )  # fmt: skip
    index = KeyIndex([head.keys for head in store.survey(space.id)[0]]) if space else KeyIndex([])
    todo = to_look_at(listing, index)
    known = listing.known[todo]
    lacking = np.unique(listing.digest[todo[known]], axis=0)
    return DryRun(
        root=listing.root,
        cache=str(store.root),
        backbone=asked.backbone,
        space=space,
        images=len(listing),
        reused=len(listing) - len(listing.failures) - len(todo),
        failed=len(listing.failures),
        missing=int(known.sum()),
        misses=misses(store, space, lacking) if space else [],
        **_reasons_to_read(store.root, listing, todo[~known]),
    )


def _space(store: FeatureStore, asked: SpaceOptions, run_options: RunOptions) -> FeatureSpace | None:
    known = Embedder.recalled(asked, store.root)
    if known is not None:
        return known
    if asked.weights == "default" and not find(asked.backbone).weights_here():
        return None
    return Embedder.resolve(asked, run_options, store.root, write=False).space


def _reasons_to_read(cache: Path, listing: Listing, rows: np.ndarray) -> dict[str, int]:
    """Count by reason the images whose bytes are not known."""
    previous = load_listing(cache, Path(listing.source))
    places = {} if previous is None else {name: row for row, name in enumerate(previous.paths)}
    was = np.array([places.get(listing.paths[row], -1) for row in rows], np.int64)
    there = was >= 0
    same, read = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    if previous is not None and len(previous):
        same = there & (previous.stat[was] == listing.stat[rows]).all(axis=1)
        read = same & previous.known[was]
    counts = {"new": ~there, "changed": there & ~same, "unread": same & ~read, "again": read}
    return {name: int(mask.sum()) for name, mask in counts.items()}
