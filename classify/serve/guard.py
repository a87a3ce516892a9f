"""What stands before the routes: whose requests are answered at all, what every answer says, and what errors become."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...errors import printable
from .limits import Limits, RequestError
from .service import Counts

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("headstart.classify")

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_HEADERS = 16 << 10  # bytes
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z._-]+))(?::[0-9]{1,5})?")
LINGER = 2.0  # seconds that a client which is refused may go on sending, so that it comes to read why
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


def is_local(host: str) -> bool:
    """Tell whether only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Middleware around everything else.

    - A page of another site, open in a browser on this machine, must not use the server: neither under a name of its
      own that leads here (so the Host is checked), nor across sites (so the Origin is).
    - Every answer carries the headers of `HEADERS`; no answer takes longer to be sent than the limit.
    - An error is one line of JSON, whatever it was.
    - A client that is refused before it has sent everything is read on for a moment, to no use: otherwise its system
      would throw the answer away with the connection.

    Parameters
    ----------
    app : ASGI application
    limits : Limits
    counts : Counts
    hosts : iterable of str
        Names under which requests may come, without a port; any where there are none.
    """

    def __init__(self, app: ASGIApp, limits: Limits, counts: Counts, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._limits = limits
        self._counts = counts
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from starlette.exceptions import HTTPException

        exchange = _Exchange(scope, receive, send, self._limits.timeout)
        began = time.perf_counter()
        try:
            self._check(scope)
            # With an application in its scope, a router raises what it has to say of a request that fits no route.
            await self._app({**scope, "app": self}, exchange.receive, exchange.send)
        except HTTPException as error:
            await exchange.refuse(_in_our_words(error))
        except RequestError as error:
            await exchange.refuse(error)
        except Exception as error:  # noqa: BLE001  (whatever it was: one line to the client, one to the log)
            _log_internal(error)
            await exchange.refuse(RequestError(500, "internal error; the server's log has more"))
        self._counts.refused += exchange.status >= 400
        seconds = time.perf_counter() - began
        logger.debug("%s %s: %d, %.3f s", scope["method"], printable(scope["path"]), exchange.status, seconds)

    def _check(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            raise RequestError(431, f"the headers are longer than {MAX_HEADERS} bytes")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = _name_of(host)
        if name is None:
            raise RequestError(400, "the Host of the request is none")
        if self._hosts and name not in self._hosts:
            raise RequestError(421, f"this server does not answer as {name[:80]}; start it with --allow-host")
        origins = {value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"origin"}
        if origins - {f"http://{host}", f"https://{host}"}:
            raise RequestError(403, "pages of other sites may not use this server")


def _name_of(host: str) -> str | None:
    """Return the name, without its port, that a request came under; None where it is none."""
    found = _HOST.fullmatch(host)
    return None if found is None else found[1] or found[2]


class _Exchange:
    """One request and its answer, with what of both has passed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float) -> None:
        headers = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._timeout = timeout
        # Whether there may be more of the body.
        self._unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        self.status = 0

    async def receive(self) -> Message:
        """Hand on what the client sends."""
        message = await self._receive()
        self._unread = self._unread and message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the headers that all have; after an unread body the connection ends."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            closing = [(b"connection", b"close")] if self._unread else []
            message["headers"] = [*message["headers"], *HEADERS, *closing]
        async with asyncio.timeout(self._timeout):
            await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answer with an error, where no answer has begun."""
        if self.status:
            raise ConnectionError("the answer cannot be completed")
        body = json.dumps({"error": printable(str(error))}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await self._linger()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return


def _in_our_words(error: HTTPException) -> RequestError:
    said = {
        404: "there is no such page; POST pictures to /predict",
        405: "wrong method; the header Allow has the right one",
    }
    return RequestError(error.status_code, said.get(error.status_code, error.detail), dict(error.headers or {}))


def _log_internal(error: Exception) -> None:
    logger.error("internal error: %s: %s", type(error).__name__, " ".join(str(error).split()))
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
