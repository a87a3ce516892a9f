"""The body of a request -> pictures in memory: a form with files, or one picture as it is. Nothing goes to the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import printable
from .batcher import FullError
from .limits import Limits, RequestError, busy

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartParser

MAX_NAME = 200  # characters of a file's name that are given back
MAX_FIELDS = 64  # parts of a form that are no files, and are passed over
UNNAMED = "picture"
_HOW = "send files in a form (curl -F image=@a.jpg), or one picture as the body with Content-Type: image/jpeg"


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that was sent.

    Attributes
    ----------
    name : str
        The sender's name of it, made harmless by `harmless_name`.
    data : bytes
        What was sent, whatever it is.
    """

    name: str
    data: bytes


def harmless_name(name: str) -> str:
    r"""Return a sender's name for a file as one short printable line without folders.

    It is only ever given back, never opened. Markup stays as it is: names are text to whoever shows them.

    Examples
    --------
    >>> harmless_name("../../etc/pass\0wd")
    'pass\\x00wd'
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    shown = printable(last)[:MAX_NAME]
    return shown if shown.strip(". ") else UNNAMED


async def read_pictures(
    headers: Mapping[str, str], body: AsyncIterator[bytes], limits: Limits, take: Callable[[int], None]
) -> list[Picture]:
    """Read the pictures of one request.

    Parameters
    ----------
    headers : mapping of str to str
        Of the request; names in any case.
    body : async iterator of bytes
        Is read no further than the limits reach.
    limits : Limits
    take : callable
        Told how many more bytes are about to be kept in memory; raises `FullError` where there is no room for them.

    Returns
    -------
    list of Picture
        At least one.

    Raises
    ------
    RequestError
        400, 413, 415 or 503, with what is wrong in one line.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "send the body as it is, without Content-Encoding")
    _check_announced(headers.get("content-length"), limits)
    chunks = _limited(body, limits, take)
    if kind == "multipart/form-data":
        return await _read_form(headers["content-type"], chunks, limits)
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = bytearray()
        async for chunk in chunks:
            data += chunk
        if not data:
            raise RequestError(400, f"the body is empty; {_HOW}")
        return [Picture(UNNAMED, bytes(data))]
    shown = f"Content-Type {printable(kind)[:80]} is no picture" if kind else "there is no Content-Type"
    raise RequestError(415, f"{shown}; {_HOW}")


def _check_announced(length: str | None, limits: Limits) -> None:
    if length is not None and length.isdecimal() and int(length) > limits.max_bytes:
        raise _too_large(limits)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the body is larger than the limit of {limits.max_bytes} bytes")


async def _limited(body: AsyncIterator[bytes], limits: Limits, take: Callable[[int], None]) -> AsyncIterator[bytes]:
    """Hand a body on, as far as it may reach."""
    size = 0
    async for chunk in body:
        size += len(chunk)
        if size > limits.max_bytes:
            raise _too_large(limits)
        try:
            take(len(chunk))
        except FullError:
            raise busy("too many bytes are being sent at once") from None
        yield chunk


async def _read_form(content_type: str, chunks: AsyncIterator[bytes], limits: Limits) -> list[Picture]:
    from python_multipart.exceptions import FormParserError

    form = _Form(limits)
    size = 0
    try:
        parser = _parser(content_type, form)
        async for chunk in chunks:
            size += len(chunk)
            parser.write(chunk)
    except FormParserError as error:
        raise RequestError(400, f"the form is malformed: {printable(str(error))[:120]}") from None
    if not size:
        raise RequestError(400, f"the body is empty; {_HOW}")
    if not form.ended:
        raise RequestError(400, "the form is malformed: it ends before its last boundary")
    if not form.pictures:
        raise RequestError(400, f"there is no file in the form; {_HOW}")
    return form.pictures


def _parser(content_type: str, form: _Form) -> MultipartParser:
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "the form is malformed: its Content-Type names no boundary")
    callbacks: Any = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    return MultipartParser(boundary, callbacks)


class _Form:
    """Collects the files of a form while it is parsed; what is no file is passed over, up to a number.

    Attributes
    ----------
    pictures : list of Picture
    ended : bool
        Whether the last boundary has come.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name: str | None = None  # of the file that is being read; None where the part is none
        self._data = bytearray()
        self.pictures: list[Picture] = []
        self.ended = False

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._limits.max_pictures + MAX_FIELDS:
            raise self._too_many()
        self._disposition, self._name, self._data = b"", None, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        name = parse_options_header(self._disposition)[1].get(b"filename")
        self._name = None if name is None else name.decode("utf-8", "surrogateescape")
        if self._name is not None and len(self.pictures) >= self._limits.max_pictures:
            raise self._too_many()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._data += data[start:end]

    def on_part_end(self) -> None:
        if self._name or self._data:  # a browser sends a nameless, empty file where none was chosen
            self.pictures.append(Picture(harmless_name(self._name or ""), bytes(self._data)))

    def on_end(self) -> None:
        self.ended = True

    def _too_many(self) -> RequestError:
        return RequestError(413, f"there are more than {self._limits.max_pictures} files in the form")
