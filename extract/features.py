"""The embeddings of a dataset as arrays: what heads, reports and users of the Python API work with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.datasets import load_listings, require_listing
from ..cache.export import Export, export
from ..cache.listing import SPLITS, Listing
from ..cache.part import Keys
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from ..errors import CacheMissError

logger = logging.getLogger("headstart.extract")


@dataclass
class Features:
    """The usable images of a dataset in one feature space; failed images are left out.

    Attributes
    ----------
    listing : Listing
        The dataset, failures included.
    space : FeatureSpace
        What the embeddings are.
    store : FeatureStore
        Where they are kept.
    rows : ndarray of shape (N,), dtype int64
        The rows of `listing` that the arrays below belong to.
    """

    listing: Listing
    space: FeatureSpace
    store: FeatureStore
    rows: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.flatnonzero(self.listing.usable)

    @cached_property
    def X(self) -> np.ndarray:  # noqa: N802  (scikit-learn's name)
        """The embeddings, (N, D) float32; read from the cache when first asked for."""
        return self.store.gather(self.space.id, Keys.plain(self.digest))

    @property
    def y(self) -> np.ndarray:
        """Index into `classes`, (N,) int32; -1 where an image has no label."""
        return np.asarray(self.listing.label[self.rows])

    @property
    def digest(self) -> np.ndarray:
        """SHA-256 of each image file's bytes, (N, 32) uint8."""
        return np.asarray(self.listing.digest[self.rows])

    @property
    def phash(self) -> np.ndarray:
        """Perceptual hash of each picture, (N,) uint64; 0 where it is not known. See `headstart.extract.phash`."""
        return np.asarray(self.listing.phash[self.rows])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.listing.classes

    @property
    def split(self) -> np.ndarray:
        """The split that the dataset gives each image, (N,) of str: "train", "val", "test", or "" for none."""
        return np.asarray(np.array(SPLITS)[self.listing.split[self.rows]])

    @cached_property
    def paths(self) -> np.ndarray:
        """Path of each image below the dataset's folder as the user named it, (N,) of str."""
        folder = dataset_folder(self.listing, self.listing.root)
        return np.array([os.path.join(folder, os.fsdecode(self.listing.paths[row])) for row in self.rows], dtype=object)  # noqa: PTH118

    def export(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Export:
        """Write embeddings, paths, labels and splits to one HDF5 file; see `headstart.cache.export.export`."""
        return export(Path(out), self.store, self.listing, self.space, overwrite=overwrite)


def dataset_folder(listing: Listing, root: str) -> str:
    """Return the folder that a listing's paths are relative to, for its `root` or its `source`."""
    return str(Path(root).parent) if listing.layout == "csv" else root


def load_features(cache: Path, data: Path | None = None, wanted: dict[str, Any] | None = None) -> Features:
    """Take a dataset from the cache, in the space that its latest run asked for.

    No space is ever computed from the machine at hand, so embeddings made on a GPU serve on a laptop.

    Parameters
    ----------
    cache : Path
        The cache's folder.
    data : Path, optional
        The dataset; that of the latest run where it is None.
    wanted : dict, optional
        Fields that the space must have, by the names of `FeatureSpace` and of the preprocessing.

    Raises
    ------
    CacheMissError
        The dataset was never extracted, or not in such a space.
    """
    listing = require_listing(cache, data)
    if data is None:
        logger.info("dataset: %s (of the latest extract)", listing.root)
    store = FeatureStore(cache)
    spaces = _matching_spaces(cache, listing, store, wanted or {})
    if not spaces:
        raise CacheMissError(_no_space(listing, store, wanted or {}))
    if len(spaces) > 1:
        logger.info(
            "%d feature spaces of the latest extract fit; taking the first: %s", len(spaces), describe_space(spaces[0])
        )
    return Features(listing, spaces[0], store)


def _matching_spaces(cache: Path, listing: Listing, store: FeatureStore, wanted: dict[str, Any]) -> list[FeatureSpace]:
    """Return the spaces of the dataset's newest run that had any such as wanted."""
    for earlier in load_listings(cache, Path(listing.source)):
        spaces = [store.space(space_id) for space_id in earlier.spaces]
        fitting = [space for space in spaces if _fits(space, wanted)]
        if fitting:
            return fitting
    return []


def _fits(space: FeatureSpace, wanted: dict[str, Any]) -> bool:
    fields = {**space.preprocess, **space.as_dict()}
    return all(
        fields.get(name) == (list(value) if isinstance(value, tuple) else value) for name, value in wanted.items()
    )


def _no_space(listing: Listing, store: FeatureStore, wanted: dict[str, Any]) -> str:
    asked = ", ".join(f"{name} {value}" for name, value in wanted.items()) or "any feature space"
    there = "; ".join(describe_space(space) for space in store.spaces().values()) or "nothing"
    options = " ".join(f"--{name} {value}" for name, value in wanted.items())
    command = f"headstart extract {listing.root} {options}".rstrip()
    return f"{listing.root} was not extracted with {asked} (the cache holds {there}); run `{command}`"


def describe_space(space: FeatureSpace) -> str:
    """Return a few words that tell a space from its neighbours."""
    crop, resize = space.preprocess.get("crop"), space.preprocess.get("resize")
    return f"{space.backbone}, layer {space.layer}, {space.dim} wide, resize {resize}, crop {crop}, {space.precision}"


def spaces_as_json(spaces: Iterable[FeatureSpace]) -> list[dict[str, Any]]:
    """Return what tells spaces of one run apart, as JSON has it."""
    return [
        {"backbone": space.backbone, "layer": space.layer, "pool": space.pool, "dim": space.dim, "space": space.id}
        for space in spaces
    ]
