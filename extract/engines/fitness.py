"""Whether the workers of a cluster see what a run needs, by a small file in the cache, and have its version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ... import __version__
from ...cache.publish import discard, publish, sortable_id, temporary_path
from ...cache.remote import is_url
from ..files import os_reason
from ..orders import Token
from .shards import Shards


@contextlib.contextmanager
def shared_token(shards: Shards) -> Iterator[Token]:
    """Keep a token in the cache while the block lasts; one that is left behind is removed as any temporary file is.

    Raises
    ------
    CacheError
        The cache cannot be written.
    """
    path = temporary_path(shards.cache / "shared")
    first = os.path.join(shards.work.base, shards.work.names[int(shards.rows[0][0])])  # noqa: PTH118  (bytes)
    files = tuple(name for name in (first, *shards.weights()) if not is_url(os.fsdecode(name)))
    token = Token(__version__, path, sortable_id().encode("ascii"), files)
    publish(path, token.content)
    try:
        yield token
    finally:
        discard(path)


def lacking(token: Token) -> str:
    """Return what this process lacks to be fit for a run; nothing where it is fit."""
    if __version__ != token.version:
        return f"has headstart {__version__}, and the run is of {token.version}: install the same there"
    folder = token.path.parent
    try:
        content = token.path.read_bytes()
    except OSError as error:
        return f"does not see the cache {folder} ({os_reason(error)}): share it, under the same path"
    if content != token.content:
        return f"has another folder than the cache at {folder}: share it, under the same path"
    for name in token.files:
        try:
            os.stat(name)  # noqa: PTH116  (bytes)
        except OSError as error:
            return f"does not see {os.fsdecode(name)} ({os_reason(error)}): share its folder, under the same path"
    return ""
