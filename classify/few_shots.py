"""Few shots: how good a head is with one, two, four and more images of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..extract.progress import progress_bar
from .head import Head
from .repeats import REPEATS, set_aside, spread
from .views import plain_of, with_views

_PLAIN = "plain crops alone"
_WIDE = 27  # letters of a column: "100.0 %  (100.0 to 100.0)" and two spaces


@dataclass(frozen=True, slots=True)
class FewShots:
    """How good a head is when it is fitted on a few images of each class, settings and all.

    Attributes
    ----------
    points : list of dict
        For growing draws, ``shots`` images a class and ``n`` in all, and of the accuracy on training images that were
        set aside the ``mean``, ``low`` and ``high`` (95 % interval of the mean over repeats) and ``std`` over repeats.
        Where images have several views also ``plain``, the same four numbers of fits to view 0 alone, ``difference``,
        the same four of what the other views bring within each repeat, and ``verdict``, that in words. None where a
        class has no image to draw.
    repeats : int
        How often each point was drawn and fitted.
    views : int, default 1
        Of each image in training.
    ended : str, default ""
        Why the curve ends before what was asked for; empty where it does not.
    """

    points: list[dict[str, Any]]
    repeats: int
    views: int = 1
    ended: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the field ``shots`` of ``fit-head --shots --json``."""
        return {"points": self.points, "repeats": self.repeats, "views": self.views, "ended": self.ended}

    def lines(self) -> list[str]:
        """Return a table, and why it ends where it ends too early."""
        what = f"accuracy on images that were set aside, {self.repeats} times"
        lines = [f"  images a class  {what}"]
        if self.views > 1:
            lines += [
                f"  {'':>14}  {f'with {self.views} views':<{_WIDE}}{_PLAIN:<{_WIDE}}difference within each repeat"
            ]
        lines += [f"  {point['shots']:>14}  {_in_words(point)}" for point in self.points]
        return [*(lines if self.points else []), *([self.ended] if self.ended else [])]


@dataclass(frozen=True, slots=True)
class Draw:
    """A random order of the images of each class, of which the first are drawn, and the images to score on.

    Attributes
    ----------
    rows : ndarray of shape (m,), dtype int64
        One image of each group of copies.
    place : ndarray of shape (m,), dtype int64
        How many of its class come before each.
    aside : ndarray of shape (n,), dtype bool
        Which of all training images are scored; none that is drawn, nor a copy of one.
    """

    rows: np.ndarray
    place: np.ndarray
    aside: np.ndarray

    def first(self, shots: int) -> np.ndarray:
        """Return the first images of each class, which those of every larger draw begin with."""
        return self.rows[self.place < shots]


def few_shot_curve(
    head: Head,
    X: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    *,
    shots: int,
    repeats: int = REPEATS,
    seed: int = 0,
) -> FewShots:
    """Fit draws of 1, 2, 4 ... images a class, and score each on other training images.

    In each repeat another fifth, whole groups of copies, is set aside; the rest is drawn from, one image of each group.
    The draws of a repeat are nested. Settings are chosen on a draw alone, by cross-validation in it with as many folds
    as a class has images, at most those of the head; with one image a class they are given or ordinary ones. Time grows
    with repeats and with the logarithm of `shots`.

    Parameters
    ----------
    head : Head
        Fitted; it stays as it is, and lends its options, not what it chose.
    X : ndarray of shape (n, D) or (n, V, D), dtype float32
        Training embeddings; of V views of each image, of which the first is the plain one. Fits take all views, scores
        the plain one.
    y : ndarray of shape (n,), dtype int
    groups : ndarray of shape (n,), dtype int
        Equal for copies.
    shots : int
        Images a class of the last point, at least 1.
    repeats : int, default 10
        At least 2.
    seed : int, default 0
    """
    plain = plain_of(X)
    views = with_views(X).shape[1]
    ways = (X, plain) if views > 1 else (plain,)
    draws = [drawn(y, groups, seed + repeat) for repeat in range(repeats)]
    fewest, label = _fewest(y, draws, len(head.classes_))
    sizes = growing(min(shots, fewest))
    scores = np.empty((len(ways), len(sizes), repeats))
    with progress_bar(scores.size, "few shots", "fit") as tick:
        for place in np.ndindex(*scores.shape[::-1]):
            repeat, size, way = place
            scores[way, size, repeat] = _score(head, ways[way], plain, y, draws[repeat], sizes[size])
            tick(1)
    points = [
        {"shots": size, "n": size * len(head.classes_), **_point(scores[:, number])}
        for number, size in enumerate(sizes)
    ]
    return FewShots(points, repeats, views, "" if fewest >= shots else _ended(fewest, shots, head.classes_[label]))


def growing(most: int) -> list[int]:
    """Return the powers of two below a number, and the number; nothing of 0."""
    return [2**power for power in range(max(0, most - 1).bit_length())] + [most] * (most > 0)


def drawn(y: np.ndarray, groups: np.ndarray, seed: int) -> Draw:
    """Set images aside and put the others in the order in which they are drawn.

    Parameters
    ----------
    y, groups : ndarray of shape (n,), dtype int
    seed : int
    """
    aside = set_aside(y, groups, seed)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~aside))
    rows = rows[np.sort(np.unique(groups[rows], return_index=True)[1])]
    by_class = np.argsort(y[rows], kind="stable")
    labels = y[rows][by_class]
    place = np.empty(len(rows), np.int64)
    place[by_class] = np.arange(len(rows)) - np.searchsorted(labels, labels)
    return Draw(rows, place, aside)


def _fewest(y: np.ndarray, draws: list[Draw], n_classes: int) -> tuple[int, int]:
    """Return how many images a class every draw can give, and a class that has no more in one."""
    counts = np.array([np.bincount(y[draw.rows], minlength=n_classes) for draw in draws]).min(axis=0)
    label = int(counts.argmin())
    return int(counts[label]), label


def _score(head: Head, X: np.ndarray, plain: np.ndarray, y: np.ndarray, draw: Draw, shots: int) -> float:
    """Return the share of images set aside that a fit to a few others gets right."""
    rows = draw.first(shots)
    network = head.anew(X[rows], y[rows], min(head.cv, shots))
    return float((network.logits(plain[draw.aside]).argmax(axis=1) == y[draw.aside]).mean())


def _point(scores: np.ndarray) -> dict[str, Any]:
    """Return what is told of the scores (1 or 2, repeats) of one size: with all views, and with view 0 alone."""
    if len(scores) == 1:
        return spread(scores[0])
    difference = spread(scores[0] - scores[1], least=-1.0)
    return {
        **spread(scores[0]),
        "plain": spread(scores[1]),
        "difference": difference,
        "verdict": _verdict(difference),
    }


def _verdict(difference: dict[str, float]) -> str:
    """Say what views bring, by the differences within each repeat."""
    mean, low, high = (100 * difference[name] for name in ("mean", "low", "high"))
    if low > 0:
        return f"views help by {mean:.1f} points ({low:.1f} to {high:.1f})"
    if high < 0:
        return f"views cost {-mean:.1f} points ({-high:.1f} to {-low:.1f})"
    return f"no difference that repeats can tell: {mean:+.1f} points ({low:.1f} to {high:.1f})"


def _ended(fewest: int, shots: int, name: str) -> str:
    if not fewest:
        return f"there is no few-shot curve: class {name!r} has no training image left when a fifth is set aside"
    images = f"{fewest} image{'' if fewest == 1 else 's'}"
    return (
        f"the curve ends at {images} a class, not {shots}: class {name!r} has no more, copies apart, when a fifth of "
        "the training images is set aside"
    )


def _in_words(point: dict[str, Any]) -> str:
    if "plain" in point:
        return f"{_share(point):<{_WIDE}}{_share(point['plain']):<{_WIDE}}{point['verdict']}"
    return f"{_share(point):<{_WIDE}}{'#' * round(40 * point['mean'])}"


def _share(numbers: dict[str, Any]) -> str:
    mean, low, high = (100 * numbers[name] for name in ("mean", "low", "high"))
    return f"{mean:5.1f} %  ({low:.1f} to {high:.1f})"
