"""Tables of numbers that are too large for memory: files without a name, read one block ahead of the work on the last.

A file is not mapped into memory, for the pages that a process has touched count as its own; and it has no name from the
moment it is made, so that it goes with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from ..errors import HeadstartError

_VAR_TMP = "/var/tmp"
_END: Any = object()
Item = TypeVar("Item")


class ScratchError(HeadstartError, OSError):
    """There is no room for what a fit has to put aside."""


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, the next of which a thread prepares while one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        iterator = iter(items)
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item


def scratch_folder() -> Path:
    """Return where scratch files go: what ``TMPDIR`` names, else /var/tmp, else the system's folder for such."""
    if not os.environ.get("TMPDIR") and os.path.isdir(_VAR_TMP) and os.access(_VAR_TMP, os.W_OK):  # noqa: PTH112
        return Path(_VAR_TMP)
    return Path(tempfile.gettempdir())


class Table:
    """Rows of numbers, in memory or in a scratch file.

    Parameters
    ----------
    n_rows, width : int
    in_memory : bool
    dtype : dtype, default float32

    Raises
    ------
    ScratchError
        The disk has no room for the file, which takes ``n_rows * width`` numbers.
    """

    def __init__(self, n_rows: int, width: int, *, in_memory: bool, dtype: Any = np.float32) -> None:
        self.shape = n_rows, width
        self.dtype = np.dtype(dtype)
        self._array = np.empty(self.shape, dtype) if in_memory else None
        self._file = None if in_memory else _file_of(self.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def in_memory(self) -> bool:
        """Whether the rows are held in memory."""
        return self._array is not None

    @property
    def nbytes(self) -> int:
        """What the rows take, bytes."""
        return self.shape[0] * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * int(self.dtype.itemsize)

    def put(self, start: int, rows: np.ndarray) -> None:
        """Write rows (m, width) from row `start` on."""
        if self._array is not None:
            self._array[start : start + len(rows)] = rows
        else:
            self._write(start * self._row_bytes, np.ascontiguousarray(rows, self.dtype))

    def put_columns(self, places: np.ndarray, start: int, columns: np.ndarray) -> None:
        """Write some columns (m, w), from column `start` on, of the rows with these numbers (m,)."""
        if self._array is not None:
            self._array[places, start : start + columns.shape[1]] = columns
            return
        values = np.ascontiguousarray(columns, self.dtype)
        for place, row in zip(places.tolist(), values, strict=True):
            self._write(place * self._row_bytes + start * self.dtype.itemsize, row)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return rows `start` to `stop`: a view of those in memory, or else a copy, in `out` where it is given."""
        if self._array is not None:
            return self._array[start:stop]
        stop = min(stop, len(self))
        rows = np.empty((stop - start, self.shape[1]), self.dtype) if out is None else out[: stop - start]
        assert self._file is not None
        self._file.seek(start * self._row_bytes)
        view = rows.reshape(-1).view(np.uint8).data
        while view:
            count = self._file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise ScratchError("the scratch file ends too early: the disk has lost what was written")
            view = view[count:]
        return rows

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield row numbers and the rows from there on, `size` at a time; a block counts until the next is asked for.

        Memory is two blocks.
        """
        starts = range(0, len(self), size)
        if self._array is not None:
            yield from ((start, self._array[start : start + size]) for start in starts)
            return
        buffers = [np.empty((min(size, len(self)), self.shape[1]), self.dtype) for _ in range(min(2, len(starts)))]
        yield from ahead(
            (start, self.read(start, start + size, buffers[number % 2])) for number, start in enumerate(starts)
        )

    def columns(self, start: int, stop: int, size: int) -> np.ndarray:
        """Return columns (n, stop - start), read `size` rows at a time."""
        result = np.empty((len(self), stop - start), self.dtype)
        for first, rows in self.blocks(size):
            result[first : first + len(rows)] = rows[:, start:stop]
        return result

    def close(self) -> None:
        """Let memory or disk go."""
        self._array = None
        if self._file is not None:
            self._file.close()

    def _write(self, offset: int, rows: np.ndarray) -> None:
        assert self._file is not None
        view = rows.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(offset)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _no_room(self.nbytes, error) from error


def _file_of(size: int) -> IO[bytes]:
    """Return a new file without a name, with room for so many bytes."""
    folder = scratch_folder()
    try:
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (closed by its table)
    except OSError as error:
        raise _no_room(size, error) from error
    return file


def _no_room(size: int, error: OSError) -> ScratchError:
    folder, free = scratch_folder(), ""
    with contextlib.suppress(OSError):
        free = f", where {shutil.disk_usage(folder).free / 1e9:.1f} GB are free"
    return ScratchError(
        f"the fit puts {size / 1e9:.1f} GB aside in {folder}{free} ({error.strerror or error}); name another folder "
        "with TMPDIR, or raise --memory"
    )
