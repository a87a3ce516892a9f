"""The score of a model on one split, and how it is told to people and programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import printable
from ..extract.views import PLAIN, Views
from .scores import calibration_words

SHOWN_CLASSES = 12
SHOWN_ERRORS = 5


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
    views : Views, default `PLAIN`
        Over which probabilities were averaged.
    """

    split: str
    scores: dict[str, Any]
    y: np.ndarray
    predicted: np.ndarray
    proba: np.ndarray
    paths: np.ndarray
    classes: tuple[str, ...]
    against: dict[str, Any] | None = None
    views: Views = PLAIN

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
        views = self.views.summary()
        return {"split": self.split, **views, **self.scores, "errors": self.errors(), "against": self.against}

    def lines(self) -> list[str]:
        """Return what a person needs: score with interval and baselines, classes, the worst errors, the comparison."""
        lines = self._label_lines() if self.multi_label else self._class_lines()
        if self.views.count > 1:
            lines.insert(1, f"probabilities are averages over {self.views.count} views ({self.views.augment})")
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
            f"{calibration_words(s)}",
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
            f"{calibration_words(s)}"
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
