"""Why images could not be used, in columns: twelve bytes an image, and each reason once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping

import numpy as np

from .space import canonical_json

# The optional array of a listing that says which of its reasons each failure has.
ARRAY = "why"
# From so many on a listing's file has each reason once, which versions that know format 1 alone do not read.
MANY = 1 << 16
# What has come one by one goes into the columns once there is so much of it, and so large a share of what they hold.
_FOLD_AT = 1 << 12
_FOLD_SHARE = 8


class Failures(MutableMapping[int, str]):
    """Reasons by the rows of a listing: a mapping in the order of the rows, equal to any other that says the same.

    Parameters
    ----------
    failures : mapping of int to str, optional
        What is known so far; copied.
    """

    __slots__ = ("_code", "_new", "_reasons", "_rows", "_why")

    def __init__(self, failures: Mapping[int, str] | None = None) -> None:
        self._rows = np.zeros(0, np.int64)
        self._why = np.zeros(0, np.int32)
        self._reasons: list[str] = []
        self._code: dict[str, int] = {}
        self._new: dict[int, int] = {}  # what the columns do not have yet
        if isinstance(failures, Failures):
            self.add(failures)
        else:
            self.update(failures or {})

    @classmethod
    def columns(cls, rows: np.ndarray, why: np.ndarray, reasons: Iterable[str]) -> Failures:
        """Return failures that are in columns already.

        Parameters
        ----------
        rows : ndarray of shape (n,), dtype int64
            Where a row is named twice, the later reason counts.
        why : ndarray of shape (n,), dtype int32
            Index into `reasons` of each.
        reasons : iterable of str

        Raises
        ------
        ValueError
            They do not belong together.
        """
        failures = cls()
        codes = failures._codes_of(reasons)
        if rows.shape != why.shape or rows.ndim != 1:
            raise ValueError("failures that do not match their reasons")
        if len(why) and not (why.min() >= 0 and why.max() < len(codes)):
            raise ValueError("failures without a reason")
        failures._rows, failures._why = _in_order(rows, why if len(codes) == len(failures._code) else codes[why])
        return failures

    @classmethod
    def of(cls, failures: Mapping[int, str]) -> Failures:
        """Return any mapping in columns; one that is in columns already is returned as it is."""
        return failures if isinstance(failures, Failures) else cls(failures)

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Failures:
        """Take them from the arrays of a listing; ValueError where they do not belong together."""
        reasons = json.loads(arrays["reason"].tobytes())
        if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
            raise ValueError("values of another kind")
        if ARRAY in arrays:
            return cls.columns(arrays["failed"], arrays[ARRAY], reasons)
        code: dict[str, int] = {}
        why = np.array([code.setdefault(reason, len(code)) for reason in reasons], np.int32)
        return cls.columns(arrays["failed"], why, code)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by which a listing keeps them: a reason for each, or, where there are many, each once."""
        few = len(self) < MANY
        text = canonical_json([*self.values()] if few else self._reasons)
        kept = {"failed": self.rows.astype("<i8"), "reason": np.frombuffer(text.encode("ascii"), np.uint8)}
        return kept if few else {**kept, ARRAY: self.why.astype("<i4")}

    @property
    def rows(self) -> np.ndarray:
        """The rows that failed, (n,) int64, ascending."""
        self._fold()
        return self._rows

    @property
    def why(self) -> np.ndarray:
        """Index into `reasons` for each of `rows`, (n,) int32."""
        self._fold()
        return self._why

    @property
    def reasons(self) -> tuple[str, ...]:
        """Each reason once; some of them may have no row any more."""
        return tuple(self._reasons)

    def select(self, chosen: np.ndarray) -> Failures:
        """Return those at some places of `rows`, given by their numbers or by a mask."""
        return Failures.columns(self.rows[chosen], self.why[chosen], self._reasons)

    def moved(self, rows: np.ndarray) -> Failures:
        """Return the same reasons for other rows, (n,) int64, one for each of `rows`."""
        return Failures.columns(rows, self.why, self._reasons)

    def take(self, rows: np.ndarray) -> Failures:
        """Return those of some rows, (m,) int64 in any order, each by its place in `rows`."""
        if not self:
            return Failures()
        place = np.minimum(np.searchsorted(self.rows, rows), len(self) - 1)
        there = np.flatnonzero(self.rows[place] == rows)
        return Failures.columns(there, self.why[place[there]], self._reasons)

    def add(self, others: Failures) -> None:
        """Take in others; of a row that is in both, their reason counts."""
        if not others:
            return
        why = self._codes_of(others.reasons)[others.why]
        self._rows, self._why = _in_order(np.concatenate([self.rows, others.rows]), np.concatenate([self.why, why]))

    def __getitem__(self, row: int) -> str:
        code = self._new.get(row)
        if code is None:
            place = int(np.searchsorted(self._rows, row))
            if place == len(self._rows) or self._rows[place] != row:
                raise KeyError(row)
            code = int(self._why[place])
        return self._reasons[code]

    def __setitem__(self, row: int, reason: str) -> None:
        self._new[row] = self._code_of(reason)
        if len(self._new) > _FOLD_AT + len(self._rows) // _FOLD_SHARE:
            self._fold()

    def __delitem__(self, row: int) -> None:
        self[row]  # raises where it is not there
        chosen = self.rows != row
        self._rows, self._why = self._rows[chosen], self._why[chosen]

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.rows), _FOLD_AT):
            yield from self._rows[start : start + _FOLD_AT].tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Failures):
            return super().__eq__(other)
        if not np.array_equal(self.rows, other.rows):
            return False
        if self._reasons == other._reasons:
            return np.array_equal(self.why, other.why)
        theirs = np.array([self._code.get(reason, -1) for reason in other._reasons], np.int32)
        return not len(self) or np.array_equal(self.why, theirs[other.why])

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Failures({dict(self)!r})" if len(self) < 10 else f"Failures of {len(self)} images"

    def _code_of(self, reason: str) -> int:
        code = self._code.setdefault(reason, len(self._reasons))
        if code == len(self._reasons):
            self._reasons.append(reason)
        return code

    def _codes_of(self, reasons: Iterable[str]) -> np.ndarray:
        return np.array([self._code_of(reason) for reason in reasons], np.int32)

    def _fold(self) -> None:
        """Put what has come one by one into the columns."""
        if not self._new:
            return
        rows = np.fromiter(self._new, np.int64, len(self._new))
        why = np.fromiter(self._new.values(), np.int32, len(self._new))
        self._rows, self._why = _in_order(np.concatenate([self._rows, rows]), np.concatenate([self._why, why]))
        self._new = {}


def _in_order(rows: np.ndarray, why: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort failures by their rows, each of them once, as it was named last."""
    if (rows[1:] > rows[:-1]).all():
        return rows, why
    order = np.argsort(rows, kind="stable")
    rows, why = rows[order], why[order]
    last = np.append(rows[1:] != rows[:-1], True)
    return rows[last], why[last]
