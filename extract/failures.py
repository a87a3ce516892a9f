"""What is told of pictures that could not be used."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import DataError, printable

logger = logging.getLogger("headstart.extract")

SHOWN_FAILURES = 10


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
