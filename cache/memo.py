"""What a backbone request resolved to, so that a warm command knows its feature space without importing torch.

What compiling a network cost and gained is kept in the same way.
"""

from __future__ import annotations

import json
from typing import Any

import xxhash

from ..errors import DamagedFileError
from .place import Place
from .space import ID_LENGTH, canonical_json, fingerprint
from .storage import make_folder, publish, read_json, twice


def _path(cache: Place, request: dict[str, Any]) -> Place:
    return cache / "backbones" / f"{fingerprint(request)[:ID_LENGTH]}.json"


def _checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode("ascii"))


def recall(cache: Place, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was remembered for `request`, or None.

    A file that is absent, damaged or for another request counts as nothing remembered: the answer is then found anew.
    """
    try:
        content = check(_path(cache, request))
    except (FileNotFoundError, DamagedFileError):
        return None
    if canonical_json(request) != canonical_json(content["request"]):
        return None
    resolved: dict[str, Any] = content["resolved"]
    return resolved


@twice
def check(path: Place) -> dict[str, Any]:
    """Return the content of a file that `remember` wrote.

    Raises
    ------
    DamagedFileError
        It is not what was written.
    """
    content: dict[str, Any] = read_json(path)
    try:
        if content["xxh3"] == _checksum(canonical_json([content["request"], content["resolved"]])):
            return content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it cannot be read ({error!r})") from error
    raise DamagedFileError(f"{path} is damaged: its content does not match its checksum")


def remember(cache: Place, request: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Keep what `request` resolved to."""
    checksum = _checksum(canonical_json([request, resolved]))
    content = {"request": request, "resolved": resolved, "xxh3": checksum}
    make_folder(cache / "backbones")
    publish(_path(cache, request), json.dumps(content, indent=2, sort_keys=True).encode("ascii"))
