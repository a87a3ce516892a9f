"""How many processes of this machine share the work of a run, and what each of them gets of its cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .device import available_cores, visible_gpus
from .embedder import Embedder
from .options import RunOptions

WORTH_A_PROCESS = 64  # images; a process takes seconds to start
CORES_EACH = 4  # that one process can use before its threads wait for each other
_WORTH_MORE = 20_000  # images a GPU from which more processes on it repay their start
_MOST_ON_A_GPU = 4  # each keeps a copy of the network and a context, half a gigabyte, in the GPU's memory


def processes_for(run: RunOptions, embedders: Sequence[Embedder], images: int, *, at_once: bool = False) -> int:
    """Return in how many processes to embed `images`: as many as asked for, else what keeps the GPUs busy.

    Threads of one process queue for the interpreter's lock, and a GPU waits for them. So a long run has up to four
    processes on each GPU, but one where rows are wanted `at_once`; small work gets fewer. `docs/speed.md` has what that
    was worth.
    """
    wanted = run.processes
    if wanted is None:
        wanted = 1
        if images > WORTH_A_PROCESS and embedders[0].device.kind == "cuda":
            gpus = len(visible_gpus())
            wanted = gpus if at_once else _for_gpus(gpus, embedders, images)
    return max(1, min(wanted, -(-images // WORTH_A_PROCESS)))


def _for_gpus(gpus: int, embedders: Sequence[Embedder], images: int) -> int:
    on_gpu = any(asked.decoder == "gpu" for embedder in embedders for asked in embedder.asked)
    if on_gpu or images < _WORTH_MORE * gpus:
        return gpus
    return gpus * max(1, min(_MOST_ON_A_GPU, available_cores() // gpus // CORES_EACH))


def split_cores(count: int) -> list[list[int]]:
    """Divide the cores that this process may use; where there are fewer than processes, they share."""
    if not hasattr(os, "sched_getaffinity"):
        return [list(range(max(1, available_cores() // count)))] * count
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        return [[cores[number % len(cores)]] for number in range(count)]
    return [part.tolist() for part in np.array_split(np.array(cores), count)]
