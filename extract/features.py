"""The embeddings of a dataset as arrays: what heads, reports and users of the Python API work with."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.datasets import load_listings, require_listing
from ..cache.export import Export, export
from ..cache.listing import SPLITS, Listing
from ..cache.part import Keys
from ..cache.place import Place
from ..cache.source import Source, source_of
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore, cache_option
from ..cache.tags import Tags
from ..errors import CacheMissError, DataError, UsageError, printable
from .elsewhere import locator
from .lacking import lacking_words
from .tars import are_tars, base_of
from .views import PLAIN, Views
from .which_views import chosen_views

logger = logging.getLogger("headstart.extract")


@dataclass
class Features:
    """The usable images of a dataset in one feature space, or in several side by side; failed images are left out.

    Attributes
    ----------
    listing : Listing
        The dataset, failures included.
    spaces : tuple of FeatureSpace
        What the embeddings are: those of one image stand side by side, in this order.
    store : FeatureStore
        Where they are kept.
    requests : tuple of dict
        What was kept with each of the spaces to compute more rows of it; empty where that is of no interest.
    views : Views, default `PLAIN`
        The views of each image that a head is trained on; `of_views` reads them.
    rows : ndarray of shape (N,), dtype int64
        The rows of `listing` that the arrays below belong to.
    """

    listing: Listing
    spaces: tuple[FeatureSpace, ...]
    store: FeatureStore
    requests: tuple[dict[str, Any], ...] = ()
    views: Views = PLAIN
    rows: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rows = np.flatnonzero(self.listing.usable)

    @property
    def space(self) -> FeatureSpace:
        """The feature space, or the first of several."""
        return self.spaces[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of the embeddings in each of the spaces, D together."""
        return tuple(space.dim for space in self.spaces)

    @cached_property
    def X(self) -> np.ndarray:  # noqa: N802  (scikit-learn's name)
        """The embeddings of view 0, the plain crop, (N, D) float32; read from the cache when first asked for.

        Raises
        ------
        CacheMissError
            Images have no row in a space; the message has the command that adds it.
        """
        try:
            return gather_joined(self.store, self.spaces, self.digest)
        except CacheMissError as error:
            raise CacheMissError(lacking_words(self) or str(error)) from error

    def of_views(self, rows: np.ndarray) -> np.ndarray:
        """Read the embeddings of all `views` of some images, anew each time.

        Parameters
        ----------
        rows : ndarray of shape (m,), dtype int64 or bool
            Which of the N images.

        Returns
        -------
        ndarray of shape (m, V, D), dtype float32
            View 0 first; where V is 1, (m, D) of ``X``.

        Raises
        ------
        CacheMissError
            As ``X``, of any view.
        """
        if self.views.count == 1:
            return np.asarray(self.X[rows])
        try:
            return gather_joined(self.store, self.spaces, self.digest[rows], self.views)
        except (CacheMissError, MemoryError) as error:  # there may be no room for views that are not there
            lacking = lacking_words(self, rows)
            if isinstance(error, MemoryError) and not lacking:
                raise
            raise CacheMissError(lacking or str(error)) from error

    @property
    def y(self) -> np.ndarray:
        """Index into `classes`, (N,) int32; -1 where an image has no label, and everywhere with `multi_label`."""
        return np.asarray(self.listing.label[self.rows])

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels; they are in `Y` then, and not in `y`."""
        return self.listing.tags is not None

    @property
    def tags(self) -> Tags:
        """The labels of each image, as they are kept: their number, -1 where it is not known, and which.

        Raises
        ------
        DataError
            The dataset has one label an image.
        """
        if self.listing.tags is None:
            root = printable(self.listing.root)
            raise DataError(f"{root} has one label an image: take y, or list it by a CSV with the column labels")
        return self.listing.tags.take(self.rows)

    @property
    def Y(self) -> np.ndarray:  # noqa: N802  (scikit-learn's name)
        """Whether each image has each of the K labels, (N, K) bool, made anew each time: N times K bytes.

        All False where none is there, and where the labels are not known: ``tags.count`` tells these apart.

        Raises
        ------
        DataError
            The dataset has one label an image.
        """
        return self.tags.table(len(self.classes))

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
        locate = locator(os.fsencode(dataset_folder(self.listing, self.listing.root)))
        names = map(locate, self.listing.paths.take(self.rows))
        return np.fromiter(map(os.fsdecode, names), object, len(self.rows))

    def export(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Export:
        """Write embeddings, paths, labels and splits to one HDF5 file; see `headstart.cache.export.export`.

        Raises
        ------
        UsageError
            There are several feature spaces: a file holds one.
        """
        if len(self.spaces) > 1:
            raise UsageError(f"a file holds one feature space, and these are {len(self.spaces)}; export each by itself")
        return export(Path(out), self.store, self.listing, self.space, overwrite=overwrite)


def dataset_folder(listing: Listing, root: str) -> str:
    """Return the folder that a listing's paths are relative to, for its `root` or its `source`."""
    source = source_of(root)
    if listing.layout == "csv":
        return str(source.parent)
    return str(base_of(source)) if are_tars(source) else root


def gather_joined(
    store: FeatureStore, spaces: Sequence[FeatureSpace], digest: np.ndarray, views: Views = PLAIN
) -> np.ndarray:
    """Read the embeddings of images in several feature spaces, side by side.

    Parameters
    ----------
    store : FeatureStore
    spaces : sequence of FeatureSpace
        At least one, D wide together.
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of each image file's bytes.
    views : Views, default `PLAIN`

    Returns
    -------
    ndarray of shape (n, D), dtype float32
        (n, V, D) where there are V views, more than one.

    Raises
    ------
    CacheMissError
        As `FeatureStore.gather`.
    """
    return gathered(spaces, views, digest, lambda space_id, keys, out: store.gather(space_id, keys, out=out))


def gathered(
    spaces: Sequence[FeatureSpace],
    views: Views,
    digest: np.ndarray,
    fill: Callable[[str, Keys, np.ndarray], object],
) -> np.ndarray:
    """Return all views of images with the columns of all spaces side by side, as `gather_joined`.

    Parameters
    ----------
    spaces, views, digest
        As in `gather_joined`.
    fill : callable
        Given a space's id, keys and their columns, (n * V, d) float32, to be filled.
    """
    ends, keys = list(itertools.accumulate(space.dim for space in spaces)), views.keys(digest)
    X = np.empty((len(keys), ends[-1]), np.float32)
    for space, end in zip(spaces, ends, strict=True):
        fill(space.id, keys, X[:, end - space.dim : end])
    return X if views.count == 1 else X.reshape(len(digest), views.count, -1)


def load_features(
    cache: Place,
    data: Source | None = None,
    wanted: dict[str, Any] | None = None,
    features: str | Sequence[str] = (),
    *,
    views: int | None = None,
    augment: str | None = None,
) -> Features:
    """Take a dataset from the cache, in the space that its latest run asked for, or in several that are named.

    No space is ever computed from the machine at hand, so embeddings made on a GPU serve on a laptop.

    Parameters
    ----------
    cache : Path or RemotePath
        The cache's folder.
    data : Path, optional
        The dataset; that of the latest run where it is None.
    wanted : dict, optional
        Fields that the space, or each of several, must have, by the names of `FeatureSpace` and of the preprocessing.
    features : str or sequence of str, optional
        ``BACKBONE`` or ``BACKBONE:LAYER``, each of which names a space; that of the latest run that had one. Different
        runs may have made them: paths and labels are always those of the latest.
    views : int, optional
        How many views of each image; as many as the run that made the space was asked for where it is None.
    augment : str, optional
        Their preset; that of the latest run that had views in the space where it is None.

    Raises
    ------
    CacheMissError
        The dataset was never extracted, or not in such a space.
    UsageError
        A name in `features` is none, two lead to one space, or `wanted` names a backbone or layer beside them.
    """
    wanted = wanted or {}
    named = [features] if isinstance(features, str) else list(features)
    if named and {"backbone", "layer"} & set(wanted):
        raise UsageError("--features names backbones and layers: leave --backbone and --layer out, or --features")
    asked = [{**_named_space(name), **wanted} for name in named] or [wanted]
    listing = require_listing(cache, data)
    if data is None:
        logger.info("dataset: %s (of the latest extract)", listing.root)
    store = FeatureStore(cache)
    found = _newest_spaces(cache, listing, store, asked)
    spaces = tuple(space for space, _ in found)
    for place, name in enumerate(named):
        if spaces[place] in spaces[:place]:
            raise UsageError(
                f"--features {named[spaces.index(spaces[place])]} and {name} are the same embeddings "
                f"({describe_space(spaces[place])}); name each once"
            )
    requests = tuple(request for _, request in found)
    runs = load_listings(cache, source_of(listing.source))
    return Features(listing, spaces, store, requests, chosen_views(store, spaces, requests, runs, views, augment))


def _named_space(name: str) -> dict[str, str]:
    """Return the fields of a space that ``BACKBONE[:LAYER]`` names."""
    backbone, colon, layer = name.partition(":")
    if not backbone or (colon and not layer):
        raise UsageError(f"--features takes BACKBONE or BACKBONE:LAYER, and got {name!r}")
    return {"backbone": backbone, "layer": layer} if layer else {"backbone": backbone}


def _newest_spaces(
    cache: Place, listing: Listing, store: FeatureStore, asked: Sequence[dict[str, Any]]
) -> list[tuple[FeatureSpace, dict[str, Any]]]:
    """Return for each of `asked` the first fitting space of the dataset's newest run that had any, and its request."""
    found: dict[int, tuple[FeatureSpace, dict[str, Any]]] = {}
    for earlier in load_listings(cache, source_of(listing.source)):
        spaces = [store.space(space_id) for space_id in earlier.spaces]
        for place in sorted(set(range(len(asked))) - set(found)):
            fitting = [space for space in spaces if fits(space, asked[place])]
            if fitting:
                found[place] = fitting[0], earlier.request
                _say_which(fitting)
        if len(found) == len(asked):
            break
    for place, wanted in enumerate(asked):
        if place not in found:
            raise CacheMissError(_no_space(listing, store, wanted))
    return [found[place] for place in range(len(asked))]


def _say_which(fitting: Sequence[FeatureSpace]) -> None:
    if len(fitting) > 1:
        logger.info(
            "%d feature spaces of the latest extract fit; taking the first: %s",
            len(fitting), describe_space(fitting[0]),
        )  # fmt: skip


def fits(space: FeatureSpace, wanted: dict[str, Any]) -> bool:
    """Tell whether a space has the fields wanted, by the names of `FeatureSpace` and of the preprocessing."""
    fields = {**space.preprocess, **space.as_dict(), "store_dtype": space.dtype}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()}
    if values.get("resize") == "none":
        values["resize"] = None
    return all(fields.get(name) == value for name, value in values.items())


def _no_space(listing: Listing, store: FeatureStore, wanted: dict[str, Any]) -> str:
    from .options import as_words  # with the decoder, which a head has no use for

    asked = ", ".join(f"{name} {value}" for name, value in wanted.items()) or "any feature space"
    there = "; ".join(describe_space(space) for space in store.spaces().values()) or "nothing"
    command = f"headstart extract {shlex.quote(printable(listing.root))} {as_words(wanted)}".rstrip()
    command += cache_option(store.root)
    return f"{listing.root} was not extracted with {asked} (the cache holds {there}); run `{command}`"


def describe_space(space: FeatureSpace) -> str:
    """Return a few words that tell a space from its neighbours."""
    crop, resize = space.preprocess.get("crop"), space.preprocess.get("resize")
    stored = "" if space.dtype == "float32" else f", stored as {space.dtype}"
    how = f"resize {resize}, crop {crop}, {space.precision}{stored}"
    return f"{space.backbone}, layer {space.layer}, {space.dim} wide, {how}"


def spaces_as_json(spaces: Iterable[FeatureSpace]) -> list[dict[str, Any]]:
    """Return what tells spaces of one run apart, as JSON has it."""
    return [
        {"backbone": space.backbone, "layer": space.layer, "pool": space.pool, "dim": space.dim, "space": space.id}
        for space in spaces
    ]
