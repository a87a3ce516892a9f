"""Embed the images of a listing that the cache lacks, and say why they were not in it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..cache.index import KeyIndex
from ..cache.listing import NEVER, Listing
from ..cache.part import Keys
from ..cache.running import running
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from .access import in_order_of_bytes
from .embedder import Embedder
from .engines.choice import engine_for
from .engines.shards import embed_in_shards
from .explain import explain_misses, joined, warn_of_versions
from .options import EngineOptions
from .plan import known_hashes, share_hashes, to_look_at
from .progress import progress_bar
from .recent import RecentRows
from .resolve import library_versions
from .runner import Hooks, Outcome, Steps, Work, result_of
from .views import PLAIN, Views
from .work import embed_in_steps

logger = logging.getLogger("headstart.extract")

STEP_SECONDS = 0.1  # between two steps: of each there is some work
LONG_SECONDS = 5  # runs with less than this left get no estimate
HERE = EngineOptions()


def embed_listing(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    listing: Listing,
    base: bytes,
    stopped: Callable[[], bool] = lambda: False,
    record: Callable[[Listing], None] = lambda _: None,
    *,
    hashed: bool = False,
    views: Views = PLAIN,
    engine: EngineOptions = HERE,
) -> tuple[Listing, Outcome]:
    """Embed the images of a listing that the cache lacks in any of some feature spaces; see `embed_stepwise`."""
    steps = embed_stepwise(
        store, embedders, listing, base, stopped, record, hashed=hashed, views=views, engine=engine
    )  # fmt: skip
    return result_of(steps)


def embed_stepwise(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    listing: Listing,
    base: bytes,
    stopped: Callable[[], bool] = lambda: False,
    record: Callable[[Listing], None] = lambda _: None,
    *,
    hashed: bool = False,
    recent: RecentRows | None = None,
    views: Views = PLAIN,
    engine: EngineOptions = HERE,
) -> Generator[int, None, tuple[Listing, Outcome]]:
    """Embed the images of a listing that the cache lacks in any of some feature spaces, and say how far it has come.

    It is one run however slowly its steps are taken: threads read ahead a bounded number of images and wait. Closed
    before its end, it keeps what was embedded.

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
    recent : RecentRows, optional
        Takes the rows that are computed, so that they need not be read back.
    views : Views, default `PLAIN`
        Which views of each image are embedded.
    engine : EngineOptions, default this machine
        Where that is done.

    Yields
    ------
    int
        How many images of the listing are through, from its beginning: their digests and failures are filled in, in
        `listing` itself, and their rows are in the cache or in `recent`. There are ten steps a second at most. The last
        says all, unless the run was stopped. Where several processes share the work, it is the only one.

    Returns
    -------
    listing : Listing
        With digests and failures filled in, and the spaces recorded.
    outcome : Outcome
        What was done.
    """
    spaces = [space for embedder in embedders for space in embedder.spaces]
    request = {**listing.request, **embedders[0].asked[0].request(), **views.request()}
    listing = replace(listing, spaces=tuple(space.id for space in spaces), request=request)
    # Announced before it is looked at what is there: from then on nothing that the run may count on is pruned.
    with running(store.root) as descriptor:
        held = {space.id: store.index(space.id)[0] for space in spaces}
        todo = to_look_at(listing, list(held.values()), views)
        if not todo.size:
            record(listing)
            yield len(listing)
            return listing, replace(Outcome.empty(0), embedded=dict.fromkeys(held, 0), processes=0, shards=0)
        versions = library_versions()
        for space in spaces:
            store.prepare(space, versions)
        unknown = todo[~listing.known[todo]]
        known = np.setdiff1d(todo, unknown)
        explained = [explain_misses(store, space, _lacking(listing, known, held[space.id]), held) for space in spaces]
        logger.info("looking at %d of %d images", todo.size, len(listing))
        counts = views.counts(listing.split)
        todo = in_order_of_bytes(listing.paths, listing.stat, todo)
        work = Work(listing.paths, listing.stat, todo, base, views=views, counts=counts)
        # Whoever takes rows as they come would wait for the end where readers are added for speed alone.
        chosen = engine_for(engine, embedders, int(todo.size), at_once=recent is not None)
        with chosen as several, progress_bar(int(todo.size), "embedding") as progress:
            hooks = Hooks(stopped, progress, _Estimate(int(todo.size), work.rows, spaces))
            if several is not None:
                outcome = embed_in_shards(
                    store, embedders, work, several, hooks, shard_images=engine.shard_images,
                    hashes_of=listing.source if hashed else None,
                )  # fmt: skip
            else:
                if hashed:
                    work = replace(work, hashes=known_hashes(store.root, listing))
                hooks = replace(hooks, on_rows=recent.add) if recent else hooks
                outcome = yield from _through(listing, embed_in_steps(store, embedders, held, work, descriptor, hooks))
        _take_in(listing, outcome, 0, len(listing))
        share_hashes(listing)
        listing.stat[outcome.replaced] = NEVER  # other files than were listed: they are read again next time
        record(listing)
        if not outcome.interrupted:
            yield len(listing)
    embedded = todo[listing.usable[todo]]
    for space, before in zip(spaces, explained, strict=True):
        outcome.embedded[space.id] = views.lacking_rows(held[space.id], listing.digest[embedded], counts[embedded])
        if outcome.embedded[space.id]:
            warn_of_versions(store, space)
        outcome.misses += joined(before, explain_misses(store, space, _lacking(listing, unknown, held[space.id]), held))
    return listing, outcome


def _through(listing: Listing, steps: Steps) -> Generator[int, None, Outcome]:
    """Fill in what became of the images as far as that is settled, and say so now and then, and at the end."""
    through = settled = 0
    due = 0.0
    with contextlib.closing(steps):
        while True:
            try:
                settled, outcome = next(steps)
                ended = False
            except StopIteration as end:
                outcome, ended = end.value, True
            if settled > through and (ended or time.monotonic() >= due):
                _take_in(listing, outcome, through, settled)
                through = settled
                yield through
                due = time.monotonic() + STEP_SECONDS
            if ended:
                return outcome


def _take_in(listing: Listing, outcome: Outcome, first: int, last: int) -> None:
    """Fill in what a run has found out of the images from `first` to `last`, the latter excluded."""
    read = first + np.flatnonzero(outcome.digest[first:last].any(axis=1))
    listing.digest[read] = outcome.digest[read]
    listing.phash[read] = outcome.phash[read]
    failures = outcome.failures
    listing.failures.add(failures.select((failures.rows >= first) & (failures.rows < last)))


def _lacking(listing: Listing, rows: np.ndarray, index: KeyIndex) -> np.ndarray:
    """Return the digests of those images that were read and whose view 0 was not in the cache, (n, 32) uint8."""
    digest: np.ndarray = listing.digest[rows[listing.known[rows]]]
    return np.asarray(digest[index.find(Keys.plain(digest)) < 0])


@dataclass(frozen=True, slots=True)
class _Estimate:
    """Says what the rest of a run will cost, once a few batches have been timed."""

    images: int
    rows: int
    spaces: Sequence[FeatureSpace]

    def __call__(self, rate: float, done: int) -> None:
        left = self.images - done
        if left < LONG_SECONDS * rate:
            return
        megabytes = self.rows * sum(space.row_bytes for space in self.spaces) / 1e6
        logger.info(
            "about %s left at %.0f images/s; at most %.1f MB in the cache", _duration(left / rate), rate, megabytes
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
