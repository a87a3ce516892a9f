"""Pixels on their way to the device that computes, while it is still busy with those before."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .device import Device

if TYPE_CHECKING:
    from torch import Tensor

BUFFERS = 2  # one is filled while the other is copied


class Transfer(Protocol):
    """Puts images together into a batch on a device."""

    def to_device(self, images: Sequence[np.ndarray] | np.ndarray, padding: int = 0) -> Tensor:
        """Return n images, each (S, S, 3) uint8, and `padding` copies of the last one: (n + padding, S, S, 3)."""

    def finished(self, began: float) -> Callable[[], float]:
        """Note that a batch begun at `began` (`time.perf_counter`) has been handed over; return what tells its time."""


def transfer_to(device: Device) -> Transfer:
    """Return what moves batches to `device`."""
    return Pinned() if device.kind == "cuda" else Plain(device)


class Plain:
    """Copies within the caller's thread."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def to_device(self, images: Sequence[np.ndarray] | np.ndarray, padding: int = 0) -> Tensor:
        """Return a batch; see `Transfer`."""
        import torch

        batch = torch.from_numpy(_padded(images, padding))
        return batch if self._device.kind == "cpu" else batch.to(self._device.kind)

    def finished(self, began: float) -> Callable[[], float]:
        """Return the wall time since `began`: on a CPU the work is done by now."""
        seconds = time.perf_counter() - began
        return lambda: seconds


class Pinned:
    """Copies from page-locked buffers, used in turn, on a stream of its own, beside the network's work on a GPU."""

    def __init__(self) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream()
        self._turn = itertools.cycle(range(BUFFERS))
        self._buffers: list[Tensor | None] = [None] * BUFFERS
        self._copied: list[Any] = [self._cuda.Event() for _ in range(BUFFERS)]
        self._begun: list[Any] = []

    def to_device(self, images: Sequence[np.ndarray] | np.ndarray, padding: int = 0) -> Tensor:
        """Return a batch that later work on the current stream finds complete; see `Transfer`."""
        place = next(self._turn)
        self._copied[place].synchronize()  # the buffer's last copy must be through before it is filled again
        buffer = self._buffer(place, len(images) + padding, images[0].shape)
        np.stack(list(images), out=buffer[: len(images)].numpy())
        buffer[len(images) :] = buffer[len(images) - 1]
        current = self._cuda.current_stream()
        with self._cuda.stream(self._stream):
            batch = buffer.to("cuda", non_blocking=True)
            self._copied[place].record()
        current.wait_stream(self._stream)
        batch.record_stream(current)
        begun = self._cuda.Event(enable_timing=True)
        begun.record()
        self._begun.append(begun)
        return batch

    def finished(self, began: float) -> Callable[[], float]:
        """Return what tells, once the rows were copied back, how long the GPU was busy, in seconds."""
        end = self._cuda.Event(enable_timing=True)
        end.record()
        (begun, *_), self._begun = self._begun, []
        return lambda: float(begun.elapsed_time(end)) / 1000

    def _buffer(self, place: int, count: int, shape: tuple[int, ...]) -> Tensor:
        import torch

        buffer = self._buffers[place]
        if buffer is None or len(buffer) < count or buffer.shape[1:] != shape:
            buffer = torch.empty((count, *shape), dtype=torch.uint8, pin_memory=True)
            self._buffers[place] = buffer
        return buffer[:count]


def _padded(images: Sequence[np.ndarray] | np.ndarray, padding: int) -> np.ndarray:
    batch = images if isinstance(images, np.ndarray) else np.stack(images)
    return np.concatenate([batch, np.repeat(batch[-1:], padding, axis=0)]) if padding else batch
