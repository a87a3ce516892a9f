"""The routes of the server."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ... import __version__
from ...errors import HeadstartError
from .guard import Guard
from .limits import RequestError
from .service import Service
from .uploads import Picture, read_pictures

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_NOT_A_PICTURE = ("not an image", "empty file", "HEIC needs the extra")
_GONE = 499  # nobody reads it: the client has left
Result = TypeVar("Result")


def make_app(service: Service, hosts: Iterable[str] = ()) -> ASGIApp:
    """Return the application: the page, ``/predict`` and ``/healthz``, behind the guard.

    Parameters
    ----------
    service : Service
    hosts : iterable of str
        As for `Guard`.
    """
    from starlette.routing import Route, Router

    async def predict(request: Request) -> Response:
        return await _predict(service, request)

    async def healthz(_request: Request) -> Response:
        return _json({**service.about(), "version": __version__})

    files = [Route(path, _file(*file)) for path, file in PAGE.items()]
    routes = [Route("/predict", predict, methods=["POST"]), Route("/healthz", healthz), *files]
    return Guard(Router(routes, redirect_slashes=False), service.limits, service.counts, hosts)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with a file that lies beside this module, read once."""
    from starlette.responses import Response

    content = importlib.resources.files(__package__).joinpath(name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _predict(service: Service, request: Request) -> Response:
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response

    service.counts.requests += 1
    try:
        with service.held.share() as take:
            pictures = await _received(service, request, take)
            rows = await _while_there(request, service.predict(pictures))
    except ClientDisconnect:
        return Response(status_code=_GONE)
    except RequestError:
        raise
    except HeadstartError as error:  # a device whose memory is full, say
        raise RequestError(503, str(error)) from error
    if len(rows) == 1 and rows[0].error is not None:
        raise _unreadable(rows[0].error)
    return _json({"predictions": [row.as_dict() for row in rows]})


def _json(content: Any) -> Response:
    """Return an answer in ASCII: a class may be named by a folder whose bytes are no UTF-8."""
    from starlette.responses import Response

    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


async def _received(service: Service, request: Request, take: Callable[[int], None]) -> list[Picture]:
    """Read the pictures of a request, within the time that it may take to arrive."""
    limits = service.limits
    try:
        async with asyncio.timeout(limits.timeout):
            return await read_pictures(request.headers, request.stream(), limits, take)
    except TimeoutError:
        raise RequestError(408, f"the request took longer than {limits.timeout:g} s to arrive") from None


async def _while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do work for a client; where it leaves, the work is given up."""
    from starlette.requests import ClientDisconnect

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        gone.cancel()


async def _left(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unreadable(reason: str) -> RequestError:
    """Return the refusal of a picture that was sent alone and cannot be read."""
    return RequestError(415 if reason.startswith(_NOT_A_PICTURE) else 422, reason)
