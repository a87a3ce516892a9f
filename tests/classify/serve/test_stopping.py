"""How a server begins and ends: one line for each mistake, and what is in flight is finished."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from command_line import in_own_process

from headstart.classify.serve import server as serving
from headstart.classify.serve.guard import is_local
from headstart.classify.serve.limits import Limits
from headstart.cli import main
from headstart.errors import MissingExtraError, UsageError

from .conftest import CODE, answer, request


def run(capsys, *words):
    status = main(["serve", *map(str, words)])
    return status, capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--json",))])
def test_what_is_in_flight_is_finished(start, photograph, number, words):
    with start(*words) as server, server.connect() as asking, server.connect() as idle:
        whole = request(photograph, "image/jpeg")
        asking.sendall(whole[:-100])
        time.sleep(0.3)
        server.process.send_signal(number)
        time.sleep(0.5)
        with pytest.raises(ConnectionError):  # nobody else gets in
            server.connect()
        asking.sendall(whole[-100:])
        status, _, body = answer(asking)
        assert (status, body["predictions"][0]["error"]) == (200, None)
        assert idle.recv(1) == b""
        out, said = server.process.communicate(timeout=20)
        lines = said.strip().split("\n")
        assert server.process.returncode == 0
        assert lines[0] == "stopping: what is in flight is finished first"
        if words:
            assert len(lines) == 1
            told = json.loads(out)
            assert told["url"] == f"http://127.0.0.1:{server.port}/"
            assert [told[name] for name in ("requests", "pictures", "unreadable", "refused", "batches")] == [
                1,
                1,
                0,
                0,
                1,
            ]
        else:
            assert "1 pictures in 1 requests, 0 pictures unreadable, 1 passes" in lines[1]
            assert (len(lines), out) == (2, "")


def test_a_second_ctrl_c_ends_it_at_once(start, photograph):
    with start() as server, server.connect() as asking:
        asking.sendall(request(photograph, "image/jpeg")[:-100])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        began = time.monotonic()
        status, said = server.stop(signal.SIGINT)
        assert time.monotonic() - began < 10
        assert status == 130
        assert said.strip().split("\n")[-1] == "stopped before everything in flight was answered"


def test_a_port_that_is_taken_is_said_before_the_network_is_loaded(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, line = run(capsys, model, "--port", port)
    assert status == 1
    assert line == f"error: port {port} of 127.0.0.1 is in use; pass another --port, or --port 0 for one that is free"


def test_python_is_told_when_it_may_ask(model):
    told = []

    def ready(url):
        told.append(url)
        signal.raise_signal(signal.SIGINT)

    done = serving.serve(model, port=0, on_ready=ready)
    assert told == [done.url]
    assert done.url.startswith("http://127.0.0.1:")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as it was before"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--host", "192.0.2.1"), 1, "192.0.2.1 is no address of this machine"),
        (("--host", "no.such.host.invalid"), 1, "no.such.host.invalid is no address of this machine"),
        (("--port", "70000"), 2, "70000 is not in the range"),
        (("--queue", "3"), 2, "queue must have room for the 64 pictures of a request; got 3"),
        (("--max-wait-ms", "30000"), 2, "max_wait_ms must be 0 or more"),
        (("--timeout", "0"), 2, "0"),
        (("--device", "mps"), 1, "device mps is not available"),
    ],
)
def test_words_that_are_wrong(model, capsys, words, status, said):
    found, line = run(capsys, model, *words)
    assert found == status
    assert said in line


def test_a_model_that_is_none(tmp_path, capsys):
    status, line = run(capsys, tmp_path)
    assert status == 1
    assert "model" in line


@pytest.mark.parametrize(
    "change", [{"max_bytes": 0}, {"max_pictures": True}, {"timeout": float("inf")}, {"connections": 1.5}]
)
def test_limits_that_are_none(change):
    with pytest.raises(UsageError):
        Limits(**change)


def test_libraries_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(MissingExtraError, match=r'serving needs uvicorn: pip install "headstart\[serve\]"'):
        serving.serve("nowhere")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("", False), ("192.168.0.2", False), ("example.org", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host, local):
    assert is_local(host) is local


def test_another_address_than_this_machines_is_warned_of(start):
    with start("--host", "0.0.0.0") as server:
        assert "warning: whoever can reach http://0.0.0.0:" in server.said
        assert "there is no authentication" in server.said
        assert server.send(b"GET /healthz HTTP/1.1\r\nHost: any.name\r\n\r\n")[0] == 200


def test_a_picture_that_ends_the_process_says_where(model, tmp_path, photograph):
    """A decoder that crashes takes the server with it; what it leaves is more than silence."""
    crash = (
        "import headstart.classify.serve.model_runner as m, ctypes; m.decode = lambda *_, **__: ctypes.string_at(0); "
    )
    command = [sys.executable, "-c", crash + CODE, "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        port = next(int(line.split("127.0.0.1:")[1].split("/")[0]) for line in process.stderr if "127.0.0.1:" in line)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request(photograph, "image/jpeg"))
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in said
    assert "in read" in said


def test_nothing_of_the_server_is_imported_by_its_help():
    done, modules = in_own_process("serve", "--help", cwd=".")
    assert done.returncode == 0
    assert not modules & {"torch", "starlette", "uvicorn", "numpy"}
