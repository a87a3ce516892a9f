"""Every error that headstart raises on purpose: one base, each leaf also of the built-in kind it means.

And how names from outside are shown in their messages.
"""

from __future__ import annotations

import os


class HeadstartError(Exception):
    """Base of all errors whose message is meant for the person at the keyboard.

    The message says what was wanted, what was found (a path or a value) and what to do next, in one line.
    """


class UsageError(HeadstartError, ValueError):
    """An argument or option that is wrong whatever is on the disk; the command line exits with 2."""


class DataError(HeadstartError, ValueError):
    """A dataset that cannot be used as asked: wrong layout, empty class, broken CSV."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A dataset, folder or file that is not there."""


class DecodeError(HeadstartError, ValueError):
    """One image that cannot be read or decoded; the message is the reason alone, without the path."""


class BackboneError(HeadstartError, ValueError):
    """An unknown backbone, layer or pooling, or weights that do not fit the network."""


class WeightsNotFoundError(BackboneError, FileNotFoundError):
    """Weights that are neither on this machine nor to be had."""


class DeviceError(HeadstartError, RuntimeError):
    """A device that is not on this machine, or too small for the work."""


class MissingExtraError(HeadstartError, ImportError):
    """An optional dependency that the request needs and that is not installed."""


class CacheError(HeadstartError, OSError):
    """The cache cannot be read or written: disk full, read-only, gone.

    Attributes
    ----------
    size : int
        Bytes that a failed write would have taken; 0 where none was tried.
    """

    size: int = 0


class CacheMissError(HeadstartError, FileNotFoundError):
    """The cache does not hold what a reader needs."""


class CacheFormatError(HeadstartError, ValueError):
    """A file of the cache written by a newer version, or by something else."""


class DamagedFileError(HeadstartError, ValueError):
    """A file whose bytes do not match the hash they were written with."""


class TrainingError(HeadstartError, ValueError):
    """Labels or features that no head can be trained on."""


class ToldElsewhereError(HeadstartError, RuntimeError):
    """Another process of the same run has failed, and says why; this one has nothing to add."""


class ModelError(HeadstartError, ValueError):
    """A saved model that is missing, incomplete, or does not fit the data."""


class OutputError(HeadstartError, OSError):
    """A file of results that cannot be written: it is there already, or the disk refuses."""


def printable(text: object) -> str:
    r"""Return a name as one printable line: what cannot be printed is escaped, as in ``a\nb`` or ``\xff``.

    Parameters
    ----------
    text : bytes, str, path or anything else that has a text
        A file name or path, of any bytes, a URL, or other text from outside.

    Returns
    -------
    str
        Text without control characters and without lone surrogates.
    """
    decoded = os.fsdecode(text if isinstance(text, bytes | os.PathLike) else str(text))
    if decoded.isprintable():
        return decoded
    return "".join(_escaped(character) for character in decoded)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8, as os.fsdecode smuggles it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
