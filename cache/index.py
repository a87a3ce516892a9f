"""Where the row of each key lies: sorted key prefixes, looked up by binary search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from .part import PLAIN_RECIPE, Keys

# Odd constants that spread recipe and view over 64 bits, so that the views of one image differ in prefix too
# (the fractional bits of the golden ratio and of the square root of 2).
_SPREAD_RECIPE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD_VIEW = np.uint64(0x6A09E667F3BCC909)
_WORD = (1 << 64) - 1
WORTH_A_TRY = 1000


class KeyIndex:
    """Lookup of row keys over the parts of one feature space.

    Each row is one 64-bit number: the upper bits of a hash of its key, then its position. Sorting plain numbers is many
    times faster than sorting positions by their keys, equal hashes come out in the order of their positions, and a
    lookup is a binary search. Memory is 52 bytes a row.

    Parameters
    ----------
    parts : sequence of Keys
        The keys of each part. Where two parts hold a key, the first part wins, so that all readers agree.

    Attributes
    ----------
    keys : Keys
        Of all parts, one after the other; a position in it is what `find` returns.
    starts : ndarray of shape (parts + 1,), dtype int64
        The position at which each part begins, and the number of rows.
    """

    def __init__(self, parts: Sequence[Keys]) -> None:
        self.keys = Keys.concatenate(parts)
        self.starts = np.cumsum([0, *(len(keys) for keys in parts)], dtype=np.int64)
        self._low = _low_bits(len(self.keys))
        self._sorted = _packed(self.keys, self._low)
        hashes = self._sorted & ~self._low
        self._unique = not (hashes[1:] == hashes[:-1]).any()

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> np.ndarray:
        """Return for each key its position in the index, -1 where it is absent.

        Returns
        -------
        ndarray of shape (n,), dtype int64
            Ascending positions go through the parts in order, and through the rows of each part in order.
        """
        run = self._run(keys)
        if run is not None:
            return run
        # Searched for in ascending order, each key is found near the one before, in the processor's cache.
        asked = _packed(keys, _low_bits(len(keys)))
        low = max(self._low, _low_bits(len(keys)))
        place = np.searchsorted(self._sorted, asked & ~low)
        candidate, rows = self._candidates(place, asked & ~low, low), (asked & _low_bits(len(keys))).astype(np.int64)
        found = np.empty(len(keys), np.int64)
        found[rows] = candidate
        # Keys are compared in the caller's order, which is most often that of the parts.
        hit = np.flatnonzero(found >= 0)
        wrong = np.zeros(len(keys), bool)
        wrong[hit] = ~_equal(self.keys, found[hit], keys, hit)
        if wrong.any():
            again = np.flatnonzero(wrong[rows])
            found[rows[again]] = self._walk(place[again], asked[again] & ~low, low, keys, rows[again])
        return found

    def find_one(self, digest: bytes, recipe: int = PLAIN_RECIPE, view: int = 0) -> int:
        """Return the position of one view of an image by the 32 bytes of its digest, -1 where it is absent.

        The same as `find`, ten times as fast for one key: no arrays are made, and the interpreter's lock is not let go.
        """
        low = int(self._low)
        mixed = (recipe * int(_SPREAD_RECIPE)) ^ (view * int(_SPREAD_VIEW))  # as `_prefix` has it
        wanted = (int.from_bytes(digest[:8], "little") ^ mixed) & _WORD & ~low
        there = self._sorted.data  # gives plain numbers, where the array would make an object of each
        place = bisect_left(there, wanted)
        while place < len(there) and there[place] & ~low == wanted:
            at, place = there[place] & low, place + 1
            keys = self.keys
            if keys.digest[at].tobytes() == digest and keys.recipe[at] == recipe and keys.view[at] == view:
                return at
        return -1

    def _run(self, keys: Keys) -> np.ndarray | None:
        """Return the positions of keys that stand in the index in the same order, as in what one run has written."""
        if len(keys) < WORTH_A_TRY or not self._unique:
            return None
        start = int(self.find(keys[:1])[0])
        if start < 0 or start + len(keys) > len(self):
            return None
        run = np.arange(start, start + len(keys))
        return run if _equal(self.keys[start : start + len(keys)], slice(None), keys, slice(None)).all() else None

    def _candidates(self, place: np.ndarray, wanted: np.ndarray, low: np.uint64) -> np.ndarray:
        """Return the position that stands at each place, -1 where that is of another hash."""
        if not len(self):
            return np.full(len(place), -1, np.int64)
        there = self._sorted[np.minimum(place, len(self) - 1)]
        same = (place < len(self)) & ((there & ~low) == wanted)
        return np.where(same, (there & self._low).astype(np.int64), -1)

    def _walk(self, place: np.ndarray, wanted: np.ndarray, low: np.uint64, keys: Keys, rows: np.ndarray) -> np.ndarray:
        """Go on where a hash was that of another key: rare, but wrong rows are unforgivable."""
        found = np.full(len(rows), -1, np.int64)
        active = np.arange(len(rows))
        while active.size:
            place[active] += 1
            at = self._candidates(place[active], wanted[active], low)
            active, at = active[at >= 0], at[at >= 0]
            equal = _equal(self.keys, at, keys, rows[active])
            found[active[equal]] = at[equal]
            active = active[~equal]
        return found

    def first(self) -> np.ndarray:
        """Return which rows are the first of their key, (rows,) bool; the others are copies in later parts."""
        return np.asarray(self.find(self.keys) == np.arange(len(self)))

    def by_part(self, places: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Divide wanted positions by part.

        Parameters
        ----------
        places : ndarray of shape (n,), dtype int64
            As `find` gives them, none of them -1.

        Returns
        -------
        list of tuple of (int, ndarray, ndarray)
            The part's number, its rows in ascending order, and where in `places` each of them is.
        """
        ascending = bool((places[1:] >= places[:-1]).all())
        order = np.arange(len(places)) if ascending else np.argsort(places, kind="stable")
        ordered = places[order]
        bounds = np.searchsorted(ordered, self.starts)
        return [
            (number, ordered[low:high] - self.starts[number], order[low:high])
            for number, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
            if low < high
        ]


def _low_bits(count: int) -> np.uint64:
    """Return a mask of as many low bits as the positions of `count` rows need."""
    return np.uint64((1 << max(count - 1, 0).bit_length()) - 1)


def _packed(keys: Keys, low: np.uint64) -> np.ndarray:
    packed = (_prefix(keys) & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    return packed


def _prefix(keys: Keys) -> np.ndarray:
    head: np.ndarray = np.ascontiguousarray(keys.digest[:, :8]).view("<u8").reshape(-1)
    mixed: np.ndarray = head ^ (keys.recipe * _SPREAD_RECIPE) ^ (keys.view.astype(np.uint64) * _SPREAD_VIEW)
    return mixed


def _equal(left: Keys, at: np.ndarray | slice, right: Keys, rows: np.ndarray | slice) -> np.ndarray:
    """Compare keys of `left` with keys of `right`, word by word: four of 8 bytes are faster than 32 bytes."""
    mine, theirs = (np.ascontiguousarray(keys.digest).view("<u8") for keys in (left, right))
    equal: np.ndarray = (left.recipe[at] == right.recipe[rows]) & (left.view[at] == right.view[rows])
    for word in range(4):
        equal &= mine[at, word] == theirs[rows, word]
    return equal
