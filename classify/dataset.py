"""Labelled features divided into training, validation and test images, with what is odd about them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from ..errors import TrainingError, printable
from ..extract.features import Features
from .splits import hold_out

logger = logging.getLogger("headstart.classify")

VAL_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """The labelled images of a dataset.

    Attributes
    ----------
    features : Features
        All usable images.
    rows : ndarray of shape (n,), dtype int64
        Those with a label.
    y : ndarray of shape (n,), dtype int32
    split : ndarray of shape (n,), dtype str
        "train", "val" or "test"; never empty.
    group : ndarray of shape (n,), dtype int64
        Equal for images with the same bytes.
    held_out : bool
        The validation split was drawn from the training images because the dataset has none.
    """

    features: Features
    rows: np.ndarray
    y: np.ndarray
    split: np.ndarray
    group: np.ndarray
    held_out: bool

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ``X`` (m, D) float32 and ``y`` (m,) of one split."""
        mine = self.split == split
        return self.features.X[self.rows[mine]], self.y[mine]

    def paths(self, split: str) -> np.ndarray:
        """Return the paths of one split, (m,) of str."""
        return np.asarray(self.features.paths[self.rows[self.split == split]])


def labelled_set(features: Features, val_fraction: float = VAL_FRACTION) -> LabelledSet:
    """Divide the labelled images of a dataset.

    Without a validation split, the images whose digest says so are held out: the same ones however many join.

    Parameters
    ----------
    features : Features
    val_fraction : float, default 0.2
        Share of the training images that is held out where the dataset has no validation split; 0 to 1.

    Raises
    ------
    TrainingError
        No image has a label.
    """
    rows = np.flatnonzero(features.y >= 0)
    if not rows.size:
        raise TrainingError(
            f"no image of {features.listing.root} has a label: make one folder a class, or a CSV with path,label"
        )
    digest, split = features.digest[rows], features.split[rows].astype("<U5")
    split[split == ""] = "train"
    held_out = not (split == "val").any() and val_fraction > 0
    if held_out:
        split[hold_out(digest, val_fraction) & (split == "train")] = "val"
    group = np.unique(digest, axis=0, return_inverse=True)[1].reshape(-1)
    return LabelledSet(features, rows, features.y[rows], split, group, held_out)


def warn_of_copies(data: LabelledSet) -> None:
    """Warn of images that are in two splits, or under two labels, byte for byte."""
    both = np.intersect1d(data.group[data.split == "train"], data.group[data.split != "train"])
    if both.size:
        logger.warning(
            "leakage: %d images are in train and in another split, byte for byte (%s)", both.size, _examples(data, both)
        )
    pairs = np.unique(np.stack([data.group, data.y]), axis=1)[0]
    groups, counts = np.unique(pairs, return_counts=True)
    if (counts > 1).any():
        twice = groups[counts > 1]
        logger.warning("%d images have two labels, byte for byte the same (%s)", twice.size, _examples(data, twice))


def _examples(data: LabelledSet, groups: np.ndarray) -> str:
    rows = data.rows[np.flatnonzero(data.group == groups[0])][:2]
    more = f", and {groups.size - 1} more" if groups.size > 1 else ""
    return " = ".join(printable(str(path)) for path in data.features.paths[rows]) + more
