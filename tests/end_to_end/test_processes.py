"""Several processes share the work of a run: the same rows, and the same manners when things go wrong."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, add_pictures, headstart, headstart_json, parts, photos, safe_rows
from pictures_that_crash import CRASH, MARK, evil, jpeg

import headstart as package
from headstart.cache.info import info
from headstart.cache.running import announced
from headstart.extract.device import Device
from headstart.extract.embedder import Embedder
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.scale import processes_for, split_cores
from support import make_space

__all__ = ["headstart", "headstart_json", "photos"]  # fixtures

SMALL = ("--backbone", BACKBONE, "--resize", "64", "--crop", "64")
MEMBER = b"headstart.extract.engines.member"


def start(photos: Path, folder: Path, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())",
         "extract", str(photos), "--backbone", BACKBONE, "--processes", "2", "--batch-size", "4", *options],
        cwd=folder, env={**os.environ, "HEADSTART_PART_SECONDS": "0.05", **(environment or {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_to_work(photos: Path, folder: Path, *options: str) -> tuple[subprocess.Popen, list[int]]:
    """Start a long run of two processes and wait until parts are on the disk; return it and the processes."""
    add_pictures(photos, 400)
    process = start(photos, folder, *options)
    wait_for(lambda: len(parts(folder)) > 1)
    workers = members(process.pid)
    assert len(workers) == 2
    return process, workers


def members(parent: int) -> list[int]:
    """Return the processes that work for `parent`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if MEMBER in (folder / "cmdline").read_bytes() and f"PPid:\t{parent}\n" in (folder / "status").read_text():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def wait_for(what, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def test_two_processes_give_the_rows_of_one(headstart, headstart_json, photos):
    add_pictures(photos, 150)
    (photos / "circle" / "200.jpg").write_bytes((photos / "circle" / "100.jpg").read_bytes())
    (photos / "stripes" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    two = headstart_json("extract", photos, *SMALL, "--processes", 2, "--cache", "two")
    one = headstart_json("extract", photos, *SMALL, "--cache", "one")
    counts = ("images", "embedded", "reused", "failed", "failures", "spaces")
    assert {name: two[name] for name in counts} == {name: one[name] for name in counts}
    assert (two["images"], two["embedded"], two["reused"], two["failed"]) == (187, 185, 1, 1)
    assert two["stages"]["forward"] > 0 and two["bound_by"]
    rows = [package.extract(photos, BACKBONE, resize=64, crop=64, cache=name).X for name in ("one", "two")]
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-5 * np.abs(rows[0]).max())
    again = headstart_json("extract", photos, *SMALL, "--processes", 2, "--cache", "two")
    assert (again["embedded"], again["device"]) == (0, "none")
    assert list(announced(Path("two"))) == []


def test_small_work_starts_no_process(headstart, photos):
    _, _, err = headstart("extract", photos, *SMALL, "--processes", 4)
    assert "processes of" not in err and "36 embedded" in err


def test_several_layers_in_several_processes(headstart_json, photos):
    add_pictures(photos, 40)
    done = headstart_json("extract", photos, *SMALL, "--processes", 2, "--layer", "_blocks.2", "--layer", "fc.input")
    assert [(space["dim"], space["embedded"]) for space in done["spaces"]] == [(24, 76), (1280, 76)]


def test_ctrl_c_finishes_the_parts_of_all_processes(headstart_json, photos, tmp_path):
    process, workers = start_to_work(photos, tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopping after the work in hand" in err
    assert all(ended(worker) for worker in workers)
    safe = safe_rows(tmp_path)
    assert 0 < safe < 436 and info(tmp_path / ".headstart").temporary == 0
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (436 - safe, safe)


def test_processes_end_when_their_parent_is_killed(headstart_json, photos, tmp_path):
    process, workers = start_to_work(photos, tmp_path)
    process.kill()
    process.wait()
    wait_for(lambda: all(ended(worker) for worker in workers), 60)
    assert "Traceback" not in process.stderr.read()
    safe = safe_rows(tmp_path)
    assert 0 < safe < 436
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (436 - safe, safe)


def test_the_death_of_one_is_told_and_its_shard_is_done_by_another(photos, tmp_path):
    process, workers = start_to_work(photos, tmp_path, "--json")
    before = {path: path.read_bytes() for path in parts(tmp_path)}
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (told,) = [line for line in err.splitlines() if "SIGKILL" in line]
    assert re.fullmatch(
        r"warning: process [12] of 2 ended with SIGKILL: shard \d+ of 8 \(5[45] images from \S+ on\) is embedded again, "
        "but for what was published",
        told,
    )
    done = json.loads(out)
    assert (done["images"], done["embedded"], done["failed"], done["retried"]) == (436, 436, 0, 1)
    assert (done["engine"], done["shards"]) == ("local", 8)
    assert {path: path.read_bytes() for path in before} == before
    assert 436 <= safe_rows(tmp_path) < 436 + 55, "no more twice than the images of one shard"
    assert all(ended(worker) for worker in workers)


def test_a_shard_that_ends_three_processes_ends_the_run(photos, tmp_path):
    add_pictures(photos, 100)
    process = start(photos, tmp_path)
    killed: set[int] = set()
    while process.poll() is None:  # whoever comes up is killed
        for member in set(members(process.pid)) - killed:
            os.kill(member, signal.SIGKILL)
            killed.add(member)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and len(killed) < 8
    last = err.splitlines()[-1]
    assert (
        last.startswith("error: 3 processes ended over shard ") and "the last with SIGKILL; what was embedded" in last
    )
    assert "Traceback" not in err


def test_a_picture_that_ends_its_process_is_found_out_within_the_run(photos, tmp_path):
    add_pictures(photos, 100)
    (photos / "stripes" / "zz.jpg").write_bytes(jpeg(MARK))
    process = start(photos, tmp_path, "--json", environment=evil(tmp_path / "site", CRASH))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    done = json.loads(out)
    assert [failure["error"] for failure in done["failures"]] == ["crashes its decoder (SIGSEGV)"]
    assert (done["embedded"], done["failed"], done["retried"]) == (136, 1, 1)
    assert "ended with SIGSEGV: shard " in err


def test_an_error_in_a_process_is_the_error_of_the_run(photos, tmp_path):
    add_pictures(photos, 100)
    cache = tmp_path / ".headstart"
    process = start(photos, tmp_path)
    wait_for(lambda: bool(parts(tmp_path)))
    for folder in cache.glob("spaces/*"):
        folder.rename(tmp_path / "gone")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert err.splitlines()[-1].startswith("error: ") and "went away while it was in use: run again" in err
    assert "Traceback" not in err


def test_ctrl_c_before_anything_was_computed_starts_nothing_more(photos, tmp_path):
    add_pictures(photos, 400)
    process = start(photos, tmp_path)
    wait_for(lambda: bool(members(process.pid)))
    workers = members(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted; ") and "Traceback" not in err
    assert all(ended(worker) for worker in workers)
    assert list(announced(tmp_path / ".headstart")) == []


def test_ctrl_c_twice_stops_all_processes_at_once(headstart_json, photos, tmp_path):
    process, workers = start_to_work(photos, tmp_path, "--resize", "640", "--crop", "640")
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "press Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and all(ended(worker) for worker in workers)
    assert info(tmp_path / ".headstart").temporary == 0


def test_the_file_of_a_dead_run_goes_when_its_suspects_were_tried_in_different_processes(headstart_json, photos):
    add_pictures(photos, 150)
    names = sorted(photos.glob("*/*.jpg"))
    suspects = [hashlib.sha256(names[place].read_bytes()).digest() for place in (0, -1)]
    folder = Path(".headstart/running")
    folder.mkdir(parents=True)
    (folder / "dead.run").write_bytes(b"".join(suspects))
    done = headstart_json("extract", photos, *SMALL, "--processes", 2)
    assert (done["embedded"], done["failed"]) == (186, 0)
    assert list(folder.glob("*.run")) == []


def test_a_full_disk_in_one_of_several_processes_claims_no_count(photos, tmp_path):
    add_pictures(photos, 400)
    program = "import sys; from headstart.cli import main; sys.exit(main())"
    # Members are Pythons of their own: the disk is full for them by way of a site customisation.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "write, left = os.write, [40_000]\n"
        "def limited(descriptor, data):\n"
        "    left[0] -= len(data)\n"
        "    if left[0] < 0: raise OSError(28, 'No space left on device')\n"
        "    return write(descriptor, data)\n"
        "if 'headstart.extract.engines.member' in ' '.join(sys.orig_argv): os.write = limited\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "extract", str(photos), *SMALL, "--processes", "2", "--batch-size", "4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}", "HEADSTART_PART_SECONDS": "0.01"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "disk full writing" in last and "images are safe" not in last and "free ~2 MB and run again" in last
    assert done.stderr.count("disk full") == 1


@pytest.mark.parametrize(
    ("wanted", "images", "count"), [(None, 1000, 1), (3, 1000, 3), (3, 100, 2), (8, 64, 1), (1, 10**6, 1)]
)
def test_how_many_processes(wanted, images, count):
    space = make_space()
    embedder = Embedder([space], [SpaceOptions()], RunOptions(device="cpu", processes=wanted))
    assert processes_for(embedder.run, [embedder], images) == count


@pytest.mark.parametrize(
    ("gpus", "cores", "images", "decoder", "count"),
    [
        (1, 16, 1000, "cpu", 1),
        (1, 16, 50_000, "cpu", 4),
        (1, 16, 50_000, "gpu", 1),
        (1, 6, 50_000, "cpu", 1),
        (2, 16, 50_000, "cpu", 4),
        (2, 16, 30_000, "cpu", 2),
        (4, 64, 10**6, "cpu", 16),
    ],
)
def test_long_runs_get_several_processes_a_gpu(monkeypatch, gpus, cores, images, decoder, count):
    monkeypatch.setattr("headstart.extract.scale.visible_gpus", lambda: [str(number) for number in range(gpus)])
    monkeypatch.setattr("headstart.extract.scale.available_cores", lambda: cores)
    embedder = Embedder([make_space()], [SpaceOptions(decoder=decoder)], RunOptions(device="cpu"))
    monkeypatch.setattr(Embedder, "device", Device("cuda", "a GPU"))
    assert processes_for(embedder.run, [embedder], images) == count


def test_cores_are_divided_between_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6, 8}, raising=False)
    assert split_cores(2) == [[0, 2, 4], [6, 8]]
    assert split_cores(7) == [[0], [2], [4], [6], [8], [0], [2]]
