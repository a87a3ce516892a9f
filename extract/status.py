"""What the file system says of many files at once, in columns, and in words of one that needs a closer look."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from ..cache.failures import Failures
from ..cache.names import Names
from .files import NO_STAT, READABLE_BY_ALL, Stat, os_reason, refusal, stat_of

_KIND = stat.S_IFMT(0xFFFF)  # the bits of a mode that say what a file is
# What is asked of many images at once: the columns of a `Stat`, then what decides whether a file may be read.
_ASKED = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode", "st_uid")
NOT_FOUND = "not found"
_AT_ONCE = 256  # where one of them does not answer, all of these are asked again one by one
_answers = attrgetter(*_ASKED)


def asked(found: Iterable[os.stat_result], count: int) -> npt.NDArray[np.int64]:
    """Put the status of some files into columns.

    Parameters
    ----------
    found : iterable of os.stat_result
        What asks for each of them, such as ``map(os.stat, names)``.
    count : int
        How many there are.

    Returns
    -------
    ndarray of int64, shape (count, 6)
        A `Stat`, mode and owner of each; all zeros where one of them does not answer, or not in 63 bits.
    """
    shape = (count, len(_ASKED))
    try:
        # Without a line of Python for each file: that would take half as long again as the system calls.
        values = chain.from_iterable(map(_answers, found))
        return np.fromiter(values, np.int64, shape[0] * shape[1]).reshape(shape)
    except (OSError, OverflowError, ValueError):  # not there; a time or an inode beyond 63 bits; a NUL in the name
        return np.zeros(shape, np.int64)


def plain(answers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which files, as `asked` has them, are regular and surely readable, so that nobody need be asked again."""
    mode, owner = answers[:, _ASKED.index("st_mode")], answers[:, _ASKED.index("st_uid")]
    ours = owner == (os.geteuid() if hasattr(os, "geteuid") else -1)
    readable = (mode & READABLE_BY_ALL == READABLE_BY_ALL) | (ours & (mode & stat.S_IRUSR != 0))
    return np.asarray((mode & _KIND == stat.S_IFREG) & readable)


def examined(path: bytes) -> tuple[Stat, str | None]:
    """Return a file's status and, where it cannot be read, the reason."""
    try:
        found = os.stat(path)  # noqa: PTH116  (names are bytes)
    except OSError as error:
        reason = os_reason(error)
        dangling = reason == NOT_FOUND and os.path.islink(path)  # noqa: PTH114  (names are bytes)
        return NO_STAT, "dangling link" if dangling else reason
    except ValueError:  # a NUL inside the name
        return NO_STAT, NOT_FOUND
    return stat_of(found), refusal(found, path)


def all_examined(folder: bytes, names: Names) -> tuple[npt.NDArray[np.int64], Failures]:
    """Do for many files what `examined` does for one.

    Parameters
    ----------
    folder : bytes
        What relative names are relative to.
    names : Names, N

    Returns
    -------
    stats : ndarray of int64, shape (N, 4)
        As `Stat`.
    reasons : Failures
        Of those that cannot be read.
    """
    stats, reasons = np.zeros((len(names), len(NO_STAT)), np.int64), Failures()
    home, gone = b"", False  # the folder that was looked for last, and whether it is not there, and so nothing in it
    for start in range(0, len(names), _AT_ONCE):
        paths = _joined(folder, names[start : start + _AT_ONCE])
        answers = asked(map(os.stat, paths), len(paths))
        stats[start : start + len(paths)] = answers[:, : len(NO_STAT)]
        for place in np.flatnonzero(~plain(answers)).tolist():
            path = paths[place]
            if gone and os.path.dirname(path) == home:  # noqa: PTH120  (names are bytes)
                reasons[start + place] = NOT_FOUND
                continue
            stats[start + place], reason = examined(path)
            if reason == NOT_FOUND and os.path.dirname(path) != home:  # noqa: PTH120
                home = os.path.dirname(path)  # noqa: PTH120
                gone = bool(home) and examined(home)[1] == NOT_FOUND
            if reason is not None:
                reasons[start + place] = reason
    return stats, reasons


def _joined(folder: bytes, names: Iterable[bytes]) -> list[bytes]:
    if os.sep != "/":
        return [os.path.join(folder, name) for name in names]  # noqa: PTH118  (names are bytes)
    prefix = os.path.join(folder, b"")  # noqa: PTH118
    return [name if name.startswith(b"/") else prefix + name for name in names]
