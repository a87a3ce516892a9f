"""Bodies of requests, whole and broken, in chunks of any size."""

import asyncio

import pytest

from headstart.classify.serve.batcher import Room
from headstart.classify.serve.limits import Limits, RequestError
from headstart.classify.serve.uploads import MAX_NAME, Picture, harmless_name, read_pictures

LIMITS = Limits(max_bytes=1000, max_pictures=3, queue=3)
FORM = "multipart/form-data; boundary=x"
A = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n\r\n--\x00y\r\n'
FIELD = b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
END = b"--x--\r\n"


def read(body: bytes, size: int = 1000, limits: Limits = LIMITS, room: Room | None = None, **headers: str):
    taken = []

    async def chunks():
        for start in range(0, len(body), size):
            taken.append(start)
            yield body[start : start + size]

    async def main():
        with (room or Room(10**9)).share() as take:
            return await read_pictures(
                {name.replace("_", "-"): value for name, value in headers.items()}, chunks(), limits, take
            )

    return asyncio.run(main())


def refused(*args, **more) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(*args, **more)
    return caught.value


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_form_is_the_same_in_chunks_of_any_size(size):
    found = read(A + FIELD + A + END, size, content_type=FORM)
    assert found == [Picture("a.jpg", b"\r\n--\x00y")] * 2


def test_one_picture_may_be_the_body_itself():
    for kind in ("image/jpeg", "IMAGE/x-whatever; q=1", "application/octet-stream"):
        assert read(b"bytes", 2, content_type=kind) == [Picture("picture", b"bytes")]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", {"content_type": FORM}, 400, "empty"),
        (b"", {"content_type": "image/jpeg"}, 400, "empty"),
        (A + END, {}, 415, "there is no Content-Type; send files in a form (curl -F"),
        (A + END, {"content_type": "application/x-www-form-urlencoded"}, 415, "is no picture"),
        (A + END, {"content_type": "text/\x1b[31m"}, 415, "text/\\x1b[31m is no picture"),
        (A + END, {"content_type": "multipart/form-data"}, 400, "no boundary"),
        (A + END, {"content_type": "multipart/form-data; boundary=" + "x" * 500}, 400, "malformed"),
        (A + END, {"content_type": FORM, "content_encoding": "gzip"}, 415, "Content-Encoding"),
        (A, {"content_type": FORM}, 400, "before its last boundary"),
        (A[:50], {"content_type": FORM}, 400, "before its last boundary"),
        (b"garbage", {"content_type": FORM}, 400, "malformed"),
        (b"--x\r\nno header\r\n\r\n" + END, {"content_type": FORM}, 400, "malformed"),
        (FIELD + END, {"content_type": FORM}, 400, "no file"),
        (A.replace(b"a.jpg", b"").replace(b"\r\n--\x00y", b"") + END, {"content_type": FORM}, 400, "no file"),
        (4 * A + END, {"content_type": FORM}, 413, "more than 3 files"),
        (100 * FIELD, {"content_type": FORM}, 413, "more than"),
        (1001 * b"x", {"content_type": "image/png"}, 413, "limit of 1000 bytes"),
        (b"x", {"content_type": "image/png", "content_length": "1001"}, 413, "limit of 1000 bytes"),
    ],
)  # fmt: skip
def test_what_is_refused(body, headers, status, said):
    limits = Limits(max_bytes=100_000, max_pictures=3, queue=3) if body.startswith(FIELD * 2) else LIMITS
    error = refused(body, limits=limits, **headers)
    assert error.status == status
    assert said in str(error)


def test_no_more_is_read_than_the_limit():
    seen = []

    async def endless():
        while True:
            seen.append(1)
            yield b"x" * 100

    async def main():
        with Room(10**9).share() as take:
            await read_pictures({"content-type": "image/png"}, endless(), LIMITS, take)

    with pytest.raises(RequestError, match="1000 bytes"):
        asyncio.run(main())
    assert len(seen) == 11


def test_bytes_of_all_requests_together_are_counted_and_given_back():
    room = Room(50)
    error = refused(60 * b"x", 10, content_type="image/png", room=room)
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})
    assert room.taken == 0


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("a b.jpg", "a b.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.jpg", "a.jpg"),
        ("folder/", "folder"),
        ("..", "picture"),
        ("", "picture"),
        ("/", "picture"),
        ("a\0b\nc\x1b[2J.jpg", "a\\x00b\\nc\\x1b[2J.jpg"),
        ("\udcff.jpg", "\\xff.jpg"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("<img src=x onerror=alert(1)>.jpg", "<img src=x onerror=alert(1)>.jpg"),
        ("蟻🐜.jpg", "蟻🐜.jpg"),
        ("x" * 10_000, "x" * MAX_NAME),
    ],
)
def test_names_are_made_harmless(name, harmless):
    assert harmless_name(name) == harmless
