"""One plain HDF5 file of a dataset's embeddings, paths, labels and splits, which h5py alone can read."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import CacheError, HeadstartError, printable
from .block import reserve
from .listing import SPLITS, Listing
from .part import Keys
from .publish import discard, make_folder, sync_folder, temporary_path, write_error
from .space import FeatureSpace
from .store import FeatureStore

logger = logging.getLogger("headstart.cache")

EXPORT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Export:
    """A written file: where, how many rows of what width, how many bytes, and of which space."""

    out: Path
    rows: int
    dim: int
    bytes: int
    space: FeatureSpace

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``cache export --json``."""
        return {"out": str(self.out), "rows": self.rows, "dim": self.dim, "bytes": self.bytes, "space": self.space.id}

    def lines(self) -> list[str]:
        """Return the same for people."""
        size = f"{self.rows} embeddings of {self.space.backbone}, {self.dim} wide, {self.bytes / 1e6:.1f} MB"
        return [
            f"wrote {printable(self.out)}: {size}; h5py reads it: h5py.File(...)['embedding'], 'path', 'label', 'split'"
        ]


def export(out: Path, store: FeatureStore, listing: Listing, space: FeatureSpace, *, overwrite: bool = False) -> Export:
    """Write the usable images of a listing to one file, in the order of the listing.

    Memory is one part's rows, whatever the number of images. The datasets are ``embedding`` (n, D) float32, ``path``
    (relative to the attribute ``root``), ``label`` and ``split`` as strings of fixed length in UTF-8, or as bytes where
    a name is no UTF-8, and ``digest`` (n, 32) uint8; the attribute ``classes`` holds the class names. Where an image
    may have several labels, ``label`` holds their names with bars between them, as strings of any length, and the
    attribute ``multi_label`` is 1.

    Parameters
    ----------
    out : Path
        The file.
    store : FeatureStore
    listing : Listing
    space : FeatureSpace
    overwrite : bool, default False
        Replace a file that is there.

    Raises
    ------
    CacheMissError
        Some embeddings are not in the cache.
    CacheError
        `out` is there already, or cannot be written.
    """
    if out.is_dir():
        raise CacheError(f"{printable(out)} is a folder; name a file, such as {printable(out / 'features.h5')}")
    if out.exists() and not out.is_file():
        raise CacheError(f"{printable(out)} is no regular file; name another")
    if out.exists() and not overwrite:
        raise CacheError(f"{printable(out)} is there already; pass --overwrite or name another file")
    make_folder(out.absolute().parent)
    temporary = temporary_path(out.absolute())
    rows = np.flatnonzero(listing.usable)
    if not rows.size:
        logger.warning("no image of %s can be used: the file will be empty", listing.root)
    try:
        try:
            with temporary.open("xb+", buffering=0) as file:
                offset = _write_columns(file, listing, rows, space)
                _write_embeddings(file, offset, store, space, Keys.plain(listing.digest[rows]))
                os.fsync(file.fileno())
            os.replace(temporary, out)  # noqa: PTH105  (one call that tests can make fail)
        except BaseException:
            discard(temporary)
            raise
        sync_folder(out.absolute().parent)
    except OSError as error:
        if isinstance(error, HeadstartError):
            raise
        raise write_error(error, out.absolute().parent, len(rows) * space.dim * 4) from error
    return Export(out, len(rows), space.dim, out.stat().st_size, space)


def _write_columns(file: io.FileIO, listing: Listing, rows: np.ndarray, space: FeatureSpace) -> int:
    """Write all but the embeddings, and return the offset at which those begin."""
    import h5py

    columns = {
        "path": _strings(listing.paths.take(rows)),
        "label": _labels(listing, rows),
        "split": _strings([name.encode() for name in SPLITS])[listing.split[rows]],
        "digest": listing.digest[rows],
    }
    sink = _Sink(file)
    try:
        # The newer format lets an attribute be longer than 64 kB: there may be thousands of classes.
        with h5py.File(sink, "w", libver=("v110", "v110")) as target:
            offset = reserve(target, "embedding", (len(rows), space.dim), "<f4")
            for name, column in columns.items():
                target.create_dataset(name, data=column.astype(_h5_type(column)))
            target.attrs["classes"] = np.array([*map(os.fsencode, listing.classes)], dtype=h5py.string_dtype())
            described = {"schema": EXPORT_FORMAT, "root": listing.root, "space": space.json, "backbone": space.backbone}
            if listing.tags is not None:
                target.attrs["multi_label"] = 1
            for name, value in {**described, "writer": f"headstart {__version__}"}.items():
                target.attrs[name] = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    except Exception:
        if sink.error is None:
            raise
    if sink.error is not None:
        raise sink.error
    return offset


def _labels(listing: Listing, rows: np.ndarray) -> np.ndarray:
    names = [os.fsencode(name) for name in listing.classes]
    if listing.tags is None:
        return np.asarray(_strings([b"", *names])[listing.label[rows] + 1])
    # Not of fixed length: one image of a thousand labels would make every row as long as its own.
    return np.array(listing.tags.take(rows).joined(names), dtype=object)


def _strings(values: Sequence[bytes]) -> np.ndarray:
    longest = max((len(value) for value in values), default=0)
    return np.fromiter(values, f"S{max(1, longest)}", len(values))


def _h5_type(column: np.ndarray) -> Any:
    """Return UTF-8 for strings that are such, bytes for others, and numbers as they are."""
    import h5py

    if column.dtype.kind not in "SO":
        return column.dtype
    length = column.dtype.itemsize if column.dtype.kind == "S" else None
    try:
        for value in np.unique(column):
            value.decode("utf-8")
    except UnicodeDecodeError:
        return h5py.string_dtype("ascii", length)
    return h5py.string_dtype("utf-8", length)


def _write_embeddings(file: io.FileIO, offset: int, store: FeatureStore, space: FeatureSpace, keys: Keys) -> None:
    """Write rows to their places by ordinary writes: each run of neighbours at once."""
    width = 4 * space.dim
    for where, block in store.blocks(space.id, keys):
        starts = np.flatnonzero(np.diff(where, prepend=-2) != 1)
        for low, high in zip(starts.tolist(), [*starts[1:].tolist(), len(where)], strict=True):
            file.seek(offset + int(where[low]) * width)
            _write_all(file, block[low:high].reshape(-1).view(np.uint8).data)


def _write_all(file: io.FileIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]


class _Sink:
    """A file that never fails towards HDF5, which ends the process when its file does; the first error is kept.

    After an error nothing is written any more and reads give zeros, until whoever made the sink raises the error.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Refuse: h5py takes what has a method of this name for a file, and reads by `readinto`."""
        raise NotImplementedError

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        self._attempt(lambda: self._file.readinto(view))
        return len(view)

    def write(self, data: Any) -> int:
        self._attempt(lambda: _write_all(self._file, memoryview(data).cast("B")))
        return memoryview(data).nbytes

    def truncate(self, size: int) -> int:
        self._attempt(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def _attempt(self, call: Callable[[], object]) -> None:
        if self.error is None:
            try:
                call()
            except OSError as error:
                self.error = error
