"""A file of results under a name that the user chose: whole or not at all, and never over another one unasked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..cache.publish import make_folder, publish
from ..errors import CacheError, OutputError, UsageError, printable


def check_file(out: Path, suffix: str, *, overwrite: bool = False, option: str = "--out") -> None:
    """Raise where a result must not be written, before the work for it begins.

    Parameters
    ----------
    out : Path
        The file.
    suffix : str
        What its name must end in, such as ``".png"``: a slip must not replace a picture of another kind, or a model.
    overwrite : bool, default False
        Allow a file that is there.
    option : str, default "--out"
        What names the file on the command line.

    Raises
    ------
    UsageError
        The name has another ending.
    OutputError
        Something is there already, or nothing can be written there, as far as permissions tell.
    """
    if out.suffix.lower() != suffix:
        raise UsageError(f"{option} must name a file that ends in {suffix}; got {printable(out)}")
    if out.is_dir():
        raise OutputError(f"{printable(out)} is a folder; name a file with {option}")
    if os.path.lexists(out) and not out.is_file():
        raise OutputError(f"{printable(out)} is no regular file; name another with {option}")
    if out.is_file() and not overwrite:
        raise OutputError(f"{printable(out)} is there already; pass --overwrite or name another file with {option}")
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise OutputError(f"{printable(out)} cannot be made: {printable(above)} is a file; name another with {option}")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{printable(out)} cannot be written: no permission to write into {printable(above)}")


def check_no_input(out: Path, inputs: Iterable[str | os.PathLike[str]], *, option: str = "--out") -> None:
    """Raise where writing `out` would replace one of the files that the result is made from.

    Raises
    ------
    OutputError
    """
    if out.is_file() and _entry(out) in map(_entry, inputs):
        raise OutputError(f"{printable(out)} is one of the pictures themselves; name another file with {option}")


def _entry(path: str | os.PathLike[str]) -> str:
    """Return the entry of a folder that a path names: its last name as it is, since links are replaced."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100  (pathlib has no split that keeps links)
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def write_file(out: Path, data: bytes, *, option: str = "--out") -> None:
    """Write a file durably; its folder is made where it is missing.

    Raises
    ------
    OutputError
        The disk refuses; nothing is left then but what was there before.
    """
    try:
        make_folder(out.absolute().parent)
        publish(out.absolute(), data)
    except CacheError as error:
        raise OutputError(f"{printable(out)} was not written: {str(error).replace('--cache', option)}") from error
