"""Train a head on cached embeddings: choose on the training images, score once on the validation images, save."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.source import source_of
from ..cache.store import cache_dir
from ..errors import TrainingError, UsageError, printable
from ..extract.features import Features, load_features
from .block_fit import BlockFit, BlockPlan, check_blocks, plan_blocks
from .conformal import kept_probabilities
from .curve import learning_curve
from .dataset import LabelledSet, held_out_share, labelled_set, warn_of_copies
from .diagnostics import diagnose
from .few_shots import few_shot_curve
from .fitted import Fit
from .head import Head
from .heads import make_head
from .model import SavedModel, check_target, save_model
from .novelty import Novelty, fit_novelty
from .provenance import model_folder, training_facts
from .repeats import FEW_REPEATS, REPEATS
from .scores import measured
from .several import LabelsHead, labels_head
from .views import plain_of

logger = logging.getLogger("headstart.classify")

NEAR_COPIES = ("auto", "all", "none")


def fit_head(
    data: str | os.PathLike[str] | None = None,
    head: str = "logistic",
    *,
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    val_fraction: float | None = None,
    dedupe: bool = False,
    wanted: dict[str, Any] | None = None,
    features: str | Sequence[str] = (),
    near_copies: str = "auto",
    details: bool = False,
    curve: bool = False,
    shots: int | None = None,
    repeats: int | None = None,
    views: int | None = None,
    augment: str | None = None,
    memory: str | int = "auto",
    engine: str = "local",
    address: str | None = None,
    seed: int = 0,
    **head_options: Any,
) -> Fit:
    """Train a head on a dataset that was extracted, score it and save it.

    Parameters
    ----------
    data : path, optional
        The dataset; that of the latest extract where it is None.
    head : {"logistic", "linear", "mlp", "knn", "ncm"}, default "logistic"
        Where an image may have several labels, "logistic" alone.
    cache : path, optional
        The cache's folder; ``HEADSTART_CACHE`` or ``.headstart`` where it is None.
    out : path, optional
        Folder of the model; `model_folder` where it is None, ``models/photos-resnet18-logistic`` say.
    overwrite : bool, default False
        Replace a model that is there.
    val_fraction : float, optional
        Share of the training images held out where the dataset has no validation split; 0.2 where it is None.
    dedupe : bool, default False
        Of images with the same bytes use one, and none where they have two labels. One that is in train and in
        another split, byte for byte or nearly, is left out of train. Without it all are used, and warned of.
    wanted : dict, optional
        Fields that the feature space must have, where the dataset was extracted in several.
    features : str or sequence of str, optional
        ``BACKBONE`` or ``BACKBONE:LAYER``: the head is trained on these embeddings side by side, in this order.
    near_copies : {"auto", "all", "none"}, default "auto"
        Look for pictures that are nearly copies of each other, by what `extract` noted of them, and keep those in one
        fold: among up to 50,000 pictures, among any number, or not at all.
    details : bool, default False
        Also look for labels that are probably wrong and for outliers; the result's `lines` go into the search and the
        classes.
    curve : bool, default False
        Also fit growing parts of the training images, to see whether more would help.
    shots : int, optional
        Also fit draws of 1, 2, 4 and so on up to so many training images a class, to see what few are worth; the model
        that is saved is trained on all. At least 1; not where an image may have several labels.
    repeats : int, optional
        How often each point of `curve` and of `shots` is fitted, at least 2; 10 where it is None. Its time grows with
        it.
    views : int, optional
        Train on so many views of each image, which count as one image; what is chosen and scored goes by the plain crop
        alone. As many as the run of `extract` was asked for that is taken, where it is None.
    augment : str, optional
        Their preset, where the dataset was extracted with several.
    memory : str or int, default "auto"
        What the fit may take beside the interpreter, its libraries and columns of some hundred bytes an image: bytes,
        or a size such as "500MB" or "2GiB"; on each worker, where there are some. Where training in memory would take
        more, rows are read block by block, to the same end; "auto" is half of what is free.
    engine : {"local", "dask", "ray"}, default "local"
        Where the rows are: here, or divided among the workers of a cluster, which all read this cache.
    address : str, optional
        Of the cluster.
    seed : int, default 0
    **head_options
        Arguments of the head: ``C``, ``cv``, ``class_weight``, ``lr`` and so on.

    Returns
    -------
    Fit

    Raises
    ------
    CacheMissError
        The dataset was not extracted, or not all of it with each of `features`, or without such views.
    TrainingError
        Its labels cannot be trained on.
    ModelError
        `out` holds a model and `overwrite` is False, or something else.
    """
    begin = time.perf_counter()
    if near_copies not in NEAR_COPIES:
        raise UsageError(f"--near-copies must be one of {', '.join(NEAR_COPIES)}, and is {near_copies!r}")
    _check_repeats(curve, shots, repeats)
    share = held_out_share(val_fraction)
    folder = None if data is None else source_of(data)
    loaded = load_features(cache_dir(cache), folder, wanted, features, views=views, augment=augment)
    target = Path(out) if out is not None else _default_folder(loaded, head)
    check_target(target, overwrite=overwrite)
    plan = plan_blocks(loaded, memory, engine, address)
    if plan is not None:
        check_blocks(plan, {"--curve": curve, "--shots": shots, "--near-copies all": near_copies == "all"})
        if details:
            logger.info("doubtful labels, outliers and near copies are not looked for in a fit by blocks")
        near_copies = "none"
    labelled = labelled_set(loaded, share, dedupe=dedupe, near_copies=near_copies)
    if val_fraction and not labelled.held_out:
        logger.warning("--val-fraction has no effect: the dataset has a validation split")
    if shots and labelled.Y is not None:
        raise UsageError(
            "--shots draws images of one class each, and this dataset has several labels an image: "
            "take --curve, or leave it out"
        )
    warn_of_copies(labelled)
    unfitted = _unfitted(labelled, head, {"random_state": seed, **head_options})
    with _trained(labelled, unfitted, plan, seed) as trained:
        fitted = trained.head
        model = SavedModel(
            kind=head,
            classes=loaded.classes,
            spaces=[space.as_dict() for space in loaded.spaces],
            network=fitted.network_,
            facts=fitted.facts(),
            temperature=fitted.temperature_,
            multi_label=labelled.Y is not None,
            thresholds=fitted.thresholds_.tolist() if isinstance(fitted, LabelsHead) else [],
            true_probabilities=trained.true_probabilities(),
            novelty=trained.novelty,
            training=training_facts(labelled, loaded.requests, seed=seed, val_fraction=share, near_copies=near_copies),
        )
        scores = trained.measured(model)
        told = trained.told()
    diagnostics = grown = few = None
    if isinstance(trained, InMemoryFit):
        repeats, train = repeats or REPEATS, trained.train
        held_out = fitted.oof_proba_ if fitted.cv_ else None
        diagnostics = diagnose(labelled, trained.novelty, held_out, seed) if details else None
        grown = learning_curve(fitted, *train, repeats=repeats, seed=seed) if curve else None
        few = few_shot_curve(fitted, *train, shots=shots, repeats=repeats, seed=seed) if shots else None
    scores |= {name: None if found is None else found.as_dict() for name, found in (("curve", grown), ("shots", few))}
    seconds = time.perf_counter() - begin
    model = replace(model, scores=scores, training=model.training | {"seconds": round(seconds, 3)})
    save_model(target, model, overwrite=overwrite)
    return Fit(model, fitted, labelled, target, seconds, diagnostics, grown, few, told)


def _check_repeats(curve: bool, shots: int | None, repeats: int | None) -> None:
    """Raise UsageError where the numbers of a curve mean nothing, and warn where its intervals would mean little."""
    if shots is not None and shots < 1:
        raise UsageError(f"--shots must be 1 or more, and is {shots}")
    if repeats is None:
        return
    if not curve and shots is None:
        raise UsageError("--repeats is of --curve and --shots, and neither was given: add one, or leave it out")
    if repeats < 2:
        raise UsageError(f"--repeats must be 2 or more, and is {repeats}")
    if repeats < FEW_REPEATS:
        logger.warning(
            "the intervals of %d repeats are too narrow: take %d or more to rely on them", repeats, FEW_REPEATS
        )


TrainingRows = tuple[np.ndarray, np.ndarray, np.ndarray]


def training_rows(data: LabelledSet) -> TrainingRows:
    """Return embeddings (n, D), or (n, V, D) where there are several views, labels and groups of the training images.

    The embeddings are a copy, as large as they are.
    """
    mine = data.split == "train"
    return data.features.of_views(data.rows[mine]), data.labels("train"), data.group[mine]


def head_for(data: LabelledSet, train: TrainingRows, kind: str, options: dict[str, Any]) -> Head:
    """Choose the settings of a head by cross-validation on the training images, and fit it to all of them.

    Parameters
    ----------
    data : LabelledSet
    train : (X, y, groups)
        What `training_rows` returns of it.
    kind : {"logistic", "linear", "mlp", "knn", "ncm"}
    options : dict
        Arguments of the head.

    Raises
    ------
    TrainingError
        There are no training images, or their labels cannot be trained on.
    UsageError
        No such head for such labels, or an option means nothing to it.
    """
    return _fitted(data, train, _unfitted(data, kind, options))


def _unfitted(data: LabelledSet, kind: str, options: dict[str, Any]) -> Head:
    """Return a head for the labels of a dataset, as `head_for` does before it is fitted."""
    if not (data.split == "train").any():
        raise TrainingError(f"{printable(data.features.listing.root)} has no training image with a label")
    return make_head(kind, **options) if data.Y is None else labels_head(kind, **options)


def _fitted(data: LabelledSet, train: TrainingRows, unfitted: Head) -> Head:
    X, y, groups = train
    try:
        return unfitted.fit(X, y, data.features.classes, groups=groups, blocks=data.features.dims)
    except TrainingError as error:
        raise _told_of_held_out(error, data) from error


class InMemoryFit:
    """A head fitted to the training images of a dataset, all of which are in memory; it has what `BlockFit` has.

    Attributes
    ----------
    train : (X, y, groups)
    head : Head
    novelty : Novelty or None
    """

    def __init__(self, data: LabelledSet, unfitted: Head, seed: int) -> None:
        self._data, self._unfitted, self._seed = data, unfitted, seed

    def __enter__(self) -> InMemoryFit:
        self.train = training_rows(self._data)
        self.head = _fitted(self._data, self.train, self._unfitted)
        self.novelty = novelty_of(self._data, self.train, self._seed)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def true_probabilities(self) -> np.ndarray:
        """Return what cross-validation gave the true classes, ascending, thinned evenly where they are many."""
        if self._data.Y is not None or not self.head.cv_:
            return np.zeros(0)
        return kept_probabilities(self.head.oof_proba_, self.train[1])

    def measured(self, model: SavedModel) -> dict[str, Any]:
        """Return the scores of the head; see `scores.measured`."""
        X, y, _ = self.train
        return measured(self.head, model, (plain_of(X), y), self._data.part("val"))

    def told(self) -> None:
        """Return None: nothing went by blocks."""


def _trained(data: LabelledSet, unfitted: Head, plan: BlockPlan | None, seed: int) -> InMemoryFit | BlockFit:
    """Return what fits a head when it is entered."""
    if plan is None:
        return InMemoryFit(data, unfitted, seed)
    try:
        return BlockFit(data, unfitted, plan, seed)
    except TrainingError as error:
        raise _told_of_held_out(error, data) from error


def _told_of_held_out(error: TrainingError, data: LabelledSet) -> TrainingError:
    """Return the error with a word on images that were there and did not count, if there are any."""
    held = int((data.split == "val").sum()) if data.held_out else 0
    copies = int((data.split == "train").sum()) - len(np.unique(data.exact[data.split == "train"]))
    words = [f"{held} images are held out for validation, see --val-fraction"] if held else []
    words += [f"{copies} copies of training images do not count"] if copies else []
    return TrainingError(f"{error} ({'; '.join(words)})") if words else error


def novelty_of(data: LabelledSet, train: TrainingRows, seed: int) -> Novelty | None:
    """Learn what training pictures look like, where there are two that are no copies of each other."""
    X, _, groups = train
    if len(np.unique(groups)) < 2:
        return None
    return fit_novelty(plain_of(X), data.y[data.split == "train"], groups=groups, random_state=seed)


def _default_folder(features: Features, head: str) -> Path:
    layers = [(space.backbone, space.layer) for space in features.spaces]
    return model_folder(source_of(features.listing.source), layers, head)
