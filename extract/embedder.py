"""Batches of pixels in, rows of feature spaces out; the network is loaded when the first batch needs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..cache.space import FeatureSpace
from ..errors import BackboneError, DeviceError
from .device import Device, choose_device, is_out_of_memory, use_threads
from .main_arena import in_main_arena
from .memory import available_memory, bytes_an_image, fitting_batch
from .network import ready
from .options import RunOptions, SpaceOptions
from .preprocess import Pixels, Preprocess
from .transfer import Transfer, transfer_to

if TYPE_CHECKING:
    from torch import Tensor

    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")

Forward = Callable[["Tensor"], "Tensor"]
Result = TypeVar("Result")


class Embedder:
    """Feature spaces that one network gives in one pass, and the means to compute rows of them.

    Parameters
    ----------
    spaces : sequence of FeatureSpace
        What is to be computed: one network, one preprocessing, one layer each. The network is held against them when it
        is loaded.
    asked : sequence of SpaceOptions
        What leads to each of them.
    run : RunOptions
    backbone : Backbone, optional
        The network, where it had to be loaded already to find the spaces.
    on_change : callable, optional
        Called with the loaded network when its weights turn out not to be those of `spaces`.
    """

    def __init__(
        self,
        spaces: Sequence[FeatureSpace],
        asked: Sequence[SpaceOptions],
        run: RunOptions,
        backbone: Backbone | None = None,
        on_change: Callable[[Backbone], None] = lambda _: None,
    ) -> None:
        self.spaces = tuple(spaces)
        self.asked = tuple(asked)
        self.run = run
        self.preprocess = Preprocess.from_dict(self.spaces[0].preprocess)
        self.faster: tuple[int, Forward] | None = None  # a batch size, and the forward pass for it
        self.threads: int | None = None  # that the network uses; None: as torch has it
        self.most_threads = 1  # that torch had when the network was loaded
        self.cores: int | None = None  # that are there for the network; None: as torch finds them
        self._backbone = backbone
        self._on_change = on_change
        self._device: Device | None = None
        self._batch_size: int | None = None
        self._an_image: int | None = None  # bytes that one takes in a batch
        self._transfer: Transfer | None = None

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.spaces[0].backbone

    @property
    def backbone(self) -> Backbone:
        """The loaded network, on its device; loading takes seconds, the first time.

        Raises
        ------
        BackboneError
            Its weights are not those of the spaces.
        """
        if self._backbone is None:
            backbone = ready(self.asked, self.device)
            wanted = [(space.weights, space.dim) for space in self.spaces]
            found = [(digest, output.dim) for digest, output in zip(backbone.digests, backbone.outputs, strict=True)]
            if found != wanted:
                self._on_change(backbone)
                was, now = next(pair for pair in zip(wanted, found, strict=True) if pair[0] != pair[1])
                raise BackboneError(
                    f"the weights of {self.name} are not those that the embeddings were made with: expected "
                    f"{was[0][:8]}, found {now[0][:8]}; run `headstart extract` and fit again"
                )
            self._backbone = backbone
        return self._backbone

    def load(self) -> None:
        """Load the network now, and see how large a batch may be, instead of when the first batch comes.

        Raises
        ------
        BackboneError
            As `backbone`.
        """
        import torch

        if self.cores is not None:
            self.computed(partial(use_threads, self.cores))
        _ = self.backbone, self.batch_size
        self.most_threads = self.computed(torch.get_num_threads)

    def rest(self) -> None:
        """Give torch back the threads that it had, when a run is over."""
        if self.threads is not None:
            self.computed(partial(use_threads, self.most_threads))

    def unload(self) -> None:
        """Let go of the network, and of what it takes of the device's memory."""
        self._backbone = self.faster = self._transfer = None
        if self._device is not None and self._device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()

    @property
    def device(self) -> Device:
        """Where the forward pass runs."""
        if self._device is None:
            self._device = choose_device(self.run.device)
        return self._device

    @property
    def batch_size(self) -> int:
        """Images a forward pass takes now; it shrinks when the device's memory is full.

        On a CPU it is bounded beforehand by half of the memory that is free, and asking for the first time loads the
        network to see what an image takes.
        """
        if self._batch_size is None:
            wanted = self.run.batch_size or self.device.batch_size
            self._batch_size = self._bounded(wanted) if self.device.kind == "cpu" else wanted
        return self._batch_size

    def resize_batch(self, wanted: int) -> int:
        """Set the size of batches to what is wanted or, where less fits into memory, to that; return it."""
        self._batch_size = self._bounded(wanted, quiet=True) if self.device.kind == "cpu" else wanted
        return self._batch_size

    def _bounded(self, wanted: int, *, quiet: bool = False) -> int:
        available = available_memory()
        if available is None:
            return wanted
        available //= self.run.processes or 1
        try:
            if self._an_image is None:  # a pass of its own, which other sizes need not repeat
                self._an_image = self.computed(self._measure_an_image)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return 1  # if that is too much again, `embed` says so
        an_image = self._an_image
        size = fitting_batch(wanted, an_image, available)
        if size < wanted and not quiet:
            logger.log(
                logging.WARNING if self.run.batch_size else logging.INFO,
                "batches of %d images instead of %d: one may take %d MB, and %d MB of memory are free",
                size, wanted, an_image // 1_000_000, available // 1_000_000,
            )  # fmt: skip
        return size

    def _measure_an_image(self) -> int:
        with self.device.autocast(self.spaces[0].precision):
            return bytes_an_image(self.backbone)

    def embed(self, pixels: Sequence[Pixels] | np.ndarray) -> np.ndarray:
        """Compute rows.

        Parameters
        ----------
        pixels : ndarray of shape (n, S, S, 3), dtype uint8, or as many of its rows
            What `preprocess` made of n images, at least one and at most `batch_size`.

        Returns
        -------
        ndarray of shape (n, D), dtype of the spaces
            The rows of all spaces side by side, which `columns` takes apart. On a device whose memory is full the batch
            is halved until it fits.

        Raises
        ------
        DeviceError
            Not even one image fits.
        """
        return self.begin(pixels).rows()

    def begin(self, pixels: Sequence[Pixels] | np.ndarray) -> Pending:
        """Start to compute rows, as `embed`; a GPU goes on with it while the caller does other work."""
        began = time.perf_counter()
        done: list[Tensor] = []
        begin, size = 0, len(pixels)
        while begin < len(pixels):
            batch = pixels[begin : begin + size]
            try:
                done.append(self.computed(partial(self._forward, batch)))
                begin += len(batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch), error)
                size = self.batch_size
        elapsed = self._mover.finished(began)
        return Pending([self._mover.fetch(rows) for rows in done], self.spaces[0].dtype, elapsed)

    def columns(self, rows: np.ndarray) -> list[np.ndarray]:
        """Take rows of all spaces, (n, D), apart into the rows of each."""
        ends = np.cumsum([space.dim for space in self.spaces])
        return np.split(rows, ends[:-1], axis=1)

    @property
    def _mover(self) -> Transfer:
        if self._transfer is None:
            self._transfer = transfer_to(self.device)
        return self._transfer

    def computed(self, call: Callable[[], Result]) -> Result:
        """Return what a call returns, by the thread that is to run the network."""
        return in_main_arena(call) if self.device.kind == "cpu" else call()

    def _halve(self, count: int, error: Exception) -> None:
        """Go on with half of the batch that did not fit, which held `count` images before it was padded."""
        where = "this machine" if self.device.kind == "cpu" else self.device.name
        tried = max(count, self.batch_size) if self.run.batch_size else count
        if tried == 1:
            advice = "a smaller --crop" if self.device.kind == "cpu" else "--device cpu or a smaller --crop"
            raise DeviceError(f"{where} has too little memory for one image; pass {advice}") from error
        self._batch_size = tried // 2
        logger.warning("out of memory on %s: going on with batches of %d", where, self._batch_size)

    def _forward(self, pixels: Sequence[Pixels] | np.ndarray) -> Tensor:
        count = len(pixels)
        padding = self.batch_size - count if self.run.batch_size and count < self.batch_size else 0
        if self.threads is not None:
            use_threads(self.threads)
        batch = self._mover.to_device(pixels, padding)
        with self.device.autocast(self.spaces[0].precision):
            if self.faster is not None and self.faster[0] == len(batch):
                return self.faster[1](batch)[:count].float()
            return self.backbone.embed(batch)[:count].float()


@dataclass(frozen=True, slots=True)
class Pending:
    """Rows that are being computed."""

    batches: list[Callable[[], Tensor]]
    dtype: str
    elapsed: Callable[[], float]

    def rows(self) -> np.ndarray:
        """Wait for the rows; (n, D) of the spaces' dtype."""
        with np.errstate(over="ignore"):  # the caller looks for infinities, row by row
            parts = [fetched().numpy().astype(self.dtype) for fetched in self.batches]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def seconds(self) -> float:
        """Return how long the device was busy with them; to be asked when `rows` has returned."""
        return self.elapsed()
