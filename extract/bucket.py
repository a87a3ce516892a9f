"""Objects of a store as a listing and a reader need them: which there are, what each is, and its bytes.

An object has no inode and no change time. What tells an unchanged one is put into the same four columns as for a file:
its size, the second in which it was last written, and 63 bits of a hash of its ETag or generation. In place
of the change time, which says from when on the other columns are to be believed, stands 0 where that mark tells every
edit, as in buckets, and the same second where it need not, as on web servers. Where one gives no time either, there
stands `UNKNOWN_TIME`, which no listing ever believes.
"""

from __future__ import annotations

import datetime
import email.utils
import hashlib
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ..cache.bucket import mapped
from ..cache.remote import WEB, filesystem, key_of, retried, scheme_of
from ..cache.source import Url
from ..errors import DataError, DataNotFoundError, DecodeError, printable
from .files import EMPTY_FILE, Stat

Result = TypeVar("Result")

IN_FLIGHT = 32  # requests at a time: at 20 ms each, that is 1,600 a second
MAX_BYTES = 1 << 30  # of one picture
UNKNOWN_TIME = (1 << 63) - 1  # later than any listing: never settled
_TRIES = re.compile(r"given up after \d+ tries")
_SHOWN = 120  # characters of the words of a library
_PAGE = 1000  # keys that S3 lists at a time
_WHOLE_FOR_A_PART = 64 << 20  # bytes that are fetched as a whole, again for each part, where a server knows no ranges
_WORTH_A_LISTING = 64  # objects of one folder
_MOST_IN_VAIN = 20  # objects that are listed for each that is asked for
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified")
# No version: S3 tells it of one object, and not where it lists many.
_MARKS = ("generation", "ETag", "etag", "Content-MD5", "md5Hash", "Digest")


class RefusedError(PermissionError):
    """What a web server answers that another try will not change, such as 403 or 405."""


def objects_below(url: Url) -> Iterator[tuple[bytes, Stat]]:
    """Yield what lies below a URL of a store: names relative to it, and what each is; page by page.

    Raises
    ------
    DataError
        The store cannot be listed: no such bucket, no permission, no network.
    """
    with_slash = str(url) + "/"
    for key, details in _pages(with_slash):
        name = key[len(key_of(with_slash).rstrip("/")) + 1 :]
        if name and not name.endswith("/"):  # a slash at the end: the mark of an empty folder
            yield os.fsencode(name), stat_of_details(details, url.scheme)


def _pages(url: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield keys below a URL, which ends with a slash, and what the store says of each."""
    store = filesystem(scheme_of(url))
    if scheme_of(url) != "s3":
        found = asked(lambda: store.find(key_of(url), detail=True), url)
        yield from found.items()
        return
    bucket, _, prefix = url.partition("://")[2].partition("/")
    more: dict[str, str] = {}
    while True:
        # A page of dictionaries at a time: those of a million objects would take a gigabyte.
        wanted = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _PAGE, **more}
        page = asked(partial(store.call_s3, "list_objects_v2", **wanted), url)
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", entry
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def asked(call: Callable[[], Result], url: str | Url) -> Result:
    """Return what a store answers, asked again where its error passes; an error that stays is a line for people."""
    return told(lambda: retried(lambda: _final(call), str(url)), url)


def told(call: Callable[[], Result], url: str | Url) -> Result:
    """Return what a call returns, and make a line for people of its error.

    Raises
    ------
    DataNotFoundError, DataError
    """
    try:
        return call()
    except FileNotFoundError as error:
        raise DataNotFoundError(f"nothing is there: {printable(str(url))}; check the name") from error
    except OSError as error:
        raise DataError(f"cannot list or read {printable(str(url))}: {reason_of(error)}; {_advice(url)}") from error


def _advice(url: str | Url) -> str:
    if scheme_of(str(url)) == "s3":
        return "check the network, the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and AWS_ENDPOINT_URL"
    return "check the network, the address and who may read it"


def _final(call: Callable[[], Result]) -> Result:
    """Call, and tell errors of a web server that stay from those that pass: fsspec has one kind for both."""
    try:
        return call()
    except Exception as error:
        # Where HEAD fails, for whatever reason, fsspec says "not found", with the truth behind it.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        status = getattr(cause, "status", None)
        if status in (404, 410):
            raise FileNotFoundError(str(error)) from error
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
            raise RefusedError(f"the server answers {status}") from error
        if isinstance(status, int):
            raise ConnectionError(f"the server answers {status}") from error
        if cause is not error and type(cause).__module__.startswith(("aiohttp", "asyncio")):
            raise ConnectionError(f"no answer: {cause!r}") from error
        raise


def reason_of(error: BaseException) -> str:
    """Say in a few words why a store did not give an object."""
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, PermissionError):
        return f"permission denied ({_short(error)})"
    tries = _TRIES.search(str(error))  # behind the URL, which is told anyway, and before the representation of `cause`
    return f"{tries[0]}: {_short(error.__cause__)}" if tries and error.__cause__ else _short(error)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def stat_of_details(details: Mapping[str, Any], scheme: str) -> Stat:
    """Return what tells an unchanged object, from what a store says of it.

    Parameters
    ----------
    details : mapping
        By the names of fsspec's file systems and of S3.
    scheme : str

    Returns
    -------
    tuple of int
        Size, -1 where it is not known; the second of the last write, in nanoseconds; what stands for the change time;
        and 63 bits of a hash of its ETag or generation, 0 where it has none.
    """
    size = next((details[name] for name in ("Size", "size") if details.get(name) is not None), -1)
    second = next((found for name in _TIMES if (found := _second(details.get(name))) is not None), None)
    marks = [str(details[name]).strip('"') for name in _MARKS if details.get(name) not in (None, "", "null")]
    mark = hash63(marks[0].encode()) if marks else 0
    changed = UNKNOWN_TIME if second is None else second
    if mark and scheme not in WEB:  # whose marks may be made of size and second
        changed = 0  # it is of the content or of the write: a later edit shows in it however soon it comes
    return int(size), second or 0, changed, mark


def _second(value: Any) -> int | None:
    """Return a time of a store in ns since 1970, cut to the second: lists and single answers differ in the rest."""
    if isinstance(value, str):
        for read in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
            try:
                value = read(value)
                break
            except (TypeError, ValueError):
                continue
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return int(value) * 1_000_000_000 if isinstance(value, int | float) and not isinstance(value, bool) else None


def hash63(data: bytes) -> int:
    """Return 63 bits of a hash of some bytes, never 0."""
    return (int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1) or 1


def stat_of_object(url: str) -> Stat:
    """Ask a store what one object is.

    Raises
    ------
    OSError
        It is not there, or cannot be asked for.
    """
    store, key = filesystem(scheme_of(url)), key_of(url)
    details = retried(lambda: _final(lambda: store.info(key)), url)
    if details.get("type") == "directory":
        raise FileNotFoundError(url)
    return stat_of_details(details, scheme_of(url))


def examined_objects(urls: Sequence[str]) -> list[tuple[Stat, str | None]]:
    """Return for each object its status and, where it cannot be read, the reason; many are asked for at once."""
    return list(mapped(_examined, urls, IN_FLIGHT))


def examined_all(urls: Sequence[str]) -> list[tuple[Stat, str | None]]:
    """Do the same for any number of objects: those of one folder by listing it, as long as that is cheaper.

    A store lists 1,000 objects in the time in which it tells of one. So a folder is listed where many of its objects
    are asked for, and left again when it turns out to hold far more than these.
    """
    folders: dict[str, list[str]] = {}
    for url in dict.fromkeys(urls):
        folders.setdefault(url.rpartition("/")[0], []).append(url)
    known: dict[str, tuple[Stat, str | None]] = {}
    for folder, inside in folders.items():
        if scheme_of(folder) == "s3" and len(inside) >= _WORTH_A_LISTING:  # others are not listed page by page
            known.update(_examined_by_listing(folder, inside))
    left = [url for url in dict.fromkeys(urls) if url not in known]
    known.update(zip(left, examined_objects(left), strict=True))
    return [known[url] for url in urls]


def _examined_by_listing(folder: str, wanted: Sequence[str]) -> dict[str, tuple[Stat, str | None]]:
    """Return what a folder's listing tells of some objects in it; nothing of those that it does not come to."""
    left, found = set(wanted), dict[str, tuple[Stat, str | None]]()
    try:
        for count, (name, stat) in enumerate(objects_below(Url(folder))):
            url = f"{folder}/{os.fsdecode(name)}"
            if url in left:
                left.discard(url)
                found[url] = stat, None
            if not left or count > _PAGE + _MOST_IN_VAIN * len(wanted):
                break
    except DataError:  # whoever may not list may read: each is asked for by itself
        return {}
    return found


def _examined(url: str) -> tuple[Stat, str | None]:
    try:
        return stat_of_object(url), None
    except OSError as error:
        return (0, 0, 0, 0), reason_of(error)


def read_object(url: str, listed: Stat) -> tuple[bytes, Stat]:
    """Read an object in one request.

    Parameters
    ----------
    url : str
    listed : Stat
        What it was when it was listed; a size of -1 is not known.

    Returns
    -------
    data : bytes
        Never empty.
    stat : Stat
        `listed`, or, where the size shows that it is another object, what that is.

    Raises
    ------
    DecodeError
        It cannot be read, is empty or too large; the message is the reason alone.
    """
    size = listed[0]
    if size > MAX_BYTES:
        raise DecodeError(f"{size} bytes exceed the limit of {MAX_BYTES} for one file")
    if size == 0:
        raise DecodeError(EMPTY_FILE)
    try:
        data = retried(lambda: _whole(url, size), url)
        # One of another size has been replaced since, or what came of it has been cut.
        if size < 0 or len(data) == size:
            found = listed
        else:
            data, found = retried(lambda: _replaced(url), url)
    except OSError as error:
        raise DecodeError(reason_of(error)) from error
    if not data:
        raise DecodeError(EMPTY_FILE)
    return data, found


def _whole(url: str, size: int) -> bytes:
    """Read an object of a known size, and one byte more where it has become larger; of any size where it is -1."""
    # A range from its first byte: for a whole object s3fs would ask for its size first.
    limits = {"start": 0, "end": size + 1} if size >= 0 else {}
    data = _fetched(url, **limits)
    if len(data) > MAX_BYTES:
        raise RefusedError(f"{len(data)} bytes exceed the limit of {MAX_BYTES} for one file")
    return data


def _fetched(url: str, **limits: int) -> bytes:
    """Ask once for an object, or for some bytes of it, in one request."""
    store, key = filesystem(scheme_of(url)), key_of(url)
    in_one = {"max_concurrency": 1} if scheme_of(url) == "s3" and not limits else {}
    data: bytes = _final(lambda: store.cat_file(key, **limits, **in_one))
    return data


def read_part(url: str, start: int, stop: int) -> bytes:
    """Read some bytes of an object in one request.

    Raises
    ------
    OSError
        They cannot be read, or fewer come than were asked for.
    """

    def read() -> bytes:
        data = _fetched(url, start=start, end=stop)
        if len(data) > stop - start:  # the whole, from a server that knows no ranges
            if len(data) > _WHOLE_FOR_A_PART:
                raise RefusedError("the server gives no parts of files, and this one is large: copy it first")
            data = data[start:stop]
        if len(data) < stop - start:
            raise ConnectionError(f"{len(data)} bytes came of {stop - start}")
        return data

    return retried(read, url)


def _replaced(url: str) -> tuple[bytes, Stat]:
    """Read an object of which nothing is known any more, with what it is now."""
    store, key = filesystem(scheme_of(url)), key_of(url)
    found = stat_of_details(_final(lambda: store.info(key)), scheme_of(url))
    if not 0 <= found[0] <= MAX_BYTES:
        raise ConnectionError("its size is not known")
    data = _whole(url, found[0]) if found[0] else b""
    if len(data) != found[0]:
        raise ConnectionError(f"{len(data)} bytes came of {found[0]}")
    return data, found


def unquoted(url: str | Url, name: bytes) -> bytes:
    """Return a name that stands in a URL as it is called: only those of web servers have escapes."""
    return urllib.parse.unquote_to_bytes(name) if scheme_of(str(url)) in WEB else name


def quoted(name: bytes) -> str:
    """Return a name as it stands in the URL of a web server."""
    return urllib.parse.quote(name, safe="/~!$&'()*+,;=:@")
