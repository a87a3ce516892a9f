"""What is told of pictures that could not be used."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import overload

from ..cache.listing import Listing
from ..errors import DataError, printable
from .elsewhere import location

logger = logging.getLogger("headstart.extract")

SHOWN_FAILURES = 10


class NamedFailures(Sequence[tuple[str, str]]):
    """Path and reason of each picture that could not be used, made when they are asked for.

    Parameters
    ----------
    listing : Listing
    folder : str
        The folder that its paths are relative to.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, listing: Listing, folder: str) -> None:
        self._listing = listing
        self._folder = folder

    def __len__(self) -> int:
        return len(self._listing.failures)

    @overload
    def __getitem__(self, place: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, place: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        rows = self._listing.failures.rows[place]
        return [self._named(int(row)) for row in rows] if isinstance(place, slice) else self._named(int(rows))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return repr(list(self))

    def _named(self, row: int) -> tuple[str, str]:
        path = location(os.fsencode(self._folder), self._listing.paths[row])
        return os.fsdecode(path), self._listing.failures[row]


def report_failures(failures: Sequence[tuple[str, str]], total: int, *, strict: bool = False) -> None:
    """Name the first pictures that failed and count the others.

    Parameters
    ----------
    failures : sequence of (str, str)
        Path and reason of each.
    total : int
        Pictures of the dataset.
    strict : bool, default False
        Any failure is an error.

    Raises
    ------
    DataError
        All pictures failed, or, with `strict`, some.
    """
    if not failures:
        return
    first = f"the first, {printable(failures[0][0])}: {failures[0][1]}"
    if len(failures) == total:
        raise DataError(f"0 of {total} images could be used; {first}")
    for path, reason in failures[:SHOWN_FAILURES]:
        logger.warning("skipped %s: %s", printable(path), reason)
    if len(failures) > SHOWN_FAILURES:
        logger.warning("and %d more images were skipped; --json lists all", len(failures) - SHOWN_FAILURES)
    if strict:
        raise DataError(f"{len(failures)} of {total} images failed and --strict was given; {first}")
