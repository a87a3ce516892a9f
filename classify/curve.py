"""The learning curve: whether more labelled images would still help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .head import Head
from .multilabel import mean_average_precision
from .network import sigmoid
from .repeats import REPEATS, set_aside, spread, standard_error
from .several import LabelsHead, rarest_label
from .views import plain_of

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the images that are not set aside
_HARDLY = 0.02  # a gain that is certainly smaller is not worth the labelling


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """How good a head is when it is fitted on a part of the training images.

    Attributes
    ----------
    points : list of dict
        ``n`` images, and of the accuracy on training images that were set aside the ``mean``, ``low`` and ``high``
        (95 % interval of the mean over repeats) and ``std`` over repeats, for growing n; none where there are too few
        images, or labels too rare, to say anything.
    measure : str
        "accuracy", or "map" (mean average precision) where an image may have several labels.
    verdict : str
        In words, whether more images help.
    more_help : bool or None
        The same: True where they still help, False where they would hardly, None where that cannot be told.
    repeats : int, default 10
        How often each point was fitted.
    """

    points: list[dict[str, Any]]
    measure: str
    verdict: str
    more_help: bool | None = None
    repeats: int = REPEATS

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of ``fit-head --curve --json``."""
        return {"points": self.points, "measure": self.measure, "verdict": self.verdict, "repeats": self.repeats}

    def lines(self) -> list[str]:
        """Return a table and the verdict."""
        name = "mAP" if self.measure == "map" else "accuracy"
        lines = [f"  {'images':>7}  {name} on images that were set aside, {self.repeats} times"]
        for point in self.points:
            bar = "#" * round(40 * point["mean"])
            spread = f"{100 * point['low']:.1f} to {100 * point['high']:.1f}"
            lines.append(f"  {point['n']:>7}  {100 * point['mean']:5.1f} %  ({spread})  {bar}")
        return [*lines, self.verdict]


def learning_curve(
    head: Head, X: np.ndarray, y: np.ndarray, groups: np.ndarray, *, repeats: int = REPEATS, seed: int = 0
) -> LearningCurve:
    """Fit growing parts of the training images at the settings that were chosen, and score each on others of them.

    In each repeat another fifth, whole groups of copies, is set aside; the parts are nested and keep a row of each
    class.

    Parameters
    ----------
    head : Head
        Fitted; it stays as it is.
    X : ndarray of shape (n, D), or (n, V, D), dtype float32
        Training embeddings, of V views of each image in the second form: parts train on all of them, and are scored
        on view 0.
    y : ndarray of shape (n,), dtype int, or (n, K), dtype bool
    groups : ndarray of shape (n,), dtype int
    repeats : int, default 10
        At least 2.
    seed : int, default 0
    """
    strata = y if y.ndim == 1 else rarest_label(y)
    sizes, scores = np.empty((repeats, len(SHARES))), np.full((repeats, len(SHARES)), np.nan)
    for repeat in range(repeats):
        aside = set_aside(strata, groups, seed + repeat)
        order = _mixed(np.flatnonzero(~aside), strata, seed + repeat)
        for number, share in enumerate(SHARES):
            rows = order[: max(_smallest(y, strata), round(share * len(order)))]
            sizes[repeat, number] = len(rows)
            scores[repeat, number] = _score(head, X[rows], y[rows], plain_of(X)[aside], y[aside])
    # Of labels so rare that the images that were set aside seldom have one, nothing is measured.
    scores = scores[~np.isnan(scores).any(axis=1)]
    count = sizes.mean(axis=0).round().astype(int).tolist()  # repeats differ where copies are set aside together
    grows = [number for number in range(len(SHARES)) if not number or count[number] > count[number - 1]]
    kept = grows if len(scores) > 1 else []
    points = [{"n": count[number], **spread(scores[:, number])} for number in kept]
    more_help, verdict = _verdict(scores[:, kept])
    measure = "map" if isinstance(head, LabelsHead) else "accuracy"
    return LearningCurve(points, measure, verdict, more_help, repeats)


def _smallest(y: np.ndarray, strata: np.ndarray) -> int:
    return 2 * (len(np.unique(strata)) if y.ndim == 1 else 1)


def _mixed(rows: np.ndarray, strata: np.ndarray, seed: int) -> np.ndarray:
    """Return rows in a random order in which every beginning has about the same share of each class.

    A row of each class comes first, so that the smallest part knows all of them.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    place = np.empty(len(rows))
    for label in np.unique(strata[rows]):
        mine = strata[rows] == label
        place[mine] = np.arange(mine.sum()) / mine.sum()
    return np.asarray(rows[np.argsort(place, kind="stable")])


def _score(head: Head, X: np.ndarray, y: np.ndarray, other_X: np.ndarray, other_y: np.ndarray) -> float:
    logits = head.again(X, y).logits(other_X)
    if isinstance(head, LabelsHead):
        found = mean_average_precision(other_y, sigmoid(logits))
        return np.nan if found is None else found
    return float((logits.argmax(axis=1) == other_y).mean())


def _verdict(scores: np.ndarray) -> tuple[bool | None, str]:
    """Say whether the last step up in images was worth it, by the differences within each repeat."""
    if scores.shape[1] < 2:
        return None, "too few training images for a learning curve"
    gain = scores[:, -1] - scores[:, -2]
    mean, error = float(gain.mean()), standard_error(gain)
    points = f"{100 * mean:+.1f} points (standard error {100 * error:.1f})"
    if mean > 2 * error and mean > 0.001:
        return True, f"more labelled images still help: the last step brought {points}"
    if mean + 2 * error < _HARDLY:
        return False, f"more labelled images of the same kind would hardly help: the last step brought {points}"
    return None, f"too few images to tell whether more would help: the last step brought {points}"
