"""The labels of images that may have several: how many each has, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# The arrays of a listing that hold them.
ARRAYS = ("tag_count", "tag")
# What stands between the names of an image's labels where they are one text.
BAR = "|"
_INT32 = np.dtype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Tags:
    """Which labels each of N images has, P in all; memory grows with N + P and not with the number of classes.

    Attributes
    ----------
    count : ndarray of shape (N,), dtype int32
        How many labels an image has; 0 where none is there, -1 where that is not known.
    index : ndarray of shape (P,), dtype int32
        The labels of the first image, then those of the second and so on, as indices into the classes; ascending
        within an image.
    """

    count: np.ndarray
    index: np.ndarray

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tags):
            return NotImplemented
        return np.array_equal(self.count, other.count) and np.array_equal(self.index, other.index)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Tags | None:
        """Take them from the arrays of a listing; None where it has none, KeyError where it has but one of the two."""
        return cls(*(arrays[name] for name in ARRAYS)) if any(name in arrays for name in ARRAYS) else None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by which a listing keeps them."""
        return {"tag_count": self.count.astype("<i4"), "tag": self.index.astype("<i4")}

    @property
    def sizes(self) -> np.ndarray:
        """How many entries of `index` belong to each image, (N,) int64."""
        return np.asarray(np.maximum(self.count, 0), np.int64)

    @property
    def rows(self) -> np.ndarray:
        """The image that each entry of `index` belongs to, (P,) int64."""
        return np.repeat(np.arange(len(self.count)), self.sizes)

    def take(self, rows: np.ndarray) -> Tags:
        """Return those of some images, given by their numbers, (n,) int, in that order."""
        sizes = self.sizes
        begin, size = (np.cumsum(sizes) - sizes)[rows], sizes[rows]
        # An entry lies as far behind its image's first in the old array as in the new one.
        place = np.arange(size.sum()) + np.repeat(begin - (np.cumsum(size) - size), size)
        return Tags(self.count[rows], self.index[place])

    def table(self, n_classes: int) -> np.ndarray:
        """Return one column a class, (N, `n_classes`) bool; all False where the labels are not known."""
        table = np.zeros((len(self.count), n_classes), bool)
        table[self.rows, self.index] = True
        return table

    def joined(self, names: Sequence[bytes]) -> list[bytes]:
        """Return the names of each image's labels with bars between them, N texts; empty where there is none."""
        labels = [names[index] for index in self.index.tolist()]
        ends = np.cumsum(self.sizes).tolist()
        return [BAR.encode().join(labels[low:high]) for low, high in zip([0, *ends], ends, strict=False)]

    def check(self, n_images: int, n_classes: int) -> None:
        """Raise ValueError where these cannot be the labels of so many images among so many classes."""
        if self.count.shape != (n_images,) or self.index.ndim != 1 or {self.count.dtype, self.index.dtype} != {_INT32}:
            raise ValueError("labels of another shape")
        if (n_images and self.count.min() < -1) or self.sizes.sum() != len(self.index):
            raise ValueError("counts of labels that do not add up")
        if len(self.index) and not (self.index.min() >= 0 and self.index.max() < n_classes):
            raise ValueError("labels without a class")
        if not ((self.index[1:] > self.index[:-1]) | np.diff(self.rows).astype(bool)).all():
            raise ValueError("labels of an image that do not ascend")
