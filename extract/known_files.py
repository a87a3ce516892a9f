"""Digests of files that need not be read again, wherever they lie: what `plan` is for datasets, for single pictures.

This process remembers what it has read, and the datasets of the cache have listings. Either is believed while a file's
status is the one that was seen, by the rules of `headstart.cache.listing`.
"""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_left

import numpy as np

from ..cache import block
from ..cache.datasets import listing_paths
from ..cache.listing import Listing, carry_over, read_listing, settled
from ..cache.names import Names
from ..cache.place import Place
from ..cache.source import name_bytes, source_of
from ..errors import HeadstartError

logger = logging.getLogger("headstart.extract")

MOST_FILES = 1_000_000  # that are remembered, at about 400 bytes each
STATUS = 32  # bytes of a row of `Listing.stat`

# Path -> status and digest, one behind the other. Every use is one step of the dictionary, so threads need no lock.
_read: dict[bytes, bytes] = {}


def recall_files(cache: Place, listing: Listing) -> None:
    """Fill in the digests of files that have not changed since they were read.

    Parameters
    ----------
    cache : Path or RemotePath
        The cache's folder, whose datasets are asked for files that this process has not read.
    listing : Listing
        Of absolute paths; `digest` is changed.
    """
    status = _rows(listing.stat)
    for row, path in enumerate(listing.paths):
        found = _read.get(path)
        if found is not None and found[:STATUS] == status[row]:
            listing.digest[row] = np.frombuffer(found[STATUS:], np.uint8)
    _recall_datasets(cache, listing)


def remember_files(listing: Listing) -> None:
    """Remember the digests of a listing's files, as far as their status will show an edit."""
    rows = np.flatnonzero(listing.known & settled(listing.stat, listing.scanned_ns))[:MOST_FILES].tolist()
    if len(_read) + len(rows) > MOST_FILES:
        _read.clear()
    status, digest = _rows(listing.stat), _rows(listing.digest)
    _read.update({listing.paths[row]: status[row] + digest[row] for row in rows})


def _rows(table: np.ndarray) -> list[bytes]:
    """Return the bytes of each row."""
    data, width = np.ascontiguousarray(table).tobytes(), table.shape[1] * table.itemsize
    return [data[start : start + width] for start in range(0, len(data), width)]


def _recall_datasets(cache: Place, listing: Listing) -> None:
    asked: set[str] = set()
    for path in listing_paths(cache):
        unknown = listing.paths.take(np.flatnonzero(~listing.known))
        if not unknown:
            return
        if path.parent.name in asked:
            continue
        try:
            folder = _folder_of(path)
            place = bisect_left(unknown, folder)
            if place < len(unknown) and unknown[place].startswith(folder):
                _carry(listing, read_listing(path), folder)
            asked.add(path.parent.name)
        except (OSError, HeadstartError) as error:  # an older one may serve, and files can be read
            logger.debug("%s tells nothing of its files: %s", path, error)


def _folder_of(path: Place) -> bytes:
    """Return the folder that a listing's paths are relative to, with a separator behind it."""
    facts = block.read_header(path).attributes
    try:
        source = source_of(json.loads(str(facts["source"])))
        return os.path.join(name_bytes(source.parent if facts["layout"] == "csv" else source), b"")  # noqa: PTH118
    except (KeyError, TypeError, ValueError) as error:
        raise HeadstartError(f"it does not say of what it is: {error!r}") from error


def _carry(listing: Listing, previous: Listing, folder: bytes) -> None:
    """Take over what a listing of files in that folder knows; that of a CSV may name some by absolute paths."""
    rows = np.flatnonzero(~listing.known)
    names = listing.paths.take(rows)
    below = Names.of(name.removeprefix(folder) for name in names)
    for asked in (below, names) if previous.layout == "csv" else (below,):
        source = carry_over(previous, asked, listing.stat[rows])
        same = np.flatnonzero(source >= 0)
        listing.digest[rows[same]] = previous.digest[source[same]]
