"""Places that are no folders of this machine: buckets and web servers, named by a URL and reached through fsspec.

What differs between stores ends here: which package reaches one, which of its errors go away by themselves, and which
say that an object is not there. Above this module a store is a flat set of objects, each of which is read as a whole or
from one byte to another, and written in one put, which is atomic: it is there with all its bytes, or it is not.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import MissingExtraError, UsageError, printable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger("headstart.cache")

Result = TypeVar("Result")

# The package behind each scheme, and the extra that installs it.
EXTRAS = {"s3": "s3", "gs": "gs", "https": "http", "http": "http"}
WEB = ("http", "https")
TRIES = 6
FIRST_WAIT = 0.2  # seconds; doubled at each further try, so that all of them take about six
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # of two letters at least: C: is a drive
# Errors of stores and of the libraries that reach them, by their names: no library is imported to ask.
_PASSING = {
    *("ClientError", "ClientConnectionError", "ClientPayloadError", "ConnectTimeoutError", "ConnectionClosedError"),
    *("ConnectionError", "EndpointConnectionError", "FSTimeoutError", "HTTPClientError", "HttpError", "IncompleteRead"),
    *("IncompleteReadError", "ReadTimeoutError", "ResponseParserError", "ServerDisconnectedError"),
    *("ServerTimeoutError", "TimeoutError"),
}
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
# Packages whose errors are of no kind that Python knows.
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google"}
# What is asked of a store beside the bytes: an object in one request, whatever its size, up to the 5 GB of S3.
_WHOLE_READ: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}}
_WHOLE_PUT: dict[str, dict[str, Any]] = {"s3": {"chunksize": 5 << 30}}


def is_url(text: str) -> bool:
    """Tell whether a word names a place by its scheme, ``s3://bucket/key`` say, and is no path of this machine."""
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower case."""
    found = _URL.match(url)
    return found.group(1).lower() if found else ""


@cache
def filesystem(scheme: str) -> AbstractFileSystem:
    """Return what reaches the places of a scheme; there is one in a process, and any thread may use it.

    Where a store is and who asks for it comes from the environment and the files that its own tools read
    (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ``GOOGLE_APPLICATION_CREDENTIALS``, …), and from fsspec's own
    configuration. Listings are not kept: other processes write too.

    Parameters
    ----------
    scheme : str
        Such as "s3".

    Raises
    ------
    MissingExtraError
        The package behind the scheme is not installed.
    UsageError
        There is no such scheme.
    """
    import fsspec

    try:
        found: AbstractFileSystem = fsspec.filesystem(
            scheme, use_listings_cache=False, skip_instance_cache=True, **_options(scheme)
        )
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        need = f'`pip install "headstart[{extra}]"`' if extra else f"what fsspec asks for ({error})"
        raise MissingExtraError(f"{scheme}:// needs a package that is not installed; run {need}") from error
    except ValueError as error:
        raise UsageError(
            f"nothing is known of {scheme}://; use {', '.join(f'{name}://' for name in EXTRAS)}"
        ) from error
    if scheme == "s3":
        found.retries = 1
    return found


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":  # a read that stands still for long is one that failed; `retried` is what tries again
        once = {"retries": {"total_max_attempts": 1, "mode": "standard"}}
        return {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "max_pool_connections": 64, **once}}
    if scheme in WEB:
        from aiohttp import ClientTimeout

        return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=10, sock_read=60)}}
    return {}


def key_of(url: str) -> str:
    """Return what a file system calls a URL: ``bucket/key`` for most of them, the URL itself for web servers."""
    key: str = filesystem(scheme_of(url))._strip_protocol(url)
    return key


def retried(call: Callable[[], Result], what: str, tries: int = TRIES) -> Result:
    """Return what `call` returns, calling it again after a while where its error is one that passes.

    Waits double from 0.2 s, each shortened by a random share, so that many processes do not come back at once.

    Parameters
    ----------
    call : callable
        Its work is done from the start at each try.
    what : str
        The URL, for the log.
    tries : int, default 6

    Raises
    ------
    OSError
        One that does not pass (`FileNotFoundError`, `PermissionError`, …), or the last one that might have. What a
        library raises beside the kinds that Python knows is one too: `PermissionError` where it lacks credentials.
    """
    for number in range(1, tries + 1):
        try:
            return call()
        except Exception as error:
            if not passes(error):
                told = _as_python_has_it(error)
                if told is error:
                    raise
                raise told from error
            if number == tries:
                raise OSError(f"{printable(what)}: given up after {tries} tries: {error!r}") from error
            wait = FIRST_WAIT * 2 ** (number - 1) * random.uniform(0.5, 1)
            logger.debug("%s: %r; again in %.1f s", printable(what), error, wait)
            time.sleep(wait)
    raise AssertionError("no tries")


def passes(error: BaseException) -> bool:
    """Tell whether an error of a store may be gone at the next try: too many requests, a connection cut, a timeout."""
    if isinstance(error, _FINAL) or _is_refusal(error):
        return False
    return isinstance(error, OSError) or any(kind.__name__ in _PASSING for kind in type(error).__mro__)


def _as_python_has_it(error: Exception) -> Exception:
    """Return an `OSError` for what a library raises beside the kinds that Python knows; anything else as it is."""
    kinds = type(error).__mro__
    if isinstance(error, _FINAL) or not any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in kinds):
        return PermissionError(str(error)) if _is_refusal(error) else error
    lacking = any(word in type(error).__name__ for word in ("Credential", "Token"))
    return PermissionError(str(error)) if lacking else OSError(str(error))


def _is_refusal(error: BaseException) -> bool:
    return type(error) is OSError and str(error).startswith("Forbidden")  # as gcsfs says it


def read_range(url: str, start: int = 0, stop: int | None = None) -> bytes:
    """Read the bytes of an object from `start` to `stop`, the latter excluded, in one request.

    Raises
    ------
    OSError
        As `retried`; also where fewer bytes come than the range has.
    """
    store, key = filesystem(scheme_of(url)), key_of(url)
    whole = {} if start or stop is not None else _WHOLE_READ.get(scheme_of(url), {})

    def read() -> bytes:
        data: bytes = store.cat_file(key, start=start or None, end=stop, **whole)
        if stop is not None and len(data) < stop - start:
            raise ConnectionError(f"{len(data)} bytes came of {stop - start}")
        return data

    return retried(read, url)


def put(url: str, data: bytes, tries: int = TRIES) -> None:
    """Write an object as a whole; one that is there is replaced in that moment.

    Parameters
    ----------
    url : str
    data : bytes
        At most 5 GB.
    tries : int, default 6
        As for `retried`.

    Raises
    ------
    OSError
        As `retried`.
    """
    store, key = filesystem(scheme_of(url)), key_of(url)
    whole = _WHOLE_PUT.get(scheme_of(url), {})
    retried(lambda: store.pipe_file(key, data, **whole), url, tries)
