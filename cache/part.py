"""One part: an immutable block of embeddings in one feature space, its hash in its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import CacheFormatError, DamagedFileError
from . import block
from .publish import publish, sortable_id
from .space import FeatureSpace, canonical_json

PART_FORMAT = 1
PLAIN_RECIPE = 0
_NAME = re.compile(r"[0-9a-f]{24}-([0-9a-f]{32})\.h5")


@dataclass(frozen=True, slots=True)
class Keys:
    """Which view of which image each row is.

    Attributes
    ----------
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of the image file's bytes.
    recipe : ndarray of shape (n,), dtype uint64
        Id of the augmentation recipe; 0 for view 0, which belongs to every recipe.
    view : ndarray of shape (n,), dtype uint32
        View number.
    """

    digest: np.ndarray
    recipe: np.ndarray
    view: np.ndarray

    @classmethod
    def plain(cls, digest: np.ndarray) -> Keys:
        """Return the keys of view 0 of images with these digests, (n, 32) uint8."""
        count = len(digest)
        return cls(digest, np.zeros(count, np.uint64), np.zeros(count, np.uint32))

    @classmethod
    def concatenate(cls, several: Sequence[Keys]) -> Keys:
        """Join keys in order."""
        if not several:
            return cls.plain(np.zeros((0, 32), np.uint8))
        return cls(
            *(np.concatenate([getattr(keys, name) for keys in several]) for name in ("digest", "recipe", "view"))
        )

    def __len__(self) -> int:
        return len(self.digest)

    def __getitem__(self, rows: np.ndarray | slice) -> Keys:
        return Keys(self.digest[rows], self.recipe[rows], self.view[rows])


def write_part(
    folder: Path, space: FeatureSpace, keys: Keys, embedding: np.ndarray, recipes: dict[str, object]
) -> Path:
    """Publish rows as one part in `folder`.

    Parameters
    ----------
    folder : Path
        The folder of the feature space.
    space : FeatureSpace
        What the rows are.
    keys : Keys
        One key a row.
    embedding : ndarray of shape (n, D), dtype float32 or float16
        The rows.
    recipes : dict
        Description of each recipe in `keys`, by its id in decimal.

    Returns
    -------
    Path
        The complete, durable file.
    """
    attributes: dict[str, str | int] = {
        "schema": PART_FORMAT,
        "space": space.json,
        "recipes": canonical_json(recipes),
        "rows": len(keys),
        "writer": f"headstart {__version__}",
    }
    arrays = {"embedding": embedding, "digest": keys.digest, "recipe": keys.recipe, "view": keys.view}
    buffers = block.build(arrays, attributes)
    path = folder / f"{sortable_id()}-{block.file_hash(buffers)}.h5"
    publish(path, buffers)
    return path


def is_part(path: Path) -> bool:
    """Tell whether the name is that of a part. A name that ends in ``.h5`` is complete, always."""
    return _NAME.fullmatch(path.name) is not None


def read_keys(path: Path) -> Keys:
    """Read the keys of a part, checked, without its embeddings.

    Raises
    ------
    DamagedFileError, CacheFormatError
        The file is not what was written, or newer than this version reads, or of another feature space.
    """
    header = _read_part_header(path)
    arrays = block.read_arrays(path, header, ("digest", "recipe", "view"))
    return Keys(arrays["digest"], arrays["recipe"], arrays["view"])


def read_embeddings(path: Path) -> np.ndarray:
    """Read the embeddings of a part, (n, D), after checking every byte of the file against the hash in its name."""
    header = _read_part_header(path)
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DamagedFileError(f"{path} is damaged: its name holds no hash")
    return block.view_array(block.read_whole(path, match[1]), header.arrays["embedding"])


def _read_part_header(path: Path) -> block.Header:
    header = block.read_header(path)
    schema = header.attributes.get("schema")
    if isinstance(schema, int) and schema > PART_FORMAT:
        raise CacheFormatError(
            f"{path} was written by format {schema}, this reads up to {PART_FORMAT}; upgrade headstart"
        )
    _check_shapes(path, header)
    _check_space(path, header)
    return header


def _check_shapes(path: Path, header: block.Header) -> None:
    rows = header.attributes.get("rows")
    shapes = {name: entry.shape for name, entry in header.arrays.items()}
    dtypes = {name: entry.dtype for name, entry in header.arrays.items()}
    wanted = {
        "digest": (rows, 32),
        "recipe": (rows,),
        "view": (rows,),
        "embedding": (rows, *shapes.get("embedding", ())[1:]),
    }
    fixed = {"digest": "|u1", "recipe": "<u8", "view": "<u4"}
    if shapes != wanted or len(shapes["embedding"]) != 2 or any(dtypes[name] != dtype for name, dtype in fixed.items()):
        raise DamagedFileError(f"{path} is damaged: its arrays are not those of a part")


def _check_space(path: Path, header: block.Header) -> None:
    """Refuse a part that was copied in from another feature space: the folder's name is the id of the space."""
    import json

    space = FeatureSpace.from_dict(json.loads(header.attributes["space"]))
    if space.id != path.parent.name:
        raise DamagedFileError(
            f"{path} belongs to feature space {space.id} ({space.backbone}, layer {space.layer}), not to its folder's"
        )
    if header.arrays["embedding"].shape[1] != space.dim:
        raise DamagedFileError(f"{path} is damaged: it does not hold embeddings of width {space.dim}")
