"""Labelled features divided into training, validation and test images, with what is odd about them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TrainingError, UsageError, printable
from ..extract.features import Features
from .near_copies import NearCopies
from .near_copies import near_copies as find_near_copies
from .splits import hold_out

logger = logging.getLogger("headstart.classify")

VAL_FRACTION = 0.2


def held_out_share(val_fraction: float | None) -> float:
    """Return the share that is held out for validation where a dataset has no such split.

    Raises
    ------
    UsageError
        It is not from 0 to below 1.
    """
    share = VAL_FRACTION if val_fraction is None else val_fraction
    if not 0 <= share < 1:
        raise UsageError(f"--val-fraction must be from 0 to below 1, and is {share:g}")
    return share


@dataclass(frozen=True, slots=True)
class Dedupe:
    """What became of images with the same bytes.

    Attributes
    ----------
    kept : int
        Images that are left, of all splits.
    copies : int
        Images left out because one with the same bytes is kept.
    contradictory : int
        Images left out because the same bytes stand under two labels, neither of which can be believed.
    near : int, default 0
        Training images left out because a picture of another split is nearly a copy of them.
    """

    kept: int
    copies: int
    contradictory: int
    near: int = 0


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
        Index into the classes. Where an image may have several labels: a number for each set of labels that occurs.
    split : ndarray of shape (n,), dtype str
        "train", "val" or "test"; never empty.
    exact : ndarray of shape (n,), dtype int64
        Equal for images with the same bytes.
    held_out : bool
        The validation split was drawn from the training images because the dataset has none.
    Y : ndarray of shape (n, K), dtype bool, or None
        Which labels each image has, where it may have several.
    copies : NearCopies or None, default None
        Groups of near copies, where they were looked for.
    dedupe : Dedupe or None, default None
        What was left out as copies; None where copies are kept.
    """

    features: Features
    rows: np.ndarray
    y: np.ndarray
    split: np.ndarray
    exact: np.ndarray
    held_out: bool
    Y: np.ndarray | None = None
    copies: NearCopies | None = None
    dedupe: Dedupe | None = None

    @property
    def group(self) -> np.ndarray:
        """Equal for images that must not be divided, copies exact or near, (n,) int64."""
        return self.exact if self.copies is None else self.copies.group

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ``X`` (m, D) float32 and ``y`` (m,) of one split, or, with several labels an image, ``Y`` (m, K)."""
        return self.features.X[self.rows[self.split == split]], self.labels(split)

    def labels(self, split: str) -> np.ndarray:
        """Return ``y`` (m,) of one split, or, with several labels an image, ``Y`` (m, K)."""
        return np.asarray((self.y if self.Y is None else self.Y)[self.split == split])

    def paths(self, split: str) -> np.ndarray:
        """Return the paths of one split, (m,) of str."""
        return np.asarray(self.features.paths[self.rows[self.split == split]])


def labelled_set(
    features: Features, val_fraction: float = VAL_FRACTION, *, dedupe: bool = False, near_copies: str = "none"
) -> LabelledSet:
    """Divide the labelled images of a dataset.

    Without a validation split, the images whose digest says so are held out: the same ones however many join.

    Parameters
    ----------
    features : Features
    val_fraction : float, default 0.2
        Share of the training images that is held out where the dataset has no validation split; 0 to 1.
    dedupe : bool, default False
        Leave copies out, as `without_copies` says, and training images that are nearly copies of others.
    near_copies : {"none", "auto", "all"}, default "none"
        Look for near copies: not at all, among 50,000 pictures at most, or among all of them.

    Raises
    ------
    TrainingError
        No image has a label, or none could be used.
    """
    rows, y, Y = _labels(features)
    digest, split = features.digest[rows], features.split[rows].astype("<U5")
    split[split == ""] = "train"
    held_out = not (split == "val").any() and val_fraction > 0
    if held_out:
        split[hold_out(digest, val_fraction) & (split == "train")] = "val"
    exact = np.unique(digest, axis=0, return_inverse=True)[1].reshape(-1)
    data = LabelledSet(features, rows, y, split, exact, held_out, Y)
    if near_copies != "none":
        found = find_near_copies(features.phash[rows], features.X[rows], digest, exhaustive=near_copies == "all")
        data = replace(data, copies=found)
    return _deduped(data) if dedupe else data


def _labels(features: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the rows that have a label, one number for the label or labels of each, and the table of labels."""
    known = features.tags.count >= 0 if features.multi_label else features.y >= 0
    rows = np.flatnonzero(known)
    if not rows.size:
        raise TrainingError(_nothing_to_learn(features))
    if not features.multi_label:
        return rows, features.y[rows], None
    Y = features.Y[rows]
    return rows, np.unique(Y, axis=0, return_inverse=True)[1].reshape(-1), Y


def _nothing_to_learn(features: Features) -> str:
    root, failures = features.listing.root, features.listing.failures
    if len(failures) < len(features.listing):
        return f"no image of {root} has a label: make one folder a class, or a CSV with path,label"
    first = int(failures.rows[0])
    name = printable(features.listing.paths[first])
    return f"none of the {len(failures)} images of {root} could be used; the first, {name}: {failures[first]}"


def without_copies(y: np.ndarray, split: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, Dedupe]:
    """Choose one image of those with the same bytes, and none where they have two labels.

    An image that is in train and in another split is left out of train, so that the score is on unseen pictures. Among
    those that remain the first is kept.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
        Labels.
    split : ndarray of shape (n,), dtype str
        "train", "val" or "test".
    group : ndarray of shape (n,), dtype int
        From 0; equal for images with the same bytes.

    Returns
    -------
    kept : ndarray of shape (m,), dtype int64
        Rows to keep, in order.
    dedupe : Dedupe
    """
    contradictory = np.isin(group, _with_two_labels(y, group))
    order = np.lexsort((split == "train", group))  # stable: within a group train comes last, else the order holds
    first = np.ones(len(group), bool)
    first[1:] = np.diff(group[order]) != 0
    chosen = np.zeros(len(group), bool)
    chosen[order[first]] = True
    kept = np.flatnonzero(chosen & ~contradictory)
    return kept, Dedupe(len(kept), int((~chosen & ~contradictory).sum()), int(contradictory.sum()))


def _deduped(data: LabelledSet) -> LabelledSet:
    """Leave copies out and say in one line how many."""
    kept, dropped = without_copies(data.y, data.split, data.exact)
    group, training = data.group[kept], data.split[kept] == "train"
    near = training & np.isin(group, group[~training])
    twice = _with_two_labels(data.y, data.exact)
    logger.info(
        "dropped %d copies of images that are kept, and %d images that have two labels, neither to be believed%s",
        dropped.copies, dropped.contradictory,
        f" ({_example(data, data.exact, twice, data.y)})" if twice.size else "",
    )  # fmt: skip
    if near.any():
        logger.info("dropped %d training images that are nearly copies of images of another split", near.sum())
    kept = kept[~near]
    columns = {name: getattr(data, name)[kept] for name in ("rows", "y", "split", "exact")}
    columns["Y"] = None if data.Y is None else data.Y[kept]
    if data.copies is not None:  # told of before rows went: what is left of it is who belongs together
        columns["copies"] = replace(data.copies, group=data.copies.group[kept], pairs=data.copies.pairs[:0], refused=[])
    return replace(data, dedupe=replace(dropped, kept=len(kept), near=int(near.sum())), **columns)


def warn_of_copies(data: LabelledSet) -> None:
    """Warn of images that are in two splits, or under two labels, byte for byte or nearly."""
    training = data.split == "train"
    both = np.intersect1d(data.exact[training], data.exact[~training])
    if both.size:
        logger.warning(
            "leakage: %d images are in train and in another split, byte for byte (%s); --dedupe drops them from train",
            both.size, _example(data, data.exact, both, training),
        )  # fmt: skip
    twice = _with_two_labels(data.y, data.exact)
    if twice.size:
        logger.warning(
            "%d images have two labels, byte for byte the same (%s); --dedupe drops them",
            twice.size, _example(data, data.exact, twice, data.y),
        )  # fmt: skip
    if data.copies is not None:
        _warn_of_near_copies(data, data.copies, training)


def _warn_of_near_copies(data: LabelledSet, copies: NearCopies, training: np.ndarray) -> None:
    near = np.intersect1d(copies.group[training], copies.group[~training])
    exactly = np.unique(copies.group[np.isin(data.exact, np.intersect1d(data.exact[training], data.exact[~training]))])
    near = np.setdiff1d(near, exactly)
    if near.size:
        count = int((np.isin(copies.group, near) & ~training).sum())
        logger.warning(
            "leakage: %d images of another split are nearly copies of training images (%s)%s; "
            "--dedupe drops those from train",
            count, _example(data, copies.group, near, training, sign="~"),
            ", which headstart held out by their bytes" if data.held_out else "",
        )  # fmt: skip
    for group in copies.refused:
        logger.warning(
            "%d images look alike, too many to be copies of one (%s and others): they are taken for different images",
            len(group), printable(str(data.features.paths[data.rows[group[0]]])),
        )  # fmt: skip
    if copies.without_hash:
        logger.info(
            "near copies are not looked for among %d images, for nothing was noted of what they look like; "
            "`headstart extract --rehash` does it, without a forward pass",
            copies.without_hash,
        )
    if not copies.compared:
        logger.info("near copies are not looked for among so many images; --near-copies all does, for minutes")


def _with_two_labels(y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the groups whose images do not all have one label, sorted."""
    pairs = np.unique(np.stack([group, y]), axis=1)[0]
    groups, counts = np.unique(pairs, return_counts=True)
    return np.asarray(groups[counts > 1])


def _example(data: LabelledSet, group: np.ndarray, groups: np.ndarray, differ: np.ndarray, sign: str = "=") -> str:
    """Name two images of the first group that differ in what is odd about them, and how many groups more there are."""
    rows = np.flatnonzero(group == groups[0])
    other = rows[differ[rows] != differ[rows[0]]][0]
    more = f", and {groups.size - 1} more" if groups.size > 1 else ""
    return f" {sign} ".join(printable(str(data.features.paths[data.rows[row]])) for row in (rows[0], other)) + more
