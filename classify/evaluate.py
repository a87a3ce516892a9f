"""Score a saved model on a dataset, and compare two models on the same images."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.datasets import latest_listing
from ..errors import CacheMissError, DataError, ModelError, printable
from ..extract.features import Features
from ..extract.images import list_images
from ..extract.options import RunOptions
from ..extract.plan import base_folder, failure_rules, recall_listing
from .dataset import LabelledSet, labelled_set
from .metrics import mcnemar_exact, score
from .model import load_model
from .predict import Classifier

logger = logging.getLogger("headstart.classify")

SHOWN_CLASSES = 12
SHOWN_ERRORS = 5
CONVINCING = 0.05  # the p-value below which a difference is called more than chance


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The score of a model on one split.

    Attributes
    ----------
    split : str
    scores : dict
        What `metrics.score` returns.
    y, predicted : ndarray of shape (n,), dtype int64
    proba : ndarray of shape (n, K), dtype float64
    paths : ndarray of shape (n,), of str
    classes : tuple of str
    against : dict or None
        The comparison with a second model.
    """

    split: str
    scores: dict[str, Any]
    y: np.ndarray
    predicted: np.ndarray
    proba: np.ndarray
    paths: np.ndarray
    classes: tuple[str, ...]
    against: dict[str, Any] | None = None

    def errors(self) -> list[dict[str, Any]]:
        """Return the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.y)
        sure = self.proba[wrong, self.predicted[wrong]]
        return [
            {
                "path": str(self.paths[row]),
                "label": self.classes[self.y[row]],
                "predicted": self.classes[self.predicted[row]],
                "probability": float(self.proba[row, self.predicted[row]]),
            }
            for row in wrong[np.argsort(-sure, kind="stable")]
        ]

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``evaluate --json``."""
        return {"split": self.split, **self.scores, "errors": self.errors(), "against": self.against}

    def lines(self) -> list[str]:
        """Return what a person needs: score with interval, classes, the worst errors, the comparison."""
        s = self.scores
        interval = f"95 % interval {100 * s['low']:.1f} to {100 * s['high']:.1f}"
        lines = [
            f"{self.split}: {100 * s['accuracy']:.1f} % of {s['n']} images ({interval}), log loss {s['log_loss']:.3f}, "
            f"calibration error {100 * s['ece']:.1f} %"
        ]
        for row in s["per_class"][:SHOWN_CLASSES]:
            recall = "-" if row["recall"] is None else f"{100 * row['recall']:.1f} %"
            lines.append(f"  {printable(row['label']):<20} {row['n']:>5} images, {recall} found")
        for error in self.errors()[:SHOWN_ERRORS]:
            took = f"{printable(error['predicted'])} at {100 * error['probability']:.0f} %"
            lines.append(f"  wrong: {printable(error['path'])} is {printable(error['label'])}, taken for {took}")
        if self.against is not None:
            counts = f"{self.against['only_first']} right here alone, {self.against['only_second']} there alone"
            lines.append(
                f"against {self.against['model']} ({100 * self.against['accuracy']:.1f} %): {counts}, "
                f"p = {self.against['p_value']:.2g}: {self.against['verdict']}"
            )
        return lines


def evaluate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str = "val",
    against: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    run: RunOptions | None = None,
) -> Evaluation:
    """Score a model on the images of a split.

    Parameters
    ----------
    model : path
        The model's folder.
    data : path, optional
        The dataset; the one that the model was trained on where it is None. What the cache lacks is embedded.
    split : {"val", "test", "train"}, default "val"
        Where there is no validation split, the test split is taken, and that is said.
    against : path, optional
        A second model, to be compared on the same images. Where the first was fitted with `dedupe`, and so is scored
        without copies, the second one is too.
    cache : path, optional
    run : RunOptions, optional

    Raises
    ------
    ModelError
        A model is missing or damaged, or its classes are not those of the dataset.
    DataError
        The split has no labelled image.
    """
    first = Classifier(load_model(Path(model)), cache, run)
    dedupe = first.model.training.get("dedupe") is not None
    result = _evaluate(first, data, split, dedupe=dedupe)
    if against is None:
        return result
    other = Classifier(load_model(Path(against)), cache, run)
    source = first.model.training["source"] if data is None else data
    second = _evaluate(other, source, result.split, dedupe=dedupe)
    return replace(result, against=_compare(result, second, str(against)))


def _evaluate(classifier: Classifier, data: str | os.PathLike[str] | None, split: str, *, dedupe: bool) -> Evaluation:
    labelled = _dataset(classifier, data, dedupe=dedupe)
    if not (labelled.split == split).any() and split == "val" and (labelled.split == "test").any():
        logger.info("there is no validation split: scoring on test")
        split = "test"
    X, y = labelled.part(split)
    if not len(y):
        raise DataError(f"{labelled.features.listing.root} has no labelled image in split {split}")
    proba = classifier.predict_proba(X)
    scores = score(y, proba, classifier.classes)
    paths = labelled.paths(split)
    return Evaluation(split, scores, y, proba.argmax(axis=1), proba, paths, classifier.classes)


def _dataset(classifier: Classifier, data: str | os.PathLike[str] | None, *, dedupe: bool) -> LabelledSet:
    training = classifier.model.training
    trained_on = Path(training["source"])
    features = _from_cache(classifier, trained_on) if data is None else _from_disk(classifier, Path(data))
    if features.classes != classifier.classes:
        raise ModelError(
            f"the model knows the classes {list(classifier.classes)}, {features.listing.root} has "
            f"{list(features.classes)}; fit a head anew with `headstart fit-head {features.listing.root}`"
        )
    fraction = training.get("held_out")
    return labelled_set(features, 0.0 if fraction is None else fraction, dedupe=dedupe)


def _from_cache(classifier: Classifier, source: Path) -> Features:
    """Take the dataset that the model was trained on as it was last listed; embed only where the cache lacks rows."""
    listing = latest_listing(classifier.store.root, source)
    if listing is None:
        if not source.exists():
            raise CacheMissError(f"neither the cache {classifier.store.root} nor the disk has {source}; name DATA")
        return _from_disk(classifier, source)
    features = Features(listing, classifier.spaces, classifier.store)
    try:
        features.X  # noqa: B018  (reads the rows, or says that some are not there)
    except CacheMissError:
        return _from_disk(classifier, source)
    return features


def _from_disk(classifier: Classifier, data: Path) -> Features:
    images = list_images(data)
    rules = failure_rules(RunOptions().max_pixels)
    listing = recall_listing(classifier.store.root, images, rules, scanned_ns=0)
    listing = classifier.embed(listing, base_folder(images))
    return Features(listing, classifier.spaces, classifier.store)


def _compare(first: Evaluation, second: Evaluation, name: str) -> dict[str, Any]:
    """Compare two models on the images that both were scored on, by McNemar's exact test."""
    if list(first.paths) != list(second.paths):
        raise DataError(f"the model {name} was scored on other images; name DATA so that both see the same")
    one, two = first.predicted == first.y, second.predicted == second.y
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
