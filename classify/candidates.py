"""The embeddings that a comparison is about: feature spaces of one dataset, from the cache or embedded now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..cache.datasets import latest_listing, load_listings, require_listing
from ..cache.listing import Listing
from ..cache.place import Place
from ..cache.source import Source, source_of
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore
from ..errors import CacheMissError, DataNotFoundError, HeadstartError, UsageError, printable
from ..extract.features import Features, describe_space, fits
from ..extract.job import extract
from ..extract.options import RunOptions
from ..extract.rate import images_per_second
from ..extract.registry import describe
from ..extract.resolve import embedder_of
from ..extract.views import PLAIN, Views

logger = logging.getLogger("headstart.classify")

_RANDOM = "none"
# What can tell spaces of a dataset apart on the command line of `fit-head`, beside the backbone.
_TELLING = ("layer", "pool", "crop", "resize", "interpolation", "store_dtype")


@dataclass(frozen=True)
class Candidate:
    """A feature space with what was kept to compute more rows of it.

    Attributes
    ----------
    space : FeatureSpace
    request : dict
        ``weights`` and ``seed``.
    """

    space: FeatureSpace
    request: dict[str, Any]

    @property
    def weights(self) -> str:
        """The weights as they were asked for: "default", "none" (random), or a file."""
        return str(self.request.get("weights", "default"))

    @cached_property
    def facts(self) -> tuple[int | None, str]:
        """Parameters of the network without its classifier, and the licence of the weights; None, "" if not known."""
        try:
            info = describe(self.space.backbone)
        except HeadstartError as error:  # timm may have gone since
            logger.warning("%s: neither parameters nor licence are known (%s)", self.space.backbone, error)
            return None, ""
        known = {"default": info.licence, _RANDOM: "none"}
        return info.parameters, known.get(self.weights, "unknown")

    def rate(self, files: Sequence[str], run: RunOptions) -> float | None:
        """Return the pictures that go through decoder and network a second here; None, with a word, if not known."""
        try:
            embedder = embedder_of(self.space, self.request, run)
            found = images_per_second(embedder, files)
            embedder.unload()
        except HeadstartError as error:  # weights that are not on this machine, say; the comparison can do without
            logger.warning("the speed of %s was not measured: %s", self.space.backbone, error)
            return None
        if found is None:
            logger.warning(
                "the speed of %s was not measured: the pictures are not where they were", self.space.backbone
            )
        return found


@dataclass(frozen=True, slots=True)
class Candidates:
    """Feature spaces to compare.

    Attributes
    ----------
    listing : Listing
        The dataset.
    store : FeatureStore
    each : list of Candidate
        Those that are compared; all of them hold every usable image.
    others : list of Candidate
        All spaces that any run of the dataset made, the newest run's first: among these `fit-head` looks.
    views : Views, default `PLAIN`
        Of each image, on which heads are trained.
    """

    listing: Listing
    store: FeatureStore
    each: list[Candidate]
    others: list[Candidate]
    views: Views = PLAIN

    def features(self, candidate: Candidate) -> Features:
        """Return the dataset in one space; its embeddings are read when they are asked for."""
        return Features(self.listing, (candidate.space,), self.store, (candidate.request,), self.views)

    def fit_options(self, candidate: Candidate) -> dict[str, Any] | None:
        """Return the options by which ``fit-head`` takes this space, no more than are needed.

        None where no option of ``fit-head`` tells it from a newer one: they differ in weights, precision or seed.
        """
        space = candidate.space
        fields = {**space.preprocess, **space.as_dict(), "store_dtype": space.dtype}
        telling = [name for name in ("backbone", *_TELLING) if name in fields]
        wanted = {name: "none" if fields[name] is None else fields[name] for name in telling}
        if not self._leads_to(candidate, wanted):
            return None
        for name in reversed(telling[1:]):
            fewer = {key: value for key, value in wanted.items() if key != name}
            wanted = fewer if self._leads_to(candidate, fewer) else wanted
        return wanted

    def _leads_to(self, candidate: Candidate, wanted: dict[str, Any]) -> bool:
        return next(other for other in self.others if fits(other.space, wanted)).space == candidate.space


def find_candidates(
    cache: Place,
    data: Source | None,
    backbones: Sequence[str],
    wanted: dict[str, Any],
    weights: str | None,
    run: RunOptions,
    stopped: Callable[[], bool],
    views: Views = PLAIN,
) -> Candidates:
    """Find the spaces that are named, or all that a dataset has; where one lacks images, embed them.

    Parameters
    ----------
    cache : Path or RemotePath
    data : Path or None
        The dataset; that of the latest extract where it is None.
    backbones : sequence of str
        Names; without any, all spaces that hold every usable image.
    wanted : dict
        Fields that the spaces must have.
    weights : str or None
        With which they must have been made, and are made.
    run : RunOptions
    stopped : callable
        Asked before each image that is embedded.
    views : Views, default `PLAIN`
        Those that each image must have.

    Raises
    ------
    CacheMissError
        No backbone is named and no space holds every image.
    UsageError
        A backbone is named twice.
    """
    if len(set(backbones)) < len(backbones):
        raise UsageError("a backbone is named twice with --backbone; name each once")
    store = FeatureStore(cache)
    listing = latest_listing(cache, data) if data is not None and backbones else require_listing(cache, data)
    if listing is not None:
        if data is None:
            logger.info("dataset: %s (of the latest extract)", listing.root)
        others = list(_of_dataset(cache, listing, store))
        fitting = [c for c in others if fits(c.space, wanted) and weights in (None, c.weights)]
        each = _chosen(fitting, backbones, store, listing, views)
        if each:
            return Candidates(listing, store, each, others, views)
    if not backbones:
        assert listing is not None
        what = "all images" if views.count == 1 else f"{views.count} views ({views.augment}) of all training images"
        known = dict.fromkeys(candidate.space.backbone for candidate in fitting)
        example = f": {' '.join(f'--backbone {name}' for name in known)}" if known else ""
        raise CacheMissError(
            f"no backbone has embedded {what} of {listing.root}{' as asked' if wanted or weights else ''}; name "
            f"those to compare with --backbone, which may repeat{example}"
        )
    return _embedded(store, data, listing, backbones, wanted, weights, run, stopped, views)


def _of_dataset(cache: Place, listing: Listing, store: FeatureStore) -> Iterable[Candidate]:
    """Yield each space that a run of the dataset recorded and the cache still has, the newest run's first."""
    there, seen = set(store.space_ids()), set()
    for earlier in load_listings(cache, source_of(listing.source)):
        for space_id in earlier.spaces:
            if space_id in there and space_id not in seen:
                seen.add(space_id)
                yield Candidate(store.space(space_id), earlier.request)


def _chosen(
    fitting: Sequence[Candidate], backbones: Sequence[str], store: FeatureStore, listing: Listing, views: Views
) -> list[Candidate]:
    """Return those to compare; none where a named one lacks images, so that all are embedded in one go."""
    if not backbones:
        lacking = {candidate.space.id: _lacking(candidate, store, listing, views) for candidate in fitting}
        for candidate in fitting:
            if lacking[candidate.space.id]:
                count, what = lacking[candidate.space.id], describe_space(candidate.space)
                lost = "have no embedding" if views.count == 1 else "lack views"
                logger.info("left out, as %d images %s: %s", count, lost, what)
        return [candidate for candidate in fitting if not lacking[candidate.space.id]]
    newest = [next((c for c in fitting if c.space.backbone == name), None) for name in backbones]
    found = [candidate for candidate in newest if candidate is not None]
    whole = len(found) == len(backbones) and not any(_lacking(candidate, store, listing, views) for candidate in found)
    return found if whole else []


def _lacking(candidate: Candidate, store: FeatureStore, listing: Listing, views: Views) -> int:
    """Count the usable images that lack a view in a space."""
    usable = np.flatnonzero(listing.usable)
    index, counts = store.index(candidate.space.id)[0], views.counts(listing.split[usable])
    return int((views.lacking(index, listing.digest[usable], counts) > 0).sum())


def _embedded(
    store: FeatureStore,
    data: Source | None,
    listing: Listing | None,
    backbones: Sequence[str],
    wanted: dict[str, Any],
    weights: str | None,
    run: RunOptions,
    stopped: Callable[[], bool],
    views: Views,
) -> Candidates:
    """Embed what any of the backbones lacks, each picture decoded once for all of them."""
    folder = source_of(listing.source) if data is None and listing is not None else data
    assert folder is not None
    if not folder.exists():
        missing = f"not all of {', '.join(backbones)} have embedded all images of {printable(str(folder))}"
        raise DataNotFoundError(f"{missing}, which is not there any more; name DATA, or backbones that have")
    options = {**wanted, **views.words(), **({} if weights is None else {"weights": weights})}
    logger.info("embedding with %s", ", ".join(backbones))
    done = extract(
        folder, list(backbones), cache=str(store.root), stopped=stopped, **_run_fields(run), **options,
        layout=_layout(listing),
    )  # fmt: skip
    each = [Candidate(features.space, features.requests[0]) for features in done.each]
    return Candidates(done.listing, store, each, list(_of_dataset(store.root, done.listing, store)), views)


def _layout(listing: Listing | None) -> str:
    return listing.layout if listing is not None and listing.layout in ("splits", "classes") else "auto"


def _run_fields(run: RunOptions) -> dict[str, Any]:
    return {"device": run.device, "batch_size": run.batch_size, "workers": run.workers, "max_pixels": run.max_pixels}
