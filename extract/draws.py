"""Random numbers from a seed that are the same on every machine and in every release of everything below Python."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# It goes into every block, so that these numbers have nothing in common with another use of SHA-256 of the same seed.
_LABEL = b"headstart draws 1"


class Draws:
    """A stream of random numbers; not to be shared by threads.

    The blocks of the stream are the SHA-256 of a label, the seed and the block's number, four words of 64 bits each.
    Generators of numpy and torch draw faster, but what they make of their bits may change from release to release,
    and a picture takes a dozen numbers.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.

    Raises
    ------
    OverflowError
        A seed outside that range.
    """

    def __init__(self, seed: int) -> None:
        self._start = _LABEL + seed.to_bytes(8, "big")
        self._blocks = 0
        self._words: list[int] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return one of 2**53 numbers that divide `low` to `high` evenly; `low` is one of them, `high` is not."""
        return low + (high - low) * ((self._word() >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1, each as often as the others to one part in 2**64 / `count`."""
        return (self._word() * count) >> 64

    def chance(self, probability: float) -> bool:
        """Return True as often as `probability`, 0 to 1, says."""
        return self.uniform() < probability

    def choice(self, options: Sequence[T]) -> T:
        """Return one of `options`, each as often as the others."""
        return options[self.below(len(options))]

    def permutation(self, count: int) -> list[int]:
        """Return 0 to `count` - 1 in any order, each order as often as the others."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def _word(self) -> int:
        if not self._words:
            block = hashlib.sha256(self._start + self._blocks.to_bytes(8, "big")).digest()
            self._words = [int.from_bytes(block[start : start + 8], "big") for start in (24, 16, 8, 0)]
            self._blocks += 1
        return self._words.pop()
