"""Stable splits and folds: an image stays where it is as others arrive, and copies stay together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import TrainingError, printable

MINIMUM_PER_CLASS = 2


def hold_out(digest: np.ndarray, fraction: float = 0.2) -> np.ndarray:
    """Choose the images of a validation split by their content.

    Parameters
    ----------
    digest : ndarray of shape (n, 32), dtype uint8
        SHA-256 of each file.
    fraction : float, default 0.2
        An image is held out when its digest's first eight bytes, as a fraction of 2**64, are below this.

    Returns
    -------
    ndarray of shape (n,), dtype bool
    """
    head = np.ascontiguousarray(digest[:, :8]).view(">u8").reshape(-1)
    return np.asarray(head < fraction * 2.0**64)


def stratified_folds(
    y: np.ndarray, n_folds: int, *, random_state: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Divide rows into folds with about the same share of each class; rows of one group share a fold.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
    n_folds : int
        At least 2.
    random_state : int, default 0
    groups : ndarray of shape (n,), dtype int, optional
        Equal for images that must not be divided, copies say. A group counts as of its first row's class.

    Returns
    -------
    ndarray of shape (n,), dtype int64
        The fold of each row, 0 to n_folds - 1.
    """
    groups = np.arange(len(y)) if groups is None else groups
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    of_group = np.empty(len(first), np.int64)
    rng = np.random.default_rng(random_state)
    start = 0
    for label in np.unique(y):
        mine = np.flatnonzero(y[first] == label)
        rng.shuffle(mine)
        # Dealing goes on where the class before stopped, so that the folds' sizes differ by one at most.
        of_group[mine] = (start + np.arange(len(mine))) % n_folds
        start += len(mine)
    return of_group[member.reshape(-1)]


def check_trainable(y: np.ndarray, class_names: Sequence[str], n_folds: int, groups: np.ndarray | None = None) -> None:
    """Raise where labels cannot be learnt from or cross-validated.

    Parameters
    ----------
    y : ndarray of shape (n,), dtype int
        Training labels.
    class_names : sequence of str, K
    n_folds : int
    groups : ndarray of shape (n,), dtype int, optional
        Images with the same bytes count once.

    Raises
    ------
    TrainingError
        One class only, a class with fewer than 2 images, or fewer images than folds.
    """
    if groups is not None:
        y = y[np.unique(groups, return_index=True)[1]]
    counts = np.bincount(y, minlength=len(class_names))
    if len(class_names) < 2:
        name = printable(class_names[0]) if class_names else ""
        raise TrainingError(f"there is one class only ({name!r}): a classifier needs two, one folder each")
    rarest = int(counts.argmin())
    name, count = printable(class_names[rarest]), int(counts[rarest])
    images = f"{count} training image{'' if count == 1 else 's'}"
    if count < MINIMUM_PER_CLASS:
        raise TrainingError(
            f"class {name!r} has {images}, at least {MINIMUM_PER_CLASS} are needed: add some or remove it"
        )
    if count < n_folds:
        raise TrainingError(
            f"class {name!r} has {images}, {n_folds} folds need {n_folds}: add some or pass --cv {count}"
        )
