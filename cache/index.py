"""Where the row of each key lies: sorted key prefixes, looked up by binary search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .part import Keys

# Odd constants that spread recipe and view over 64 bits, so that the views of one image differ in prefix too
# (the fractional bits of the golden ratio and of the square root of 2).
_SPREAD_RECIPE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD_VIEW = np.uint64(0x6A09E667F3BCC909)


class KeyIndex:
    """Lookup of row keys over the parts of one feature space.

    Parameters
    ----------
    parts : sequence of Keys
        The keys of each part. Where two parts hold a key, the first part wins, so that all readers agree.
    """

    def __init__(self, parts: Sequence[Keys]) -> None:
        self.keys = Keys.concatenate(parts)
        lengths = [len(keys) for keys in parts]
        self.part = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
        self.row = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths] or [np.zeros(0, np.int64)])
        prefix = _prefix(self.keys)
        self._order = np.argsort(prefix, kind="stable")
        self._sorted = prefix[self._order]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> np.ndarray:
        """Return for each key its position in the index, -1 where it is absent.

        Returns
        -------
        ndarray of shape (n,), dtype int64
            Positions into `part` and `row`.
        """
        wanted = _prefix(keys)
        place = np.searchsorted(self._sorted, wanted)
        found = np.full(len(keys), -1, np.int64)
        # Equal prefixes of different keys are next to impossible, but wrong rows are unforgivable: walk over them.
        active = np.arange(len(keys))
        while active.size:
            at = place[active]
            inside = at < len(self._sorted)
            active, at = active[inside], at[inside]
            same = self._sorted[at] == wanted[active]
            active, at = active[same], self._order[at[same]]
            equal = _equal(self.keys[at], keys[active])
            found[active[equal]] = at[equal]
            active = active[~equal]
            place[active] += 1
        return found


def _prefix(keys: Keys) -> np.ndarray:
    head: np.ndarray = np.ascontiguousarray(keys.digest[:, :8]).view("<u8").reshape(-1)
    mixed: np.ndarray = head ^ (keys.recipe * _SPREAD_RECIPE) ^ (keys.view.astype(np.uint64) * _SPREAD_VIEW)
    return mixed


def _equal(left: Keys, right: Keys) -> np.ndarray:
    equal: np.ndarray = (left.digest == right.digest).all(axis=1)
    equal &= (left.recipe == right.recipe) & (left.view == right.view)
    return equal
