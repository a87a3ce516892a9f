"""The way to a cluster that is already there."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sys
from collections.abc import Iterator
from typing import Any

from ...errors import HeadstartError, MissingExtraError

CONNECT_SECONDS = 15
WORKERS_SECONDS = 60.0  # that a run waits for a worker before it gives up

LEAVE_SECONDS = 30.0  # that workers may take to finish the part in hand when a run is stopped


class EngineError(HeadstartError, ConnectionError):
    """A cluster that cannot be reached, or that cannot do what is asked of it."""


def dask_client(address: str) -> Any:
    """Return a connection to a Dask scheduler, a `distributed.Client`, whose methods have no types.

    Parameters
    ----------
    address : str
        ``tcp://host:8786``, or the path of a scheduler file.

    Raises
    ------
    MissingExtraError
        Dask is not installed.
    EngineError
        Nobody answers there.
    """
    _check("dask", "distributed")
    import distributed

    connect: Any = distributed.Client
    where: dict[str, Any] = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        return connect(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineError(
            f"no Dask scheduler answers at {address} ({type(error).__name__}); start one with `dask scheduler`, or "
            "name the address that it prints with --address"
        ) from error


@contextlib.contextmanager
def scheduler_answers(address: str, advice: str) -> Iterator[None]:
    """Say in one line that a Dask scheduler is gone, where what is asked of it in the block finds that out.

    Parameters
    ----------
    address : str
        For the message.
    advice : str
        What to do about it.

    Raises
    ------
    EngineError
    """
    try:
        yield
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"the Dask scheduler at {address} does not answer any more ({type(error).__name__}); {advice}"
        ) from error


def ray_session(address: str) -> Any:
    """Connect this process to a Ray cluster, and return the module `ray`.

    Parameters
    ----------
    address : str
        ``auto``, ``host:6379`` or ``ray://host:10001``.

    Raises
    ------
    MissingExtraError, EngineError
        As `dask_client`.
    """
    _check("ray", "ray")
    import ray

    if is_in_ray():
        return ray
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise MissingExtraError(f'--address {address} needs a package; run `pip install "ray[client]"`')
    try:
        knock(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({type(error).__name__}); start one with `ray start --head`, or name "
            "its address with --address"
        ) from error
    return ray


def knock(address: str) -> None:
    """Connect to HOST:PORT and leave again, where an address names one: Ray itself would try for minutes.

    Raises
    ------
    OSError
        Nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def is_in_ray() -> bool:
    """Tell whether this process is connected to a Ray cluster already."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _check(engine: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f'--engine {engine} needs a package; run `pip install "headstart[{engine}]"`')
