"""What clients should not send, over plain sockets: each gets one line of JSON, and the next one an answer."""

import io
import socket
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from .conftest import BOUNDARY, answer, form, request

FORM = f"multipart/form-data; boundary={BOUNDARY}"
TIMEOUT = 2  # seconds, of the server


def bomb(width: int, height: int) -> bytes:
    """Return a PNG that says it is so large, with some of the data for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
        + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((300, 200), 80).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _lives_on(server, photograph):
    yield
    status, _, body = server.form(("after.jpg", photograph))
    assert status == 200, body
    assert server.alive()


def refused(found, status: int, said: str) -> dict[str, str]:
    """Check a refusal: the status, one line in JSON with no path of the server's, and headers."""
    got, headers, body = found
    assert got == status, body
    assert list(body) == ["error"]
    assert said in body["error"]
    assert "\n" not in body["error"]
    assert "Traceback" not in body["error"]
    assert ".py" not in body["error"]
    assert headers["content-type"] == "application/json"
    return headers


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"nothing", 415, "not an image"),
        (b"<html><body>", 415, "looks like HTML"),
        (b"\0" * 1000, 415, "not an image"),
        (jpeg()[:2000], 422, "truncated"),
        (bomb(50_000, 50_000), 422, "2500000000 pixels exceed the limit of 30000000"),
        (bomb(5_000, 5_000), 422, "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 500, 422, "PNG"),
        (b"GIF89a" + b"\0" * 100, 422, "GIF"),
    ],
)
def test_bodies_that_are_no_picture(server, data, status, said):
    refused(server.post(data, "image/png"), status, said)
    refused(server.form(("a.png", data)), status, said)


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        ("GET /predict HTTP/1.1\r\nHost: localhost", 405, "wrong method"),
        ("DELETE / HTTP/1.1\r\nHost: localhost", 405, "wrong method"),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: localhost", 404, "no such page"),
        ("GET /page.py HTTP/1.1\r\nHost: localhost", 404, "no such page"),
        ("POST /predict HTTP/1.1\r\nHost: localhost", 415, "no Content-Type"),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 0", 400, "empty"),
        ("GET / HTTP/1.1\r\nHost: evil.example", 421, "does not answer as evil.example"),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example:80", 421, "does not answer"),
        ("GET / HTTP/1.1\r\nHost: a@localhost", 400, "Host"),
        ("GET / HTTP/1.1\r\nHost: [::1", 400, "Host"),
        ("GET / HTTP/1.0", 400, "Host"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example", 403, "other sites"),
        ("GET / HTTP/1.1\r\nHost: localhost:1\r\nOrigin: null", 403, "other sites"),
        ("GET / HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://localhost:2", 403, "other sites"),
        ("GARBAGE", 400, "no HTTP request"),
        ("GET / HTTP/1.1\r\nno colon", 400, "no HTTP request"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "y" * 100_000, 431, "longer than 16384"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "y" * 1_000_000, 400, "longer than 16384"),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1", 400, "no HTTP request"),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6", 400, "no HTTP request"),
    ],
)
def test_heads_that_are_refused(server, head, status, said):
    headers = refused(server.send(head.encode() + b"\r\n\r\n"), status, said)
    if status == 405:
        assert headers["allow"]
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_names_of_this_machine_are_answered(server, host):
    status, headers, body = server.send(f"GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\r\n".encode())
    assert status == 200
    assert b"<h1" in body
    assert "default-src 'none'" in headers["content-security-policy"]


def test_a_body_that_says_it_is_too_large_is_not_waited_for(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9000000000\r\n\r\n"
    headers = refused(server.send(head), 413, "larger than the limit of 2000000 bytes")
    assert headers["connection"] == "close"


def test_a_body_that_is_too_large_is_read_to_hear_why(server):
    refused(server.post(b"x" * 5_000_000, "image/png"), 413, "limit of 2000000 bytes")


def test_a_body_without_end_is_cut_off(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(head)
        sent = 0
        with pytest.raises(ConnectionError):
            while time.monotonic() < began + 20:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
                time.sleep(0.01)
    assert time.monotonic() - began < 15
    with server.connect() as connection:
        connection.sendall(head + b"10000\r\n" + b"x" * 0x10000 + b"\r\n" + b"200000\r\n" + b"x" * 0x200000)
        refused(answer(connection), 413, "limit of 2000000 bytes")


def test_a_broken_chunk_ends_the_request(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    refused(server.send(head + b"zz\r\nrubbish"), 400, "no HTTP request")


def test_ten_thousand_tiny_parts(server):
    files = form(*((f"{number}.jpg", b"x") for number in range(10_000)))
    refused(server.post(files, FORM), 413, "more than 8 files")


def test_a_form_that_breaks_off(server, photograph):
    refused(server.post(form(("a.jpg", photograph))[:-20], FORM), 400, "before its last boundary")


@pytest.mark.parametrize(
    ("name", "given_back"),
    [
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("<img src=x onerror=alert(1)>.jpg", "<img src=x onerror=alert(1)>.jpg"),
        ("a\0b.jpg", None),
        ("a\udcff.jpg", "a\\xff.jpg"),
        ("a" * 3000, "a" * 200),
        ("a" * 100_000, None),
    ],
)
def test_names_of_files(server, photograph, name, given_back):
    status, _, body = server.form((name, photograph))
    if given_back is None:
        assert status in (200, 400), body
    else:
        assert (status, body["predictions"][0]["path"]) == (200, given_back)


def late(server, data: bytes, drip: bytes = b"", until: float = 15) -> tuple[object, float]:
    """Send a beginning, then a drip at a time; return the answer and when it came."""
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(data)
        connection.settimeout(0.2)
        while time.monotonic() < began + until:
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    connection.settimeout(10)
                    return answer(connection), time.monotonic() - began
            except TimeoutError:
                connection.sendall(drip)
        pytest.fail("no answer came")


@pytest.mark.parametrize(
    ("data", "drip"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
    ],
    ids=["nothing", "half a line", "a header at a time", "and then nothing more"],
)
def test_headers_that_do_not_come_to_an_end(server, data, drip):
    if b"\r\n\r\n" in data:  # an answer, and then a second request that never ends
        with server.connect() as connection:
            connection.sendall(data)
            assert answer(connection)[0] == 200
            connection.sendall(b"GET / HT")
            refused(answer(connection), 408, "headers took longer than 2 s")
            assert connection.recv(1) == b""
        return
    found, seconds = late(server, data, drip)
    refused(found, 408, "headers took longer than 2 s")
    assert TIMEOUT - 0.5 < seconds < 10


def test_a_body_that_drips(server):
    head = request(b"x" * 1000, "image/png")[:-1000]
    found, seconds = late(server, head, b"x")
    refused(found, 408, "took longer than 2 s to arrive")
    assert TIMEOUT - 0.5 < seconds < 10


def test_slow_clients_keep_nobody_waiting(server, photograph):
    head = request(b"x" * 1000, "image/png")[:-1000]
    slow = [server.connect() for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(head)
        began = time.monotonic()
        assert server.form(("a.jpg", photograph))[0] == 200
        assert time.monotonic() - began < TIMEOUT
    finally:
        for connection in slow:
            connection.close()


@pytest.fixture(scope="module")
def narrow(start):
    """A server that takes one picture at a time and lets few wait; nothing that happens to it is an error of its own."""
    words = ("--max-pictures", 4, "--queue", 4, "--batch-size", 1, "--timeout", 20, "--allow-host", "pictures.example")
    with start(*words) as server:
        yield server
        status, said = server.stop()
        assert status == 0
        assert "error" not in said


def test_clients_that_leave_cost_nothing(narrow, photograph):
    whole = request(form(("a.jpg", photograph)), FORM)
    for length in [*range(1, len(whole), len(whole) // 30), *[len(whole)] * 30]:
        with narrow.connect() as connection:
            connection.sendall(whole[:length])
    until = time.monotonic() + 10
    while (status := narrow.form(("a.jpg", photograph))[0]) == 503 and time.monotonic() < until:
        time.sleep(0.1)
    assert status == 200


def test_a_full_queue_says_when_to_come_back(narrow, photograph):
    found = []
    ask = [threading.Thread(target=lambda: found.append(narrow.form(*[("a.jpg", photograph)] * 4))) for _ in range(12)]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert narrow.alive()
    full = [each for each in found if each[0] == 503]
    assert full
    for each in full:
        assert refused(each, 503, "waiting already; try again")["retry-after"] == "1"
    done = [body for status, _, body in found if status == 200]
    assert len(done) + len(full) == 12
    assert done
    assert all(len(body["predictions"]) == 4 for body in done)


def test_hosts_that_are_allowed_by_name(narrow):
    assert narrow.send(b"GET / HTTP/1.1\r\nHost: pictures.example\r\n\r\n")[0] == 200
    assert narrow.send(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")[0] == 421
