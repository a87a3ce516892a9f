"""Embed cached images anew and hold the result against the cache."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache.datasets import load_listings
from ..cache.index import KeyIndex
from ..cache.listing import Listing
from ..cache.part import Keys, recipe_name, recipe_words, recipes_of
from ..cache.place import Place
from ..cache.remote import is_url
from ..cache.source import source_of
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from ..cache.verify import Verification
from ..cache.verify import verify as verify_bytes
from ..errors import DataError, DecodeError, HeadstartError, printable
from .access import read_anywhere
from .csv_file import unique_lines
from .decode import decode
from .elsewhere import location
from .features import dataset_folder
from .options import RunOptions
from .progress import progress_bar
from .resolve import embedder_of
from .views import known_recipes

logger = logging.getLogger("headstart.extract")

# Beyond this share of a row's largest number it is not rounding any more: batch size, compilation and the processor
# move float32 by a few millionths, and half precision by under a hundredth.
TOLERANCE = 1e-3
HALF_TOLERANCE = 3e-2


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Images of one listing whose rows are in one space."""

    space: FeatureSpace
    request: dict[str, Any]
    listing: Listing
    rows: np.ndarray


def verify(root: Place, sample: int = 0, seed: int = 0, run: RunOptions | None = None) -> Verification:
    """Check every byte of a cache and, if asked, some rows against their images.

    Parameters
    ----------
    root : Path or RemotePath
        The cache's folder.
    sample : int, default 0
        How many cached images to embed anew. They are drawn at random over all spaces and datasets among those whose
        files are still there with the same bytes; of each, one of its views that this version knows how to draw.
    seed : int, default 0
        For the draw.
    run : RunOptions, optional
        Device and batch size.

    Returns
    -------
    Verification
        With `sampled` and `max_difference`; a row that differs by more than rounding is among the bad.
    """
    found = verify_bytes(root)
    if sample:
        _sample(FeatureStore(root), sample, np.random.default_rng(seed), run or RunOptions(), found)
    return found


def _sample(store: FeatureStore, count: int, rng: np.random.Generator, run: RunOptions, found: Verification) -> None:
    candidates = list(_candidates(store))
    sizes = [len(group.rows) for group in candidates]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = rng.permutation(len(owner))
    place = np.concatenate([np.arange(size) for size in sizes] or [np.zeros(0, np.int64)])
    wanted: dict[int, list[tuple[str, bytes]]] = {}
    chosen = 0
    for index in order:
        if chosen == count:
            break
        group = candidates[owner[index]]
        image = _unchanged(group.listing, int(group.rows[place[index]]))
        if image is not None:
            wanted.setdefault(int(owner[index]), []).append(image)
            chosen += 1
    if chosen < count:
        logger.warning("only %d images are still there with the bytes that were embedded", chosen)
    passed_over: set[str] = set()
    with progress_bar(chosen, "embedding anew") as progress:
        for number, images in wanted.items():
            try:
                passed_over |= _compare(store, candidates[number], images, run, rng, found)
            except HeadstartError as error:
                logger.warning("space %s is not sampled: %s", candidates[number].space.id, error)
            progress(len(images))
    if passed_over:
        logger.warning("views of %s are not sampled: this version does not draw them", ", ".join(sorted(passed_over)))


def _candidates(store: FeatureStore) -> Iterator[_Candidates]:
    """Yield what can be sampled: for each dataset's latest listing, the images that each space holds."""
    latest: dict[str, Listing] = {}
    requests: dict[str, dict[str, Any]] = {}
    for listing in load_listings(store.root):
        latest.setdefault(listing.dataset_id, listing)
        for space_id in listing.spaces:
            requests.setdefault(space_id, listing.request)
    for space_id, space in store.spaces().items():
        index, _ = store.index(space_id)
        for listing in latest.values():
            rows = np.flatnonzero(listing.usable)
            rows = rows[index.find(Keys.plain(listing.digest[rows])) >= 0]
            rows = rows[_named_here(listing, rows)]
            if rows.size:
                yield _Candidates(space, requests.get(space_id, {}), listing, rows)


def _named_here(listing: Listing, rows: np.ndarray) -> np.ndarray:
    """Return which images of a CSV are still named by it: a listing may come from somebody else's cache."""
    if listing.layout != "csv":
        return np.ones(len(rows), bool)
    try:
        named = unique_lines(source_of(listing.source)).paths
    except (DataError, OSError) as error:
        logger.debug("%s is not sampled: %s", printable(listing.source), error)
        return np.zeros(len(rows), bool)
    return np.asarray(named.find(listing.paths.take(rows)) >= 0)


def _unchanged(listing: Listing, row: int) -> tuple[str, bytes] | None:
    """Return path and bytes of an image whose bytes are still those of the listing.

    A listing may come from somebody else's cache: nothing outside the folder that it is of is read.
    """
    name = os.fsdecode(listing.paths[row])
    outside = os.path.isabs(name) or ".." in name.split("/") or is_url(name)  # noqa: PTH117  (no Path needed)
    if listing.layout != "csv" and outside:
        return None
    folder = os.fsencode(dataset_folder(listing, listing.source))
    path = os.fsdecode(location(folder, listing.paths[row]))
    try:
        data = read_anywhere(path)[0]
    except DecodeError as error:
        logger.debug("%s is not sampled: %s", printable(path), error)
        return None
    return (path, data) if hashlib.sha256(data).digest() == listing.digest[row].tobytes() else None


def _compare(
    store: FeatureStore,
    group: _Candidates,
    images: list[tuple[str, bytes]],
    run: RunOptions,
    rng: np.random.Generator,
    found: Verification,
) -> set[str]:
    """Compare one view of each image; return names of the recipes of views that could not be drawn."""
    embedder, known = embedder_of(group.space, group.request, run), known_recipes()
    keys, unknown = _one_view_of_each(store, group.space.id, [data for _, data in images], known, rng)
    recipes, views = keys.recipe.tolist(), keys.view.tolist()
    crops: dict[int, np.ndarray] = {}
    for place, (path, data) in enumerate(images):
        try:
            decoded = decode(data, max_pixels=embedder.run.max_pixels)
        except DecodeError as error:  # read with another limit, say
            logger.warning("%s is not sampled: %s", printable(path), error)
            continue
        maker = known[recipes[place]].maker(embedder.preprocess)
        crops[place] = maker(decoded.pixels, keys.digest[place].tobytes(), views[place])[0]
    if not crops:
        return unknown
    cached = store.gather(group.space.id, keys[np.array(list(crops))])
    pixels, size = np.stack(list(crops.values())), embedder.batch_size
    rows = np.concatenate([embedder.embed(pixels[i : i + size]) for i in range(0, len(pixels), size)])
    scale = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
    difference = np.abs(cached - rows.astype(np.float32)).max(axis=1) / scale
    exact = group.space.precision == "float32" and group.space.dtype == "float32"
    for place, value in zip(crops, difference.tolist(), strict=True):
        if not value <= (TOLERANCE if exact else HALF_TOLERANCE):
            which = f"view {views[place]} ({known[recipes[place]].augment}) of " if views[place] else ""
            what = f"the row of {which}{printable(images[place][0])} differs by {value:.1e} from its image"
            found.bad.append((f"spaces/{group.space.id}", what))
    found.sampled += len(crops)
    found.max_difference = max(found.max_difference or 0.0, float(difference.max()))
    return unknown


def _one_view_of_each(
    store: FeatureStore, space_id: str, images: list[bytes], known: Collection[int], rng: np.random.Generator
) -> tuple[Keys, set[str]]:
    """Draw one view of each image among those that the cache has and that are of known recipes; name the others."""
    digest = np.stack([np.frombuffer(hashlib.sha256(data).digest(), np.uint8) for data in images])
    heads = store.heads(space_id)
    keys = Keys.concatenate([head.keys for head in heads])
    theirs = np.flatnonzero(KeyIndex([Keys.plain(digest)]).find(Keys.plain(keys.digest)) >= 0)
    keys = keys[rng.permutation(theirs)]
    drawn = np.isin(keys.recipe, np.array(list(known), np.uint64))
    recipes = recipes_of(heads)
    unknown = {
        recipe_words(*recipe_name(recipes.get(str(recipe)))) for recipe in np.unique(keys.recipe[~drawn]).tolist()
    }
    keys = keys[drawn]
    # Of several keys of an image the index finds the first, which is any of them.
    found = KeyIndex([Keys.plain(keys.digest)]).find(Keys.plain(digest))
    if (found < 0).any():  # a part has gone since these images were chosen, which whoever reads it will say
        return Keys.plain(digest), unknown
    return keys[found], unknown
