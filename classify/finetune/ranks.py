"""The processes that train together, as torchrun starts them; alone, a run is the only one of one.

Each process takes its share of every step's images, and gradients are averaged over processes by
DistributedDataParallel. A step's images are those that one process would take with a batch so many times larger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ...errors import ToldElsewhereError, TrainingError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = logging.getLogger("headstart.finetune")

_ENDED = "another process of this run has ended"
_FAILED = "headstart/failed"  # how many processes have, in the store that they share


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Raise at SIGTERM, which torchrun sends to all when one has ended: else none would be left to say so.

    Raises
    ------
    TrainingError
    """

    def end(_number: int, _frame: object) -> NoReturn:
        raise TrainingError(f"{_ENDED}, or the run was told to end; --resume goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class Voice:
    """Whether this process is the one that tells of an error: the first that fails, as the store says.

    Attributes
    ----------
    store : torch.distributed.Store or None
        What the processes know of each other; None where there is one.
    """

    store: Any = None
    _first: bool | None = None

    def claimed(self) -> bool:
        """Say that this process has failed, and return whether it was the first."""
        if self._first is None:
            self._first = self.store.add(_FAILED, 1) == 1
        return self._first


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those that train together.

    Attributes
    ----------
    rank : int, default 0
    world : int, default 1
        How many processes there are.
    local : int, default 0
        Which of those of this machine it is: the number of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """Read what torchrun says.

        Raises
        ------
        UsageError
            Its variables are there and are none.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not all(name in os.environ for name in names):
            return cls()
        try:
            return cls(*(int(os.environ[name]) for name in names))
        except ValueError as error:
            raise UsageError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[Voice]:
        """Let one process speak: the first tells of the work, and the first that fails of an error.

        Yields
        ------
        Voice
            For `joined`.

        Raises
        ------
        ToldElsewhereError
            In place of an error, where another process has failed before.
        TrainingError
            In place of torch's own error, where another process has ended.
        """
        if self.world == 1:
            yield Voice()
            return
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        parent = logging.getLogger("headstart")
        level = parent.level
        if not self.first:
            parent.setLevel(logging.ERROR)
        store, _, _ = next(rendezvous("env://"))
        voice = Voice(store)
        try:
            yield voice
        except BaseException as error:
            if not voice.claimed():
                raise ToldElsewhereError("another process of this run has failed, and says why") from error
            if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
                raise TrainingError(f"{_ENDED}; --resume goes on") from error
            raise
        finally:
            parent.setLevel(level)

    @contextlib.contextmanager
    def joined(self, device: str, voice: Voice) -> Iterator[None]:
        """Be connected with the others while the block runs."""
        if self.world == 1:
            yield
            return
        from torch import distributed

        backend = "nccl" if device == "cuda" else "gloo"
        distributed.init_process_group(backend, store=voice.store, rank=self.rank, world_size=self.world)
        try:
            with _told_to_end():
                yield
        except BaseException:
            voice.claimed()  # before the others lose this process, which they would take for the error
            raise
        finally:
            distributed.destroy_process_group()

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Return which of `rows` this process takes: every `world`-th."""
        return rows[self.rank :: self.world]

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with gradients averaged over processes."""
        if self.world == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    def total(self, values: Sequence[Tensor]) -> list[float]:
        """Return the sum over processes of each of some numbers, which may be on a device."""
        import torch

        if self.world == 1:
            return torch.stack(list(values)).cpu().double().tolist()
        from torch import distributed

        sums = torch.stack(list(values)).double()
        distributed.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def together(self, rows: np.ndarray, values: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """Put arrays together of which each process has the rows of its share.

        Parameters
        ----------
        rows : ndarray of shape (m,), dtype int64
            Which rows this process has.
        values : sequence of ndarray of shape (m, ...)
        count : int
            Rows of all processes.

        Returns
        -------
        list of ndarray of shape (count, ...)
            In every process.
        """
        shares = self.gather((rows, list(values)))
        result = []
        for place in range(len(values)):
            whole = np.zeros((count, *values[place].shape[1:]), values[place].dtype)
            for there, theirs in shares:
                whole[there] = theirs[place]
            result.append(whole)
        return result

    def align(self, network: nn.Module) -> None:
        """Let every process have the buffers of the first: batch norms have averaged over their own shares."""
        if self.world == 1:
            return
        from torch import distributed

        for value in network.buffers():
            distributed.broadcast(value, 0)

    def gather(self, value: Any) -> list[Any]:
        """Return what each process gave, in every process."""
        if self.world == 1:
            return [value]
        from torch import distributed

        everything: list[Any] = [None] * self.world
        distributed.all_gather_object(everything, value)
        return everything

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            from torch import distributed

            distributed.barrier()
