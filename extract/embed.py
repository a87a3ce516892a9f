"""Embed the images of a listing that the cache lacks, and say why they were not in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..cache.index import KeyIndex
from ..cache.listing import NEVER, Listing
from ..cache.part import Keys
from ..cache.running import running
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from .embedder import Embedder
from .explain import explain_misses, joined, warn_of_versions
from .plan import known_hashes, share_hashes, to_look_at
from .progress import progress_bar
from .resolve import library_versions
from .runner import Hooks, Outcome, Work
from .scale import embed_in_processes, processes_for
from .work import embed_work

logger = logging.getLogger("headstart.extract")

LONG_SECONDS = 5  # runs with less than this left get no estimate


def embed_listing(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    listing: Listing,
    base: bytes,
    stopped: Callable[[], bool] = lambda: False,
    record: Callable[[Listing], None] = lambda _: None,
    *,
    hashed: bool = False,
) -> tuple[Listing, Outcome]:
    """Embed the images of a listing that the cache lacks in any of some feature spaces.

    Parameters
    ----------
    store : FeatureStore
    embedders : sequence of Embedder
        One a network, at least one; each image is decoded once for all of them.
    listing : Listing
        With what is already known of the images' bytes.
    base : bytes
        The folder that its paths are relative to.
    stopped : callable
        Asked before each image.
    record : callable
        Given the result while the run is still announced in the cache: its rows are spared by a prune until then.
    hashed : bool, default False
        Find out the perceptual hash of each image that is looked at: one that is read only for its digest is decoded
        for its hash too, unless the dataset's latest listing knows that. Images that have not changed and have all
        their rows are not looked at.

    Returns
    -------
    listing : Listing
        With digests and failures filled in, and the spaces recorded.
    outcome : Outcome
        What was done.
    """
    spaces = [space for embedder in embedders for space in embedder.spaces]
    request = {**listing.request, **embedders[0].asked[0].request()}
    listing = replace(listing, spaces=tuple(space.id for space in spaces), request=request)
    # Announced before it is looked at what is there: from then on nothing that the run may count on is pruned.
    with running(store.root) as descriptor:
        held = {space.id: store.index(space.id)[0] for space in spaces}
        todo = to_look_at(listing, list(held.values()))
        if not todo.size:
            record(listing)
            return listing, replace(Outcome.empty(0), embedded=dict.fromkeys(held, 0))
        versions = library_versions()
        for space in spaces:
            store.prepare(space, versions)
        unknown = todo[~listing.known[todo]]
        known = np.setdiff1d(todo, unknown)
        explained = [explain_misses(store, space, _lacking(listing, known, held[space.id]), held) for space in spaces]
        logger.info("looking at %d of %d images", todo.size, len(listing))
        work = Work(listing.paths, listing.stat, todo, base)
        if hashed:
            work = replace(work, hashes=known_hashes(store.root, listing))
        with progress_bar(int(todo.size), "embedding") as progress:
            hooks = Hooks(stopped, progress, _Estimate(int(todo.size), spaces))
            count = processes_for(embedders[0].run, embedders, int(todo.size))
            if count > 1:
                outcome = embed_in_processes(store, embedders, work, count, hooks)
            else:
                outcome = embed_work(store, embedders, held, work, descriptor, hooks)
        read = np.asarray(outcome.digest.any(axis=1))
        listing.digest[read] = outcome.digest[read]
        listing.phash[read] = outcome.phash[read]
        share_hashes(listing)
        listing.stat[outcome.replaced] = NEVER  # other files than were listed: they are read again next time
        listing.failures.update(outcome.failures)
        record(listing)
    embedded = todo[listing.usable[todo]]
    for space, before in zip(spaces, explained, strict=True):
        lacked = _lacking(listing, embedded, held[space.id])
        outcome.embedded[space.id] = _distinct(lacked)
        if len(lacked):
            warn_of_versions(store, space)
        outcome.misses += joined(before, explain_misses(store, space, _lacking(listing, unknown, held[space.id]), held))
    return listing, outcome


def _distinct(digest: np.ndarray) -> int:
    """Count different digests."""
    return len(np.unique(np.ascontiguousarray(digest).view("V32")))


def _lacking(listing: Listing, rows: np.ndarray, index: KeyIndex) -> np.ndarray:
    """Return the digests of those images that were read and were not in the cache, (n, 32) uint8."""
    digest: np.ndarray = listing.digest[rows[listing.known[rows]]]
    return np.asarray(digest[index.find(Keys.plain(digest)) < 0])


@dataclass(frozen=True, slots=True)
class _Estimate:
    """Says what the rest of a run will cost, once a few batches have been timed."""

    images: int
    spaces: Sequence[FeatureSpace]

    def __call__(self, rate: float, done: int) -> None:
        left = self.images - done
        if left < LONG_SECONDS * rate:
            return
        megabytes = self.images * sum(space.row_bytes for space in self.spaces) / 1e6
        logger.info(
            "about %s left at %.0f images/s; at most %.1f MB in the cache", _duration(left / rate), rate, megabytes
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
