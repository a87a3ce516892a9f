"""Why images are embedded although the cache holds them: what differs from the spaces that do."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache.index import KeyIndex
from ..cache.part import Keys
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from .resolve import library_versions

logger = logging.getLogger("headstart.extract")

# Fields of a feature space that an option decides on, in the order in which they are told.
_OPTIONS = {
    "layer": "--layer",
    "pool": "--pool",
    "resize": "--resize",
    "crop": "--crop",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
    "precision": "--precision",
    "dtype": "--store-dtype",
}
_CHANGES = {
    "library": "library",
    "decoder": "rules for reading pictures",
    "antialias": "antialias",
    "fast_path": "way of computing",
}
# Libraries that decide on pixels: the decoders, and what resizes.
READERS = ("pillow", "simplejpeg", "torchvision")
_FOLLOWS = {"dim", "format"}  # differs only where something else does


@dataclass(frozen=True, slots=True)
class Miss:
    """Images that are embedded although another space of the same backbone holds them.

    Attributes
    ----------
    space : str
        Id of that space.
    images : int
    why : str
        What differs, such as "cached with --crop 224, asked for --crop 256".
    """

    space: str
    images: int
    why: str

    def line(self) -> str:
        """Return the same as a line for people."""
        some = "1 image is" if self.images == 1 else f"{self.images} images are"
        return f"{some} in another feature space of the cache ({self.space}): {self.why}"


def describe_difference(there: FeatureSpace, wanted: FeatureSpace) -> str:
    """Say what differs between the space that holds an image and the one that is wanted, by the names of options."""
    found = there.differences(wanted)
    parts = []
    if "weights" in found:
        before, now = found["weights"]
        parts.append(f"weights changed: {before[:4]}… to {now[:4]}…")
    named = [name for name in _OPTIONS if name in found]
    if named:
        cached, asked = (" ".join(f"{_OPTIONS[name]} {_value(found[name][side])}" for name in named) for side in (0, 1))
        parts.append(f"cached with {cached}, asked for {asked}")
    others = [name for name in found if name not in {"weights", *named, *_FOLLOWS}]
    parts += [
        f"{_CHANGES.get(name, name)} changed: {_value(found[name][0])} to {_value(found[name][1])}" for name in others
    ]
    return "; ".join(parts)


def _value(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, list):
        return ",".join(f"{number:g}" for number in value)
    return str(value)


def misses(store: FeatureStore, wanted: FeatureSpace, digest: np.ndarray, beside: Collection[str] = ()) -> list[Miss]:
    """Return which other spaces of the same backbone hold images that `wanted` lacks.

    Parameters
    ----------
    store : FeatureStore
    wanted : FeatureSpace
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of images that `wanted` lacks.
    beside : collection of str
        Ids of spaces that were asked for together with `wanted`: they explain nothing.

    Returns
    -------
    list of Miss
        Each image once, under the space with the fewest differences.
    """
    others = [
        space
        for space_id, space in store.spaces().items()
        if space.backbone == wanted.backbone and space_id not in {wanted.id, *beside}
    ]
    left, found = np.unique(digest, axis=0), []
    for space in sorted(others, key=lambda space: len(space.differences(wanted))):
        if not len(left):
            break
        heads, _ = store.survey(space.id)
        held = KeyIndex([head.keys for head in heads]).find(Keys.plain(left)) >= 0
        if held.any():
            found.append(Miss(space.id, int(held.sum()), describe_difference(space, wanted)))
        left = left[~held]
    return found


def explain_misses(
    store: FeatureStore, wanted: FeatureSpace, digest: np.ndarray, beside: Collection[str] = ()
) -> list[Miss]:
    """Say of images that are about to be embedded, or have been, which other spaces hold them; see `misses`."""
    if not len(digest):
        return []
    found = misses(store, wanted, digest, beside)
    for miss in found:
        logger.info("%s", miss.line())
    return found


def joined(first: list[Miss], second: list[Miss]) -> list[Miss]:
    """Join two lists, the images of one space together."""
    spaces = {miss.space: miss for miss in [*first, *second]}
    counts = {space: sum(miss.images for miss in [*first, *second] if miss.space == space) for space in spaces}
    return [Miss(space, counts[space], miss.why) for space, miss in spaces.items()]


def warn_of_versions(store: FeatureStore, space: FeatureSpace) -> None:
    """Warn where rows are added to a space that was begun with other versions of what turns files into pixels."""
    begun, now = store.facts(space.id), library_versions()
    changed = [name for name in READERS if name in begun and begun[name] != now.get(name)]
    if changed:
        logger.warning(
            "the embeddings in space %s were begun with %s, this is %s: pictures may be read a shade differently; "
            "`headstart cache verify --sample 20` measures by how much",
            space.id,
            " and ".join(f"{name} {begun[name]}" for name in changed),
            " and ".join(f"{name} {now.get(name, 'not installed')}" for name in changed),
        )
