"""`extract --engine dask` on a real scheduler with real workers: the same rows, whoever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clusters import HIDING, OLDER, dask_cluster, site, wait_for
from command_line import BACKBONE, add_pictures, headstart, headstart_json, in_own_process, parts, photos, safe_rows
from pictures_that_crash import CRASH, MARK, evil, jpeg

import headstart as package
from headstart.cache.running import announced
from headstart.extract.engines import connect

pytest.importorskip("distributed", reason="the extra dask is not installed")
__all__ = ["headstart", "headstart_json", "photos"]  # fixtures

SMALL = ("--backbone", BACKBONE, "--resize", "64", "--crop", "64")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers, one of them with two threads."""
    with dask_cluster(tmp_path_factory.mktemp("dask")) as found:
        found.add(1, threads=2)
        found.add(1)
        yield found


@pytest.fixture
def engine(cluster) -> tuple[object, ...]:
    cluster.keep(2)
    return ("--engine", "dask", "--address", cluster.file)


def start(photos: Path, folder: Path, *options: object, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", "extract", photos]
    words = map(str, [*command, "--backbone", BACKBONE, "--batch-size", "4", *options])
    return subprocess.Popen(
        list(words), cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def start_to_work(photos: Path, folder: Path, *options: object) -> subprocess.Popen:
    """Start a run of 196 pictures and wait until parts of several shards are on the disk."""
    add_pictures(photos, 160)
    process = start(photos, folder, "--shard-images", "25", *options)
    wait_for(lambda: len(parts(folder)) > 3 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def test_a_cluster_gives_the_rows_of_one_process(headstart, headstart_json, photos, engine):
    add_pictures(photos, 60)
    (photos / "circle" / "200.jpg").write_bytes((photos / "circle" / "100.jpg").read_bytes())
    (photos / "stripes" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    what = (photos, *SMALL, "--layer", "_blocks.2", "--layer", "fc.input", "--views", 2, "--augment", "flip")
    many = headstart_json("extract", *what, *engine, "--cache", "many")
    one = headstart_json("extract", *what, "--cache", "one")
    counts = ("images", "embedded", "reused", "failed", "failures", "spaces", "device")
    assert {name: many[name] for name in counts} == {name: one[name] for name in counts}
    assert (many["images"], many["embedded"], many["reused"], many["failed"]) == (98, 4 * 96, 4, 2)
    assert (many["engine"], many["shards"], many["retried"]) == ("dask", 7, 0) and many["workers"] in (1, 2)
    assert (one["engine"], one["workers"], one["shards"], one["retried"]) == ("local", 1, 1, 0)
    found = [
        package.extract(
            photos, BACKBONE, layer=["_blocks.2", None], resize=64, crop=64, views=2, augment="flip", cache=name
        )
        for name in ("one", "many")
    ]
    for ours, theirs in zip(found[0].each, found[1].each, strict=True):
        np.testing.assert_allclose(ours.X, theirs.X, rtol=1e-5, atol=1e-5 * np.abs(ours.X).max())
    hashes = [features.listing.phash for features in found]
    assert np.count_nonzero(hashes[0]) == 97 and (hashes[0] == hashes[1]).all()
    again = headstart_json("extract", *what, *engine, "--cache", "many")
    assert (again["embedded"], again["workers"], again["shards"]) == (0, 0, 0)
    assert list(announced(Path("many"))) == [] and not list(Path("many").glob(".*.tmp"))


def test_from_python_and_several_backbones(headstart, photos, cluster, engine):
    done = package.extract(
        photos, [BACKBONE, "mobilenet_v3_small"], weights="none", resize=64, crop=64, limit=20, engine="dask",
        address=cluster.address, shard_images=5,
    )  # fmt: skip
    assert (done.embedded, done.shards, done.engine) == (40, 4, "dask")
    assert [features.X.shape for features in done.each] == [(20, 1280), (20, 576)]


def test_the_driver_needs_no_torch_where_the_space_is_known(headstart_json, photos, engine, tmp_path):
    headstart_json("extract", photos, *SMALL, "--limit", 2)
    done, loaded = in_own_process("extract", photos, *SMALL, *engine, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 34 and json.loads(done.stdout)["device"] == "cpu"
    assert "torch" not in loaded and "distributed" in loaded


def test_a_dry_run_counts_workers_and_shards(headstart, headstart_json, photos, engine):
    done = headstart_json("extract", photos, *SMALL, *engine, "--dry-run", "--shard-images", 10)
    assert (done["engine"], done["workers"], done["shards"]) == ("dask", 2, 4)
    assert "in 3 shards, for 2 workers of dask" in headstart("extract", photos, *SMALL, *engine, "--dry-run")[2]


def test_workers_that_declare_a_gpu_do_the_work_alone(headstart_json, photos, tmp_path):
    with dask_cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as cluster:
        cluster.add(2, **site(tmp_path / "site", HIDING.format(folder=str(photos / "cross"))))  # would fail
        with_gpu = cluster.add(1, resources="GPU=1")
        done = headstart_json("extract", photos, *SMALL, "--engine", "dask", "--address", cluster.address)
        assert (done["embedded"], done["failed"], done["workers"], done["device"]) == (36, 0, 1, "cpu")
        assert with_gpu[0].poll() is None


def test_strict_and_limit_and_failures(headstart, photos, engine):
    (photos / "circle" / "00.jpg").write_bytes(b"\xff\xd8\xff no picture")
    status, _, err = headstart("extract", photos, *SMALL, *engine, "--strict")
    assert status == 1 and "00.jpg" in err and "Traceback" not in err
    assert safe_rows(Path()) == 35


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_loses_nothing_and_the_others_go_on(photos, tmp_path, cluster, engine, number):
    process = start_to_work(photos, tmp_path, *engine, "--json")
    before = {path: path.read_bytes() for path in parts(tmp_path)}
    cluster.workers[-1].send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    done = json.loads(out)
    assert (done["images"], done["embedded"], done["failed"]) == (196, 196, 0)
    assert "Traceback" not in err and (done["retried"] >= 1 or number == signal.SIGTERM)
    assert done["retried"] == len([line for line in err.splitlines() if " is embedded again, but for " in line])
    assert {path: path.read_bytes() for path in before} == before
    assert 196 <= safe_rows(tmp_path) < 196 + 25, "no more twice than the images of one shard"


def test_a_run_that_is_killed_stops_the_workers_and_the_next_does_the_rest(headstart_json, photos, tmp_path, engine):
    process = start_to_work(photos, tmp_path, *engine)
    assert len(list(announced(tmp_path / ".headstart"))) > 1
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive for _, alive in announced(tmp_path / ".headstart")), 30)
    safe = safe_rows(tmp_path)
    assert 0 < safe < 196
    time.sleep(1)
    assert safe_rows(tmp_path) == safe, "nobody goes on"
    again = headstart_json("extract", photos, "--backbone", BACKBONE, *engine)
    assert (again["embedded"], again["reused"]) == (196 - safe, safe)


def test_ctrl_c_finishes_the_parts_in_hand(headstart_json, photos, tmp_path, engine):
    process = start_to_work(photos, tmp_path, *engine)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after the work in hand" in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted; what was embedded is in the cache")
    safe = safe_rows(tmp_path)
    assert 0 < safe < 196 and list(announced(tmp_path / ".headstart")) == []
    again = headstart_json("extract", photos, "--backbone", BACKBONE, *engine)
    assert (again["embedded"], again["reused"]) == (196 - safe, safe)


@pytest.mark.slow
def test_a_worker_that_has_stopped_holds_nobody_up(photos, tmp_path, cluster, engine):
    process = start_to_work(photos, tmp_path, *engine, "--json")
    cluster.workers[-1].send_signal(signal.SIGSTOP)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        cluster.workers[-1].send_signal(signal.SIGCONT)
    assert process.returncode == 0, err
    assert json.loads(out)["embedded"] == 196


def test_a_worker_that_hangs_from_the_start_holds_nobody_up(headstart, photos, tmp_path, cluster, engine):
    (hanging,) = cluster.add(1)
    hanging.send_signal(signal.SIGSTOP)
    try:
        status, _, err = headstart("extract", photos, *SMALL, *engine)
    finally:
        hanging.send_signal(signal.SIGCONT)
        cluster.remove([hanging])
    assert status == 0, err
    assert "36 embedded" in err


def test_a_worker_that_comes_later_takes_over(photos, tmp_path, cluster, engine):
    cluster.remove(cluster.workers[1:])
    process = start_to_work(photos, tmp_path, *engine, "--json")
    cluster.workers[0].send_signal(signal.SIGSTOP)
    (later,) = cluster.add(1)
    cluster.workers[0].kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (json.loads(out)["embedded"], later.poll()) == (196, None)


@pytest.mark.parametrize(
    ("code", "lacks"),
    [
        (HIDING, "does not see the cache {cache} (not found): share it, under the same path"),
        (OLDER, "has headstart 0.0.9, and the run is of " + package.__version__ + ": install the same there"),
    ],
)
def test_a_worker_that_is_not_fit_is_named_and_passed_by(headstart, photos, tmp_path, cluster, engine, code, lacks):
    cache = tmp_path / ".headstart"
    bad = cluster.add(1, **site(tmp_path / "site", code.format(folder=str(cache)) if "{" in code else code))
    try:
        status, _, err = headstart("extract", photos, *SMALL, *engine)
    finally:
        cluster.remove(bad)
    assert status == 0, err
    (told,) = [line for line in err.splitlines() if line.startswith("warning: worker tcp://127.0.0.1:")]
    assert told.endswith(f"{lacks.format(cache=cache)}; the run goes on without it")
    assert "36 embedded" in err


def test_what_is_lacking_everywhere_ends_the_run(headstart, photos, tmp_path):
    with dask_cluster(tmp_path) as cluster:
        engine = ("--engine", "dask", "--address", cluster.address)
        cluster.add(1, **site(tmp_path / "site", HIDING.format(folder=str(photos))))
        status, _, err = headstart("extract", photos, *SMALL, *engine)
        assert status == 1 and "Traceback" not in err
        assert err.splitlines()[-1].startswith("error: worker tcp://127.0.0.1:")
        assert f"does not see {photos}/circle/00.jpg (not found): share its folder" in err.splitlines()[-1]
        assert safe_rows(tmp_path) == 0


def test_nobody_is_waited_for_without_end(headstart, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "WORKERS_SECONDS", 1.0)
    with dask_cluster(tmp_path) as cluster:
        address = cluster.address
        status, _, err = headstart("extract", photos, *SMALL, "--engine", "dask", "--address", address)
        assert status == 1
        assert f"warning: no worker is connected to the Dask scheduler at {address}: waiting for 1 s" in err
        assert err.splitlines()[-1] == (
            f"error: no worker has connected to the Dask scheduler at {address} in 1 s; start some with "
            f"`dask worker {address}`"
        )


def test_a_picture_that_crashes_its_decoder_ends_one_worker_and_is_listed(photos, tmp_path):
    (photos / "stripes" / "zz.jpg").write_bytes(jpeg(MARK))
    with dask_cluster(tmp_path) as cluster:
        cluster.add(2, **evil(tmp_path / "site", CRASH))
        process = start(photos, tmp_path, "--engine", "dask", "--address", cluster.address, "--json")
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert [worker.poll() for worker in cluster.workers].count(None) == 1
    done = json.loads(out)
    assert [failure["error"] for failure in done["failures"]] == ["crashes its decoder (SIGSEGV)"]
    assert (done["embedded"], done["failed"]) == (36, 1) and done["retried"] >= 1


@pytest.mark.slow
def test_a_shard_that_ends_its_workers_and_a_scheduler_that_dies_end_the_run(photos, tmp_path):
    with dask_cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as cluster:
        cluster.add(2)
        engine = ("--engine", "dask", "--address", cluster.address)
        process = start_to_work(photos, tmp_path, *engine)
        cluster.workers[0].kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("error: 1 workers ended over shard ") and "run again to go on" in last
        process = start(photos, tmp_path, *engine, "--shard-images", "10", "--cache", "other")
        wait_for(lambda: list((tmp_path / "other").glob("spaces/*/*.h5")))
        cluster.scheduler.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1, err
        assert "Traceback" not in err and err.splitlines()[-1].startswith("error: the Dask scheduler ")


def test_an_address_where_nobody_is(headstart, photos, monkeypatch):
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 1)
    status, _, err = headstart("extract", photos, *SMALL, "--engine", "dask", "--address", "tcp://127.0.0.1:9")
    assert status == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: no Dask scheduler answers at tcp://127.0.0.1:9 (")
