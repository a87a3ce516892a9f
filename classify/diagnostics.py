"""What is odd about the images of a dataset: labels that are probably wrong, outliers, near copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import printable
from .dataset import LabelledSet
from .mislabelled import suspicious_labels
from .novelty import Novelty, training_outliers

SHOWN = 10
OUTLIER = 0.02  # the score up to which a picture is shown as one: farther away than all but 2 % of the others


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Odd images of a dataset.

    Attributes
    ----------
    suspicious : list of dict
        ``path``, ``label``, ``suggested``, ``score`` (0 to 1), ``confident`` of every training image, the most doubtful
        label first. Empty where an image may have several labels.
    outliers : list of dict
        ``path``, ``label``, ``score`` (share of training images that are as far from the others, or farther) of every
        training image, the farthest first.
    near_copies : list of list of dict
        ``path``, ``split`` of the pictures of each group of copies, byte for byte or nearly, in all splits.
    """

    suspicious: list[dict[str, Any]]
    outliers: list[dict[str, Any]]
    near_copies: list[list[dict[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, as ``fit-head --details --json`` has it."""
        return {"suspicious": self.suspicious, "outliers": self.outliers, "near_copies": self.near_copies}

    def lines(self) -> list[str]:
        """Return the worst of each, for people."""
        lines = []
        if self.suspicious:
            lines.append(f"the {min(SHOWN, len(self.suspicious))} most suspicious labels of the training images:")
        for row in self.suspicious[:SHOWN]:
            mark = ", probably wrong" if row["confident"] else ""
            lines.append(
                f"  {row['score']:.2f}  {printable(row['path'])}: labelled {printable(row['label'])}, "
                f"looks like {printable(row['suggested'])}{mark}"
            )
        odd = [row for row in self.outliers[:SHOWN] if row["score"] <= OUTLIER]
        if odd:
            lines.append("training images unlike the others:")
            lines += [f"  {printable(row['path'])} ({printable(row['label'])})" for row in odd]
        if self.near_copies:
            lines.append(f"{len(self.near_copies)} groups of copies or near copies:")
        for group in self.near_copies[:SHOWN]:
            lines.append("  " + ", ".join(f"{printable(row['path'])} ({row['split']})" for row in group[:SHOWN]))
        return lines


def diagnose(data: LabelledSet, novelty: Novelty | None, oof_proba: np.ndarray | None, seed: int = 0) -> Diagnostics:
    """Look for what is odd, by cross-validated probabilities and by embeddings.

    Parameters
    ----------
    data : LabelledSet
    novelty : Novelty or None
        Fitted on its training images; no outliers without one.
    oof_proba : ndarray of shape (n, K), dtype float64, or None
        Probabilities of each training image by a fit that did not see it; no label is doubted without them, nor where
        an image may have several.
    seed : int, default 0
        The one that `novelty` was fitted with.
    """
    X, y = data.part("train")
    mine = data.split == "train"
    group, paths, names = data.group[mine], data.paths("train"), _label_names(data)[mine]
    suspicious: list[dict[str, Any]] = []
    if oof_proba is not None and data.Y is None:
        found = suspicious_labels(oof_proba, y, X, groups=group)
        suspicious = [
            {
                "path": str(paths[row]),
                "label": str(names[row]),
                "suggested": data.features.classes[suggested],
                "score": float(score),
                "confident": bool(confident),
            }
            for row, score, suggested, confident in zip(
                found.rows, found.score, found.suggested, found.confident, strict=True
            )
        ]
    outliers: list[dict[str, Any]] = []
    if novelty is not None:
        score = training_outliers(X, data.y[mine], novelty, groups=group, random_state=seed)
        order = np.argsort(score, kind="stable")
        outliers = [{"path": str(paths[row]), "label": str(names[row]), "score": float(score[row])} for row in order]
    return Diagnostics(suspicious, outliers, _groups(data))


def _label_names(data: LabelledSet) -> np.ndarray:
    classes = np.array(data.features.classes, dtype=object)
    if data.Y is None:
        return np.asarray(classes[data.y])
    return np.array(["|".join(classes[row]) for row in data.Y], dtype=object)


def _groups(data: LabelledSet) -> list[list[dict[str, Any]]]:
    group = data.group
    members, counts = np.unique(group, return_counts=True)
    several = np.isin(group, members[counts > 1])
    result: dict[int, list[dict[str, Any]]] = {}
    for row in np.flatnonzero(several):
        path = str(data.features.paths[data.rows[row]])
        result.setdefault(int(group[row]), []).append({"path": path, "split": str(data.split[row])})
    return list(result.values())
