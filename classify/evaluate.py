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
from .metrics import mcnemar_exact
from .model import load_model
from .predict import Classifier
from .scores import scores_of

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
        What `metrics.score` returns, and ``ece_uncalibrated``, ``baseline`` (majority and nearest_mean, or map, by the
        training images; None where the dataset has none) and ``conformal``; with several labels an image what
        `multilabel.score_multilabel` returns.
    y : ndarray of shape (n,), dtype int64, or (n, K), dtype bool
    predicted : ndarray of the same shape
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

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.y.ndim == 2

    def right(self) -> np.ndarray:
        """Return which images were wholly right, (n,) bool."""
        same = self.predicted == self.y
        return np.asarray(same.all(axis=1) if self.multi_label else same)

    def errors(self) -> list[dict[str, Any]]:
        """Return the wrong predictions, the most confident first."""
        return self._wrong_labels() if self.multi_label else self._wrong_classes()

    def _wrong_classes(self) -> list[dict[str, Any]]:
        wrong = np.flatnonzero(~self.right())
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

    def _wrong_labels(self) -> list[dict[str, Any]]:
        """Return a dict for each label that was given or left out wrongly; `predicted` is "" where it was left out."""
        rows, labels = np.nonzero(self.predicted != self.y)
        given = self.predicted[rows, labels]
        sure = np.where(given, self.proba[rows, labels], 1 - self.proba[rows, labels])
        return [
            {
                "path": str(self.paths[rows[place]]),
                "label": "" if given[place] else self.classes[labels[place]],
                "predicted": self.classes[labels[place]] if given[place] else "",
                "probability": float(sure[place]),
            }
            for place in np.argsort(-sure, kind="stable")
        ]

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``evaluate --json``."""
        return {"split": self.split, **self.scores, "errors": self.errors(), "against": self.against}

    def lines(self) -> list[str]:
        """Return what a person needs: score with interval and baselines, classes, the worst errors, the comparison."""
        lines = self._label_lines() if self.multi_label else self._class_lines()
        lines += [f"  wrong: {_error_words(error)}" for error in self.errors()[:SHOWN_ERRORS]]
        if self.against is not None:
            counts = f"{self.against['only_first']} right here alone, {self.against['only_second']} there alone"
            lines.append(
                f"against {self.against['model']} ({100 * self.against['accuracy']:.1f} %): {counts}, "
                f"p = {self.against['p_value']:.2g}: {self.against['verdict']}"
            )
        return lines

    def _class_lines(self) -> list[str]:
        s = self.scores
        top = "" if s["top_k"] is None else f", top {s['top_k']['k']} {100 * s['top_k']['accuracy']:.1f} %"
        auc = "" if s["roc_auc"] is None else f", ROC AUC {s['roc_auc']:.3f}"
        lines = [
            f"{self.split}: {100 * s['accuracy']:.1f} % of {s['n']} images "
            f"(95 % interval {100 * s['low']:.1f} to {100 * s['high']:.1f}){_baseline_words(s['baseline'])}",
            f"balanced accuracy {100 * s['balanced_accuracy']:.1f} %, macro F1 {100 * s['macro_f1']:.1f} %{top}{auc}, "
            f"log loss {s['log_loss']:.3f}, calibration error {100 * s['ece']:.1f} % "
            f"(before temperature {100 * s['ece_uncalibrated']:.1f} %)",
        ]
        for row in s["per_class"][:SHOWN_CLASSES]:
            recall = "-" if row["recall"] is None else f"{100 * row['recall']:.1f} %"
            lines.append(f"  {printable(row['label']):<20} {row['n']:>5} images, {recall} found")
        return lines

    def _label_lines(self) -> list[str]:
        s = self.scores
        ranked = "no label occurs" if s["map"] is None else f"mean average precision {100 * s['map']:.1f} %"
        f1 = "-" if s["macro_f1"] is None else f"{100 * s['macro_f1']:.1f} %"
        lines = [
            f"{self.split}: {ranked}, macro F1 {f1}, all labels right in {100 * s['accuracy']:.1f} % of "
            f"{s['n']} images (95 % interval {100 * s['low']:.1f} to {100 * s['high']:.1f}), "
            f"log loss {s['log_loss']:.3f}, calibration error {100 * s['ece']:.1f} %"
        ]
        for row in s["per_label"][:SHOWN_CLASSES]:
            found = "-" if row["average_precision"] is None else f"{100 * row['average_precision']:.1f} %"
            lines.append(f"  {printable(row['label']):<20} {row['n']:>5} images, average precision {found}")
        return lines


def _baseline_words(baseline: dict[str, Any]) -> str:
    if baseline["majority"] is None:
        return ""
    majority, mean = 100 * baseline["majority"], 100 * baseline["nearest_mean"]
    return f"; majority class {majority:.1f} %, nearest class mean {mean:.1f} %"


def _error_words(error: dict[str, Any]) -> str:
    path, sure = printable(error["path"]), f"{100 * error['probability']:.0f} %"
    if not error["predicted"]:
        return f"{path} is {printable(error['label'])}, which was left out at {sure}"
    if not error["label"]:
        return f"{path} was given {printable(error['predicted'])} at {sure}"
    return f"{path} is {printable(error['label'])}, taken for {printable(error['predicted'])} at {sure}"


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
    source = Path(first.model.training["source"])  # without DATA that of the second model, too
    result = _evaluate(first, data, split, source, dedupe=dedupe)
    if against is None:
        return result
    other = Classifier(load_model(Path(against)), cache, run)
    second = _evaluate(other, data, result.split, source, dedupe=dedupe)
    return replace(result, against=_compare(result, second, str(against)))


def _evaluate(
    classifier: Classifier, data: str | os.PathLike[str] | None, split: str, source: Path, *, dedupe: bool
) -> Evaluation:
    labelled = _dataset(classifier, data, source, dedupe=dedupe)
    if not (labelled.split == split).any() and split == "val" and (labelled.split == "test").any():
        logger.info("there is no validation split: scoring on test")
        split = "test"
    X, y = labelled.part(split)
    if not len(y):
        raise DataError(f"{labelled.features.listing.root} has no labelled image in split {split}")
    model = classifier.model
    proba = classifier.predict_proba(X)
    scores = scores_of(model, model.network.logits(X), (X, y), labelled.part("train"))
    predicted = proba >= np.array(model.thresholds) if model.multi_label else proba.argmax(axis=1)
    return Evaluation(split, scores, y, predicted, proba, labelled.paths(split), classifier.classes)


def _dataset(classifier: Classifier, data: str | os.PathLike[str] | None, source: Path, *, dedupe: bool) -> LabelledSet:
    """Take a dataset from the disk, or, without one, the one that a model was trained on from the cache."""
    training = classifier.model.training
    features = _from_cache(classifier, source) if data is None else _from_disk(classifier, Path(data))
    if features.multi_label != classifier.model.multi_label:
        several, one = "several labels an image", "one class an image"
        knows, has = (several, one) if classifier.model.multi_label else (one, several)
        raise ModelError(
            f"the model knows {knows}, {features.listing.root} has {has}; fit a head anew with "
            f"`headstart fit-head {features.listing.root}`"
        )
    if features.classes != classifier.classes:
        raise ModelError(
            f"the model knows the classes {list(classifier.classes)}, {features.listing.root} has "
            f"{list(features.classes)}; fit a head anew with `headstart fit-head {features.listing.root}`"
        )
    fraction = training.get("held_out")
    near_copies = training.get("near_copies", "none") if dedupe else "none"
    return labelled_set(features, 0.0 if fraction is None else fraction, dedupe=dedupe, near_copies=near_copies)


def _from_cache(classifier: Classifier, source: Path) -> Features:
    """Take the dataset that a model was trained on as it was last listed; embed only where the cache lacks rows."""
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
