"""The main job: list the images of a dataset, embed what the cache lacks, record what was found."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from ..cache.datasets import load_listing
from ..cache.listing import Listing, save_listing
from ..cache.place import Place
from ..cache.source import Named, source_of
from ..cache.store import FeatureStore, cache_dir, cache_option
from ..errors import DataError, UsageError, printable
from .bottleneck import Bottleneck
from .device import available_cores
from .dry_run import DryRun, dry_run
from .embed import embed_listing
from .embedder import Embedder
from .explain import Miss
from .failures import NamedFailures, report_failures
from .features import Features, dataset_folder, describe_space, spaces_as_json
from .images import ImageList, count_table, list_images
from .options import DEFAULT_BACKBONE, EngineOptions, RunOptions, SpaceOptions, check_limit
from .plan import base_folder, failure_rules, limited, recall_listing
from .resolve import resolve
from .runner import STAGES, Outcome
from .views import ALL, Views

logger = logging.getLogger("headstart.extract")

SHOWN_CLASSES = 12
READINGS = {
    "splits": "split folders with class folders inside",
    "classes": "class folders",
    "csv": "a CSV file",
    "flat": "a flat folder without labels",
}


@dataclass
class Extraction(Features):
    """The features of a dataset, and what it took to get them.

    `space`, and with it ``X``, is the first of the spaces that were asked for; `each` has them all.

    Attributes
    ----------
    each : list of Features
        The features in each of the spaces that were asked for, in that order.
    embedded_in : dict of str to int
        Rows computed in this run, by the id of the feature space, in the order asked for.
    failures : sequence of tuple of (str, str)
        Path and reason of each image that could not be used.
    passed : int
        Images that went through a network in this run.
    device : str
        Where the forward passes ran; "none" where there were none.
    engine : str
        "local", "dask" or "ray".
    workers, shards, retried : int
        Processes that did the work, the pieces it was cut into for them, and how often one of those was begun again.
    seconds : float
        Wall time of the run.
    stages : dict of str to float
        Busy seconds of listing, reading, decoding, forward passes and writing, summed over threads.
    bottleneck : Bottleneck or None
        What bounded the run; None where nothing was embedded.
    misses : list of Miss
        Images that were embedded although another space of the backbone holds them, and what differs.
    animated : int
        Images of which the first frame was embedded in this run.
    """

    each: list[Features] = field(default_factory=list)
    embedded_in: dict[str, int] = field(default_factory=dict)
    failures: Sequence[tuple[str, str]] = ()
    passed: int = 0
    device: str = "none"
    engine: str = "local"
    workers: int = 0
    shards: int = 0
    retried: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    bottleneck: Bottleneck | None = None
    misses: list[Miss] = field(default_factory=list)
    animated: int = 0

    @property
    def wanted(self) -> int:
        """Rows that the images which could be used have in one space."""
        return int(self.views.counts(self.listing.split[self.rows]).sum())

    @property
    def failed(self) -> int:
        """Rows that are not there because their image could not be used, of one space."""
        return int(self.views.counts(self.listing.split[self.listing.failures.rows]).sum())

    @property
    def embedded(self) -> int:
        """Rows computed in this run, in all spaces."""
        return sum(self.embedded_in.values())

    @property
    def reused(self) -> int:
        """Rows of images, in all spaces, that were served without computing one."""
        return self.wanted * len(self.each) - self.embedded

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``extract --json``."""
        spaces = spaces_as_json(features.space for features in self.each)
        counts = [{"embedded": embedded, "reused": self.wanted - embedded} for embedded in self.embedded_in.values()]
        return {
            "images": len(self.listing),
            "embedded": self.embedded,
            "reused": self.reused,
            "failed": self.failed,
            **self.views.summary(),
            "views_split": self.views.split,
            "failures": [{"path": path, "error": reason} for path, reason in self.failures],
            "backbone": self.space.backbone,
            "dim": self.space.dim,
            "space": self.space.id,
            "spaces": [{**space, **count} for space, count in zip(spaces, counts, strict=True)],
            "cache": str(self.store.root),
            "device": self.device,
            "engine": self.engine,
            "workers": self.workers,
            "shards": self.shards,
            "retried": self.retried,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.passed / self.seconds, 2) if self.passed else 0.0,
            "stages": {name: round(self.stages.get(name, 0.0), 6) for name in STAGES},
            "bound_by": self.bottleneck.stage if self.bottleneck else "",
            "busy": {name: round(share, 4) for name, share in self.bottleneck.busy.items()} if self.bottleneck else {},
            "misses": [asdict(miss) for miss in self.misses],
            "animated": self.animated,
        }

    def lines(self) -> list[str]:
        """Return what a person needs to know of the run."""
        several, views = len(self.each) > 1, self.views
        what = f" x {views.count} views ({views.augment})" if views.count > 1 else ""
        what += f" of {views.split}" if views.split != ALL else ""
        what += f" in {len(self.each)} feature spaces" if several else ""
        rows = " rows" if several or views.count > 1 else ""
        failed = f"{len(self.failures)}{' images' if views.count > 1 else ''} failed"
        done = f"{self.embedded} embedded, {self.reused} reused, {failed}"
        rate = f", {self.passed / self.seconds:.0f} images/s" if self.passed else ""
        lines = [f"{len(self.listing)} images{what}:{rows} {done} in {self.seconds:.1f} s{rate}"]
        if self.bottleneck:
            lines.append(self.bottleneck.line())
        lines += [f"features: {describe_space(features.space)}, in {self.store.root}" for features in self.each]
        if len(self.classes) > 1:
            lines.append(f"next: headstart fit-head{self._choice()}{cache_option(self.store.root)}")
        return lines

    def _choice(self) -> str:
        """Return the options by which a reader takes the first of several spaces."""
        if len(self.each) < 2:
            return ""
        several = len({features.space.backbone for features in self.each}) > 1
        return f" --backbone {self.space.backbone}" if several else f" --layer {self.space.layer}"


def extract(
    data: Named = "data",
    backbone: str | Sequence[str] = "resnet18",
    *,
    layer: str | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    rehash: bool = False,
    retry_failed: bool = False,
    strict: bool = False,
    limit: int | None = None,
    views: int | None = None,
    augment: str | None = None,
    views_split: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Extraction:
    """Embed the images of a dataset that the cache lacks, and return the features of all of them.

    Parameters
    ----------
    data : path or URL, default "data"
        A folder with split folders, of class folders or of pictures, a CSV file with ``path,label[,split]``, or
        ``path,labels[,split]`` where an image may have several labels, or tars of pictures in webdataset's layout; on
        this machine or at a URL (``s3://``, ``gs://``, ``https://``).
    backbone : str, default "resnet18"
        Names that ``headstart backbones`` lists; each image is decoded once for all of them.
    layer : str or sequence of str, optional
        Modules whose output is taken, of every backbone, all in one pass. The classifier's input where it is None.
    cache : path, optional
        The cache's folder; ``HEADSTART_CACHE`` or ``.headstart`` where it is None.
    layout : {"auto", "splits", "classes"}, default "auto"
        How a folder is read.
    rehash : bool, default False
        Read every file, also those that have not changed by size, times and inode.
    retry_failed : bool, default False
        Try images again that failed before and have not changed.
    strict : bool, default False
        Raise when any image failed. What was embedded stays in the cache.
    limit : int, optional
        Take only this many images, evenly spread over the listing.
    views : int, optional
        How many views of each image, the plain crop among them; 1 where it is None. Those that the cache has are kept.
    augment : str, optional
        The preset by which the others are drawn, "tutorial" where it is None: "flip", "crop", "tutorial", "strong",
        "randaugment" or "trivial", as `headstart.extract.augment.Augment` has them.
    views_split : str, optional
        "train", "val" or "test": images of other splits have the plain crop alone. All have all views where it is None.
    stopped : callable, optional
        Asked before each image; when it says True the part in progress is finished and the run ends.
    **options
        Fields of `SpaceOptions` (weights, pool, resize, crop, interpolation, mean, std, precision, store_dtype,
        decoder, seed), `RunOptions` (device, batch_size, workers, max_pixels, processes, compile) and `EngineOptions`
        (engine, address, shard_images).

    Returns
    -------
    Extraction
        With ``X`` (N, D) float32, ``y`` (N,) int32, ``paths``, ``classes``, ``split``.

    Raises
    ------
    DataError, BackboneError, CacheError
        As their messages say; with `strict`, DataError when an image failed.
    KeyboardInterrupt
        `stopped` said True. All finished work is in the cache.
    """
    begin, scanned_ns = time.perf_counter(), time.time_ns()
    asked, run_options, engine = _options(backbone, layer, options)
    check_limit(limit)
    wanted = Views.asked(views, augment, views_split)
    store = FeatureStore(cache_dir(cache))
    images = limited(list_images(data, layout=layout, cache=None if rehash else store.root), limit)
    listed = time.perf_counter() - begin
    describe(images)
    check_views(images, wanted)
    if not store.space_ids():
        store.check_writable()  # where nothing can be read, say so before the backbone is loaded
    # What a cluster's workers have is not here: a network that is loaded to find its spaces is loaded on the processor.
    embedders = [resolve(group, run_options, store.root, device=None if engine.local else "cpu") for group in asked]
    listing = recall_listing(
        store.root, images, failure_rules(run_options.max_pixels), scanned_ns=scanned_ns, rehash=rehash,
        retry_failed=retry_failed, spaces=[space.id for embedder in embedders for space in embedder.spaces],
        views=wanted,
    )  # fmt: skip
    if limit is not None and limit <= len(images.paths):
        listing = replace(listing, request={"limit": limit})
    listing, outcome = embed_listing(
        store, embedders, listing, base_folder(images), stopped, partial(_record, store.root), hashed=True,
        views=wanted, engine=engine,
    )  # fmt: skip
    if outcome.interrupted:
        raise KeyboardInterrupt
    outcome.stages["list"] = listed
    extraction = _result(listing, embedders, store, outcome, engine, time.perf_counter() - begin)
    report_failures(extraction.failures, len(extraction.listing), strict=strict)
    return extraction


def plan_extract(
    data: Named = "data",
    backbone: str | Sequence[str] = "resnet18",
    *,
    layer: str | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    layout: str = "auto",
    rehash: bool = False,
    retry_failed: bool = False,
    limit: int | None = None,
    views: int | None = None,
    augment: str | None = None,
    views_split: str | None = None,
    **options: Any,
) -> DryRun:
    """Find out what `extract` would do with the same arguments, and why; nothing is embedded or written.

    Raises
    ------
    DataError, BackboneError, CacheError
        As `extract` would.
    """
    asked, run_options, engine = _options(backbone, layer, options)
    check_limit(limit)
    wanted = Views.asked(views, augment, views_split)
    store = FeatureStore(cache_dir(cache))
    images = limited(list_images(data, layout=layout, cache=None if rehash else store.root), limit)
    describe(images)
    check_views(images, wanted)
    return dry_run(
        store, images, asked, run_options, rehash=rehash, retry_failed=retry_failed, views=wanted, engine=engine
    )


def _options(
    backbones: str | Sequence[str], layers: str | Sequence[str] | None, options: dict[str, Any]
) -> tuple[list[list[SpaceOptions]], RunOptions, EngineOptions]:
    """Return what is asked for, a list of feature spaces for each backbone, how to go about it, and where."""
    known = [{item.name for item in fields(kind)} for kind in (SpaceOptions, RunOptions, EngineOptions)]
    unknown = sorted(set(options).difference(*known))
    if unknown:
        raise TypeError(f"extract() got an unexpected keyword argument {unknown[0]!r}")
    for_space, for_run, for_engine = ({name: options[name] for name in options if name in names} for names in known)
    names = _unique(backbones) or [DEFAULT_BACKBONE]
    if len(names) > 1 and for_space.get("weights", "default") not in ("default", "none"):
        raise UsageError("a file of weights fits one backbone; extract with each backbone and its weights in turn")
    asked = [
        [SpaceOptions(backbone=name, layer=layer, **for_space) for layer in _unique(layers) or (None,)]
        for name in names
    ]
    run, engine = RunOptions(**for_run), EngineOptions(**for_engine)
    engine.check(run)
    return asked, run, engine


def _unique(words: str | Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys([words] if isinstance(words, str) else words or ()))


def check_views(images: ImageList, views: Views) -> None:
    """Refuse views that would be of no use.

    Raises
    ------
    DataError
        The images have no labels, so that no head can be trained on them, or none is of the split that views are of.
    """
    if views.count > 1 and not images.classes:
        raise DataError(
            f"{printable(str(images.root))} has no labels, and views serve to train a head: make one folder a class, "
            "or leave --views out"
        )
    if views.count > 1 and (views.counts(images.split) == 1).all():
        raise DataError(
            f"{printable(str(images.root))} has no image of the split {views.split}, so all would have the plain crop "
            "alone: name another split with --views-split, or leave it out"
        )


def describe(images: ImageList) -> None:
    """Say how DATA was read, with counts per class and split, before anything costly begins."""
    several = "" if images.tags is None else " with any number of labels an image"
    logger.info("%s: %d images, read as %s%s", images.root, len(images.paths), READINGS[images.layout], several)
    table = count_table(images)
    for name, counts in table[:SHOWN_CLASSES]:
        logger.info(
            "  %-20s %s", name or "(no label)", ", ".join(f"{split or 'no split'} {n}" for split, n in counts.items())
        )
    if len(table) > SHOWN_CLASSES:
        logger.info("  and %d more classes", len(table) - SHOWN_CLASSES)
    for note in images.notes:
        logger.info("note: %s", note)


def _record(cache: Place, listing: Listing) -> None:
    """Publish the listing unless the latest one says the same and is old enough to be believed next time."""
    latest = load_listing(cache, source_of(listing.source))
    if latest is None or not latest.says_the_same(listing):
        save_listing(cache, listing)


def _result(
    listing: Listing, embedders: Sequence[Embedder], store: FeatureStore, outcome: Outcome, engine: EngineOptions,
    seconds: float,
) -> Extraction:  # fmt: skip
    folder = dataset_folder(listing, listing.root)
    spaces = tuple(space for embedder in embedders for space in embedder.spaces)
    views = Views.of_request(listing.request)
    extraction = Extraction(
        listing, spaces[:1], store, (listing.request,), views,
        each=[Features(listing, (space,), store, (listing.request,), views) for space in spaces],
        embedded_in={space.id: outcome.embedded[space.id] for space in spaces},
        failures=NamedFailures(listing, folder),
        passed=outcome.images,
        device=outcome.device,
        engine=engine.engine,
        workers=outcome.processes,
        shards=outcome.shards,
        retried=outcome.retried,
        seconds=seconds,
        stages=outcome.stages,
        bottleneck=_bottleneck(outcome, available_cores() if engine.local else outcome.workers),
        misses=outcome.misses,
        animated=outcome.animated,
    )  # fmt: skip
    _note_oddities(outcome, embedders)
    return extraction


def _bottleneck(outcome: Outcome, cores: int) -> Bottleneck | None:
    if not outcome.images:
        return None
    return Bottleneck.of(
        outcome.stages, outcome.seconds, outcome.device, outcome.workers, cores, outcome.processes, outcome.writers,
        outcome.waiting,
    )  # fmt: skip


def _note_oddities(outcome: Outcome, embedders: Sequence[Embedder]) -> None:
    if outcome.enlarged:
        crops = sorted({embedder.preprocess.crop for embedder in embedders})
        sizes = " or ".join(str(crop) for crop in crops)
        logger.info("%d images are smaller than the crop of %s and were enlarged to fit", outcome.enlarged, sizes)
    if outcome.animated:
        logger.info("%d images are animated: the first frame was taken", outcome.animated)
