"""Which listing of which dataset: the latest, the earlier ones, and those that no reader would take any more."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from ..errors import CacheMissError, DamagedFileError, HeadstartError, printable
from . import block
from .listing import Listing, dataset_id, read_listing
from .reading import read_error

logger = logging.getLogger("headstart.cache")


def listing_paths(cache: Path, dataset: str | None = None) -> list[Path]:
    """Return the listings of a dataset, given by its id, or of all datasets: the latest first."""
    paths = cache.glob(f"datasets/{dataset or '*'}/*.h5")
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.name, reverse=True)


def load_listing(cache: Path, root: Path | None = None) -> Listing | None:
    """Return the latest listing of a dataset, or of any dataset, that can be read.

    Parameters
    ----------
    cache : Path
        The cache's folder; it need not exist.
    root : Path, optional
        The dataset. Without it the dataset of the latest run is taken.

    Returns
    -------
    Listing or None
        None where there is none. A damaged listing is passed over with a warning: the one before it serves, for what it
        says of a file counts only where the file's status is still the same.
    """
    return next(load_listings(cache, root), None)


def load_listings(cache: Path, root: Path | None = None) -> Iterator[Listing]:
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


def latest_listing(cache: Path, root: Path | None = None) -> Listing | None:
    """Return the latest listing, for readers that believe it without looking at the files; None where there is none.

    Raises
    ------
    DamagedFileError
        It is damaged. The one before it might tell of yesterday's pictures, so it is not taken in silence.
    """
    for path in listing_paths(cache, dataset_id(root) if root else None):
        try:
            return read_listing(path)
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            again = f"headstart extract {root or _root_of_any(path.parent) or 'DATA'}"
            raise DamagedFileError(
                f"{error}; run `{printable(again)}` to list the images anew, or `headstart cache verify` to set the "
                "file aside and go back to the listing before it"
            ) from error
        except OSError as error:
            raise read_error(error, path) from error
    return None


def require_listing(cache: Path, root: Path | None = None) -> Listing:
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


def _root_of_any(folder: Path) -> str | None:
    """Return the root that some listing in a dataset's folder names."""
    for path in sorted(folder.glob("*.h5"), reverse=True):
        try:
            return str(json.loads(block.read_header(path).attributes["root"]))
        except (OSError, HeadstartError, KeyError):
            continue
    return None


def latest_listings(cache: Path) -> list[Listing]:
    """Return the latest listing of each dataset.

    Raises
    ------
    DamagedFileError, CacheFormatError
        One of them cannot be read.
    """
    latest: dict[str, Path] = {}
    for path in listing_paths(cache):
        latest.setdefault(path.parent.name, path)
    return [read_listing(path) for path in latest.values()]


def superfluous_listings(cache: Path) -> list[Path]:
    """Return the listings that no reader takes any more: a later one of the dataset asked for the same spaces."""
    seen: set[tuple[str, str]] = set()
    superfluous = []
    for path in listing_paths(cache):
        try:
            asked = (path.parent.name, str(block.read_header(path).attributes.get("spaces")))
        except (FileNotFoundError, HeadstartError) as error:
            logger.debug("%s is left alone: %s", path, error)  # `headstart cache verify` is for damaged files
            continue
        if asked in seen:
            superfluous.append(path)
        seen.add(asked)
    return superfluous
