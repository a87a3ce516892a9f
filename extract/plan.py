"""What a run need not do: files that have not changed, images that are in the cache, failures that would fail again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..cache.datasets import load_listing
from ..cache.failures import Failures
from ..cache.index import KeyIndex
from ..cache.listing import Listing, carry_over
from ..cache.place import Place
from ..cache.source import name_bytes, source_of
from .decode import DECODER_RULES, versions
from .images import ImageList
from .phash import KnownHashes
from .views import PLAIN, Views

AT_ONCE = 1 << 20  # images that are looked up together, at some hundred bytes each
# How the reason begins why an image has no row although it was decoded.
NOT_FINITE = "its embedding is not finite"


def failure_rules(max_pixels: int) -> str:
    """Return what decides whether an image fails: while it stays the same, trying again is in vain."""
    heif = "yes" if "pillow-heif" in versions() else "no"
    return f"decoder {DECODER_RULES}, max-pixels {max_pixels}, heif {heif}"


def limited(images: ImageList, limit: int | None) -> ImageList:
    """Return at most `limit` images, evenly spread over the listing so that every large class is among them."""
    if limit is None or limit >= len(images.paths):
        return images
    rows = np.linspace(0, len(images.paths) - 1, limit).round().astype(np.int64)
    return replace(
        images,
        paths=images.paths.take(rows),
        label=images.label[rows],
        split=images.split[rows],
        stat=images.stat[rows],
        tags=images.tags and images.tags.take(rows),
        unreadable=images.unreadable.take(rows),
    )


def recall_listing(
    cache: Place,
    images: ImageList,
    rules: str,
    *,
    scanned_ns: int,
    rehash: bool = False,
    retry_failed: bool = False,
    spaces: Sequence[str] = (),
    views: Views = PLAIN,
) -> Listing:
    """Return the listing of `images` with what the dataset's latest listing already knows of their bytes.

    Parameters
    ----------
    cache : Path or RemotePath
        The cache's folder.
    images : ImageList
        The dataset as it is now.
    rules : str
        `failure_rules` of this run.
    scanned_ns : int
        When the files were looked at, nanoseconds since 1970.
    rehash : bool, default False
        Believe nothing: every file is read again.
    retry_failed : bool, default False
        Forget failures.
    spaces : sequence of str
        Ids of the feature spaces of this run: an embedding that could not be kept in others may be good in them.
    views : Views, default `PLAIN`
        Those of this run: the same holds for embeddings of other views.

    Returns
    -------
    Listing
        Digest zero and no failure where an image must be read; the failures that listing alone shows.
    """
    listing = unread_listing(images, rules, scanned_ns)
    previous = None if rehash else load_listing(cache, images.root)
    if previous is not None:
        _carry(listing, previous, _standing(previous, rules, spaces, views) if not retry_failed else Failures())
    return listing


def unread_listing(images: ImageList, rules: str, scanned_ns: int = 0) -> Listing:
    """Return a listing of `images` none of which has been read."""
    return Listing(
        root=str(images.root),
        source=str(images.root.resolve()),
        layout=images.layout,
        classes=images.classes,
        paths=images.paths,
        label=images.label,
        split=images.split,
        stat=images.stat,
        digest=np.zeros((len(images.paths), 32), np.uint8),
        failures=Failures(images.unreadable),
        rules=rules,
        scanned_ns=scanned_ns,
        tags=images.tags,
    )


def _standing(previous: Listing, rules: str, spaces: Sequence[str], views: Views) -> Failures:
    """Return the failures that would happen again: of decoding, not of reading, for the disk may be there now."""
    if previous.rules != rules:
        return Failures()
    same_rows = previous.spaces == tuple(spaces) and Views.of_request(previous.request) == views
    failures = previous.failures
    stands = np.array([same_rows or not why.startswith(NOT_FINITE) for why in failures.reasons], bool)
    return failures.select(previous.known[failures.rows] & stands[failures.why])


def _carry(listing: Listing, previous: Listing, failures: Failures) -> None:
    source = carry_over(previous, listing.paths, listing.stat)
    same = np.flatnonzero(source >= 0)
    listing.digest[same] = previous.digest[source[same]]
    listing.phash[same] = previous.phash[source[same]]
    if failures:
        again = failures.take(source)
        again.add(listing.failures)  # of a file that cannot be read now, that is what counts
        listing.failures.add(again)


def known_hashes(cache: Place, listing: Listing) -> KnownHashes:
    """Return the perceptual hashes that the latest listing of the same dataset knows, by the pictures' digests."""
    previous = load_listing(cache, source_of(listing.source)) or listing
    return KnownHashes.of(previous.digest, previous.phash)


def share_hashes(listing: Listing) -> None:
    """Give pictures whose perceptual hash is not known that of a copy, byte for byte, whose hash is."""
    lacking = np.flatnonzero((listing.phash == 0) & listing.known)
    if lacking.size:
        listing.phash[lacking] = KnownHashes.of(listing.digest, listing.phash).find(listing.digest[lacking])


def to_look_at(listing: Listing, held: Sequence[KeyIndex], views: Views = PLAIN) -> np.ndarray:
    """Return the images to be read: not failed, and with unknown bytes or a view that a space lacks; (n,) int64."""
    wanted = np.ones(len(listing), bool)
    wanted[listing.failures.rows] = False
    known = np.flatnonzero(wanted & listing.known)
    for start in range(0, len(known), AT_ONCE):
        rows = known[start : start + AT_ONCE]
        digest, counts = listing.digest[rows], views.counts(listing.split[rows])
        wanted[rows] = np.logical_or.reduce([views.lacking(index, digest, counts) > 0 for index in held])
    return np.flatnonzero(wanted)


def base_folder(images: ImageList) -> bytes:
    """Return the folder that the paths are relative to, resolved, as the file system has it, or a URL."""
    return name_bytes(images.base.resolve())
