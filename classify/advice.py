"""What a comparison advises, as pure functions of what was measured on the training images.

Three questions are answered: which differences are more than chance, whether training the network itself is likely to
pay, and whether more labelled images would help. `docs/compare.md` has the reasons, `benchmarks/advice.py` the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .curve import LearningCurve
from .metrics import mcnemar_exact

LIKELY, UNLIKELY, UNKNOWN = "likely", "unlikely", "cannot be told"
CONVINCING = 0.05  # the p-value below which a difference is called more than chance
# McNemar's exact test of images that one classifier alone gets right: 2 / 2**6 is the first below CONVINCING.
LEAST_WINS = 6
# A finetuned network that does well is taken to put half of the head's errors right, net of new ones.
PUT_RIGHT = 0.5
FEW, ENOUGH = 250, 1000  # training images
_NAMED = 3  # rows in a sentence
_FEATURES_LIMIT = 0.5  # the head errs on training images this often, as a share of its held-out errors


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the order given, by Holm's step-down method (1979).

    Parameters
    ----------
    p_values : sequence of float
        Each 0 to 1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def pareto(scores: Sequence[float], costs: Sequence[float]) -> list[bool]:
    """Tell which choices nothing beats: no other is at least as good and at least as cheap, and better in one of them.

    Parameters
    ----------
    scores : sequence of float
        Higher is better.
    costs : sequence of float
        Lower is better; infinite where it is not known.
    """
    both = list(zip(scores, costs, strict=True))
    return [
        not any(score >= mine and cost <= own and (score > mine or cost < own) for score, cost in both)
        for mine, own in both
    ]


@dataclass(frozen=True, slots=True)
class Contender:
    """A row of the table, as the advice needs it.

    Attributes
    ----------
    name : str
        For people.
    right : ndarray of shape (n,), dtype bool
        Which training images were right when they were held out, in one order for all contenders.
    cost : float
        Seconds an image; infinite where it is not known.
    """

    name: str
    right: np.ndarray
    cost: float


def differences(rows: Sequence[Contender]) -> dict[str, Any]:
    """Tell which rows the best one beats by more than chance, and the cheapest of those that it does not.

    McNemar's exact test on the held-out predictions of the same images and folds, Holm-corrected. Where rows are ranked
    by another measure, as with several labels an image, the first may be right less often than another: that one is not
    beaten, however sure the difference.

    Parameters
    ----------
    rows : sequence of Contender
        The best one first.

    Returns
    -------
    dict
        ``about`` "differences", ``text``, ``cheapest`` (its place in `rows`), ``comparisons`` (row, only_best,
        only_other, p_value, p_adjusted, beyond_chance).
    """
    best, others = rows[0], rows[1:]
    counts = [(int((best.right & ~row.right).sum()), int((row.right & ~best.right).sum())) for row in others]
    p_values = [mcnemar_exact(*pair) for pair in counts]
    adjusted = holm(p_values)
    comparisons: list[dict[str, Any]] = [
        {
            "row": place,
            "only_best": pair[0],
            "only_other": pair[1],
            "p_value": p_value,
            "p_adjusted": p,
            "beyond_chance": p < CONVINCING and pair[0] > pair[1],
        }
        for place, (pair, p_value, p) in enumerate(zip(counts, p_values, adjusted, strict=True), start=1)
    ]
    alike = [0, *(entry["row"] for entry in comparisons if not entry["beyond_chance"])]
    cheapest = min(alike, key=lambda place: rows[place].cost)
    return {
        "about": "differences",
        "text": _differences_text(rows, comparisons, cheapest),
        "cheapest": cheapest,
        "comparisons": comparisons,
    }


def _differences_text(rows: Sequence[Contender], comparisons: Sequence[dict[str, Any]], cheapest: int) -> str:
    if not comparisons:
        return f"{rows[0].name} stands alone: name more backbones or heads to compare it with"
    beaten = [rows[row["row"]].name for row in comparisons if row["beyond_chance"]]
    alike = [rows[row["row"]].name for row in comparisons if not row["beyond_chance"]]
    said = []
    if beaten:
        said.append(f"{rows[0].name} is better than {_listed(beaten)} by more than chance")
    if alike:
        begin = "it" if beaten else rows[0].name
        said.append(f"{begin} cannot be told apart from {_listed(alike)}: {_which(rows, cheapest)}")
    return "; ".join(said)


def _which(rows: Sequence[Contender], cheapest: int) -> str:
    if cheapest == 0:
        return "none of them is faster, so take it"
    times = rows[0].cost / rows[cheapest].cost
    faster = f", {times:.1f} times as fast" if np.isfinite(times) else ""
    return f"take the fastest of them, {rows[cheapest].name}{faster}"


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED + 1:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def more_images(curve: LearningCurve, name: str) -> dict[str, Any]:
    """Tell whether more labelled images would help, by the learning curve of one row.

    Returns
    -------
    dict
        ``about`` "more_images", ``answer`` ("yes", "no" or "cannot be told"), ``text``, ``row`` (its name), ``points``.
    """
    answer = {True: "yes", False: "no", None: UNKNOWN}[curve.more_help]
    text = f"{name}: {curve.verdict}"
    return {"about": "more_images", "answer": answer, "text": text, "row": name, "points": curve.points}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the advice on finetuning goes by; nothing of it comes from the labels of validation images.

    Attributes
    ----------
    train : int
        Training images.
    val : int
        Validation images: on so many a difference would have to show.
    error : float
        Share of the training images that the best head gets wrong in cross-validation, 0 to 1.
    train_error : float
        The same of the head on what it was fitted to.
    more_help : bool or None
        Whether more labelled images help the head, as `LearningCurve` has it.
    random : bool
        The backbone's weights are random.
    multi_label : bool
        An image may have several labels.
    """

    train: int
    val: int
    error: float
    train_error: float
    more_help: bool | None
    random: bool = False
    multi_label: bool = False

    def figures(self) -> dict[str, Any]:
        """Return them as JSON has them."""
        return {
            "train_images": self.train,
            "val_images": self.val,
            "cv_error": self.error,
            "train_error": self.train_error,
            "expected_wins": PUT_RIGHT * self.error * self.val,
            "wins_needed": LEAST_WINS,
            "more_images_help": self.more_help,
            "random_weights": self.random,
        }


def finetuning(evidence: Evidence) -> dict[str, Any]:
    """Predict whether training the network end to end beats the head by more than chance on the validation images.

    The first rule that applies decides. They ask in turn whether a gain could show, whether there are images enough to
    train a network, and, in between, what holds the head back.

    Returns
    -------
    dict
        ``about`` "finetune", ``prediction`` ("likely", "unlikely" or "cannot be told"), ``reason``, ``text``,
        ``figures``.
    """
    prediction, reason = _predicted(evidence)
    text = {LIKELY: "finetuning is likely to pay", UNLIKELY: "finetuning is unlikely to pay",
            UNKNOWN: "whether finetuning would pay cannot be told"}[prediction]  # fmt: skip
    return {
        "about": "finetune",
        "prediction": prediction,
        "reason": reason,
        "text": f"{text}: {reason}",
        "figures": evidence.figures(),
    }


def _predicted(evidence: Evidence) -> tuple[str, str]:
    """Return prediction and reason by the first rule that applies."""
    wins = PUT_RIGHT * evidence.error * evidence.val
    if evidence.multi_label:
        return UNKNOWN, "finetune trains one class an image"
    if evidence.val and wins < LEAST_WINS:
        return UNLIKELY, (
            f"the head errs on {100 * evidence.error:.1f} % in cross-validation, and if half of that were put right, "
            f"{wins:.1f} of {evidence.val} validation images would change, fewer than the {LEAST_WINS} that go beyond "
            "chance"
        )
    if evidence.random and evidence.train < ENOUGH:
        return UNLIKELY, (
            f"from random weights everything must be learnt, and {evidence.train} training images are fewer than "
            f"{ENOUGH}; take pretrained weights"
        )
    if evidence.train < FEW:
        return UNLIKELY, f"{evidence.train} training images are fewer than {FEW}, too few to move a network"
    if evidence.train >= ENOUGH:
        return LIKELY, (
            f"there is room, {100 * evidence.error:.1f} % wrong in cross-validation, and {evidence.train} images to "
            "train on"
        )
    return _by_what_limits(evidence)


def _by_what_limits(evidence: Evidence) -> tuple[str, str]:
    """Decide between `FEW` and `ENOUGH` images by what holds the head back: its features, or its images."""
    if evidence.train_error >= _FEATURES_LIMIT * evidence.error:
        return LIKELY, (
            f"the head gets {100 * evidence.train_error:.1f} % wrong even of the images that it was fitted to "
            f"({100 * evidence.error:.1f} % held out): the features lack what would tell the classes apart"
        )
    if evidence.more_help is False:
        return LIKELY, (
            f"more images would hardly help the head, and {100 * evidence.error:.1f} % are wrong: its features hold it "
            "back"
        )
    return UNKNOWN, (
        f"the head fits its images ({100 * evidence.train_error:.1f} % wrong) better than others "
        f"({100 * evidence.error:.1f} %): {evidence.train} images may be too few for either; more would help first"
    )
