"""Which views of a dataset a head is trained on, and the command that makes them."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..cache.listing import Listing
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore, cache_option
from ..errors import CacheMissError, printable
from .views import ALL, PLAIN, Views

logger = logging.getLogger("headstart.extract")


def extract_command(
    store: FeatureStore, root: str, space: FeatureSpace, request: dict[str, Any], views: Views = PLAIN
) -> str:
    """Return the command that embeds views of a dataset in a space."""
    from .options import as_words  # with the decoder, which a head has no use for
    from .resolve import fewest_options

    words = f"{fewest_options(space, request, store.root).words()} {as_words(views.words())}".rstrip()
    return f"headstart extract {shlex.quote(printable(root))} {words}{cache_option(store.root)}"


def chosen_views(
    store: FeatureStore,
    spaces: Sequence[FeatureSpace],
    requests: Sequence[dict[str, Any]],
    runs: Iterable[Listing],
    count: int | None,
    augment: str | None,
) -> Views:
    """Return the views of a dataset that a head is trained on.

    Parameters
    ----------
    store : FeatureStore
    spaces : sequence of FeatureSpace
    requests : sequence of dict
        Those of the newest run that was asked for each of them.
    runs : iterable of Listing
        What is kept of the runs over the dataset, the newest first; looked at where `requests` do not tell.
    count : int or None
        As asked for; None for as many as there are.
    augment : str or None
        As asked for; None for the preset of the newest run with views in the spaces, or, where `count` is None too, of
        the newest run.

    Raises
    ------
    CacheMissError
        No run made views of that preset, or any, in all of the spaces.
    UsageError
        As `Views`.
    """
    if count == 1 or (count is not None and augment is not None):
        return Views.asked(count, augment)
    if augment is None and count is None:
        newest = [_to_train_on(request) for request in requests]
        if len({views.augment for views in newest}) > 1:
            logger.info("the feature spaces were made with different views: the plain crop alone is taken")
            return PLAIN
        _say_what_is_passed_by(newest, spaces, runs)
        return Views(min(views.count for views in newest), newest[0].augment)
    runs = list(runs)
    made = [[_to_train_on(run.request) for run in runs if space.id in run.spaces] for space in spaces]
    for candidate in [views for views in made[0] if views.count > 1 and augment in (None, views.augment)]:
        same = [[views.count for views in others if views.augment == candidate.augment] for others in made]
        if all(same):
            return Views(min(map(max, same)) if count is None else count, candidate.augment)
    raise CacheMissError(
        _none_made(store, list(zip(spaces, requests, strict=True)), made, count, augment, runs[0].root)
    )


def _say_what_is_passed_by(newest: Sequence[Views], spaces: Sequence[FeatureSpace], runs: Iterable[Listing]) -> None:
    """Say where a plain run came after one with views, which whoever made them may want."""
    if any(views.count > 1 for views in newest):
        return
    for run in itertools.islice(runs, 2):  # the newest and the one before: a dataset may have many, and large ones
        views = _to_train_on(run.request)
        if views.count > 1 and all(space.id in run.spaces for space in spaces):
            logger.info(
                "the latest extract made plain crops alone, the one before %d views (%s): --views %d trains on those",
                views.count, views.augment, views.count,
            )  # fmt: skip


def _none_made(
    store: FeatureStore,
    spaces: Sequence[tuple[FeatureSpace, dict[str, Any]]],
    made: Sequence[Sequence[Views]],
    count: int | None,
    augment: str | None,
    root: str,
) -> str:
    """Say which views there are, and how to make those that were asked for."""
    several = [views for views in itertools.chain(*made) if views.count > 1]
    wanted = Views.asked(2 if count is None else count, augment or (several[0].augment if several else None))
    commands = [
        f"`{extract_command(store, root, space, request, wanted)}`"
        for (space, request), there in zip(spaces, made, strict=True)
        if not any(views.augment == wanted.augment and views.count >= wanted.count for views in there)
    ]
    most: dict[str, int] = {}
    for views in several:
        most[views.augment] = max(views.count, most.get(views.augment, 0))
    named = [f"{most[preset]} of {preset}" for preset in sorted(most)]
    preset = f" of the preset {augment}" if augment else ""
    where = "all of these feature spaces" if len(spaces) > 1 else "this feature space"
    return (
        f"no run over {printable(root)} made views{preset} to train on in {where} (there are "
        f"{', '.join(named) or 'plain crops alone'}); run {' and '.join(commands)}"
    )


def _to_train_on(request: Mapping[str, Any]) -> Views:
    """Return the views that a run made of all training images."""
    views = Views.of_request(request)
    return Views(views.count, views.augment) if views.split in (ALL, "train") else PLAIN
