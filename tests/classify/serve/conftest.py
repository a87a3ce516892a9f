"""A model of real photographs, and servers of it in processes of their own."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import headstart

BACKBONE = "efficientnet_lite0"
CODE = "import sys; from headstart.cli import run; run()"


@dataclass
class Server:
    """A server's process, the port it has, and what it has said up to then."""

    process: subprocess.Popen
    port: int
    said: str

    def connect(self, timeout: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def send(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        """Send bytes as they are; return the status, the headers and the body of the answer."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # refused before all of it was sent
                connection.sendall(data)
            return answer(connection)

    def post(self, body: bytes, kind: str, *more: str) -> tuple[int, dict[str, str], Any]:
        return self.send(request(body, kind, *more))

    def form(self, *files: tuple[str, bytes]) -> tuple[int, dict[str, str], Any]:
        return self.post(form(*files), f"multipart/form-data; boundary={BOUNDARY}")

    def alive(self) -> bool:
        return self.process.poll() is None and self.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """End it; return the exit status and what it said."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said


BOUNDARY = "b0undary"


def request(body: bytes, kind: str, *more: str) -> bytes:
    head = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def form(*files: tuple[str, bytes]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode(
            "utf-8", "surrogateescape"
        )
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Read one answer, to its Content-Length."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split(b" ", 2)[1])
        headers = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers["content-length"]))
    return status, headers, json.loads(body) if headers["content-type"] == "application/json" else body


@contextlib.contextmanager
def serving(model: Path, *words: str, folder: Path) -> Iterator[Server]:
    """Start a server of a model in a folder of its own; end it with the block, where it has not ended."""
    command = [sys.executable, "-c", CODE, "serve", str(model), "--port", "0", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := re.search(r" at http://\S+:(\d+)/ ", line):
                yield Server(process, int(found[1]), said)
                break
        else:
            pytest.fail(f"the server did not start: {said}")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def model(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    headstart.extract(few, backbone=BACKBONE, cache=folder / "cache")
    return headstart.fit_head(few, cache=folder / "cache", out=folder / "ants or bees").out


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was, with narrow limits so that they are quick to reach."""
    words = (
        "--max-bytes",
        2_000_000,
        "--max-pictures",
        8,
        "--timeout",
        2,
        "--coverage",
        ".9",
        "--max-pixels",
        30_000_000,
    )
    folder = tmp_path_factory.mktemp("server")
    with serving(model, *words, folder=folder) as server:
        yield server
        assert not list(folder.iterdir()), "it has written something"


@pytest.fixture(scope="session")
def start(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Start servers with other options."""
    return lambda *words: serving(model, *words, folder=tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="session")
def photograph(few: Path) -> bytes:
    return min((few / "val" / "bees").glob("*.jpg"), key=lambda path: path.stat().st_size).read_bytes()
