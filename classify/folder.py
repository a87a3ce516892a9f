"""A folder with numbers as safetensors and a JSON object that names their files: whole at every moment.

The files of numbers carry their own SHA-256 in their names, and the JSON is put in place last, so a folder that is
interrupted holds what it held before or what it was to hold. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.publish import publish
from ..cache.temporary import is_temporary
from ..errors import ModelError, printable

MAX_JSON = 16 << 20  # 100,000 class names of 100 characters, and room for the rest
_NUMBERS = re.compile(r"([a-z]+)-([0-9a-f]{64})\.safetensors")


def write_numbers(folder: Path, prefix: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays into a file of the folder, and return its name.

    Raises
    ------
    CacheError
        The disk cannot be written.
    """
    from safetensors.numpy import save

    data = save(
        {name: np.require(array, requirements="C") for name, array in arrays.items()}
    )  # which keeps 0 axes as 0
    name = f"{prefix}-{hashlib.sha256(data).hexdigest()}.safetensors"
    publish(folder / name, data)  # also where there is one of the name: it may be damaged
    return name


def write_object(file: Path, content: Mapping[str, Any]) -> None:
    """Write the JSON object, by which everything written before becomes valid.

    Raises
    ------
    CacheError
        The disk cannot be written.
    """
    publish(file, json.dumps(content, indent=1, allow_nan=False).encode("ascii"))


def only_numbers(folder: Path) -> bool:
    """Tell whether a folder holds nothing but what a writer leaves that was killed before the JSON was there."""
    return all(_NUMBERS.fullmatch(path.name) or is_temporary(path.name) for path in folder.iterdir())


def remove_numbers(folder: Path, keep: Collection[str | None]) -> None:
    """Remove the files of numbers that the JSON does not name, and what a killed writer left."""
    for path in folder.iterdir():
        if (_NUMBERS.fullmatch(path.name) and path.name not in keep) or is_temporary(path.name):
            path.unlink(missing_ok=True)


def read_object(file: Path, *, what: str, maker: str, advice: str) -> dict[str, Any]:
    """Read the JSON object of a folder.

    Parameters
    ----------
    file : Path
    what : str
        What the folder is, "model" say.
    maker : str
        The command that makes one.
    advice : str
        What to do about a damaged one.

    Raises
    ------
    ModelError
        It is not there, too large or no JSON object.
    """
    folder = file.parent
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_JSON + 1)
    except FileNotFoundError as error:
        found = f"holds no {what}" if folder.exists() else "is not there"
        raise ModelError(f"the {what} folder {folder} {found}; `{maker}` makes one") from error
    except NotADirectoryError as error:
        raise ModelError(f"{folder} is a file and not a {what} folder, which `{maker}` makes") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})") from error
    if len(data) > MAX_JSON:
        raise ModelError(f"{file} is larger than {MAX_JSON >> 20} MB: headstart did not write it")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: {error}; {advice}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is damaged: it holds no object; {advice}")
    return content


def read_numbers(file: Path, prefix: str, name: Any, *, advice: str) -> dict[str, np.ndarray]:
    """Read the arrays of the file that a JSON object names, every byte checked.

    Parameters
    ----------
    file : Path
        The JSON's file.
    prefix : str
        With which the name must begin.
    name : str
        As the JSON has it.
    advice : str
        What to do about damage.

    Raises
    ------
    ModelError
        No name of such a file, or a file that is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = file.parent / checked_name(file, prefix, name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    if hashlib.sha256(data).hexdigest() not in path.name:
        raise ModelError(f"{path} is damaged: its bytes do not match the SHA-256 in its name; {advice}")
    try:
        return load(data)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def is_numbers(name: Any, prefix: str) -> bool:
    """Tell whether this is the name of a file of numbers that `write_numbers` gave it."""
    match = _NUMBERS.fullmatch(name) if isinstance(name, str) else None
    return match is not None and match[1] == prefix


def checked_name(file: Path, prefix: str, name: Any) -> str:
    """Return the name of a file of numbers as a JSON object has it.

    Raises
    ------
    ModelError
        It is none; in particular, a path that leads out of the folder is none.
    """
    if not is_numbers(name, prefix):
        raise ModelError(f"{file} is damaged: it names no file of numbers ({printable(str(name))!r})")
    return str(name)
