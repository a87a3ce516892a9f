"""What the cache lacks of a dataset, in words, with the commands that embed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.part import Keys
from ..cache.space import FeatureSpace
from ..errors import printable
from .views import ALL, Views
from .which_views import extract_command

if TYPE_CHECKING:
    from .features import Features


def lacking_words(features: Features, rows: np.ndarray | slice = slice(0)) -> str:
    """Say of each space what it lacks, and how to embed that: plain crops of any image, else views of some.

    Parameters
    ----------
    features : Features
    rows : ndarray of int or bool, or slice, optional
        Images of which all views are wanted; of none where it is left out.

    Returns
    -------
    str
        Empty where nothing is lacking.
    """
    return "; ".join(list(_without_row(features, rows)) or list(_without_views(features, rows)))


def _without_row(features: Features, rows: np.ndarray | slice) -> Iterator[str]:
    for space, request in _with_requests(features):
        missing = int((features.store.index(space.id)[0].find(Keys.plain(features.digest)) < 0).sum())
        if missing:
            yield (
                f"{missing} of {len(features.rows)} images of {printable(features.listing.root)} have no embedding of "
                f"{space.backbone}, layer {space.layer}; run `{_command(features, space, request, rows)}`"
            )


def _without_views(features: Features, rows: np.ndarray | slice) -> Iterator[str]:
    views, digest = features.views, features.digest[rows]
    for space, request in _with_requests(features):
        missing = views.lacking(features.store.index(space.id)[0], digest, np.full(len(digest), views.count))
        if missing.any():
            there = views.count - int(missing.max())
            has = f"{there} of {views.count}" if there > 1 else "none but the plain crop"
            yield (
                f"{int((missing > 0).sum())} of {len(digest)} images lack views of the preset {views.augment} in "
                f"{space.backbone}, layer {space.layer}: of these the cache has {has}; run "
                f"`{_command(features, space, request, rows)}`"
            )


def _with_requests(features: Features) -> list[tuple[FeatureSpace, dict[str, Any]]]:
    return list(zip(features.spaces, features.requests or ({},) * len(features.spaces), strict=True))


def _command(features: Features, space: FeatureSpace, request: dict[str, Any], rows: np.ndarray | slice) -> str:
    """Return the command that embeds what is lacking in a space, all views of `rows` among it.

    It asks for views of one split alone where the run before it did and these are of that split.
    """
    views = features.views
    if views.count > 1:
        views = replace(views, split=Views.of_request(request).split)
        if (views.counts(features.listing.split[features.rows[rows]]) < views.count).any():
            views = replace(views, split=ALL)
    return extract_command(features.store, features.listing.root, space, request, views)
