"""What a model says of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNLIKE = 0.01  # the share of training pictures as far away or farther, up to which a picture is called unlike any


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one picture.

    Attributes
    ----------
    path : str
        As it was given.
    label : str or None
        The most probable class; None where the picture could not be read or the model is unsure. Where pictures may
        have several labels: those that are given, with ``|`` between them.
    probability : float or None
        Of the most probable class, also where that is too little for a label.
    probabilities : dict of str to float
        Of every class; empty where the picture could not be read.
    labels : list of str or None
        The labels that are given, where pictures may have several.
    classes : list of str or None
        Where a coverage was asked for: classes one of which is right as often as it promises.
    novelty : float or None
        Share of training pictures that are as far from the others as this one, or farther; near 0 for a picture unlike
        anything in training, whose label means little then.
    error : str or None
        Why the picture could not be read.
    unsure : bool
        The most probable class has less than the probability that was asked for, so that no label is given.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    error: str | None = None
    labels: list[str] | None = None
    classes: list[str] | None = None
    novelty: float | None = None
    unsure: bool = False

    @property
    def unlike_training(self) -> bool:
        """Whether no more than one in a hundred training pictures is as far from the others."""
        return self.novelty is not None and self.novelty <= UNLIKE

    def likeliest(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` likeliest classes with their probabilities, the likeliest first."""
        ranked = sorted((self.probabilities or {}).items(), key=lambda pair: -pair[1])
        return ranked[:count]

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """Return the fields of ``predict --json``, with the probabilities of all classes or of the `top` likeliest."""
        probabilities = self.probabilities or {}
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "probabilities": probabilities if top is None else dict(self.likeliest(top)),
            "error": self.error,
            "labels": self.labels,
            "set": self.classes,
            "novelty": self.novelty,
            "unsure": self.unsure,
        }
