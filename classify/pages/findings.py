"""What a report tells of a model, gathered in one place: scores, odd images, neighbours, the map."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cache.names import Names
from ...errors import CacheMissError, TrainingError
from ...extract.features import dataset_folder
from ...extract.views import PLAIN
from ..dataset import LabelledSet
from ..diagnostics import OUTLIER, Diagnostics, diagnose
from ..evaluate import score_on
from ..evaluation import Evaluation
from ..fit import TrainingRows, novelty_of, training_rows
from ..metrics import Reliability, reliability_curve
from ..model import SavedModel
from ..neighbours import nearest
from ..network import sigmoid, softmax
from ..predict import warn_of_recipe
from ..preparation import of_length_one
from ..refit import refitted

if TYPE_CHECKING:
    from ..head import Head
    from ..predict import Classifier

logger = logging.getLogger("headstart.classify")

SHOWN = 24  # pictures of a gallery
NEIGHBOURS = 3
MOST_ON_MAP = 2500
_MOST_ACCUSED = 0.2  # share of training labels
_LEAST = 1e-300  # in the place of a probability of 0, which has no logarithm
_BLOCK = 65_536  # rows that are looked at together, which bounds the memory beside them


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a report shows. Rows are those of `labelled`, whatever their split.

    Attributes
    ----------
    model : SavedModel
    evaluation : Evaluation
        Of the split that is reported on.
    labelled : LabelledSet
    diagnostics : Diagnostics
    scored : ndarray of shape (n,), dtype int64
        The rows of `evaluation`, in its order.
    doubted : bool
        Whether labels of training images were looked at, by what cross-validation said of them.
    before, after : Reliability
        Without and with the temperature.
    shown : ndarray of shape (m,), dtype int64
        Rows on the map.
    """

    model: SavedModel
    evaluation: Evaluation
    labelled: LabelledSet
    diagnostics: Diagnostics
    scored: np.ndarray
    doubted: bool
    before: Reliability
    after: Reliability
    shown: np.ndarray

    @property
    def base(self) -> bytes:
        """The folder that paths are relative to, as it was resolved when it was listed."""
        listing = self.labelled.features.listing
        return os.fsencode(dataset_folder(listing, listing.source))

    def paths(self) -> Names:
        """Return the path of each row, relative to `base`."""
        features = self.labelled.features
        return features.listing.paths.take(features.rows[self.labelled.rows])

    def name(self, row: int) -> str:
        """Return the path of a row below the dataset's folder."""
        features = self.labelled.features
        return os.fsdecode(features.listing.paths[features.rows[self.labelled.rows[row]]])

    def digests(self) -> list[bytes]:
        """Return the SHA-256 of each row's bytes, as it was embedded."""
        return [row.tobytes() for row in self.labelled.features.digest[self.labelled.rows]]

    def rows(self) -> dict[str, int]:
        """Return the row of each path as `Diagnostics` names it."""
        return {str(path): row for row, path in enumerate(self.labelled.features.paths[self.labelled.rows])}

    def wrong(self) -> np.ndarray:
        """Return the places in `evaluation` of wrong answers, the most confident first."""
        found = np.flatnonzero(~self.evaluation.right())
        sure = self.confidence()[found]
        return found[np.argsort(-sure, kind="stable")]

    def confidence(self) -> np.ndarray:
        """Return the probability of each answer, (n,); with several labels an image, of the one that is surest."""
        return np.asarray(self.evaluation.proba.max(axis=1))

    def neighbours(self, rows: np.ndarray) -> list[list[int]]:
        """Return the training rows that are nearest to each of `rows` by angle, 3 at most, the nearest first.

        Copies of a picture are no neighbours of it.
        """
        train = np.flatnonzero(self.labelled.split == "train")
        best: list[list[tuple[float, int]]] = [[] for _ in rows]
        X, group = self.labelled.features.X, self.labelled.group
        for start in range(0, len(train), _BLOCK):
            some = train[start : start + _BLOCK]
            reference = of_length_one(X[self.labelled.rows[some]])
            k = min(NEIGHBOURS, len(some))
            for part, distance, place in nearest(X[self.labelled.rows[rows]], reference, k, group[rows], group[some]):
                for row, far, near in zip(best[part], distance, some[place], strict=True):
                    row += zip(far.tolist(), near.tolist(), strict=True)
        found = [sorted(pair for pair in row if np.isfinite(pair[0]))[:NEIGHBOURS] for row in best]
        return [[near for _, near in row] for row in found]

    def outliers(self) -> list[dict[str, Any]]:
        """Return the outliers that are worth a look, the farthest first."""
        return [row for row in self.diagnostics.outliers[:SHOWN] if row["score"] <= OUTLIER]

    def accused(self) -> int:
        """Return how many training labels are taken for wrong."""
        return sum(row["confident"] for row in self.diagnostics.suspicious)

    @property
    def trusted(self) -> bool:
        """Whether labels may be doubted: a head that doubts every fifth label tells more of itself than of them."""
        return self.accused() <= _MOST_ACCUSED * len(self.diagnostics.suspicious)

    def suspicious(self) -> list[dict[str, Any]]:
        """Return the labels that are worth a look: those probably wrong, and the most doubtful besides."""
        rows = self.diagnostics.suspicious if self.trusted else []
        sure = [row for row in rows if row["confident"]]
        return (sure + [row for row in rows if not row["confident"] and row["score"] > 0.5])[:SHOWN]

    def across(self) -> list[list[dict[str, Any]]]:
        """Return the groups of copies that are in train and in another split, then those within one."""
        return sorted(self.diagnostics.near_copies, key=lambda group: not is_leak(group))


def is_leak(group: list[dict[str, Any]]) -> bool:
    """Tell whether copies, as `Diagnostics` has them, are in train and in another split."""
    return {"train"} < {row["split"] for row in group}


def gather(classifier: Classifier, data: str | os.PathLike[str] | None, split: str) -> Findings:
    """Score a model and look for what is odd about its dataset.

    Parameters
    ----------
    classifier : Classifier
    data : path or None
    split : str
        As in `headstart.evaluate`.
    """
    model = classifier.model
    evaluation, labelled = score_on(classifier, data, split, copies=True)
    scored = np.flatnonzero(labelled.split == evaluation.split)
    seed = int(model.training.get("seed", 0))
    own = labelled.features.listing.source == model.training["source"] and (labelled.split == "train").any()
    train, head = _head_again(model, labelled) if own else (None, None)
    # Of the pictures that there are now: outliers are told among them.
    novelty = novelty_of(labelled, train, seed) if train else None
    proba = None if head is None else head.oof_proba_
    if own:
        _tell_of_changes(model, labelled)
    before, after = _reliabilities(model, evaluation)
    return Findings(
        model=model,
        evaluation=evaluation,
        labelled=labelled,
        diagnostics=diagnose(labelled, novelty, proba, seed),
        scored=scored,
        doubted=proba is not None and not model.multi_label,
        before=before,
        after=after,
        shown=_on_map(labelled, scored, seed),
    )


def _head_again(model: SavedModel, labelled: LabelledSet) -> tuple[TrainingRows, Head | None]:
    """Fit the head once more; None where the dataset is too small for that by now, or the cache lacks views of it."""
    warn_of_recipe(model)
    try:
        train = training_rows(labelled)
        return train, refitted(model, labelled, train)
    except (TrainingError, CacheMissError) as error:
        logger.warning("labels are not checked: %s", error)
        plain = replace(labelled, features=replace(labelled.features, views=PLAIN))
        return training_rows(plain), None


def _tell_of_changes(model: SavedModel, labelled: LabelledSet) -> None:
    then, now = model.scores["train"]["n"], int((labelled.split == "train").sum())
    if then != now and "mode" not in model.facts:
        logger.warning(
            "the model was trained on %d images, and the dataset has %d to train on now: the report is of these",
            then, now,
        )  # fmt: skip


def _reliabilities(model: SavedModel, evaluation: Evaluation) -> tuple[Reliability, Reliability]:
    """Return the reliability of answers without and with the temperature.

    Logits are not kept, and need not be: up to a constant an image, which no softmax sees, they are the temperature
    times the logarithm of what it made of them; of one label by itself, times its log odds.
    """
    proba, temperature = evaluation.proba, model.temperature
    if model.multi_label:
        told = evaluation.y.ravel()
        odds = np.log(np.maximum(proba, _LEAST)) - np.log1p(-np.minimum(proba, 1 - 1e-16))
        return reliability_curve(sigmoid(odds * temperature).ravel(), told), reliability_curve(proba.ravel(), told)
    right, plain = evaluation.right(), np.empty(len(proba))
    block = max(1, _BLOCK // proba.shape[1])
    for start in range(0, len(proba), block):
        some = np.log(np.maximum(proba[start : start + block], _LEAST)) * temperature
        plain[start : start + block] = softmax(some).max(axis=1)
    return reliability_curve(plain, right), reliability_curve(proba.max(axis=1), right)


def _on_map(labelled: LabelledSet, scored: np.ndarray, seed: int) -> np.ndarray:
    """Choose rows for the map: scored and training images, half of the room each where both are many."""
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.flatnonzero(labelled.split == "train"), scored)
    room = max(MOST_ON_MAP // 2, MOST_ON_MAP - len(others))
    first = scored if len(scored) <= room else rng.choice(scored, room, replace=False)
    left = MOST_ON_MAP - len(first)
    second = others if len(others) <= left else rng.choice(others, left, replace=False)
    return np.sort(np.concatenate([first, second]))
