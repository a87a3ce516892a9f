"""How much memory a forward pass takes, and how much there is: on a CPU a batch that is too large ends the process.

A GPU says that its memory is full, and a smaller batch can be tried. Linux promises memory that it does not have and
kills whoever comes to use it, so there the batch is bounded beforehand.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbone import Backbone

# Peak memory of an image in a batch over the largest input and output of one layer, for 18 networks in batches of 8 to
# 32: 0.9 (resnet18) to 4.5 (densenet121). Branches that wait for each other and the holes that malloc leaves make the
# difference. densenet201 took 7.4 times as much: half of the memory is left free for such.
FACTOR = 5
SHARE = 0.5


def give_back_memory() -> None:
    """Have the C library return freed memory to the system, which it keeps in bits and pieces after many threads."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def fitting_batch(wanted: int, an_image: int, available: int | None) -> int:
    """Return how many images a batch may have.

    Parameters
    ----------
    wanted : int
        The most that it shall have.
    an_image : int
        What one takes, bytes.
    available : int or None
        What there is, bytes; None where nobody knows.

    Returns
    -------
    int
        At least 1: what does not fit at all has to be tried.
    """
    if available is None:
        return wanted
    return max(1, min(wanted, int(available * SHARE) // max(1, an_image)))


def bytes_an_image(backbone: Backbone) -> int:
    """Estimate what one image more in a batch takes, by a pass of one blank image.

    Parameters
    ----------
    backbone : Backbone
        On its device.

    Returns
    -------
    int
        `FACTOR` times the bytes of the largest input and output of one layer.
    """
    import torch

    side = backbone.preprocess.crop
    sizes = [3 * 4 * side * side]
    layers = [module for module in backbone.module.modules() if not any(True for _ in module.children())]
    handles = [
        layer.register_forward_hook(lambda _, taken, given: sizes.append(_bytes_of(taken) + _bytes_of(given)))
        for layer in layers
    ]
    try:
        backbone.embed(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=backbone.device))
    finally:
        for handle in handles:
            handle.remove()
    return FACTOR * max(sizes)


def _bytes_of(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes_of, value)) if isinstance(value, (tuple, list)) else 0


def available_memory(processes: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how much memory this process may still take without swapping or being killed.

    Parameters
    ----------
    processes, groups : Path
        Where Linux tells of processes and of control groups.

    Returns
    -------
    int or None
        Bytes: the least of what the machine has available and what the control groups leave that the process is in
        (version 1 or 2; containers and batch systems set limits there). None where the system does not say.
    """
    return min([*_machine(processes), *_left_in_groups(processes, groups)], default=None)


def _machine(processes: Path) -> Iterator[int]:
    for line in _lines(processes / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_in_groups(processes: Path, groups: Path) -> Iterator[int]:
    for line in _lines(processes / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = groups / "memory"
        else:
            continue
        # In a container the path may be the host's, and the root be what the host calls by it.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _left(folder, *names)
            if folder == root:
                break


def _left(folder: Path, limit_name: str, used_name: str, idle_name: str) -> Iterator[int]:
    """Yield what a group may still take, if it has a limit; files that are only cached give way."""
    limit, used = ([*_lines(folder / name), ""][0] for name in (limit_name, used_name))
    if not (limit.isdigit() and used.isdigit()):
        return
    idle = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == idle_name]
    yield max(0, int(limit) - int(used) + sum(idle))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):  # no such file here, or not for us: then the system does not say
        return []
