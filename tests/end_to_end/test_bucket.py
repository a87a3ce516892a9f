"""The whole job with the cache in a bucket, through the command line."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import BACKBONE

from headstart.cache import remote, storage
from headstart.cache.store import FeatureStore, cache_dir


@pytest.fixture
def cache(object_store, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.005)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return f"{object_store.root}/team/cache"


def test_the_job_is_done_in_a_bucket_and_nothing_is_kept_here(headstart, headstart_json, few, cache, tmp_path):
    done = headstart_json("extract", few, "--backbone", BACKBONE, "--cache", cache)
    assert (done["cache"], done["embedded"], done["images"]) == (cache, 36, 36)
    again = headstart_json("extract", few, "--backbone", BACKBONE, "--cache", cache)
    assert (again["embedded"], again["reused"]) == (0, 36)
    status, _, err = headstart("extract", few, "--backbone", BACKBONE, "--cache", f"{cache}/")
    assert status == 0 and f"in {cache}" in err and f"next: headstart fit-head --cache {cache}" in err
    here = headstart_json("extract", few, "--backbone", BACKBONE, "--cache", "local")
    fitted = headstart_json("fit-head", "--cache", cache, "--out", "model")
    assert fitted["val"] == headstart_json("fit-head", "--cache", "local", "--out", "other")["val"]
    assert here["space"] == done["space"]
    scored = headstart_json("evaluate", "model", "--cache", cache)
    assert scored["accuracy"] == fitted["val"]["accuracy"]
    picture = next((few / "val" / "ants").iterdir())
    (predicted,) = headstart_json("predict", "model", picture, "--cache", cache)["predictions"]
    assert predicted["label"] in ("ants", "bees")
    headstart_json("report", "model", "--cache", cache, "--out", "report.html")
    compared = headstart_json("compare", "--backbone", BACKBONE, "--head", "ncm", "--head", "knn", "--cache", cache)
    assert {row["head"] for row in compared["rows"]} == {"ncm", "knn"}
    headstart_json("cache", "export", "features.h5", "--cache", cache)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".headstart", "s3"))) == []


def test_the_environment_names_a_bucket_and_cache_commands_look_after_it(
    headstart, headstart_json, few, cache, monkeypatch, object_store
):
    monkeypatch.setenv("HEADSTART_CACHE", cache)
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.000001")
    done = headstart_json("extract", few, "--backbone", BACKBONE)
    found = headstart_json("cache", "info")
    assert (found["cache"], found["rows"], found["problems"], found["temporary"]) == (cache, 36, [], 0)
    assert found["parts"] > 1
    assert headstart_json("cache", "verify")["parts"] == found["parts"]
    assert headstart_json("cache", "compact", "--now")["parts_after"] == 1
    assert headstart_json("cache", "merge", cache, "--cache", "here")["rows"] == 36
    assert headstart_json("cache", "merge", "here", "--cache", f"{object_store.root}/other")["rows"] == 36
    victim = FeatureStore(cache_dir(cache)).parts(done["space"])[0]
    data = bytearray(storage.read_whole(victim))
    data[len(data) // 2] ^= 1
    remote.put(str(victim), bytes(data))
    bad = headstart_json("cache", "verify", expect=1)["bad"]
    assert [entry["part"] for entry in bad] == [f"spaces/{done['space']}/{victim.name}"]
    assert headstart_json("extract", few, "--backbone", BACKBONE)["embedded"] == 36
    assert headstart_json("cache", "info")["quarantined"] == 1
    assert headstart_json("cache", "remove", "--space", done["space"][:6])["rows"] == 36
    assert headstart_json("cache", "info")["rows"] == 0
    assert headstart("extract", few, "--backbone", BACKBONE, "--dry-run")[0] == 0


def test_a_warm_run_asks_the_store_little(headstart_json, few, cache, object_store, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "600")  # one part, however slow the machine
    headstart_json("extract", few, "--backbone", BACKBONE, "--cache", cache)
    object_store.faults.reset()
    headstart_json("extract", few, "--backbone", BACKBONE, "--cache", cache)
    asked = collections.Counter(method for method, _ in object_store.faults.seen)
    assert asked == {"GET": 11}, asked


def test_python_reaches_a_bucket_too(few, cache, tmp_path, monkeypatch):
    import headstart

    monkeypatch.chdir(tmp_path)
    features = headstart.extract(few, BACKBONE, cache=cache)
    pictures = sorted((few / "val" / "ants").iterdir())
    rows = headstart.FrozenBackbone(BACKBONE, cache=cache).fit_transform(pictures)
    assert rows.shape == (6, 1280) and features.summary()["cache"] == cache
    assert not (tmp_path / ".headstart").exists()
    with pytest.raises(headstart.errors.UsageError, match="has lost a slash"):
        headstart.extract(few, BACKBONE, cache=Path(cache))


def test_processes_share_a_bucket(headstart_json, few, cache):
    done = headstart_json("extract", few, "--backbone", BACKBONE, "--cache", cache, "--processes", 2)
    assert done["embedded"] == 36
    assert headstart_json("cache", "info", "--cache", cache)["rows"] == 36


@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        ("s3://nowhere/cache", 1, "there is no bucket s3://nowhere: make it, or pass --cache with another place"),
        ("https://host/cache", 2, "a cache cannot be at https://host/cache"),
        ("s3:///cache", 2, "names no bucket"),
        ("gs://bucket/cache", 1, 'gs:// needs a package that is not installed; run `pip install "headstart[gs]"`'),
    ],
)
def test_a_place_that_will_not_do_is_one_line(headstart, few, cache, wrong, status, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for words in (("extract", few, "--backbone", BACKBONE), ("cache", "info"), ("fit-head", few)):
        found, out, err = headstart(*words, "--cache", wrong)
        assert (found, out) == (status, "") and said in err and err.splitlines()[-1].startswith("error: "), err


def test_what_the_store_refuses_is_one_line_before_any_picture_is_read(
    headstart, few, cache, object_store, monkeypatch
):
    object_store.faults.reset(forbid="AccessDenied", meets=lambda method, path: method == "PUT")
    found, out, err = headstart("extract", few, "--backbone", BACKBONE, "--cache", cache)
    assert (found, out) == (1, "") and "no permission to write s3://photographs/team/cache" in err
    assert "internal error" not in err and "Traceback" not in err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.filesystem.cache_clear()
    found, out, err = headstart("cache", "info", "--cache", cache)
    assert (found, out) == (1, "") and "cannot reach the store of s3://photographs" in err


def test_a_run_that_is_killed_goes_on_in_the_bucket(headstart_json, few, cache, object_store):
    parts = []  # that were put

    def meets(method, path):
        if method == "PUT" and path.endswith(".h5") and "/spaces/" in path:
            parts.append(path)
        return len(parts) > 2

    object_store.faults.reset(meets=meets, wait=3)
    words = ["extract", few, "--backbone", BACKBONE, "--cache", cache]
    code = "import sys; from headstart.cli import run; run()"
    environment = {**os.environ, "HEADSTART_PART_SECONDS": "0.000001"}
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment)
    try:
        while len(parts) < 3:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    object_store.faults.reset()
    safe = headstart_json("cache", "info", "--cache", cache)["rows"]
    done = headstart_json(*words)
    assert 0 < safe < 36 and (done["embedded"], done["reused"]) == (36 - safe, safe)
