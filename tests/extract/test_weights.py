"""State dicts of all kinds of files, good and bad; the digest; downloads from a server of our own."""

import hashlib
import http.server
import json
import os
import re
import socket
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headstart.errors import BackboneError, WeightsNotFoundError
from headstart.extract import weights
from headstart.extract.weights import check_hash, fetch, hash_prefix, read_state_dict, weights_digest

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def save(path: Path, content: object) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def assert_same(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_reads_what_was_saved(tmp_path, name):
    assert_same(read_state_dict(save(tmp_path / name, STATE)), STATE)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_unwraps_training_checkpoints(tmp_path, wrapper):
    assert_same(read_state_dict(save(tmp_path / "w.pth", {wrapper: STATE, "epoch": 3})), STATE)


def test_safetensors_do_not_follow_the_file(tmp_path):
    path = save(tmp_path / "w.safetensors", STATE)
    state = read_state_dict(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(state, STATE)


class Code:
    def __reduce__(self):
        return os.system, ("touch " + str(Code.marker),)


def test_pickled_code_is_named_and_not_run(tmp_path):
    Code.marker = tmp_path / "marker"
    path = save(tmp_path / "w.pth", {"a": Code()})
    with pytest.raises(
        BackboneError, match=r"it holds code or objects \((posix|nt)\.system\), which is never run"
    ) as e:
        read_state_dict(path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert not Code.marker.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "html"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, damage):
    path = save(tmp_path / name, STATE)
    whole = path.read_bytes()
    noise = bytes(range(256)) * 4
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "noise": noise, "html": b"<!doctype html>\n<p>404"}
    path.write_bytes(content[damage])
    with pytest.raises(BackboneError) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(f"cannot read weights from {path}: ")
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, WeightsNotFoundError)


def test_every_truncation_is_refused(tmp_path):
    path = save(tmp_path / "w.pth", STATE)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(BackboneError):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds a list, wanted a dict of tensors; save the network's state_dict()"),
        ({"a": 1.5}, "'a' is a float, wanted a dense tensor; save only the state_dict()"),
        ({}, "it holds no tensors; save the network's state_dict()"),
    ],
)
def test_files_without_tensors_are_refused(tmp_path, content, message):
    path = save(tmp_path / "w.pth", content)
    with pytest.raises(BackboneError) as caught:
        read_state_dict(path)
    assert str(caught.value) == f"cannot read weights from {path}: {message}"


def test_missing_files_folders_and_other_suffixes(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"no\.pth: no such file"):
        read_state_dict(tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        read_state_dict(tmp_path)
    other = tmp_path / "w.bin"
    other.touch()
    with pytest.raises(BackboneError, match=r"the name must end in \.safetensors, \.pt or \.pth"):
        read_state_dict(other)


def test_old_torch_reads_no_pickles(tmp_path, monkeypatch):
    path = save(tmp_path / "w.pth", STATE)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(BackboneError, match=r"need torch 2\.10 or newer, this is 2\.9\.1\+cpu"):
        read_state_dict(path)
    assert_same(read_state_dict(save(tmp_path / "w.safetensors", STATE)), STATE)


def test_digest_is_what_it_says():
    header = json.dumps(["a.weight", "float32", [2, 3]]).encode() + b"\n"
    values = b"".join(STATE["a.weight"][i, j].numpy().astype("<f4").tobytes() for i in range(2) for j in range(3))
    last = json.dumps(["b", "int64", []]).encode() + b"\n" + (3).to_bytes(8, "little")
    assert weights_digest(STATE.items()) == hashlib.sha256(header + values + last).hexdigest()
    assert weights_digest(reversed(STATE.items())) == weights_digest(STATE.items())


def test_digest_changes_with_everything_that_matters_and_nothing_else():
    tensor = torch.arange(24.0).reshape(1, 2, 3, 4)
    base = weights_digest([("w", tensor)])
    assert weights_digest([("w", tensor.clone().to(memory_format=torch.channels_last))]) == base
    assert weights_digest([("w", tensor.clone().requires_grad_())]) == base
    nudged = tensor.clone()
    nudged.view(-1)[7] = torch.nextafter(nudged.view(-1)[7], torch.tensor(99.0))
    others = [("v", tensor), ("w", tensor.double()), ("w", tensor.reshape(2, 12)), ("w", nudged)]
    assert len({base, *(weights_digest([other]) for other in others)}) == 5


# --- downloads ---

CONTENT = b"these stand for weights" * 1000
GOOD_NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = CONTENT[: len(CONTENT) // 2] if "truncated" in self.path else CONTENT
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub" / "checkpoints"


def test_a_download_lands_once_under_its_name(server, folder):
    path = fetch(f"{server}/{GOOD_NAME}", backbone="net")
    assert path == folder / GOOD_NAME
    assert path.read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == [GOOD_NAME]
    # The second time no server is needed.
    assert fetch(f"http://127.0.0.1:9/{GOOD_NAME}", backbone="net") == path


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("net-00000000.pth", f"what came has SHA-256 {hashlib.sha256(CONTENT).hexdigest()[:8]}"),
        ("truncated/" + GOOD_NAME, "the connection ended after 11500 of 23000 bytes"),
        ("truncated/plain.pth", "the connection ended after 11500 of 23000 bytes"),
        ("absent/" + GOOD_NAME, "HTTP Error 404|Not Found"),
    ],
)
def test_f48_a_bad_download_leaves_nothing(server, folder, where, reason):
    with pytest.raises(WeightsNotFoundError, match=reason) as caught:
        fetch(f"{server}/{where}", backbone="net")
    assert list(folder.iterdir()) == []
    assert "\n" not in str(caught.value)


def test_f48_no_network_says_what_is_missing_and_both_ways_to_put_it_there(folder):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{GOOD_NAME}"
    with pytest.raises(WeightsNotFoundError) as caught:
        fetch(url, backbone="net")
    assert isinstance(caught.value, FileNotFoundError)
    assert re.sub(r"\[Errno \d+\]", "[Errno]", str(caught.value)) == (
        f"the weights {GOOD_NAME} (SHA-256 {GOOD_NAME[4:12]}...) of net are not in {folder} and could not be"
        f" downloaded from {url}: [Errno] Connection refused; run `headstart backbones --download net` on a"
        " machine with a network and copy the file into that folder, or give a copy with --weights FILE"
    )
    assert list(folder.iterdir()) == []


def test_a_truncated_earlier_download_is_named_not_loaded(folder):
    folder.mkdir(parents=True)
    (folder / GOOD_NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(BackboneError, match=r"are damaged or incomplete: SHA-256 \w{8}, wanted") as caught:
        fetch(f"http://127.0.0.1:9/{GOOD_NAME}", backbone="net")
    assert str(folder / GOOD_NAME) in str(caught.value)
    assert str(caught.value).endswith("delete it and run `headstart backbones --download net`")


def test_a_silent_server_does_not_hold_the_user_for_minutes(folder, monkeypatch):
    monkeypatch.setattr(weights, "_NETWORK_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(WeightsNotFoundError, match="timed out"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/{GOOD_NAME}", backbone="net")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("resnet18-f37072fd.pth", "f37072fd"),
        ("alexnet-owt-7be5be79.pth", "7be5be79"),
        ("mnasnet0.5_top1_67.823-3ffadce67e.pth", "3ffadce67e"),
        ("efficientnet_b0_rwightman-7f5810bc.pth", "7f5810bc"),
        ("mine.pth", None),
        ("net-beef.pth", None),
    ],
)
def test_hash_in_a_name(name, prefix):
    assert hash_prefix(name) == prefix


def test_a_file_without_hash_in_its_name_is_not_checked(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"anything")
    check_hash(path, "unused")
