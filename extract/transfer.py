"""Pixels on their way to the device that computes, while it is still busy with those before."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .device import Device
from .preprocess import Pixels

if TYPE_CHECKING:
    from torch import Tensor

BUFFERS = 2  # one is filled while the other is copied


class Transfer(Protocol):
    """Puts images together into a batch on a device."""

    def to_device(self, images: Sequence[Pixels] | np.ndarray, padding: int = 0) -> Tensor:
        """Return n images, each (S, S, 3) uint8, and `padding` copies of the last one: (n + padding, S, S, 3)."""

    def fetch(self, rows: Tensor) -> Callable[[], Tensor]:
        """Begin to copy rows back; return what waits for them."""

    def finished(self, began: float) -> Callable[[], float]:
        """Note that a batch begun at `began` (`time.perf_counter`) has been handed over; return what tells its time."""


def transfer_to(device: Device) -> Transfer:
    """Return what moves batches to `device`."""
    return Pinned() if device.kind == "cuda" else Plain(device)


class Plain:
    """Copies within the caller's thread."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def to_device(self, images: Sequence[Pixels] | np.ndarray, padding: int = 0) -> Tensor:
        """Return a batch; see `Transfer`."""
        import torch

        here = [torch.from_numpy(image) if isinstance(image, np.ndarray) else image for image in images]
        batch = torch.stack([*here, *here[-1:] * padding])
        return batch if self._device.kind == "cpu" else batch.to(self._device.kind)

    def fetch(self, rows: Tensor) -> Callable[[], Tensor]:
        """Return what copies rows; see `Transfer`."""
        return rows.cpu

    def finished(self, began: float) -> Callable[[], float]:
        """Return the wall time since `began`: on a CPU the work is done by now, elsewhere when rows were copied."""
        seconds = time.perf_counter() - began
        return lambda: seconds if self._device.kind == "cpu" else time.perf_counter() - began


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

    def to_device(self, images: Sequence[Pixels] | np.ndarray, padding: int = 0) -> Tensor:
        """Return a batch that later work on the current stream finds complete; see `Transfer`."""
        import torch

        host = [place for place, image in enumerate(images) if isinstance(image, np.ndarray)]
        copied = self._copy([images[place] for place in host], padding if len(host) == len(images) else 0)
        begun = self._cuda.Event(enable_timing=True)
        begun.record()
        self._begun.append(begun)
        if len(host) == len(images):
            return copied
        rows: list[Any] = list(images)
        for place, row in zip(host, copied, strict=True):
            rows[place] = row
        return torch.stack([*rows, *rows[-1:] * padding])

    def _copy(self, images: list[Any], padding: int) -> Tensor:
        """Copy images of the host to the GPU; later work on the current stream finds them complete."""
        import torch

        if not images:
            return torch.empty(0)
        place = next(self._turn)
        self._copied[place].synchronize()  # the buffer's last copy must be through before it is filled again
        buffer = self._buffer(place, len(images) + padding, images[0].shape)
        # Not `np.stack`, which lets go of the interpreter's lock, and queues for it, once an image.
        torch.stack([torch.from_numpy(image) for image in images], out=buffer[: len(images)])
        buffer[len(images) :] = buffer[len(images) - 1]
        current = self._cuda.current_stream()
        with self._cuda.stream(self._stream):
            batch = buffer.to("cuda", non_blocking=True)
            self._copied[place].record()
        current.wait_stream(self._stream)
        batch.record_stream(current)
        return batch

    def fetch(self, rows: Tensor) -> Callable[[], Tensor]:
        """Copy rows behind the pass that computes them; to wait for them is not to wait for a later pass."""
        import torch

        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        done = self._cuda.Event()
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return host

        return wait

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
