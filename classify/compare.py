"""Backbones and heads on one dataset, all by the same cross-validation: one table, and advice that can be checked.

The validation images are not looked at. A table of many validation scores would be read for its highest, which is in
part the luckiest; so rows are ranked on the training images, and the one that is chosen is scored once, by `fit-head`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.datasets import latest_listing, load_listings
from ..cache.listing import Listing
from ..cache.place import Place
from ..cache.source import Source, source_of
from ..cache.store import cache_dir
from ..errors import UsageError, printable
from ..extract.elsewhere import location
from ..extract.features import dataset_folder
from ..extract.options import RunOptions, as_words
from ..extract.rate import PICTURES
from ..extract.resolve import fewest_options
from ..extract.views import Views
from .advice import LIKELY, Contender, Evidence, differences, finetuning, more_images, pareto
from .candidates import Candidate, Candidates, find_candidates
from .comparison import Comparison, Row, check_folder, save
from .curve import LearningCurve, learning_curve
from .dataset import LabelledSet, held_out_share, labelled_set, warn_of_copies
from .fit import head_for, training_rows
from .head import Head
from .metrics import wilson_interval
from .several import LabelsHead
from .views import plain_of

logger = logging.getLogger("headstart.classify")

HEADS = ("logistic", "linear", "mlp", "knn", "ncm")
_SLOW_HEADS = ("linear", "mlp")  # to be fitted again for each point of a learning curve
_CURVE_REPEATS = 5
Page = Callable[[Comparison], str]


def compare(
    data: str | os.PathLike[str] | None = None,
    *,
    backbones: str | Sequence[str] = (),
    heads: str | Sequence[str] = ("logistic",),
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    weights: str | None = None,
    wanted: dict[str, Any] | None = None,
    cv: int = 5,
    val_fraction: float | None = None,
    run: RunOptions | None = None,
    views: int | None = None,
    augment: str | None = None,
    seed: int = 0,
    page: Page | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Measure every backbone with every head on the training images of a dataset, and keep the table.

    Parameters
    ----------
    data : path, optional
        The dataset; that of the latest extract where it is None.
    backbones : str or sequence of str, optional
        Names. What the cache lacks of them is embedded, each picture decoded once for all. Without any, all feature
        spaces that hold every image of the dataset.
    heads : str or sequence of str, default ("logistic",)
        Of "logistic", "linear", "mlp", "knn", "ncm"; where an image may have several labels "logistic" alone.
    cache : path, optional
        The cache's folder; ``HEADSTART_CACHE`` or ``.headstart`` where it is None.
    out : path, optional
        Folder of the result; ``comparisons/<dataset>`` where it is None.
    overwrite : bool, default False
        Replace a comparison that is there.
    weights : str, optional
        "default", "none" (random) or, for one backbone, a file; any that the cache has where it is None.
    wanted : dict, optional
        Fields that feature spaces must have: ``layer``, ``crop`` and so on.
    cv : int, default 5
        Folds, the same for all rows.
    val_fraction : float, optional
        Share of the training images that is held out where the dataset has no validation split; 0.2 where it is None.
    run : RunOptions, optional
        How pictures are embedded and timed.
    views : int, optional
        Train every head on so many views of each image; on the plain crop alone where it is None.
    augment : str, optional
        Their preset; that of the latest extract with views where it is None, or "tutorial" where there is none.
    seed : int, default 0
        For the folds, and for heads that are trained by mini-batches.
    page : callable, optional
        Makes the HTML page of the result, which is written beside the table then.
    stopped : callable, optional
        Asked before each image that is embedded and before each row; when it says True the run ends.

    Returns
    -------
    Comparison

    Raises
    ------
    CacheMissError, DataError, BackboneError
        There is nothing to compare, or it cannot be embedded.
    TrainingError
        The labels cannot be trained on.
    UsageError
        No such head, or one that does not go with the labels.
    OutputError
        `out` holds a comparison and `overwrite` is False, or something else.
    KeyboardInterrupt
        `stopped` said True.
    """
    begin = time.perf_counter()
    kinds, names = _heads(heads), [backbones] if isinstance(backbones, str) else list(backbones)
    share, run = held_out_share(val_fraction), run or RunOptions()
    folder = None if data is None else source_of(data)
    wanted_views = _wanted_views(cache_dir(cache), folder, views, augment)
    target = Path(out) if out is not None else None if data is None else _default_folder(source_of(data).resolve())
    if target is not None:
        check_folder(target, overwrite=overwrite)  # before the work, where the name is known by then
    found = find_candidates(cache_dir(cache), folder, names, wanted or {}, weights, run, stopped, wanted_views)
    target = target or _default_folder(source_of(found.listing.source))
    check_folder(target, overwrite=overwrite)
    options = _fit_head_options(cache, val_fraction, cv, seed)
    _tell_of_views(found)
    bench = _Bench(found, _divided(found, share, kinds), kinds, run, cv, seed, options, stopped)
    fitted = _ranked([pair for candidate in found.each for pair in bench.measured(candidate)])
    advice = bench.advice(fitted)
    comparison = Comparison(
        root=found.listing.root,
        rows=[row for row, _ in fitted],
        advice=advice,
        train=bench.count("train"),
        val=bench.count("val"),
        classes=found.listing.classes,
        folds=cv,
        out=target,
        chosen=advice[0]["cheapest"],
        seconds=time.perf_counter() - begin,
        views=found.views,
    )
    save(comparison, None if page is None else page(comparison), overwrite=overwrite)
    return comparison


def _wanted_views(cache: Place, data: Source | None, count: int | None, augment: str | None) -> Views:
    """Return the views of training images on which heads are trained, those that are cached if there is a choice."""
    views = Views.asked(count, augment, None if count in (None, 1) else "train")
    listing = latest_listing(cache, data) if views.count > 1 and augment is None else None
    if listing is None:
        return views
    runs = (Views.of_request(run.request) for run in load_listings(cache, source_of(listing.source)))
    return replace(views, augment=next((made.augment for made in runs if made.count > 1), views.augment))


def _heads(heads: str | Sequence[str]) -> list[str]:
    kinds = list(dict.fromkeys([heads] if isinstance(heads, str) else heads))
    for kind in kinds:
        if kind not in HEADS:
            raise UsageError(f"--head must be one of {', '.join(HEADS)}, and is {kind!r}")
    if not kinds:
        raise UsageError(f"name a head with --head: {', '.join(HEADS)}")
    return kinds


def _default_folder(source: Source) -> Path:
    name = source.stem if source.suffix.lower() == ".csv" else source.name
    return Path("comparisons") / re.sub(r"[^\w.+-]+", "-", printable(name or "data"))


def _fit_head_options(
    cache: str | os.PathLike[str] | None, val_fraction: float | None, cv: int, seed: int
) -> dict[str, Any]:
    """Return what ``fit-head`` needs to be told to divide the images as they were divided here."""
    given = {"cv": None if cv == 5 else cv, "val_fraction": val_fraction, "seed": seed or None, "cache": cache}
    return {name: value for name, value in given.items() if value is not None}


def _tell_of_views(found: Candidates) -> None:
    """Say so where views are cached that heads are not trained on: ``fit-head`` would take them."""
    most = max((Views.of_request(candidate.request) for candidate in found.each), key=lambda views: views.count)
    if found.views.count == 1 and most.count > 1:
        logger.info(
            "heads are trained on the plain crop of each image; %s trains them on the views that were extracted",
            as_words(most.summary()),
        )


def _views_options(found: Candidates, candidate: Candidate) -> dict[str, Any]:
    """Return what ``fit-head`` needs to be told to train on the views of this comparison."""
    if found.views.count > 1:
        return found.views.summary()
    return {"views": 1} if Views.of_request(candidate.request).count > 1 else {}


def _divided(found: Candidates, share: float, kinds: Sequence[str]) -> LabelledSet:
    """Divide the images once, for all rows, by the first space: near copies, of which folds know, are looked for in it.

    Raises
    ------
    UsageError
        A head that does not go with several labels an image.
    """
    labelled = labelled_set(found.features(found.each[0]), share, near_copies="auto")
    if labelled.Y is not None and list(kinds) != ["logistic"]:
        raise UsageError("images of this dataset have several labels, and --head logistic alone learns those")
    warn_of_copies(labelled)
    return labelled


_Fitted = tuple[Row, Head]


def _ranked(fitted: Sequence[_Fitted]) -> list[_Fitted]:
    """Return rows and heads, the best first, with those marked that nothing beats in both accuracy and speed."""
    order = sorted(fitted, key=lambda pair: (-pair[0].score, pair[0].log_loss, pair[0].cost))
    flags = pareto([row.score for row, _ in order], [row.cost for row, _ in order])
    return [(replace(row, pareto=flag), head) for (row, head), flag in zip(order, flags, strict=True)]


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all rows share: the images and how they are divided, the heads, the folds.

    Attributes
    ----------
    found : Candidates
    labelled : LabelledSet
    kinds : sequence of str
        Heads.
    run : RunOptions
    cv, seed : int
    options : dict
        What ``fit-head`` must be told beside backbone and head.
    stopped : callable
        Asked before each row.
    """

    found: Candidates
    labelled: LabelledSet
    kinds: Sequence[str]
    run: RunOptions
    cv: int
    seed: int
    options: dict[str, Any]
    stopped: Callable[[], bool]

    def count(self, split: str) -> int:
        """Return how many labelled images a split has."""
        return int((self.labelled.split == split).sum())

    def measured(self, candidate: Candidate) -> Iterator[_Fitted]:
        """Yield a row for each head on one feature space, and the head fitted."""
        mine = self._labelled_in(candidate)
        train = training_rows(mine)
        name = _name(self.found, candidate)
        logger.info("%s: timing", name)
        speed = candidate.rate(_some_files(self.found.listing, mine), self.run)
        for kind in self.kinds:
            if self.stopped():
                raise KeyboardInterrupt("interrupted: nothing was saved, but what was embedded is in the cache")
            head = head_for(mine, train, kind, {"cv": self.cv, "random_state": self.seed})
            command = _command(self.found, candidate, kind, self.options)
            row = _row(name, candidate, head, (plain_of(train[0]), train[1]), speed, command)
            logger.info("%s: %.1f %% in cross-validation; %s", row.name, 100 * row.cv_accuracy, row.choice)
            yield row, head

    def advice(self, fitted: Sequence[_Fitted]) -> list[dict[str, Any]]:
        """Return the advice of a table whose best row comes first."""
        rows = [row for row, _ in fitted]
        apart = differences([Contender(row.name, row.right, row.cost) for row in rows])
        for entry in apart["comparisons"]:
            row = rows[entry["row"]]
            entry |= {"backbone": row.backbone, "head": row.head}
        curve, name = self._curve(fitted)
        evidence = Evidence(
            train=self.count("train"),
            val=self.count("val"),
            error=1 - rows[0].cv_accuracy,
            train_error=1 - rows[0].train_accuracy,
            more_help=curve.more_help,
            random=rows[0].weights == "none",
            multi_label=self.labelled.Y is not None,
        )
        predicted = finetuning(evidence)
        if predicted["prediction"] == LIKELY:
            predicted["command"] = self._finetune_command(rows[0])
            predicted["text"] += f"; try: {predicted['command']}"
        return [apart, predicted, more_images(curve, name)]

    def _finetune_command(self, row: Row) -> str:
        """Return the command that trains a row's backbone end to end."""
        space = next(c for c in self.found.each if c.space.id == row.space)
        wanted = self.found.fit_options(space) or {"backbone": row.backbone}
        options = {name: value for name, value in wanted.items() if name != "store_dtype"}
        if row.weights != "default":
            options["weights"] = row.weights
        return f"headstart finetune {shlex.quote(printable(self.found.listing.root))} {as_words(options)}"

    def _labelled_in(self, candidate: Candidate) -> LabelledSet:
        return replace(self.labelled, features=self.found.features(candidate))

    def _curve(self, fitted: Sequence[_Fitted]) -> tuple[LearningCurve, str]:
        """Return the learning curve of the best row, or of a faster head on its backbone, and the row's name."""
        same = [pair for pair in fitted if pair[0].space == fitted[0][0].space]
        row, head = next((pair for pair in same if pair[0].head not in _SLOW_HEADS), fitted[0])
        logger.info("%s: learning curve", row.name)
        candidate = next(c for c in self.found.each if c.space.id == row.space)
        train = training_rows(self._labelled_in(candidate))
        return learning_curve(head, *train, repeats=_CURVE_REPEATS, seed=self.seed), row.name


def _name(found: Candidates, candidate: Candidate) -> str:
    """Return the backbone's name, with layer and weights where two candidates share it."""
    space = candidate.space
    name = space.backbone if candidate.weights == "default" else f"{space.backbone} ({_short(candidate.weights)})"
    alike = [c for c in found.each if c.space.backbone == space.backbone and c.weights == candidate.weights]
    if len(alike) > 1:
        name = f"{name}:{space.layer}"
    same = [c for c in alike if c.space.layer == space.layer]
    return f"{name} [{space.id[:6]}]" if len(same) > 1 else name


def _short(weights: str) -> str:
    return "random" if weights == "none" else Path(weights).name


def _some_files(listing: Listing, labelled: LabelledSet) -> list[str]:
    """Return where some training pictures lie, evenly chosen."""
    rows = labelled.features.rows[labelled.rows[labelled.split == "train"]]
    chosen = rows[np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).round().astype(int)]
    folder = dataset_folder(listing, listing.source)
    return [os.fsdecode(location(os.fsencode(folder), listing.paths[row])) for row in chosen]


def _row(
    name: str,
    candidate: Candidate,
    head: Head,
    train: tuple[np.ndarray, np.ndarray],
    speed: float | None,
    command: str,
) -> Row:
    X, y = train
    several = isinstance(head, LabelsHead)
    held_out = head.oof_proba_ >= head.thresholds_ if isinstance(head, LabelsHead) else head.oof_proba_.argmax(axis=1)
    right = _right(held_out, y)
    low, high = wilson_interval(int(right.sum()), len(right))
    parameters, licence = candidate.facts
    return Row(
        name=f"{name}+{head.kind}",
        backbone=candidate.space.backbone,
        layer=candidate.space.layer,
        weights=candidate.weights,
        space=candidate.space.id,
        head=head.kind,
        cv_accuracy=float(right.mean()),
        low=low,
        high=high,
        cv_map=head.cv_["map"] if several else None,
        log_loss=head.cv_["log_loss_calibrated"],
        train_accuracy=float(_right(head.predict(X), y).mean()),
        dim=candidate.space.dim,
        parameters=parameters,
        images_per_second=None if speed is None else round(speed, 2),
        licence=licence,
        pareto=False,  # which the other rows decide
        choice=head.choice(),
        command=command,
        right=right,
    )


def _right(predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tell which images are right, (n,) bool: all labels of each, where it may have several."""
    same = np.asarray(predicted) == y
    return np.asarray(same if same.ndim == 1 else same.all(axis=1))


def _command(found: Candidates, candidate: Candidate, kind: str, options: dict[str, Any]) -> str:
    """Return the command that fits a row's head and scores it on the validation images."""
    root = shlex.quote(printable(found.listing.root))
    wanted = found.fit_options(candidate)
    before = ""
    if wanted is None:  # made the newest again, at once, for its rows are there
        wanted = {"backbone": candidate.space.backbone}
        again = fewest_options(candidate.space, candidate.request, found.store.root).words()
        where = f" {as_words({'cache': options['cache']})}" if "cache" in options else ""
        before = f"headstart extract {root} {again}{where} && "
    words = {**wanted, "head": kind, **_views_options(found, candidate), **options}
    return f"{before}headstart fit-head {root} {as_words(words)}"
