"""A saved model behind HTTP: loaded, warmed up, then listening until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import importlib.util
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ...errors import HeadstartError, MissingExtraError, UsageError, printable
from ...extract.options import RunOptions
from ..model import load_model
from ..predict import Classifier
from .app import make_app
from .connection import uvicorn_options
from .guard import LOCAL_HOSTS, is_local
from .limits import MIB, Limits
from .model_runner import ModelRunner
from .service import Counts, Service

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger("headstart.classify")

DEFAULT_PORT = 8000
_LIBRARIES = ("starlette", "uvicorn", "python_multipart")
_SHOWN_CLASSES = 5


class ServerError(HeadstartError, OSError):
    """The server cannot listen where it was told to."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server did until it was stopped.

    Attributes
    ----------
    url : str
    counts : Counts
    batches : int
        Forward passes of the network, each of one picture or more.
    seconds : float
        Since it began to listen.
    """

    url: str
    counts: Counts
    batches: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``serve --json``."""
        counts = self.counts
        return {
            "url": self.url,
            "requests": counts.requests,
            "pictures": counts.pictures,
            "unreadable": counts.unreadable,
            "refused": counts.refused,
            "batches": self.batches,
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """Return the report."""
        counts = self.counts
        return [
            f"stopped after {self.seconds:.0f} s: {counts.pictures} pictures in {counts.requests} requests, "
            f"{counts.unreadable} pictures unreadable, {self.batches} passes of the network; "
            f"{counts.refused} requests refused"
        ]


def serve(
    model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    allow_hosts: Sequence[str] = (),
    coverage: float | None = None,
    limits: Limits | None = None,
    max_wait_ms: float = 0.0,
    run: RunOptions | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> Served:
    """Serve a saved model until Ctrl-C or SIGTERM; what is in flight then is finished.

    There is no authentication: whoever reaches the port may ask. Pictures are kept in memory while they are worked on,
    and nowhere else; the cache is not used.

    Parameters
    ----------
    model : path
        The model's folder.
    host : str, default "127.0.0.1"
        Address to listen on; by default only this machine can reach it.
    port : int, default 8000
        0 takes a free one, which the first line names.
    allow_hosts : sequence of str, optional
        Further names under which requests may come. On an address that only this machine reaches these are localhost,
        127.0.0.1 and [::1]; on another one, any name will do where none is given.
    coverage : float, optional
        Also give sets of classes that hold the right one this often, between 0 and 1.
    limits : Limits, optional
    max_wait_ms : float, default 0
        Milliseconds that a batch which is not full waits for more pictures.
    run : RunOptions, optional
        Device, pictures a forward pass, threads that decode, and the largest picture.
    on_ready : callable, optional
        Told the URL once requests are answered, in the thread that serves.

    Returns
    -------
    Served

    Raises
    ------
    MissingExtraError
        The libraries of the extra ``serve`` are not installed.
    ModelError
        The folder holds no model, or a damaged one.
    ServerError
        The address is not this machine's, or the port is taken.
    """
    _require_extra()
    limits, run = limits or Limits(), run or RunOptions()
    if not 0 <= max_wait_ms < 1000 * limits.timeout:
        raise UsageError(f"max_wait_ms must be 0 or more, and less than the time limit; got {max_wait_ms:g}")
    # The batch size of RunOptions pads what is smaller, for the sake of equal last bits: not wanted here.
    unpadded = RunOptions(device=run.device, workers=run.workers, max_pixels=run.max_pixels)
    runner = ModelRunner(Classifier(load_model(Path(model)), run=unpadded), coverage)
    with contextlib.closing(_bound(host, port)) as listener:  # before the network is loaded, which takes seconds
        size = _loaded(runner, run.batch_size)
        name = Path(os.path.abspath(model)).name  # noqa: PTH100  (a name that ends in a dot, without following links)
        facts = {"coverage": coverage}
        service = Service(
            runner, limits, name, batch_size=size, workers=run.threads, wait=max_wait_ms / 1000, facts=facts
        )
        url = _url(host, listener.getsockname()[1])
        hosts = {*LOCAL_HOSTS, host, *allow_hosts} if is_local(host) else set(allow_hosts)
        server = _server(make_app(service, hosts), limits)
        if not is_local(host):
            logger.warning("whoever can reach %s can use this server: there is no authentication", url)
        return _run(server, service, listener, url, on_ready)


def _loaded(runner: ModelRunner, batch_size: int | None) -> int:
    try:
        return runner.load(batch_size)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted before the server was ready") from None


def _require_extra() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'serving needs {", ".join(missing)}: pip install "headstart[serve]"')


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket of the address, which does not listen yet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        listener = socket.socket(family, kind)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServerError(f"{printable(host)} is no address of this machine ({error}); pass another --host") from error
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(error, host, port) from error
    return listener


def _cannot_listen(error: OSError, host: str, port: int) -> ServerError:
    if error.errno == errno.EADDRINUSE:
        return ServerError(f"port {port} of {host} is in use; pass another --port, or --port 0 for one that is free")
    if error.errno == errno.EACCES:
        return ServerError(f"port {port} of {host} may not be used ({error.strerror}); pass a --port above 1023")
    return ServerError(f"{printable(host)} is no address of this machine ({error.strerror}); pass another --host")


def _url(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"


def _server(app: Any, limits: Limits) -> uvicorn.Server:
    """Return uvicorn's server, whose signals are left to `_stopping`."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    # What it says of the forms that it cannot read is told to whoever sent them.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    return Server(uvicorn.Config(app, **uvicorn_options(limits)))


def _run(
    server: uvicorn.Server, service: Service, listener: socket.socket, url: str, on_ready: Callable[[str], None]
) -> Served:
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # an error stream that is no file
        faulthandler.enable()  # a picture that crashes its decoder ends the process: it shall say where
    began = time.perf_counter()
    with _stopping(server):
        asyncio.run(_listen(server, service, listener, url, on_ready))
    return Served(url, service.counts, service.batches, time.perf_counter() - began)


async def _listen(
    server: uvicorn.Server, service: Service, listener: socket.socket, url: str, on_ready: Callable[[str], None]
) -> None:
    try:
        listener.listen(server.config.backlog)
    except OSError as error:  # another process has bound the port too, and listens since
        raise _cannot_listen(error, *listener.getsockname()[:2]) from error
    work = asyncio.create_task(service.work())
    try:
        logger.info("%s", _first_line(service, url))
        on_ready(url)
        await server.serve([listener])
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    if server.force_exit:
        raise KeyboardInterrupt("stopped before everything in flight was answered")


def _first_line(service: Service, url: str) -> str:
    about, limits = service.about(), service.limits
    classes = about["classes"]
    shown = ", ".join(map(printable, classes[:_SHOWN_CLASSES])) + (", ..." if len(classes) > _SHOWN_CLASSES else "")
    return (
        f"serving {about['model']} ({len(classes)} classes: {shown}) at {url} on {service.device}, up to "
        f"{service.batch_size} pictures a pass; a request may have {limits.max_bytes / MIB:g} MiB, "
        f"{limits.max_pictures} pictures and {limits.timeout:g} s; Ctrl-C ends it"
    )


@contextlib.contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the server once what is in flight is answered; the second Ctrl-C ends it at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if server.should_exit and number == signal.SIGINT:
            server.force_exit = True
        elif not server.should_exit:
            logger.info("stopping: what is in flight is finished first")
        server.should_exit = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    try:
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # outside the main thread no signal arrives
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
