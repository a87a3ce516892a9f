"""Pages of a web server that list files: what lies below them, found link by link."""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Iterator
from functools import partial

from ..cache.remote import filesystem
from ..cache.source import Url
from ..errors import DataError, printable
from .bucket import asked

MOST_PAGES = 10_000


def links_below(url: Url) -> Iterator[bytes]:
    """Yield the names of files that a page and those below it link to, relative to the page, as bytes without escapes.

    Only links that lead below the page are followed, and none with a query, which pages have for sorting.

    Raises
    ------
    DataError
        The page cannot be read, or there are more than 10,000 below it.
    """
    store, root = filesystem(url.scheme), f"{url}/"
    waiting, seen, opened = [root], {root}, 0
    while waiting:
        page, opened = waiting.pop(), opened + 1
        if opened > MOST_PAGES:
            raise DataError(f"{printable(str(url))} leads to more than {MOST_PAGES} pages; name one of them as DATA")
        for entry in asked(partial(store.ls, page, detail=True), page):
            link = html.unescape(entry["name"])
            if not link.startswith(root) or "?" in link or "#" in link or link in seen:
                continue
            seen.add(link)
            name = urllib.parse.unquote_to_bytes(link[len(root) :])
            if b".." in name.split(b"/"):  # joined to the page by whoever read it; it leads upwards
                continue
            if link.endswith("/"):
                waiting.append(link)
            else:
                yield name
