"""One part: an immutable block of embeddings in one feature space, its hash in its name."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__
from ..errors import CacheFormatError, DamagedFileError, printable
from . import block
from .place import Place
from .publish import sortable_id
from .space import FeatureSpace, canonical_json
from .storage import publish, twice

PART_FORMAT = 1
PLAIN_RECIPE = 0
# An attribute of an HDF5 file holds less than 64 kB, and each name takes 63 bytes of the JSON.
MAX_SUPERSEDED = 512
_NAME = re.compile(r"([0-9a-f]{14})[0-9a-f]{10}-([0-9a-f]{32})\.h5")


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


@dataclass(frozen=True, slots=True)
class PartHead:
    """What a part says of itself, its embeddings aside.

    Attributes
    ----------
    path : Path or RemotePath
    keys : Keys
    space : FeatureSpace
    supersedes : tuple of str
        Names of the parts whose rows this one took over; readers drop those.
    recipes : dict
        Description of each recipe in `keys`, by its id in decimal.
    """

    path: Place
    keys: Keys
    space: FeatureSpace
    supersedes: tuple[str, ...]
    recipes: dict[str, Any]


def write_part(
    folder: Place,
    space: FeatureSpace,
    keys: Keys,
    embedding: np.ndarray,
    recipes: dict[str, Any],
    supersedes: Sequence[str] = (),
) -> Place:
    """Publish rows as one part in `folder`.

    Parameters
    ----------
    folder : Path or RemotePath
        The folder of the feature space.
    space : FeatureSpace
        What the rows are.
    keys : Keys
        One key a row.
    embedding : ndarray of shape (n, D), dtype float32 or float16
        The rows.
    recipes : dict
        Description of each recipe in `keys`, by its id in decimal.
    supersedes : sequence of str, default ()
        Names of the parts that this one takes the place of, at most `MAX_SUPERSEDED`.

    Returns
    -------
    Path or RemotePath
        The complete, durable file.
    """
    attributes: dict[str, str | int] = {
        "schema": PART_FORMAT,
        "space": space.json,
        "recipes": canonical_json(recipes),
        "rows": len(keys),
        "writer": f"headstart {__version__}",
    }
    if supersedes:
        attributes["supersedes"] = canonical_json(list(supersedes))
    arrays = {"embedding": embedding, "digest": keys.digest, "recipe": keys.recipe, "view": keys.view}
    buffers = block.build(arrays, attributes)
    path = folder / f"{sortable_id()}-{block.file_hash(buffers)}.h5"
    publish(path, buffers)
    return path


def is_part(path: Place) -> bool:
    """Tell whether the name is that of a part. A name that ends in ``.h5`` is complete, always."""
    return _NAME.fullmatch(path.name) is not None


def written_at(path: Place) -> float:
    """Return when a part was written, seconds since 1970, by the clock of its writer."""
    return int(_matched(path)[1], 16) / 1e6


def _matched(path: Place) -> re.Match[str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DamagedFileError(f"{path} is damaged: its name holds no hash")
    return match


@twice
def read_head(path: Place) -> PartHead:
    """Read what a part says of itself, checked, without its embeddings.

    Raises
    ------
    DamagedFileError, CacheFormatError
        The file is not what was written, or newer than this version reads, or of another feature space.
    """
    header, space = _read_header(path)
    arrays = block.read_arrays(path, header, ("digest", "recipe", "view"))
    keys = Keys(arrays["digest"], arrays["recipe"], arrays["view"])
    try:
        recipes = dict(json.loads(header.attributes["recipes"]))
        names = _superseded(path, header)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it does not hold what a part holds ({error})") from error
    return PartHead(path, keys, space, names, recipes)


def recipes_of(heads: Iterable[PartHead]) -> dict[str, Any]:
    """Return the descriptions of all recipes in some parts, by their ids in decimal."""
    return {name: description for head in heads for name, description in head.recipes.items()}


def recipe_name(description: Any) -> tuple[str, int | None]:
    """Return the preset of a recipe and its version, or its whole description and None where it has other fields."""
    if isinstance(description, dict) and sorted(description) == ["augment", "version"]:
        augment, version = description["augment"], description["version"]
        if isinstance(augment, str) and isinstance(version, int):
            return augment, version
    return canonical_json(description), None


def recipe_words(name: str, version: int | None) -> str:
    """Return what `recipe_name` gave for people."""
    return printable(name) if version is None else f"{printable(name)} (version {version})"


def read_keys(path: Place) -> Keys:
    """Read the keys of a part, as `read_head` does."""
    return read_head(path).keys


def read_embeddings(path: Place) -> np.ndarray:
    """Read the embeddings of a part, (n, D), after checking every byte of the file against the hash in its name."""
    header, _ = _read_header(path)
    entry = header.arrays["embedding"]
    rows = np.arange(entry.shape[0])
    result = np.empty(entry.shape, entry.dtype)
    copy_rows(path, rows, result, rows)
    return result


@twice
def copy_rows(path: Place, rows: np.ndarray, target: np.ndarray, places: np.ndarray) -> None:
    """Copy embeddings of a part to where they are wanted, checking every byte of the file on the way.

    The file is read once, a piece at a time, each piece hashed while the processor's cache still holds it.

    Parameters
    ----------
    path : Path or RemotePath
        The part.
    rows : ndarray of shape (n,), dtype int64
        Rows of the part, ascending; a row may repeat.
    target : ndarray of shape (m, D), dtype float32 or float16
        Receives the rows. Its content counts only if the call returns.
    places : ndarray of shape (n,), dtype int64
        Where in `target` each of `rows` goes.

    Raises
    ------
    DamagedFileError
        A byte of the file differs from what was written.
    """
    header, _ = _read_header(path)
    block.copy_rows(path, header, "embedding", _matched(path)[2], rows, target, places)


def check_part(path: Place) -> int:
    """Check every byte of a part against the hash in its name, and return the number of its rows.

    Raises
    ------
    DamagedFileError, CacheFormatError
        As `read_head`.
    """
    copy_rows(path, np.zeros(0, np.int64), np.empty((0, 0), np.float32), np.zeros(0, np.int64))
    return len(read_head(path).keys)


def _read_header(path: Place) -> tuple[block.Header, FeatureSpace]:
    try:
        header = block.read_header(path)
        schema = header.attributes.get("schema")
        if isinstance(schema, int) and schema > PART_FORMAT:
            raise CacheFormatError(
                f"{path} was written by format {schema}, this reads up to {PART_FORMAT}; upgrade headstart"
            )
        _check_shapes(path, header)
        space = _check_space(path, header)
    except CacheFormatError:
        # What looks like a newer format may be a flipped bit: the hash in the name, whatever the format, tells.
        block.check_file(path, _matched(path)[2])
        raise
    return header, space


def _check_shapes(path: Place, header: block.Header) -> None:
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


def _check_space(path: Place, header: block.Header) -> FeatureSpace:
    """Refuse a part that was copied in from another feature space: the folder's name is the id of the space."""
    try:
        space = FeatureSpace.from_dict(json.loads(header.attributes["space"]))
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise DamagedFileError(f"{path} is damaged: it names no feature space") from error
    if space.id != path.parent.name:
        raise DamagedFileError(
            f"{path} belongs to feature space {space.id} ({space.backbone}, layer {space.layer}), not to its folder's"
        )
    if header.arrays["embedding"].shape[1] != space.dim:
        raise DamagedFileError(f"{path} is damaged: it does not hold embeddings of width {space.dim}")
    return space


def _superseded(path: Place, header: block.Header) -> tuple[str, ...]:
    names: Collection[str] = json.loads(header.attributes.get("supersedes", "[]"))
    if not all(_NAME.fullmatch(name) for name in names):
        raise DamagedFileError(f"{path} is damaged: what it supersedes are no parts")
    return tuple(names)
