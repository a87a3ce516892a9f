"""Numbered views of a picture: each a deterministic augmentation, which the cache keeps under its own key.

View 0 is the plain evaluation crop, and belongs to every recipe. View v of a recipe is drawn from the picture's digest,
v and the recipe alone, so it is the same in every order, process and machine, and more of them can be had later at the
price of the new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.index import KeyIndex
from ..cache.listing import SPLITS
from ..cache.part import PLAIN_RECIPE, Keys
from ..cache.space import canonical_json
from ..errors import UsageError
from .augment import PRESETS, RECIPE_VERSIONS, Augment, image_seed
from .preprocess import Preprocess, to_input

DEFAULT_AUGMENT = "tutorial"
ALL = "all"
_NONE = "none"
MOST_VIEWS = 1000  # of one picture: more is a slip of the hand, and all that are lacking are in memory at once


@dataclass(frozen=True, slots=True)
class Views:
    """How many views of each image are meant, of which recipe, and of which images.

    Attributes
    ----------
    count : int, default 1
        V; view 0 among them.
    augment : str, default "none"
        The preset of views 1 to V - 1, of `headstart.extract.augment.PRESETS`; "none" for one view.
    split : str, default "all"
        Images of other splits have view 0 alone. An image without a split counts as "train".

    Raises
    ------
    UsageError
        No such number, preset or split, or one that means nothing beside the others.
    """

    count: int = 1
    augment: str = _NONE
    split: str = ALL

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or not 1 <= self.count <= MOST_VIEWS:
            raise UsageError(f"views must be a whole number from 1 to {MOST_VIEWS:,}; got {self.count!r}")
        if self.augment not in PRESETS:
            raise UsageError(f"augment must be one of {', '.join(PRESETS)}; got {self.augment!r}")
        if self.split != ALL and self.split not in SPLITS[1:]:
            raise UsageError(f"views-split must be one of {ALL}, {', '.join(SPLITS[1:])}; got {self.split!r}")
        if self.count > 1 and self.augment == _NONE:
            raise UsageError("views of the preset none would all be the same; choose another with --augment")
        if self.count == 1 and self.augment != _NONE:
            raise UsageError(f"one view is the plain crop, and --augment {self.augment} has no effect: pass --views 2")
        if self.count == 1 and self.split != ALL:
            raise UsageError(f"every image has one view, and --views-split {self.split} has no effect: pass --views 2")

    @classmethod
    def asked(cls, count: int | None, augment: str | None, split: str | None = None) -> Views:
        """Return what options ask for: one view where there are none, the default preset where only a number is."""
        count = 1 if count is None else count
        default = _NONE if count == 1 else DEFAULT_AUGMENT
        return cls(count, default if augment is None else augment, ALL if split is None else split)

    @property
    def recipe(self) -> int:
        """Id of the recipe; 0 for one view."""
        return _recipe_id(self.augment) if self.count > 1 else PLAIN_RECIPE

    def recipes(self) -> dict[str, Any]:
        """Return the description of the recipe by its id in decimal, as parts keep it; empty for one view."""
        return {str(self.recipe): _description(self.augment)} if self.count > 1 else {}

    def request(self) -> dict[str, Any]:
        """Return them as a listing keeps them; nothing for one view."""
        return {"views": self.count, "augment": self.augment, "views_split": self.split} if self.count > 1 else {}

    @classmethod
    def of_request(cls, request: Mapping[str, Any]) -> Views:
        """Return the views that a listing's run was asked for; one where this version does not know their preset."""
        if request.get("augment", _NONE) not in PRESETS:
            return PLAIN
        return cls(request.get("views", 1), request.get("augment", _NONE), request.get("views_split", ALL))

    def summary(self) -> dict[str, Any]:
        """Return number and preset as the results of commands have them."""
        return {"views": self.count, "augment": self.augment}

    def words(self) -> dict[str, Any]:
        """Return them as options of the command line; nothing for one view."""
        split = {} if self.split == ALL else {"views_split": self.split}
        return {"views": self.count, "augment": self.augment, **split} if self.count > 1 else {}

    def counts(self, split: np.ndarray) -> np.ndarray:
        """Return how many views each image has.

        Parameters
        ----------
        split : ndarray of shape (n,), dtype integer
            Index into `headstart.cache.listing.SPLITS`.

        Returns
        -------
        ndarray of shape (n,), dtype int64
        """
        if self.split == ALL:
            return np.full(len(split), self.count)
        mine = split == SPLITS.index(self.split)
        if self.split == "train":
            mine |= split == SPLITS.index("")
        return np.where(mine, self.count, 1)

    def keys(self, digest: np.ndarray) -> Keys:
        """Return the keys of all views of images with these digests (n, 32) uint8: n * V, those of an image together.

        The order is that of a run, which computes all views of an image after each other.
        """
        view = np.tile(np.arange(self.count, dtype=np.uint32), len(digest))
        return Keys(np.repeat(digest, self.count, axis=0), self._recipe_of(view), view)

    def keys_of(self, digest: np.ndarray, view: np.ndarray) -> Keys:
        """Return the keys of one view of each image, by digests (n, 32) uint8 and view numbers (n,)."""
        return Keys(digest, self._recipe_of(view), view.astype(np.uint32))

    def _recipe_of(self, view: np.ndarray) -> np.ndarray:
        return np.where(view > 0, np.uint64(self.recipe), np.uint64(PLAIN_RECIPE))

    def lacking(self, index: KeyIndex, digest: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Count the views of each image that have no row.

        Parameters
        ----------
        index : KeyIndex
        digest : ndarray of shape (n, 32), dtype uint8
        counts : ndarray of shape (n,), dtype int64
            How many views each image has.

        Returns
        -------
        ndarray of shape (n,), dtype int64
        """
        missing = np.zeros(len(digest), np.int64)
        for view in range(int(counts.max(initial=0))):
            rows = np.flatnonzero(counts > view)
            missing[rows] += index.find(self.keys_of(digest[rows], np.full(len(rows), view))) < 0
        return missing

    def lacking_rows(self, index: KeyIndex, digest: np.ndarray, counts: np.ndarray) -> int:
        """Count the rows that images lack, as `lacking`; those of copies once, and as many as any of them has."""
        digest = np.ascontiguousarray(digest)
        _, first, place = np.unique(digest.view("V32"), return_index=True, return_inverse=True)
        most = np.zeros(len(first), np.int64)
        np.maximum.at(most, place.reshape(-1), counts)
        return int(self.lacking(index, digest[first], most).sum())

    def lacking_of_one(self, index: KeyIndex, digest: bytes, count: int) -> list[int]:
        """Return the numbers of the views of one image, of the first `count`, that have no row."""
        recipe = self.recipe
        return [view for view in range(count) if index.find_one(digest, recipe if view else PLAIN_RECIPE, view) < 0]

    def maker(self, preprocess: Preprocess) -> Maker:
        """Return what makes views of decoded pictures, before one network."""
        return Maker(self, preprocess)


PLAIN = Views()


def known_recipes() -> dict[int, Views]:
    """Return views of each recipe that this version draws, by the recipe's id; those of 0 are the plain crops."""
    drawn = (Views(2, preset) for preset in PRESETS if preset != _NONE)
    return {PLAIN_RECIPE: PLAIN, **{views.recipe: views for views in drawn}}


class Maker:
    """Makes views of decoded pictures; safe to call from many threads at once.

    Parameters
    ----------
    views : Views
    preprocess : Preprocess
    """

    def __init__(self, views: Views, preprocess: Preprocess) -> None:
        self._recipe = views.recipe
        self._preprocess = preprocess
        self._augment = Augment(views.augment, preprocess) if views.count > 1 else None

    def __call__(self, pixels: NDArray[np.uint8], digest: bytes, view: int) -> tuple[NDArray[np.uint8], bool]:
        """Make one view.

        Parameters
        ----------
        pixels : array, (H, W, 3) uint8
            Decoded image.
        digest : bytes
            SHA-256 of its file's bytes.
        view : int
            0 for the evaluation crop.

        Returns
        -------
        image : array, (crop, crop, 3) uint8
        enlarged : bool
            As `to_input`; of the evaluation crop alone.
        """
        if view == 0:
            return to_input(pixels, self._preprocess)
        assert self._augment is not None
        return self._augment(pixels, view_seed(digest, self._recipe, view)), False


def view_seed(digest: bytes, recipe: int, view: int) -> int:
    """Return what view `view` > 0 of the image with this digest is drawn from."""
    return image_seed("view", digest, recipe, view)


def _description(preset: str) -> dict[str, Any]:
    return {"augment": preset, "version": RECIPE_VERSIONS[preset]}


@lru_cache(maxsize=len(PRESETS))
def _recipe_id(preset: str) -> int:
    """Return the beginning of the SHA-256 of a recipe's canonical JSON, 1 to 2**64 - 1."""
    digest = hashlib.sha256(canonical_json(_description(preset)).encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1
