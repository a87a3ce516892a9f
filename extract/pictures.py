"""Pictures that are given one by one, as files, as Pillow's or as arrays: embedded through the cache.

A picture that is in memory has no file whose bytes could be its key. Its pixels are put into a BMP, which leaves them
as they are, and that file's digest is the key: all that holds for files holds for it. It is written to the disk, for a
moment, only where the cache lacks the picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.listing import Listing
from ..cache.names import Names
from ..cache.remote import is_url
from ..cache.store import FeatureStore
from ..errors import CacheError, DecodeError, UsageError, printable
from .access import all_examined_anywhere
from .decode import as_bmp, pixels_of
from .embed import embed_listing
from .embedder import Embedder
from .files import os_reason
from .known_files import recall_files, remember_files
from .plan import failure_rules

SPOOLED_BYTES = 256_000_000  # of pictures in memory that are on the disk at once
WANTED = "paths, Pillow's images or uint8 arrays of shape (height, width, 3)"


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of n pictures.

    Attributes
    ----------
    digest : ndarray of shape (n, 32), dtype uint8
        By which a picture's row is found in the cache; zeros where it was not read.
    failures : dict of int to str
        Why a picture could not be used, by its place.
    """

    digest: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def usable(self) -> np.ndarray:
        """The places of pictures that have a row, int64."""
        return np.setdiff1d(np.arange(len(self.digest)), list(self.failures))


def as_pictures(X: Any) -> list[Any]:
    """Return the pictures of what scikit-learn passes on: a sequence, an array, a column of a table.

    Raises
    ------
    UsageError
        It is one picture, or a table of several columns.
    """
    if isinstance(X, str | bytes | os.PathLike) or _is_image(X):
        raise UsageError(f"X must be a sequence of {WANTED}, and is one picture: {_shown(X)}; put it into a list")
    values = X.to_numpy() if hasattr(X, "to_numpy") else X  # a table's or a column's own order, whatever its index
    if isinstance(values, np.ndarray) and values.ndim != 1 and not (values.ndim == 4 and values.dtype == np.uint8):
        if values.ndim != 2 or values.shape[1] != 1 or values.dtype.kind not in "OUS":
            raise UsageError(
                f"X must be a sequence of {WANTED}, and is an array of {values.dtype} of shape {values.shape}"
            )
        values = values[:, 0]
    try:
        return list(values)
    except TypeError as error:
        raise UsageError(f"X must be a sequence of {WANTED}, and is {_shown(X)}") from error


def name_of(picture: Any, place: int) -> str:
    """Return what a message calls a picture."""
    if isinstance(picture, str | bytes | os.PathLike):
        return printable(picture)
    file = getattr(picture, "filename", None)  # Pillow's images remember it
    return f"X[{place}]" + (f" ({printable(file)})" if isinstance(file, str | bytes) and file else "")


def embed_pictures(store: FeatureStore, embedder: Embedder, pictures: Sequence[Any]) -> Embedded:
    """Embed the pictures that the cache lacks.

    Parameters
    ----------
    store : FeatureStore
    embedder : Embedder
        Of one feature space.
    pictures : sequence
        n of them, each a path (str, bytes or a path object), an image of Pillow's, or an array of shape (height, width,
        3) or, for grey ones, (height, width), dtype uint8.

    Raises
    ------
    UsageError
        Something else is among them.
    CacheError
        The cache, or the folder of temporary files, cannot be written.
    """
    files = [place for place, one in enumerate(pictures) if isinstance(one, str | bytes | os.PathLike)]
    result = Embedded(np.zeros((len(pictures), 32), np.uint8))
    for place in sorted(set(range(len(pictures))) - set(files)):
        _check(pictures[place], place)  # before the first is embedded
    found = embed_files(store, embedder, [_path(pictures[place]) for place in files])
    result.digest[files] = found.digest
    result.failures.update({files[place]: reason for place, reason in found.failures.items()})
    if len(files) < len(pictures):
        _Spool(store, embedder, result).embed(pictures, sorted(set(range(len(pictures))) - set(files)))
    return result


def embed_files(store: FeatureStore, embedder: Embedder, names: Sequence[bytes]) -> Embedded:
    """Embed the pictures that the cache lacks; `names` are absolute, in any order, and may repeat."""
    if not names:
        return Embedded(np.zeros((0, 32), np.uint8))
    listing = _listing(Names.of(sorted(set(names))), failure_rules(embedder.run.max_pixels))
    recall_files(store.root, listing)
    listing, _ = embed_listing(store, [embedder], listing, b"")
    remember_files(listing)
    rows = listing.paths.find(Names.of(names))
    return Embedded(listing.digest[rows], dict(listing.failures.take(rows)))


def _listing(paths: Names, rules: str) -> Listing:
    """Return a listing of files as they are now, none of which has been read; nothing of it is ever saved."""
    scanned_ns = time.time_ns()
    stats, reasons = all_examined_anywhere(b"", paths)
    return Listing(
        root="", source="", layout="flat", classes=(), paths=paths,
        label=np.full(len(paths), -1, np.int32),
        split=np.zeros(len(paths), np.uint8),
        stat=stats,
        digest=np.zeros((len(paths), 32), np.uint8),
        failures=reasons,
        rules=rules, scanned_ns=scanned_ns,
    )  # fmt: skip


def _path(picture: str | bytes | os.PathLike[Any]) -> bytes:
    """Return an absolute path, or a URL; "..", which a link before it may lead anywhere, is left to the system."""
    try:
        if is_url(str(picture)):
            return os.fsencode(str(picture))
        return os.path.join(os.getcwdb(), os.fsencode(picture))  # noqa: PTH109, PTH118  (names are bytes)
    except UnicodeEncodeError:
        return b"\0"  # as little the name of a file as that which cannot be encoded


def _is_image(picture: Any) -> bool:
    from PIL import Image

    return isinstance(picture, Image.Image)


def _check(picture: Any, place: int) -> None:
    grey_or_colour = isinstance(picture, np.ndarray) and (picture.ndim == 2 or picture.shape[2:] == (3,))
    if not _is_image(picture) and not (grey_or_colour and picture.dtype == np.uint8):
        raise UsageError(f"X must be a sequence of {WANTED}, and X[{place}] is {_shown(picture)}")


def _shown(value: Any) -> str:
    if isinstance(value, str | bytes | os.PathLike):
        return printable(value)
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__}"


def _file_of(picture: Any, max_pixels: int) -> bytes:
    """Return a picture in memory as the bytes of a file."""
    if not isinstance(picture, np.ndarray):
        return as_bmp(pixels_of(picture, max_pixels=max_pixels))
    pixels = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
    return as_bmp(np.ascontiguousarray(pixels))


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="headstart-")
    except OSError as error:
        raise _no_room(error) from error
    with folder as name:
        yield Path(name)


def _no_room(error: OSError) -> CacheError:
    return CacheError(
        f"pictures in memory go through temporary files, which cannot be written ({os_reason(error)}); set TMPDIR to a "
        f"folder with {SPOOLED_BYTES // 1_000_000} MB to spare"
    )


class _Spool:
    """Pictures in memory on their way through files, a bounded number of bytes at a time."""

    def __init__(self, store: FeatureStore, embedder: Embedder, result: Embedded) -> None:
        self._store, self._embedder, self._result = store, embedder, result
        self._held = store.index(embedder.spaces[0].id)[0]
        self._waiting: dict[bytes, Path] = {}
        self._bytes = 0
        self._reasons: dict[bytes, str] = {}  # of pictures that went through, "" for those that did not fail

    def embed(self, pictures: Sequence[Any], places: Sequence[int]) -> None:
        """Embed those of the pictures that are in memory, and say what became of them."""
        digests: dict[int, bytes] = {}
        with _temporary_folder() as folder:
            for place in places:
                try:
                    data = _file_of(pictures[place], self._embedder.run.max_pixels)
                except DecodeError as error:
                    self._result.failures[place] = str(error)
                    continue
                digests[place] = self._add(data, folder)
            self._flush()
        for place, digest in digests.items():
            self._result.digest[place] = np.frombuffer(digest, np.uint8)
            if self._reasons.get(digest):
                self._result.failures[place] = self._reasons[digest]

    def _add(self, data: bytes, folder: Path) -> bytes:
        """Keep a file for the next run unless its row is there or on its way; return its digest."""
        digest = hashlib.sha256(data).digest()
        if self._held.find_one(digest) >= 0 or digest in self._waiting or digest in self._reasons:
            return digest
        path = folder / f"{digest.hex()}.bmp"
        try:
            path.write_bytes(data)
        except OSError as error:
            raise _no_room(error) from error
        self._waiting[digest] = path
        self._bytes += len(data)
        if self._bytes >= SPOOLED_BYTES:
            self._flush()
        return digest

    def _flush(self) -> None:
        found = embed_files(self._store, self._embedder, [os.fsencode(path) for path in self._waiting.values()])
        for number, (digest, path) in enumerate(self._waiting.items()):
            self._reasons[digest] = found.failures.get(number, "")
            path.unlink()
        self._waiting.clear()
        self._bytes = 0
