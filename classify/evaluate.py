"""Score a saved model on a dataset, and compare two models on the same images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.datasets import latest_listing
from ..cache.listing import Listing
from ..cache.source import Source, source_of
from ..errors import CacheMissError, DataError, DataNotFoundError, ModelError, printable
from ..extract.access import is_there
from ..extract.elsewhere import location
from ..extract.features import Features, dataset_folder, gather_joined
from ..extract.images import ImageList, list_images, list_paths
from ..extract.options import RunOptions
from ..extract.plan import base_folder, failure_rules, recall_listing, unread_listing
from ..extract.views import PLAIN, Views
from .dataset import LabelledSet, labelled_set
from .evaluation import Evaluation
from .metrics import mcnemar_exact
from .model import SavedModel, load_model
from .predict import Classifier, views_for
from .scores import scores_of

logger = logging.getLogger("headstart.classify")

_NAMED = 8  # classes that an error lists
_BLOCK_BYTES = 64 << 20  # of embeddings of several views that are in memory at once
CONVINCING = 0.05  # the p-value below which a difference is called more than chance


def evaluate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str = "val",
    against: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    run: RunOptions | None = None,
    views: int | None = None,
    augment: str | None = None,
) -> Evaluation:
    """Score a model on the images of a split.

    Parameters
    ----------
    model : path
        The model's folder.
    data : path, optional
        The dataset; the one that the model was trained on where it is None. What the cache lacks is embedded.
    split : {"val", "test", "train"}, default "val"
        Where there is no validation split, the test split is taken, and that is said; of a dataset without any splits
        that the model was not trained on all images are ("all").
    against : path, optional
        A second model, to be compared on the same images. Where the first was fitted with `dedupe`, and so is scored
        without copies, the second one is too.
    cache : path, optional
    run : RunOptions, optional
    views, augment : int and str, optional
        Average the probabilities of each image over so many views, as in `views_for`; the same ones for both models.

    Raises
    ------
    ModelError
        A model is missing or damaged, or its classes are not those of the dataset.
    DataError
        The split has no labelled image.
    """
    saved = load_model(Path(model))
    first = Classifier(saved, cache, run, views_for(saved, views, augment))
    other = None if against is None else Classifier(load_model(Path(against)), cache, run, first.views)
    result, _ = score_on(first, data, split)
    if other is None:
        return result
    second, _ = score_on(other, data, result.split, like=first.model)
    return replace(result, against=_compare(result, second, str(against)))


def score_on(
    classifier: Classifier,
    data: str | os.PathLike[str] | None,
    split: str,
    *,
    like: SavedModel | None = None,
    copies: bool = False,
) -> tuple[Evaluation, LabelledSet]:
    """Score a model on the images of a split, and return the whole dataset with it.

    Parameters
    ----------
    classifier : Classifier
    data : path or None
        As in `evaluate`.
    split : str
        As in `evaluate`.
    like : SavedModel, optional
        Whose dataset is taken where `data` is None, and which says whether copies are left out: the model's own where
        it is None.
    copies : bool, default False
        Look for near copies even where none is left out.

    Raises
    ------
    ModelError, DataError
        As `evaluate`.
    """
    training = (like or classifier.model).training
    dedupe = training.get("dedupe") is not None
    labelled = _dataset(classifier, data, source_of(training["source"]), dedupe=dedupe, copies=copies)
    split = _split_there(labelled, split, own=_trained_on(classifier, labelled.features))
    if split == "all":
        labelled = replace(labelled, split=np.full(len(labelled.y), "all"))
    X, y = labelled.part(split)
    if not len(y):
        there = ", ".join(sorted(set(labelled.split.tolist())))
        raise DataError(
            f"{labelled.features.listing.root} has no labelled image in split {split}; name another one with --split: "
            f"{there}"
        )
    model = classifier.model
    logits = model.logits(X) if classifier.views.count == 1 else _logits_of_views(classifier, labelled, split)
    proba = model.probabilities(logits)
    scores = scores_of(model, logits, (X, y), labelled.part("train"))
    predicted = proba >= np.array(model.thresholds) if model.multi_label else proba.argmax(axis=1)
    paths = labelled.paths(split)
    return Evaluation(split, scores, y, predicted, proba, paths, classifier.classes, views=classifier.views), labelled


def _logits_of_views(classifier: Classifier, labelled: LabelledSet, split: str) -> np.ndarray:
    """Return logits (n, V, K) of the views that are averaged; embed what the cache lacks."""
    features, views, model = labelled.features, classifier.views, classifier.model
    rows = labelled.rows[labelled.split == split]
    lacking = rows[_lacking(features, views, rows) > 0]
    if lacking.size:
        _embed_views(classifier, features, lacking)
    block = max(1, _BLOCK_BYTES // (4 * views.count * sum(features.dims)))
    parts = [
        model.logits(
            gather_joined(features.store, features.spaces, features.digest[rows[start : start + block]], views)
        )
        for start in range(0, len(rows), block)
    ]
    return np.concatenate(parts)


def _lacking(features: Features, views: Views, rows: np.ndarray) -> np.ndarray:
    """Count the views of each image that have no row in one of the spaces, at most over the spaces, (n,) int64."""
    digest, counts = features.digest[rows], np.full(len(rows), views.count)
    indices = [features.store.index(space.id)[0] for space in features.spaces]
    return np.asarray(np.max([views.lacking(index, digest, counts) for index in indices], axis=0))


def _embed_views(classifier: Classifier, features: Features, rows: np.ndarray) -> None:
    """Embed the views of images that the cache lacks, from where their pictures lay when they were listed.

    Raises
    ------
    DataNotFoundError, DataError
        A picture is not there any more, or it is another one.
    """
    listing, views = features.listing, classifier.views
    folder = dataset_folder(listing, listing.source)
    base = os.fsencode(folder)
    paths = [os.fsdecode(location(base, listing.paths[row])) for row in features.rows[rows]]
    gone = [path for path in paths if not is_there(path)]
    if gone:
        there = views.count - int(_lacking(features, views, rows).max())
        raise DataNotFoundError(
            f"of {len(rows)} images the cache has {there} of {views.count} views ({views.augment}), and "
            f"{printable(gone[0])} is not there to make the others of; name the folder where the pictures are now as "
            f"DATA, or pass --views {there}"
        )
    images = list_paths(paths)
    unread = unread_listing(images, failure_rules(classifier.run.max_pixels))
    embedded = classifier.embed(unread, base_folder(images))
    if embedded.failures:
        first = min(embedded.failures)
        raise DataError(
            f"{len(embedded.failures)} pictures have no such views; the first, {printable(embedded.paths[first])}: "
            f"{embedded.failures[first]}; name DATA to score it as it is now"
        )
    left = np.flatnonzero(_lacking(features, views, rows))
    if left.size:
        raise DataError(
            f"{left.size} pictures changed since the dataset was listed "
            f"({printable(paths[left[0]])} first); name DATA to score it as it is now"
        )


def _trained_on(classifier: Classifier, features: Features) -> bool:
    return bool(features.listing.source == classifier.model.training["source"])


def _split_there(labelled: LabelledSet, split: str, *, own: bool) -> str:
    """Return the split that is scored where `split` is asked for, and say what is odd about that."""
    if split == "val" and not (labelled.split == "val").any():
        if (labelled.split == "test").any():
            logger.info("there is no validation split: scoring on test")
            return "test"
        if not own:
            logger.info("the dataset has no splits, and the model was not trained on it: scoring all its images")
            return "all"
    if own and split in ("train", "all"):
        logger.warning("the model was trained on these images: its score here says little of new ones")
    return split


def _dataset(
    classifier: Classifier, data: str | os.PathLike[str] | None, source: Source, *, dedupe: bool, copies: bool
) -> LabelledSet:
    """Take a dataset from the disk, or, without one, the one that a model was trained on from the cache."""
    training = classifier.model.training
    features = _from_cache(classifier, source) if data is None else _from_disk(classifier, source_of(data))
    if features.multi_label != classifier.model.multi_label:
        several, one = "several labels an image", "one class an image"
        knows, has = (several, one) if classifier.model.multi_label else (one, several)
        raise ModelError(
            f"the model knows {knows}, {features.listing.root} has {has}; fit a head anew with "
            f"`headstart fit-head {features.listing.root}`"
        )
    if not features.classes:
        root = printable(features.listing.root)
        raise DataError(f"{root} has no labels to score a model by; `headstart predict MODEL {root}` needs none")
    if features.classes != classifier.classes:
        raise ModelError(
            f"the model knows the classes {_some(classifier.classes)}, {features.listing.root} has "
            f"{_some(features.classes)}; fit a head anew with `headstart fit-head {features.listing.root}`"
        )
    fraction = training.get("held_out") if _trained_on(classifier, features) else None
    near_copies = training.get("near_copies", "none") if dedupe or copies else "none"
    return labelled_set(features, 0.0 if fraction is None else fraction, dedupe=dedupe, near_copies=near_copies)


def _some(names: Sequence[str]) -> str:
    return str(list(names)) if len(names) <= _NAMED else f"{list(names[:_NAMED])} and {len(names) - _NAMED} more"


def _from_cache(classifier: Classifier, source: Source) -> Features:
    """Take the dataset that a model was trained on as it was last listed; embed only where the cache lacks rows."""
    listing = latest_listing(classifier.store.root, source)
    if listing is None:
        if not source.exists():
            raise CacheMissError(f"neither the cache {classifier.store.root} nor the disk has {source}; name DATA")
        return _from_disk(classifier, source)
    features = _features(classifier, listing)
    if listing.classes != classifier.classes and source.exists():
        return _from_disk(classifier, source)
    try:
        features.X  # noqa: B018  (reads the rows, or says that some are not there)
    except CacheMissError:
        return _from_disk(classifier, source)
    return features


def _from_disk(classifier: Classifier, data: Source) -> Features:
    images = _listed(classifier, data)
    rules = failure_rules(classifier.run.max_pixels)
    listing = recall_listing(classifier.store.root, images, rules, scanned_ns=0)
    return _features(classifier, classifier.embed(listing, base_folder(images), PLAIN))


def _features(classifier: Classifier, listing: Listing) -> Features:
    """Return a dataset in the model's spaces; a head that is fitted to it again gets the views that the model got."""
    requests = tuple(classifier.model.training.get("requests", ()))
    return Features(listing, classifier.spaces, classifier.store, requests, classifier.model.views)


def _listed(classifier: Classifier, data: Source) -> ImageList:
    """List a dataset; the one that the model was trained on as it was read then, where that makes the difference."""
    cache, training = classifier.store.root, classifier.model.training
    images = list_images(data, cache=cache)
    if images.classes != classifier.classes and str(data.resolve()) == training["source"]:
        return list_images(data, layout=training.get("layout", "auto"), cache=cache)
    return images


def _compare(first: Evaluation, second: Evaluation, name: str) -> dict[str, Any]:
    """Compare two models on the images that both were scored on, by McNemar's exact test."""
    if list(first.paths) != list(second.paths):
        raise DataError(
            f"the model {name} was scored on other images: the two were fitted with other validation images held out, "
            "or the dataset has changed since; fit one of them again"
        )
    one, two = first.right(), second.right()
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    p_value = mcnemar_exact(only_first, only_second)
    better = "the first" if only_first > only_second else "the second"
    verdict = f"{better} is better, by more than chance" if p_value < CONVINCING else "no difference beyond chance"
    return {
        "model": name,
        "accuracy": float(two.mean()),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p_value,
        "verdict": verdict,
    }
