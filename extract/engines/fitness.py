"""Whether the workers of a cluster see what a run needs, by a small file in the cache, and have its version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ... import __version__
from ...cache import storage
from ...cache.publish import sortable_id, temporary_path
from ...cache.remote import is_url
from ..elsewhere import locator
from ..files import os_reason
from ..orders import Token
from ..tars import split_member
from .shards import Shards


@contextlib.contextmanager
def shared_token(shards: Shards) -> Iterator[Token]:
    """Keep a token in the cache while the block lasts; one that is left behind is removed as any temporary file is.

    Raises
    ------
    CacheError
        The cache cannot be written.
    """
    path = shards.cache / temporary_path(Path("shared")).name
    first = locator(shards.work.base)(shards.work.names[int(shards.rows[0][0])])
    first = (split_member(first) or (first,))[0]  # a member of a tar is no file; the tar is
    files = tuple(name for name in (first, *shards.weights()) if not is_url(os.fsdecode(name)))
    token = Token(__version__, path, sortable_id().encode("ascii"), files)
    storage.publish(path, token.content)
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):  # it has gone, or the cache has: nobody needs it any more
            storage.delete(path)


def lacking(token: Token) -> str:
    """Return what this process lacks to be fit for a run; nothing where it is fit."""
    if __version__ != token.version:
        return f"has headstart {__version__}, and the run is of {token.version}: install the same there"
    folder = token.path.parent
    try:
        content = storage.read_whole(token.path)
    except OSError as error:
        why = os_reason(error) if error.errno else str(error)
        return f"does not see the cache {folder} ({why}): share it, under the same path"
    if content != token.content:
        return f"has another folder than the cache at {folder}: share it, under the same path"
    for name in token.files:
        try:
            os.stat(name)  # noqa: PTH116  (bytes)
        except OSError as error:
            return f"does not see {os.fsdecode(name)} ({os_reason(error)}): share its folder, under the same path"
    return ""
