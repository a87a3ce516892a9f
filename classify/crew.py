"""What runs on the workers of a cluster: each keeps the shards that it was hired for, until they are let go."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from .. import __version__
from ..errors import CacheError, HeadstartError
from ..extract.memory import available_memory
from .shard import Shard
from .share import Share

_UNKNOWN_FREE = 4 << 30  # bytes that are taken for free where the system does not say
_shards: dict[str, Shard] = {}
_turn = threading.Lock()


class LackingShardError(HeadstartError):
    """The worker does not have the shard: it is new, or was started again."""


class Lease:
    """Keeps a shard on its worker as long as the engine keeps this; elsewhere it is only the shard's name."""

    def __init__(self, key: str, shard: Shard) -> None:
        self.key, self._shard = key, shard

    def __del__(self) -> None:
        if _shards.get(self.key) is self._shard:  # and not one that was hired under its name since
            dismiss(self.key)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.key,)


def hire(key: str, share: Share, neighbours: int, version: str) -> Lease:
    """Take a shard.

    Parameters
    ----------
    key : str
        Its name.
    share : Share
        Its memory is 0 for half of what is free here, divided among the neighbours.
    neighbours : int
        Shards on this machine.
    version : str
        Of the headstart that asks.

    Raises
    ------
    CacheError
        The cache is not to be seen from here.
    HeadstartError
        This worker has another version of headstart.
    """
    if version != __version__:
        raise HeadstartError(f"a worker has headstart {__version__}, and this is {version}: install the same on all")
    if not (share.root / "spaces").exists():
        raise CacheError(f"a worker does not see the cache {share.root}: it must be on a disk that all machines share")
    if not share.memory:
        share = replace(share, memory=(available_memory() or _UNKNOWN_FREE) // 2 // neighbours)
    with _turn:
        shard = _shards[key] = Shard(share)
    return Lease(key, shard)


def work(key: str, method: str, arguments: tuple[Any, ...]) -> Any:
    """Call a method of a shard.

    Raises
    ------
    LackingShardError
        It is not here.
    """
    with _turn:
        shard = _shards.get(key)
    if shard is None:
        raise LackingShardError(f"shard {key} is not on this worker")
    return getattr(shard, method)(*arguments)


def dismiss(key: str) -> None:
    """Let a shard go, if it is here."""
    shard = _shards.pop(key, None)  # in one step, which needs no lock: an interpreter that ends may have none
    if shard is not None:
        shard.close()
