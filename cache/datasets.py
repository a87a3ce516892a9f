"""Which listing of which dataset: the latest, the earlier ones, and those that no reader would take any more."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial as partial_call

import numpy as np

from ..errors import CacheMissError, DamagedFileError, HeadstartError, printable
from . import block
from .listing import Listing, dataset_id, is_listing, read_listing
from .names import Names
from .place import Place
from .reading import gone_or_unreadable, read_error, repeated
from .source import Source
from .storage import files, folders

logger = logging.getLogger("headstart.cache")

# Listings that do not know all bytes and are kept for those that do, where none does.
KEPT_PARTIAL = 5


def listing_paths(cache: Place, dataset: str | None = None) -> list[Place]:
    """Return the listings of a dataset, given by its id, or of all datasets: the latest first.

    Raises
    ------
    CacheError
        A folder of listings cannot be read.
    """
    names = [dataset] if dataset else folders(cache / "datasets")
    paths = [path for name in names for path in files(cache / "datasets" / name, ".h5") if is_listing(path)]
    return sorted(paths, key=lambda path: path.name, reverse=True)


def load_listing(cache: Place, root: Source | None = None) -> Listing | None:
    """Return the latest listing of a dataset, or of any dataset, that can be read.

    Parameters
    ----------
    cache : Path or RemotePath
        The cache's folder; it need not exist.
    root : Path or Url, optional
        The dataset. Without it the dataset of the latest run is taken.

    Returns
    -------
    Listing or None
        None where there is none. A damaged listing is passed over with a warning: the one before it serves, for what it
        says of a file counts only where the file's status is still the same.
    """
    return next(load_listings(cache, root), None)


def load_listings(cache: Place, root: Source | None = None) -> Iterator[Listing]:
    """Yield the listings of a dataset, or of all, the latest first; damaged ones are passed over with a warning."""
    for path in listing_paths(cache, dataset_id(root) if root else None):
        try:
            yield read_listing(path)
        except FileNotFoundError:
            logger.debug("%s went away while the cache was read", path)
        except DamagedFileError as error:
            logger.warning("%s; passed over", error)
        except OSError as error:
            raise read_error(error, path) from error


def load_named(cache: Place, dataset: str) -> Iterator[str]:
    """Yield the root of a dataset, given by its id, as each of its listings names it; the latest first."""
    for path in listing_paths(cache, dataset):
        with contextlib.suppress(OSError, HeadstartError):  # whoever needs the rest of it says so
            yield read_listing(path).root


def latest_listing(cache: Place, root: Source | None = None) -> Listing | None:
    """Return the latest listing, for readers that believe it without looking at the files; None where there is none.

    Raises
    ------
    DamagedFileError
        It is damaged. The one before it might tell of yesterday's pictures, so it is not taken in silence.
    """
    return repeated(cache, partial_call(_latest, cache, root))


def _latest(cache: Place, root: Source | None) -> Listing | None:
    for path in listing_paths(cache, dataset_id(root) if root else None):
        try:
            return read_listing(path)
        except DamagedFileError as error:
            again = f"headstart extract {root or _root_of_any(path.parent) or 'DATA'}"
            raise DamagedFileError(
                f"{error}; run `{printable(again)}` to list the images anew, or `headstart cache verify` to set the "
                "file aside and go back to the listing before it"
            ) from error
        except OSError as error:
            raise gone_or_unreadable(error, path) from error
    return None


def require_listing(cache: Place, root: Source | None = None) -> Listing:
    """Return the latest listing, as `latest_listing` does.

    Raises
    ------
    CacheMissError
        There is none.
    """
    listing = latest_listing(cache, root)
    if listing is None:
        wanted = f"holds nothing of {root}" if root else "holds no dataset"
        command = f"headstart extract {root}" if root else "headstart extract DATA"
        raise CacheMissError(f"the cache {cache} {wanted}; run `{command}` first")
    return listing


def _root_of_any(folder: Place) -> str | None:
    """Return the root that some listing in a dataset's folder names."""
    for path in reversed(files(folder, ".h5")):
        try:
            return str(json.loads(block.read_header(path).attributes["root"]))
        except (OSError, HeadstartError, KeyError):
            continue
    return None


def digests_in_use(listings: Iterable[Listing]) -> np.ndarray:
    """Return the digests of a dataset's images, (n, 32) uint8.

    Parameters
    ----------
    listings : iterable of Listing
        Of one dataset, the latest first; taken only as far as needed. An image whose bytes the latest one does not
        know, because a run was interrupted or a disk was not there, has those that an earlier one knows for its path;
        and where the latest was limited, all that the earlier ones have count.
    """
    found: list[np.ndarray] = []
    unknown: Names | None = None
    for listing in listings:
        known = listing.known
        rows = np.flatnonzero(known)
        if unknown is not None:
            rows = rows[unknown.find(listing.paths.take(rows)) >= 0]
        found.append(listing.digest[rows])
        if listing.request.get("limit"):
            continue
        if unknown is None:
            unknown = listing.paths.take(np.flatnonzero(~known))
        else:
            unknown = unknown.take(np.flatnonzero(listing.paths.take(rows).find(unknown) < 0))
        if not unknown:
            break
    return np.concatenate(found) if found else np.zeros((0, 32), np.uint8)


def all_digests_in_use(cache: Place) -> np.ndarray:
    """Return the digests of the images of all datasets, (n, 32) uint8.

    Raises
    ------
    DamagedFileError, CacheFormatError, CacheError
        A listing that counts cannot be read.
    """
    found = [np.zeros((0, 32), np.uint8)]
    for dataset in folders(cache / "datasets"):
        found.append(repeated(cache, partial_call(_digests_of, cache, dataset)))
    return np.concatenate(found)


def _digests_of(cache: Place, dataset: str) -> np.ndarray:
    return digests_in_use(_still_there(listing_paths(cache, dataset)))


def _still_there(paths: list[Place]) -> Iterator[Listing]:
    for path in paths:
        try:
            yield read_listing(path)
        except HeadstartError:
            raise
        except OSError as error:  # where it has gone, a newer one has come: all are to be listed again
            raise gone_or_unreadable(error, path) from error


def superfluous_listings(cache: Place) -> list[Place]:
    """Return the listings that no reader takes any more: a later one of the dataset asked for the same spaces."""
    seen: set[tuple[str, str]] = set()
    partial: Counter[tuple[str, str]] = Counter()
    superfluous = []
    for path in listing_paths(cache):
        try:
            facts = block.read_header(path).attributes
        except (FileNotFoundError, HeadstartError) as error:
            logger.debug("%s is left alone: %s", path, error)  # `headstart cache verify` is for damaged files
            continue
        asked = (path.parent.name, str(facts.get("spaces")))
        incomplete = bool(facts.get("partial"))
        if asked in seen or (incomplete and partial[asked] >= KEPT_PARTIAL):
            superfluous.append(path)
        partial[asked] += incomplete
        if not incomplete:  # one that does not know all stands for none before it
            seen.add(asked)
    return superfluous
