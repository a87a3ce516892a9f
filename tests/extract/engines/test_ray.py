"""`extract --engine ray` on a real cluster of one node."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clusters import HIDING, ray_cluster, site, wait_for
from command_line import BACKBONE, add_pictures, headstart, headstart_json, in_own_process, parts, photos, safe_rows
from pictures_that_crash import CRASH, MARK, evil, jpeg

import headstart as package
from headstart.cache.running import announced

pytest.importorskip("ray", reason="the extra ray is not installed")
__all__ = ["headstart", "headstart_json", "photos"]  # fixtures

SMALL = ("--backbone", BACKBONE, "--resize", "64", "--crop", "64")
TASK = b"ray::embed_as_task"  # what Ray calls a process while it does one


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> Path:
    """A folder that no process of the cluster sees."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, hidden):
    folder = tmp_path_factory.mktemp("ray")
    surprises = {**evil(folder / "evil", CRASH)}
    code = (folder / "evil" / "sitecustomize.py").read_text() + HIDING.format(folder=str(hidden))
    with ray_cluster(folder, **{**surprises, **site(folder / "evil", code)}) as found:
        yield found


@pytest.fixture
def engine(cluster) -> tuple[object, ...]:
    return ("--engine", "ray", "--address", cluster, "--workers", 1)


def start_to_work(photos: Path, folder: Path, *options: object) -> subprocess.Popen:
    """Start a run of 196 pictures and wait until parts of several shards are on the disk."""
    add_pictures(photos, 160)
    command = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", "extract", photos]
    words = [*command, "--backbone", BACKBONE, "--batch-size", 4, "--shard-images", 25, *options]
    process = subprocess.Popen(
        list(map(str, words)), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(parts(folder)) > 3 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def processes(mark: bytes) -> list[int]:
    """Return the processes of this machine whose command line has a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def test_a_cluster_gives_the_rows_of_one_process(headstart_json, photos, engine, tmp_path):
    add_pictures(photos, 60)
    (photos / "stripes" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    one = headstart_json("extract", photos, *SMALL, "--cache", "one")
    process, loaded = in_own_process("extract", photos, *SMALL, *engine, "--cache", "many", "--json", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    many = json.loads(process.stdout)
    counts = ("images", "embedded", "reused", "failed", "failures", "spaces", "device")
    assert {name: many[name] for name in counts} == {name: one[name] for name in counts}
    assert (many["engine"], many["shards"], many["retried"]) == ("ray", 7, 0) and many["workers"] in (1, 2)
    rows = [package.extract(photos, BACKBONE, resize=64, crop=64, cache=name).X for name in ("one", "many")]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5, atol=1e-5 * np.abs(rows[0]).max())
    assert "ray" in loaded


def test_a_process_that_is_killed_loses_nothing(photos, tmp_path, engine):
    process = start_to_work(photos, tmp_path, *engine, "--json")
    before = {path: path.read_bytes() for path in parts(tmp_path)}
    wait_for(lambda: processes(TASK))
    os.kill(processes(TASK)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    done = json.loads(out)
    assert (done["embedded"], done["failed"]) == (196, 0) and done["retried"] >= 1
    assert "warning: a process of the Ray cluster ended (WorkerCrashedError): shard " in err and "Traceback" not in err
    assert {path: path.read_bytes() for path in before} == before
    assert 196 <= safe_rows(tmp_path) < 196 + 25


def test_ctrl_c_finishes_the_parts_in_hand(headstart_json, photos, tmp_path, engine):
    process = start_to_work(photos, tmp_path, *engine)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after the work in hand" in err and "Traceback" not in err
    safe = safe_rows(tmp_path)
    assert 0 < safe < 196 and list(announced(tmp_path / ".headstart")) == []
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (196 - safe, safe)


def test_a_picture_that_crashes_its_decoder_is_listed(headstart_json, photos, engine):
    (photos / "stripes" / "zz.jpg").write_bytes(jpeg(MARK))
    done = headstart_json("extract", photos, *SMALL, *engine)
    assert [failure["error"] for failure in done["failures"]] == ["crashes its decoder (SIGSEGV)"]
    assert (done["embedded"], done["failed"]) == (36, 1) and done["retried"] >= 1  # Ray may end a neighbour too


def test_a_node_that_does_not_see_the_cache_is_named(headstart, photos, engine, hidden):
    status, _, err = headstart("extract", photos, *SMALL, *engine, "--cache", hidden / "cache")
    assert status == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: node ")
    assert f"does not see the cache {hidden}/cache (not found): share it, under the same path" in err


def test_a_dry_run_counts_what_can_be_done_at_once(headstart_json, photos, cluster, engine):
    done = headstart_json("extract", photos, *SMALL, *engine, "--dry-run")
    assert (done["engine"], done["workers"], done["shards"]) == ("ray", 2, 3)
    done = headstart_json("extract", photos, *SMALL, "--engine", "ray", "--address", cluster, "--dry-run")
    assert (done["workers"], done["shards"]) == (1, 3), "a task takes the two cores of the node"


def test_a_client_from_elsewhere_needs_a_package_of_its_own(headstart, photos, cluster):
    if importlib.util.find_spec("grpc"):
        pytest.skip("the package is there")
    status, _, err = headstart("extract", photos, *SMALL, "--engine", "ray", "--address", f"ray://{cluster}")
    assert status == 1
    assert err.splitlines()[-1] == f'error: --address ray://{cluster} needs a package; run `pip install "ray[client]"`'


def test_an_address_where_nobody_is(headstart, photos):
    status, _, err = headstart("extract", photos, *SMALL, "--engine", "ray", "--address", "127.0.0.1:9")
    assert status == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: no Ray cluster answers at 127.0.0.1:9 (")


@pytest.mark.slow
def test_a_process_that_has_stopped_holds_nobody_up(photos, tmp_path, engine):
    process = start_to_work(photos, tmp_path, *engine, "--json")
    wait_for(lambda: processes(TASK))
    stopped = processes(TASK)[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        out, err = process.communicate(timeout=90)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert process.returncode == 0, err
    assert json.loads(out)["embedded"] == 196 and "Traceback" not in err


@pytest.mark.slow
def test_a_cluster_whose_head_dies_ends_the_run(photos, tmp_path):
    with ray_cluster(tmp_path) as address:
        process = start_to_work(photos, tmp_path, "--engine", "ray", "--address", address, "--workers", 1)
        (head,) = processes(f"--gcs_server_port={address.rpartition(':')[2]}".encode())
        os.kill(head, signal.SIGKILL)
        _, err = process.communicate(timeout=50)
    assert process.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: the Ray cluster at {address} does not answer any more (")
