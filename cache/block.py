r"""Immutable HDF5 files of named arrays that are checked before a byte of them is believed.

A block is an ordinary HDF5 file, which anybody can read with h5py alone: contiguous datasets and attributes. In
front of it stands what HDF5 calls a user block, which the library skips and we read: one line with its own length
and checksum, then JSON with the attributes and, for each array, dtype, shape, offset and XXH3-128. So a reader

- takes the keys of a file without reading its embeddings, and still has every byte that it uses checked;
- never hands bytes from the disk to the HDF5 parser, whose crashes and security holes it cannot inherit;
- does not import h5py, which costs a tenth of a second.

Layout: ``headstart-block 1 <user block size, 10 digits> <JSON length, 10 digits> <XXH3-128 of the JSON, 32 hex>\n``,
the JSON, NUL bytes up to the size of the user block (a power of two from 512), the HDF5 image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import CacheFormatError, DamagedFileError
from .reading import open_regular

BLOCK_FORMAT = 1
MAX_HEADER = 1 << 20
MAX_ARRAYS = 32
LONGEST = 1 << 40
# What is read at once: small enough to be hashed and copied while the processor's second cache holds it.
PIECE = 1 << 19
_LINE = b"headstart-block %d %010d %010d %s\n"
_LINE_LENGTH = len(_LINE % (BLOCK_FORMAT, 0, 0, b"0" * 32))
_DTYPES = frozenset({"|u1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f2", "<f4"})


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """Where one array lies in a block: dtype, shape, offset in bytes from the file's start, XXH3-128 in hex."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    checksum: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What the user block says: attributes, arrays, the file's size, and the checksum of all behind the user block."""

    attributes: dict[str, Any]
    arrays: dict[str, ArrayEntry]
    size: int
    base: int
    image_checksum: str


def build(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str | int]) -> list[bytes | memoryview]:
    """Build a block in memory, around the arrays: they are not copied where they are contiguous.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Little-endian numbers of 1 to 8 bytes; stored contiguously.
    attributes : mapping of str to str or int
        At most 60 kB each, HDF5's own limit being 64; longer text goes into an array of bytes.

    Returns
    -------
    list of bytes or memoryview
        The user block and the HDF5 image in pieces, to be written one after the other. Some of them are the memory of
        `arrays`, which must stay as they are until then.
    """
    import h5py

    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    skeleton = _Skeleton()
    with h5py.File(skeleton, "w", libver=("earliest", "v110")) as file:
        offsets = {name: reserve(file, name, array.shape, array.dtype) for name, array in ready.items()}
        for name, value in attributes.items():
            file.attrs[name] = value
    pieces = skeleton.around({offsets[name]: _flat(array) for name, array in ready.items() if array.nbytes})
    described = {
        name: {"dtype": array.dtype.str, "shape": array.shape, "offset": offsets[name], "xxh3": _checksum(array)}
        for name, array in ready.items()
    }
    size = sum(len(piece) for piece in pieces)
    content = {"attributes": dict(attributes), "arrays": described, "image": size, "xxh3": file_hash(pieces)}
    return [_user_block(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")), *pieces]


def reserve(target: Any, name: str, shape: tuple[int, ...], dtype: Any) -> int:
    """Make a contiguous dataset with its place in an open HDF5 file, without writing it; return its offset."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same arrays make the same file at any time
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    dataset = h5py.h5d.create(target.id, name.encode(), kind, h5py.h5s.create_simple(shape), properties)
    return dataset.get_offset() or 0


class _Skeleton:
    """A file for HDF5 of which only what is written is kept: all but the arrays, whose places are reserved."""

    def __init__(self) -> None:
        self._written: list[tuple[int, bytes]] = []
        self._place = self._size = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Refuse: h5py takes what has a method of this name for a file, and reads by `readinto`."""
        raise NotImplementedError

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self._between(self._place, self._place + len(view))
        return len(view)

    def write(self, data: Any) -> int:
        self._written.append((self._place, bytes(data)))
        self._place += len(self._written[-1][1])
        self._size = max(self._size, self._place)
        return len(self._written[-1][1])

    def truncate(self, size: int) -> int:
        self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def around(self, reserved: Mapping[int, memoryview]) -> list[bytes | memoryview]:
        """Return the file with what belongs in the places that were reserved, by their offsets."""
        pieces: list[bytes | memoryview] = []
        end = 0
        for offset, data in sorted(reserved.items()):
            pieces += [self._between(end, offset), data]
            end = offset + len(data)
        return [*pieces, self._between(end, self._size)]

    def _between(self, start: int, stop: int) -> bytes:
        found = bytearray(stop - start)
        for place, data in self._written:
            low, high = max(place, start), min(place + len(data), stop)
            if low < high:
                found[low - start : high - start] = data[low - place : high - place]
        return bytes(found)


def _user_block(text: bytes) -> bytes:
    size = max(512, 1 << (_LINE_LENGTH + len(text) - 1).bit_length())
    line = _LINE % (BLOCK_FORMAT, size, len(text), _checksum(text).encode("ascii"))
    return (line + text).ljust(size, b"\0")


def _checksum(data: bytes | np.ndarray) -> str:
    return file_hash([data])


def _flat(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def file_hash(buffers: Sequence[bytes | memoryview | np.ndarray]) -> str:
    """Return the XXH3-128 of the buffers in a row, in hex: the hash in the name of a part."""
    hasher = xxhash.xxh3_128()
    for buffer in buffers:
        hasher.update(_flat(buffer) if isinstance(buffer, np.ndarray) else buffer)
    return hasher.hexdigest()


def read_header(path: Path) -> Header:
    """Read and check the user block of the file at `path`.

    Raises
    ------
    DamagedFileError
        The bytes do not match their checksum, or do not fit the file's size.
    CacheFormatError
        A newer version of headstart wrote the file.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(4096)
        base, length = _read_line(path, start)
        if base > len(start):
            start += file.read(base - len(start))
    text = start[_LINE_LENGTH : _LINE_LENGTH + length]
    if _checksum(text).encode("ascii") != start[_LINE_LENGTH - 33 : _LINE_LENGTH - 1]:
        raise DamagedFileError(f"{path} is damaged: its header does not match its checksum")
    return _parse(path, text, base, size)


def _read_line(path: Path, start: bytes) -> tuple[int, int]:
    words = start[:_LINE_LENGTH].split(b" ")
    if len(words) != 5 or words[0] != b"headstart-block":
        raise DamagedFileError(f"{path} is damaged: it does not begin with headstart's header")
    if words[1].isdigit() and int(words[1]) > BLOCK_FORMAT:
        found = words[1].decode("ascii")
        raise CacheFormatError(
            f"{path} was written by format {found}, this reads up to {BLOCK_FORMAT}; upgrade headstart"
        )
    if words[1] != b"%d" % BLOCK_FORMAT or not (words[2].isdigit() and words[3].isdigit()):
        raise DamagedFileError(f"{path} is damaged: its header line cannot be read")
    base, length = int(words[2]), int(words[3])
    if base > MAX_HEADER or length > base - _LINE_LENGTH:
        raise DamagedFileError(f"{path} is damaged: its header claims {length} bytes of {base}")
    return base, length


def _parse(path: Path, text: bytes, base: int, size: int) -> Header:
    """Check every claim of the header against the file's size before anything is allocated."""
    try:
        content = json.loads(text)
        entries = {
            str(name): ArrayEntry(
                entry["dtype"], tuple(map(int, entry["shape"])), base + int(entry["offset"]), entry["xxh3"]
            )
            for name, entry in content["arrays"].items()
        }
        attributes = dict(content["attributes"])
        header = Header(attributes, entries, base + int(content["image"]), base, content["xxh3"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: its header is not what headstart writes ({error!r})") from error
    if header.size != size:
        raise DamagedFileError(f"{path} is damaged: {size} bytes where {header.size} were written")
    for name, entry in entries.items():
        known = isinstance(entry.dtype, str) and entry.dtype in _DTYPES and len(entry.shape) <= 2
        inside = (
            known
            and entry.offset >= base
            and entry.offset + entry.nbytes <= size
            and max(entry.shape, default=0) < LONGEST
        )
        if not inside or min(entry.shape, default=0) < 0 or len(entries) > MAX_ARRAYS:
            raise DamagedFileError(f"{path} is damaged: array {name!r} does not fit the file")
    return header


def read_arrays(path: Path, header: Header, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read some arrays of a block and check each against its own checksum.

    Returns
    -------
    dict of str to ndarray
        Writable arrays of their own memory.

    Raises
    ------
    DamagedFileError
        An array is absent, short, or does not match its checksum.
    """
    missing = sorted(set(names) - set(header.arrays))
    if missing:
        raise DamagedFileError(f"{path} is damaged: array {missing[0]!r} is not in it")
    result = {}
    with open_regular(path) as file:
        for name in names:
            entry = header.arrays[name]
            array = np.empty(entry.shape, entry.dtype)
            if array.nbytes:  # an empty dataset has no place in an HDF5 file
                file.seek(entry.offset)
                _fill(file, _flat(array), path)
            if _checksum(array) != entry.checksum:
                raise DamagedFileError(f"{path} is damaged: array {name!r} does not match its checksum")
            result[name] = array
    return result


def _fill(file: Any, view: memoryview, path: Path) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise DamagedFileError(f"{path} is damaged: it ends too early")
        view = view[count:]


def copy_rows(
    path: Path,
    header: Header,
    name: str,
    expected_hash: str,
    rows: np.ndarray,
    target: np.ndarray,
    places: np.ndarray,
) -> None:
    """Copy rows of an array while every byte of the file goes through the hash that it must match.

    Parameters
    ----------
    path : Path
    header : Header
        Of that file.
    name : str
        The array, of two dimensions.
    expected_hash : str
        XXH3-128 of the whole file in hex.
    rows, places : ndarray of shape (n,), dtype int64
        Which rows, ascending, and where in `target` each goes.
    target : ndarray of shape (m, width)
        Of any floating dtype; fastest where it is C-contiguous. Its content counts only if the call returns.

    Raises
    ------
    DamagedFileError
        A byte differs.
    """
    entry = header.arrays[name]
    count, width = entry.shape
    step = max(1, PIECE // max(1, width * np.dtype(entry.dtype).itemsize))
    spare = np.empty((min(step, count), width), entry.dtype)
    bounds = np.searchsorted(rows, np.arange(0, count + step, step))
    hasher = xxhash.xxh3_128()
    with open_regular(path) as file:
        _hash_span(file, hasher, entry.offset if entry.nbytes else 0, path)
        for number, start in enumerate(range(0, count, step)):
            stop = min(start + step, count)
            chosen = slice(bounds[number], bounds[number + 1])
            wanted, where = rows[chosen] - start, places[chosen]
            whole = len(wanted) == stop - start and _counts_up(wanted, 0)
            as_stored = target.dtype == entry.dtype and target.flags.c_contiguous
            straight = whole and as_stored and _counts_up(where, where[0])
            piece = target[where[0] : where[0] + len(where)] if straight else spare[: stop - start]
            _fill(file, _flat(piece), path)
            hasher.update(_flat(piece))
            if not straight and wanted.size:
                target[where] = piece if whole else piece[wanted]
        _hash_span(file, hasher, header.size - file.tell(), path)
    if hasher.hexdigest() != expected_hash:
        raise DamagedFileError(f"{path} is damaged: its bytes do not match the hash in its name")


def _counts_up(numbers: np.ndarray, start: int) -> bool:
    return bool((numbers == np.arange(start, start + len(numbers))).all())


def check_file(path: Path, expected_hash: str) -> None:
    """Check a file against the XXH3-128 that it was written with, whatever its format.

    Raises
    ------
    DamagedFileError
        Any byte differs.
    """
    _check_from(path, 0, expected_hash, "the hash in its name")


def check_image(path: Path, header: Header) -> None:
    """Check all that stands behind the user block against the checksum in the header.

    Raises
    ------
    DamagedFileError
        Any byte differs.
    """
    _check_from(path, header.base, header.image_checksum, "the checksum in its header")


def _check_from(path: Path, start: int, expected: str, name: str) -> None:
    """Check all of a file from an offset on."""
    hasher = xxhash.xxh3_128()
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(start)
        _hash_span(file, hasher, size - start, path)
    if hasher.hexdigest() != expected:
        raise DamagedFileError(f"{path} is damaged: its bytes do not match {name}")


def _hash_span(file: Any, hasher: Any, length: int, path: Path) -> None:
    """Read on from where the file stands, and hash."""
    spare = memoryview(bytearray(min(length, PIECE)))
    while length:
        piece = spare[: min(length, PIECE)]
        _fill(file, piece, path)
        hasher.update(piece)
        length -= len(piece)
