"""Which device computes, in which precision, in batches of what size."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from ..errors import DeviceError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
CPU_BATCH = 16
GPU_BATCH = 128
_MEMORY_FULL = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device that computes.

    Attributes
    ----------
    kind : str
        "cpu", "cuda" or "mps".
    name : str
        For people: the processor's or GPU's name.
    """

    kind: str
    name: str

    @property
    def batch_size(self) -> int:
        """Images a batch where the user does not say."""
        return CPU_BATCH if self.kind == "cpu" else GPU_BATCH

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the forward pass runs at `precision`."""
        if precision == "float32":
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self.kind, dtype=getattr(torch, precision))


def choose_device(wanted: str = "auto") -> Device:
    """Return the device named, or the best there is: cuda, then mps, then cpu.

    Raises
    ------
    DeviceError
        The device named is not on this machine.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name, available in there.items() if available) if wanted == "auto" else wanted
    if not there.get(kind):
        found = ", ".join(name for name, available in there.items() if available)
        raise DeviceError(f"device {kind} is not available here (found: {found}); pass --device auto")
    return Device(kind, _name(kind))


def _name(kind: str) -> str:
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    return "Apple GPU" if kind == "mps" else f"{available_cores()} cores"


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def available_cores() -> int:
    """Return the processor cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_precision(wanted: str) -> str:
    """Return what to compute in; "auto" is float32 everywhere until a faster path's drift has been measured."""
    return "float32" if wanted == "auto" else wanted


def prepare(device: Device, precision: str) -> None:
    """Set up this process for forward passes on a device: memory that is kept, float32 that is float32."""
    if device.kind == "cpu":
        keep_freed_memory()
    if device.kind == "cuda" and precision == "float32":
        exact_float32()


def exact_float32() -> None:
    """Keep NVIDIA GPUs from computing float32 in TF32, which torch lets convolutions do unasked.

    TF32 has 10 bits of mantissa where float32 has 23, so embeddings would move by about 1e-3 relative and still be
    called float32.
    """
    import torch

    # By the older of torch's two interfaces: where the newer one was used, its own compiler fails to ask the older.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that were freed instead of giving them back to the kernel.

    Each layer's output is tens of megabytes, which malloc takes from the kernel by mmap and returns at once; the kernel
    then clears every page again for the next layer (`benchmarks/malloc.py` measures what keeping them is worth). Other
    C libraries have other allocators: nothing is done there.
    """
    import ctypes
    import sys

    if sys.platform != "linux":
        return
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:  # musl has no such file, and no such call
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    library.mallopt(m_mmap_threshold, 1 << 30)
    library.mallopt(m_trim_threshold, (1 << 31) - 1)


def use_threads(count: int) -> None:
    """Let torch compute with `count` threads from now on, where the caller's thread asks it to.

    Not for each pass anew: while the number changes back and forth, the threads are ended and begun again, and what
    lies between two passes waits for them.
    """
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` says that the device's memory is full: cuda has a class for it, the others only a text."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_FULL)
