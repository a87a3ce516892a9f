"""One connection, as uvicorn has it, with an end: no client keeps one by sending or reading slowly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .guard import MAX_HEADERS
from .limits import Limits

_CLOSE = ("connection", "close")


def protocol_class(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP/1.1 with what it lacks.

    - Headers must arrive within the time limit (408); a request is over, one way or another, within five times that.
    - More connections than the limit are refused (503).
    - What is not HTTP is answered in JSON, as everything else is.

    Parameters
    ----------
    limits : Limits
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self.refuse(503, "too many connections; try again in a moment", ("retry-after", "1"))
            else:
                self.end_after(limits.timeout)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before and not self.cycle.response_complete:
                self.end_after(5 * limits.timeout)  # to arrive, to be worked on, to be sent, and some

        def on_response_complete(self) -> None:
            self.end_after(limits.timeout)
            super().on_response_complete()

        def end_after(self, seconds: float) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            self.deadline = self.loop.call_later(seconds, self.end)

        def end(self) -> None:
            if self.cycle is not None and self.cycle.response_complete and not self.conn.trailing_data[0]:
                self.transport.close()  # it lies idle: what is written now would be taken for the next answer
            elif self.cycle is None or self.cycle.response_complete:
                self.refuse(408, f"the headers took longer than {limits.timeout:g} s to arrive")
                self.loop.call_later(1, self.transport.abort)  # where even that is not read
            else:
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            self.refuse(400, f"this is no HTTP request, or its headers are longer than {MAX_HEADERS} bytes")

        def refuse(self, status: int, message: str, *headers: tuple[str, str]) -> None:
            body = json.dumps({"error": message}).encode()
            all_headers = [("content-type", "application/json"), ("content-length", str(len(body))), _CLOSE, *headers]
            response = h11.Response(status_code=status, headers=all_headers)
            try:
                sent = [self.conn.send(event) for event in (response, h11.Data(data=body), h11.EndOfMessage())]
            except h11.LocalProtocolError:  # an answer has begun already
                sent = []
            self.transport.write(b"".join(part for part in sent if part))
            self.transport.close()

    return Protocol


def uvicorn_options(limits: Limits) -> dict[str, Any]:
    """Return how uvicorn is set up: what it can do and is not wanted is off, and it says nothing by itself."""
    return {
        "http": protocol_class(limits),
        "loop": "asyncio",
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "log_config": None,
        "log_level": "critical",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "h11_max_incomplete_event_size": MAX_HEADERS,
        "timeout_graceful_shutdown": max(1, round(limits.timeout)),
    }
