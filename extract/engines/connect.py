"""The way to a cluster that is already there."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from ...errors import HeadstartError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 15


class EngineError(HeadstartError, ConnectionError):
    """A cluster that cannot be reached, or that cannot do what is asked of it."""


def dask_client(address: str | None) -> Client:
    """Return a connection to a Dask scheduler.

    Parameters
    ----------
    address : str or None
        ``tcp://host:8786``, or the path of a scheduler file.

    Raises
    ------
    UsageError
        No address.
    MissingExtraError
        Dask is not installed.
    EngineError
        Nobody answers there.
    """
    _check("dask", "distributed", address, "tcp://HOST:8786, as `dask scheduler` prints it")
    from distributed import Client

    assert address is not None
    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        return Client(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineError(
            f"no Dask scheduler answers at {address} ({type(error).__name__}); start one with `dask scheduler`, or "
            "name the address that it prints with --address"
        ) from error


def ray_session(address: str | None) -> Any:
    """Connect this process to a Ray cluster, and return the module `ray`.

    Parameters
    ----------
    address : str or None
        ``auto``, ``host:6379`` or ``ray://host:10001``.

    Raises
    ------
    UsageError, MissingExtraError, EngineError
        As `dask_client`.
    """
    _check("ray", "ray", address, "auto, or HOST:6379 as `ray start --head` prints it")
    import ray

    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({type(error).__name__}); start one with `ray start --head`, or name "
            "its address with --address"
        ) from error
    return ray


def _check(engine: str, module: str, address: str | None, example: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f'--engine {engine} needs a package; run `pip install "headstart[{engine}]"`')
    if not address:
        raise UsageError(f"--engine {engine} needs --address: {example}")
