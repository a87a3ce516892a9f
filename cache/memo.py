"""What a backbone request resolved to, so that a warm command knows its feature space without importing torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from .publish import publish
from .space import ID_LENGTH, canonical_json, fingerprint


def _path(cache: Path, request: dict[str, Any]) -> Path:
    return cache / "backbones" / f"{fingerprint(request)[:ID_LENGTH]}.json"


def _checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode("ascii"))


def recall(cache: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was remembered for `request`, or None.

    A file that is absent, damaged or for another request counts as nothing remembered: the answer is then found anew.
    """
    try:
        content = json.loads(_path(cache, request).read_bytes())
        text = canonical_json([content["request"], content["resolved"]])
        if content["xxh3"] != _checksum(text) or canonical_json(request) != canonical_json(content["request"]):
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    resolved: dict[str, Any] = content["resolved"]
    return resolved


def remember(cache: Path, request: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Keep what `request` resolved to."""
    checksum = _checksum(canonical_json([request, resolved]))
    content = {"request": request, "resolved": resolved, "xxh3": checksum}
    publish(_path(cache, request), json.dumps(content, indent=2, sort_keys=True).encode("ascii"))
