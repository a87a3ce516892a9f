"""Names in columns: one buffer of bytes and where each name begins, instead of an object a name.

Ten million paths of 29 bytes take 380 MB this way and 700 MB as a list of bytes. What goes through all of them takes a
few thousand at a time out of the buffer, so that nothing but the columns is ever kept.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
# Names taken out of the buffer at once: few enough to stay in the processor's cache.
AT_ONCE = 4096
_PIECE = 1 << 20  # bytes compared or looked through at once
_WORD = 8


class Names(Sequence[bytes]):
    """N byte strings, such as the paths of a dataset, in two columns.

    A sequence of bytes like any other, equal to every sequence of the same names. Each name is followed by a NUL byte,
    as in the file of a listing; names that are read from there share its memory.

    Parameters
    ----------
    data : ndarray of shape (B,), dtype uint8
        The names, each followed by a NUL byte; not to be changed any more.
    bounds : ndarray of shape (N + 1,), dtype int64
        Where each name begins in `data`, and the last one's end: name i is ``data[bounds[i] : bounds[i + 1] - 1]``.
    """

    __slots__ = ("bounds", "data")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: np.ndarray, bounds: np.ndarray) -> None:
        self.data = data
        self.bounds = bounds

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Names:
        """Return names in columns, taken one by one; those that are in columns already are returned as they are."""
        if isinstance(names, Names):
            return names
        growing, left = GrowingNames(), iter(names)
        while part := list(islice(left, AT_ONCE)):
            growing.extend(part)
        return growing.finished()

    @classmethod
    def read(cls, data: np.ndarray) -> Names:
        """Return the names in a buffer, (B,) uint8, in which each is followed by a NUL byte; nothing is copied.

        Raises
        ------
        ValueError
            The last of them has no end.
        """
        if data.size and data[-1]:
            raise ValueError("a name without an end")
        pieces = range(0, len(data), _PIECE)
        ends = [np.flatnonzero(data[start : start + _PIECE] == 0) + (start + 1) for start in pieces]
        return cls(data, np.concatenate([np.zeros(1, np.int64), *ends]))

    @property
    def joined(self) -> np.ndarray:
        """The names, each followed by a NUL byte, (B,) uint8."""
        return self.data[self.bounds[0] : self.bounds[-1]]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Names: ...
    def __getitem__(self, place: int | slice) -> bytes | Names:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step == 1:
                return Names(self.data, self.bounds[start : max(start, stop) + 1])
            return self.take(np.arange(start, stop, step))
        row = operator.index(place)
        if not -len(self) <= row < len(self):
            raise IndexError(f"name {row} of {len(self)}")
        row %= len(self)
        found: bytes = self.data[self.bounds[row] : self.bounds[row + 1] - 1].tobytes()
        return found

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self.parts())

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Sequence) or isinstance(other, str | bytes | bytearray | memoryview):
            return NotImplemented
        if len(self) != len(other):
            return False
        if not isinstance(other, Names):
            return all(map(operator.eq, self, other))
        further = int(self.bounds[0] - other.bounds[0])
        return same_column(self.bounds, other.bounds, further) and same_column(self.joined, other.joined)

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (np.array(self.joined), self.bounds - self.bounds[0])

    def __repr__(self) -> str:
        shown = [*map(repr, self[:3]), *(["..."] if len(self) > 3 else [])]
        return f"Names([{', '.join(shown)}], {len(self)} in all)"

    def parts(self) -> Iterator[list[bytes]]:
        """Yield the names, a few thousand at a time."""
        for start in range(0, len(self), AT_ONCE):
            bounds = self.bounds[start : start + AT_ONCE + 1]
            first, count = bounds[0], len(bounds) - 1
            data: bytes = self.data[first : bounds[-1]].tobytes()
            names = data.split(b"\0")
            names.pop()
            if len(names) != count:  # a name that holds a NUL byte itself
                ends = (bounds - first).tolist()
                names = [data[low : high - 1] for low, high in pairwise(ends)]
            yield names

    def take(self, rows: np.ndarray) -> Names:
        """Return some of the names, given by their numbers, (n,) int, in that order; their bytes are copied."""
        rows = np.asarray(rows, np.int64)
        sizes = self.bounds[rows + 1] - self.bounds[rows]
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        data = np.empty(bounds[-1], np.uint8)
        for start in range(0, len(rows), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            begin, ends = bounds[start], bounds[some.start + 1 : some.stop + 1]
            data[begin : ends[-1]] = self._bytes_of(rows[some], sizes[some], ends - begin)
        return Names(data, bounds)

    def _bytes_of(self, rows: np.ndarray, sizes: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the bytes of some rows, whose sizes and their running sums are known, one after the other."""
        if rows[-1] - rows[0] == len(rows) - 1 and (rows[1:] > rows[:-1]).all():
            return self.data[self.bounds[rows[0]] : self.bounds[rows[-1] + 1]]
        shift = self.bounds[rows] - (ends - sizes)
        return np.asarray(self.data[np.repeat(shift, sizes) + np.arange(ends[-1])])

    def ascends(self, *, strictly: bool = True) -> bool:
        """Tell whether the names are sorted by their bytes, and, with `strictly`, whether no two are the same."""
        return bool(self._all_beside(operator.lt if strictly else operator.le))

    def repeats(self) -> np.ndarray:
        """Tell which names are the same as the one before, (N,) bool."""
        found = np.zeros(len(self), bool)
        last, start = b"", 0
        for names in self.parts():
            found[start : start + len(names)] = [*map(operator.eq, names, [last, *names])]
            last, start = names[-1], start + len(names)
        found[:1] = False
        return found

    def _all_beside(self, compare: Callable[[bytes, bytes], bool]) -> bool:
        """Compare each name with the next one."""
        last: list[bytes] = []
        for names in self.parts():
            if not all(map(compare, last + names, names[1:] if not last else names)):
                return False
            last = names[-1:]
        return True

    def order(self) -> Rows:
        """Return the rows in which the names are sorted by their bytes, (N,) int64; same ones keep their order.

        Sorted names cost one look at each. Others are sorted by as many leading bytes as fit beside the number of the
        tie that they are in, then the ties by the bytes behind.
        """
        order = np.arange(len(self), dtype=np.int64)
        if self.ascends(strictly=False):
            return order
        sizes = np.diff(self.bounds) - 1
        places, tie, offset = order.copy(), np.zeros(len(self), np.uint64), 0
        while places.size:
            rows = order[places]
            if sizes[rows].max() <= offset:  # all bytes are the same: NULs alone may tell lengths apart
                order[places] = rows[np.lexsort((rows, sizes[rows], tie))]
                break
            width = _WORD - -(-int(tie[-1]).bit_length() // _WORD)
            words = self._words(rows, offset, sizes)
            if width == _WORD:  # one tie of all: what they have in common is passed over
                common = _common_bytes(words)
                if common:
                    offset += common
                    continue
            else:
                words = (words >> np.uint64(_WORD * (_WORD - width))) | (tie << np.uint64(_WORD * width))
            by_word = np.argsort(words)
            order[places], words = rows[by_word], words[by_word]
            tied, tie = _ties(words)
            places, offset = places[tied], offset + width
        return order

    def _words(self, rows: np.ndarray, offset: int, sizes: np.ndarray) -> np.ndarray:
        """Return 8 bytes of each row from an offset in the name on, as big-endian numbers, (n,) uint64; NULs behind."""
        data = self.data if len(self.data) >= _WORD else np.concatenate([self.data, np.zeros(_WORD, np.uint8)])
        every = np.ndarray((len(data) - _WORD + 1,), ">u8", data.data, strides=(1,))
        words = np.empty(len(rows), np.uint64)
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            at, left = self.bounds[some] + offset, sizes[some] - offset
            late = np.clip(at - (len(every) - 1), 0, _WORD)  # so much before where it should be is the last word read
            found = every[np.minimum(at, len(every) - 1)].astype(np.uint64)
            found = _shifted_left(found, late)
            words[start : start + AT_ONCE] = found & _LEADING[np.clip(left, 0, _WORD)]
        return words

    def find(self, names: Names) -> Rows:
        """Return the row of each of some names, -1 where it is not here; the first row where there are several.

        Parameters
        ----------
        names : Names, n
            In any order.

        Returns
        -------
        ndarray of shape (n,), dtype int64
            Found by a hash, and compared byte for byte: no name is ever taken for another.
        """
        if self == names and self.ascends():
            return np.arange(len(self), dtype=np.int64)
        found = np.full(len(names), -1, np.int64)
        if not len(self) or not len(names):
            return found
        low = np.uint64((1 << (max(len(self), len(names)) - 1).bit_length()) - 1)
        mine, asked = self._hashes(low), names._hashes(low)
        # Searched for in ascending order, each is found near the one before, in the processor's cache.
        place = np.searchsorted(mine, asked & ~low)
        while asked.size:
            there = mine[np.minimum(place, len(mine) - 1)]
            same = (place < len(mine)) & ((there ^ asked) <= low)
            asked, place, there = asked[same], place[same], there[same]
            rows, at = (asked & low).astype(np.int64), (there & low).astype(np.int64)
            in_order = np.argsort(rows)
            equal = np.empty(len(rows), bool)
            equal[in_order] = self._equal(at[in_order], names, rows[in_order])
            found[rows[equal]] = at[equal]
            asked, place = asked[~equal], place[~equal] + 1  # where another name has the same hash
        return found

    def _hashes(self, low: np.uint64) -> np.ndarray:
        """Return the upper bits of a hash of each name with its row in the lower ones, (N,) uint64, sorted."""
        packed = np.empty(len(self), np.int64)
        start = 0
        for names in self.parts():
            # Python's own hash, which is another in each process: nobody can prepare names that collide.
            packed[start : start + len(names)] = np.fromiter(map(hash, names), np.int64, len(names))
            start += len(names)
        hashes = packed.view(np.uint64)
        hashes &= ~low
        hashes |= np.arange(len(self), dtype=np.uint64)
        hashes.sort()
        return hashes

    def _equal(self, rows: np.ndarray, others: Names, their_rows: np.ndarray) -> np.ndarray:
        """Compare names of ours with names of others byte for byte, (n,) bool."""
        equal = np.empty(len(rows), bool)
        for start in range(0, len(rows), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            equal[some] = _equal_names(self.take(rows[some]), others.take(their_rows[some]))
        return equal


class GrowingNames:
    """Names on their way in; what has come so far is in two columns."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._bounds = array("q", [0])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def append(self, name: bytes) -> None:
        """Take in one name."""
        self._data += name
        self._data.append(0)
        self._bounds.append(len(self._data))

    def extend(self, names: Sequence[bytes]) -> None:
        """Take in some names."""
        if not names:
            return
        ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)) + 1) + len(self._data)
        self._data += b"\0".join(names)
        self._data.append(0)
        self._bounds.frombytes(ends.tobytes())

    def so_far(self) -> Names:
        """Return a copy of what has come."""
        return Names(np.array(self._data, np.uint8), np.array(self._bounds, np.int64))

    def finished(self) -> Names:
        """Return the names; nothing can be taken in after that."""
        return Names(np.frombuffer(self._data, np.uint8), np.frombuffer(self._bounds, np.int64))


# Masks for the first k bytes of a word, k from 0 to 8.
_LEADING = np.array([0, *(((1 << 8 * k) - 1) << 8 * (_WORD - k) for k in range(1, _WORD + 1))], np.uint64)


def _shifted_left(words: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Shift each word by `count` bytes, 0 to 8, NULs coming in."""
    if not count.any():
        return words
    shifted = words << (np.minimum(count, _WORD - 1) * _WORD).astype(np.uint64)
    return np.where(count == _WORD, np.uint64(0), shifted)


def _common_bytes(words: np.ndarray) -> int:
    """Return how many leading bytes all of some words have in common."""
    differing = int(np.bitwise_or.reduce(words ^ words[0]))
    return _WORD - (differing.bit_length() + _WORD - 1) // _WORD


def _ties(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell which of some sorted words occur more than once, (n,) bool, and number the ties that those are in."""
    new = np.ones(len(words) + 1, bool)
    np.not_equal(words[1:], words[:-1], out=new[1:-1])
    tied = ~(new[1:] & new[:-1])
    return tied, (np.cumsum(new[:-1][tied]) - 1).astype(np.uint64)


def same_column(left: np.ndarray, right: np.ndarray, by: int = 0) -> bool:
    """Tell whether two arrays hold the same, the first one all greater by `by`; looked at a piece at a time."""
    if left.shape != right.shape:
        return False
    step = max(1, _PIECE * len(left) // max(1, left.size))
    pieces = (slice(start, start + step) for start in range(0, len(left), step))
    return all(np.array_equal(left[piece] - by if by else left[piece], right[piece]) for piece in pieces)


def _equal_names(left: Names, right: Names) -> np.ndarray:
    """Compare as many names as there are in both, one by one, (n,) bool."""
    if same_column(left.bounds, right.bounds):
        differing = left.data != right.data
        if not differing.any():
            return np.ones(len(left), bool)
        return np.asarray(~np.logical_or.reduceat(differing, left.bounds[:-1]))
    return np.fromiter(map(operator.eq, left, right), bool, len(left))
