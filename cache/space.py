"""The feature space: everything that must agree for two embeddings to be comparable, as canonical JSON with an id."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ..errors import CacheFormatError, DamagedFileError

SPACE_FORMAT = 1
ID_LENGTH = 16
# Fields in which two spaces may differ and their embeddings still be used together, at a drift that is reported.
_NUMERIC_FIELDS = frozenset({"precision", "fast_path", "dtype"})


def canonical_json(value: object) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of `value` in hex."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpace:
    """One kind of embedding.

    Attributes
    ----------
    backbone, library : str
        Name and origin of the network.
    weights : str
        SHA-256 of its parameters' values, 64 hex digits.
    layer, pool : str
        The module whose output (or, with ``.input``, input) is taken, and how a map becomes a vector.
    dim : int
        Width of the embedding.
    preprocess : dict
        Resize, crop, interpolation, antialias, mean, std.
    decoder : int
        Version of the rules by which bytes become pixels.
    precision : str, default "float32"
        What the forward pass computes in.
    fast_path : str, default ""
        Names a way of computing that moves values by more than 1e-4 relative; empty otherwise.
    dtype : str, default "float32"
        What is stored: "float32" or "float16".
    """

    backbone: str
    library: str
    weights: str
    layer: str
    pool: str
    dim: int
    preprocess: dict[str, Any]
    decoder: int
    precision: str = "float32"
    fast_path: str = ""
    dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes on disk that one row takes: the embedding, and 44 of key."""
        return self.dim * (2 if self.dtype == "float16" else 4) + 44

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the format version, as stored."""
        return {"format": SPACE_FORMAT, **dataclasses.asdict(self)}

    @property
    def json(self) -> str:
        """The canonical JSON of the fields and the format version."""
        return canonical_json(self.as_dict())

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON."""
        return fingerprint(self.as_dict())[:ID_LENGTH]

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> FeatureSpace:
        """Rebuild a space from `as_dict`.

        Raises
        ------
        CacheFormatError
            Written by a newer version.
        DamagedFileError
            Not a feature space at all.
        """
        fields = dict(fields)
        found = fields.pop("format", None)
        if isinstance(found, int) and found > SPACE_FORMAT:
            raise CacheFormatError(
                f"a feature space was written by format {found}, this reads up to {SPACE_FORMAT}; upgrade headstart"
            )
        try:
            # Through JSON, so that tuples and lists compare equal whatever made them.
            return cls(**json.loads(canonical_json(fields)))
        except (TypeError, ValueError) as error:
            raise DamagedFileError(f"not a feature space: {error}") from error

    def compatible_with(self, other: FeatureSpace) -> bool:
        """Tell whether embeddings of both may be mixed: they differ at most in how numbers are computed and kept."""
        return not set(self.differences(other)) - _NUMERIC_FIELDS

    def differences(self, other: FeatureSpace) -> dict[str, tuple[Any, Any]]:
        """Return the fields that differ, each with the value here and the value there; preprocessing field by field."""
        mine, theirs = _flat(self.as_dict()), _flat(other.as_dict())
        names = sorted(set(mine) | set(theirs))
        return {name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)}


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    flat = json.loads(canonical_json(fields))
    return {**flat.pop("preprocess"), **flat}
