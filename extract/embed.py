"""Embed the images of a listing that the cache lacks, and say why they were not in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..cache.index import KeyIndex
from ..cache.listing import NEVER, Listing
from ..cache.part import Keys
from ..cache.running import running
from ..cache.store import FeatureStore
from .embedder import Embedder, library_versions
from .explain import explain_misses, joined, warn_of_versions
from .plan import to_look_at
from .progress import progress_bar
from .runner import ESTIMATE_AFTER, Outcome, run
from .suspects import Watch

logger = logging.getLogger("headstart.extract")

LONG_SECONDS = 5  # runs with less than this left get no estimate


def embed_listing(
    store: FeatureStore,
    embedder: Embedder,
    listing: Listing,
    base: bytes,
    stopped: Callable[[], bool] = lambda: False,
    record: Callable[[Listing], None] = lambda _: None,
) -> tuple[Listing, Outcome]:
    """Embed the images of a listing that the cache lacks.

    Parameters
    ----------
    store : FeatureStore
    embedder : Embedder
    listing : Listing
        With what is already known of the images' bytes.
    base : bytes
        The folder that its paths are relative to.
    stopped : callable
        Asked between batches.
    record : callable
        Given the result while the run is still announced in the cache: its rows are spared by a prune until then.

    Returns
    -------
    listing : Listing
        With digests and failures filled in, and the space recorded.
    outcome : Outcome
        What was done.
    """
    request = {**listing.request, **embedder.options.request()}
    listing = replace(listing, spaces=(embedder.space.id,), request=request)
    # Announced before it is looked at what is there: from then on nothing that the run may count on is pruned.
    with running(store.root) as descriptor:
        index, _ = store.index(embedder.space.id)
        todo = to_look_at(listing, index)
        if not todo.size:
            record(listing)
            return listing, Outcome(np.zeros((0, 32), np.uint8))
        store.prepare(embedder.space, library_versions())
        unknown = todo[~listing.known[todo]]
        explained = explain_misses(store, embedder.space, listing.digest[np.setdiff1d(todo, unknown)])
        logger.info("looking at %d of %d images", todo.size, len(listing))
        with (
            store.writer(embedder.space, expected=int(todo.size)) as writer,
            Watch(store.root, descriptor) as watch,
            progress_bar(int(todo.size), "embedding") as progress,
        ):
            outcome = run(
                listing.paths, listing.stat, todo, base, embedder, index, writer,
                watch=watch, stopped=stopped, progress=progress, on_rate=_Estimate(int(todo.size), embedder),
            )  # fmt: skip
        read = np.asarray(outcome.digest.any(axis=1))
        listing.digest[read] = outcome.digest[read]
        listing.stat[outcome.replaced] = NEVER  # other files than were listed: they are read again next time
        listing.failures.update(outcome.failures)
        record(listing)
    if outcome.embedded:
        warn_of_versions(store, embedder.space)
    outcome.misses = joined(explained, explain_misses(store, embedder.space, _lacking(listing, unknown, index)))
    return listing, outcome


def _lacking(listing: Listing, rows: np.ndarray, index: KeyIndex) -> np.ndarray:
    """Return the digests of those images that were read and were not in the cache, (n, 32) uint8."""
    digest: np.ndarray = listing.digest[rows[listing.known[rows]]]
    return np.asarray(digest[index.find(Keys.plain(digest)) < 0])


@dataclass(frozen=True, slots=True)
class _Estimate:
    """Says what the rest of a run will cost, once a few batches have been timed."""

    images: int
    embedder: Embedder

    def __call__(self, rate: float) -> None:
        left = self.images - (1 + ESTIMATE_AFTER) * self.embedder.batch_size
        if left < LONG_SECONDS * rate:
            return
        megabytes = self.images * self.embedder.space.row_bytes / 1e6
        logger.info(
            "about %s left at %.0f images/s; at most %.1f MB in the cache", _duration(left / rate), rate, megabytes
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
