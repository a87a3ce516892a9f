"""What a network is given of some pictures: live ones, or what is kept of them in memory.

Where nothing random happens to a picture before the first layer that is trained, what reaches that layer is the same in
every epoch: it is computed once and kept, if there is room. The same holds for pixels where all layers are trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...extract.memory import available_memory
from .loader import Loader, drawn_by, in_order
from .pictures import Subset
from .stepper import Stepper, in_halves

if TYPE_CHECKING:
    from torch import Tensor


logger = logging.getLogger("headstart.finetune")

SHARE = 0.25  # of the memory that is free, at most, for what is kept of one subset


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the batches of a subset come from.

    Attributes
    ----------
    loader : Loader
    subset : Subset
    preset : str, default "none"
        Augmentation.
    seed : int, default 0
    store : Tensor of shape (n, ...), or None
        What is kept of each picture: pixels (S, S, 3) uint8, or what the frozen layers make of them.
    frozen : bool, default False
        Whether the store holds the latter.
    """

    loader: Loader
    subset: Subset
    preset: str = "none"
    seed: int = 0
    store: Tensor | None = None
    frozen: bool = False

    def __len__(self) -> int:
        return len(self.subset)

    def batches(self, plan: Iterable[np.ndarray], epoch: int = 0) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the rows of each batch of a plan, and what the network is given of them, on the CPU."""
        import torch

        if self.store is None:
            yield from self.loader.batches(self.subset, plan, self.preset, drawn_by(self.subset, self.seed, epoch))
            return
        for rows in plan:
            yield rows, self.store[torch.from_numpy(rows)]

    def kept(self, stepper: Stepper, *, frozen: bool, progress: Callable[[int], None]) -> Inputs:
        """Return inputs that come from memory, or these where there is no room.

        Parameters
        ----------
        stepper : Stepper
            With the network, in eval mode, whose frozen layers run at its precision.
        frozen : bool
            Keep what the frozen layers make of pictures, and not their pixels.
        progress : callable
            Told how many pictures went through.
        """
        import torch

        store: Tensor | None = None
        place, at = 0, stepper.at
        for _, images in self.batches(in_order(len(self), stepper.piece)):
            made = images
            if frozen:
                with torch.no_grad(), stepper.device.autocast(stepper.precision):
                    made = in_halves(lambda some: stepper.network.frozen(some.to(at)).cpu(), images, str(at))
            if store is None:
                if not _fits(made[0].numel() * made.element_size() * len(self)):
                    return self
                store = torch.empty((len(self), *made.shape[1:]), dtype=made.dtype)
            store[place : place + len(made)] = made
            place += len(made)
            progress(len(made))
        return replace(self, store=store, frozen=frozen)


def _fits(size: int) -> bool:
    free = available_memory()
    fits = free is None or size <= SHARE * free
    if not fits:
        logger.info("not kept in memory: %d MB of %d MB that are free", size // 1_000_000, (free or 0) // 1_000_000)
    return fits
