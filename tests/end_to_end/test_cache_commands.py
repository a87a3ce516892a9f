import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import BACKBONE, draw, in_own_process

from headstart.cache.info import info
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore


@pytest.fixture
def extracted(headstart_json, photos):
    return headstart_json("extract", photos, "--backbone", BACKBONE)


def tree(root: Path) -> dict[Path, tuple[bytes, int]]:
    return {p.relative_to(root): (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def test_cache_commands_import_no_torch_and_no_pillow(extracted, tmp_path):
    for words in (
        ["info"], ["verify"], ["compact", "--prune"], ["export", "x.h5"], ["merge", ".headstart"], ["remove"],
    ):  # fmt: skip
        done, loaded = in_own_process("cache", *words, cwd=tmp_path)
        assert done.returncode == {"merge": 2, "remove": 2}.get(words[0], 0), done.stderr
        assert not loaded & {"torch", "torchvision", "sklearn", "scipy"}, words


def test_verify_counts_and_its_exit_status_tells(extracted, headstart, headstart_json, tmp_path):
    good = headstart_json("cache", "verify")
    assert (good["rows"], good["bad"], good["sampled"], good["max_difference"]) == (36, [], 0, None)
    part = next((tmp_path / ".headstart").glob("spaces/*/*.h5"))
    part.write_bytes(part.read_bytes()[:-7])
    status, out, _ = headstart("cache", "verify", "--json")
    found = json.loads(out)
    assert status == 1
    assert [row["part"] for row in found["bad"]] == [str(part.relative_to(tmp_path / ".headstart"))]
    status, out, _ = headstart("cache", "verify")
    assert (status, "all good" in out) == (0, True)


def test_a_sample_is_embedded_anew_and_a_row_that_lies_is_found(extracted, headstart, headstart_json, photos, tmp_path):
    found = headstart_json("cache", "verify", "--sample", "5")
    assert found["sampled"] == 5
    assert 0 <= found["max_difference"] < 1e-5
    assert headstart_json("cache", "verify", "--sample", "1000")["sampled"] == 36
    (photos / "circle" / "00.jpg").unlink()
    draw("circle", 300).save(photos / "circle" / "01.jpg")
    status, _, err = headstart("cache", "verify", "--sample", "1000")
    assert status == 0
    assert "only 34 images are still there with the bytes that were embedded" in err

    headstart_json("cache", "remove", "--dataset", photos)
    assert headstart_json("cache", "verify", "--sample", "3")["sampled"] == 0, "there is nothing to draw from"
    headstart_json("extract", photos, "--backbone", BACKBONE)

    # Rows that are whole by every hash and yet not those of their pictures, as only a defect of ours could make them.
    store = FeatureStore(tmp_path / ".headstart")
    (space,) = store.spaces().values()
    index, paths = store.index(space.id)
    rows = store.gather(space.id, index.keys)
    for path in paths:
        path.unlink()
    with store.writer(space) as writer:
        writer.add(Keys.plain(np.roll(index.keys.digest, 1, axis=0)), rows)
    status, out, _ = headstart("cache", "verify", "--sample", "5")
    assert status == 1
    assert "differs by" in out


def test_compact_keeps_what_training_needs(extracted, headstart, headstart_json, photos, tmp_path):
    fit = headstart_json("fit-head")
    draw("cross", 400).save(photos / "cross" / "new.jpg")
    headstart_json("extract", photos, "--backbone", BACKBONE)
    draw("cross", 401).save(tmp_path / "other.jpg")
    headstart_json("predict", fit["out"], tmp_path / "other.jpg")
    (photos / "cross" / "00.jpg").unlink()
    headstart_json("extract", photos, "--backbone", BACKBONE)
    assert headstart_json("cache", "info")["orphans"] == 2
    done = headstart_json("cache", "compact")
    assert (done["parts_after"], done["rows"], done["pruned"]) == (1, 38, 0)
    status, _, err = headstart("cache", "compact", "--prune", "--now")
    assert status == 0
    assert "pruned 2 rows of images that no listing has any more" in err
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 0
    assert headstart_json("fit-head", "--overwrite")["val"] is not None
    assert headstart_json("cache", "verify")["bad"] == []


def test_a_cache_from_another_machine_serves_here(extracted, headstart_json, photos, tmp_path, monkeypatch):
    (tmp_path / "laptop").mkdir()
    monkeypatch.chdir(tmp_path / "laptop")
    done = headstart_json("cache", "merge", tmp_path / ".headstart")
    assert (done["rows"], len(done["datasets"])) == (36, 1)
    shutil.rmtree(photos)
    shutil.rmtree(tmp_path / ".headstart")
    assert headstart_json("fit-head")["train"]["n"] > 20
    assert headstart_json("cache", "merge", "nothing-here", expect=1)["error"]["type"] == "CacheMissError"


def test_export_of_the_latest_dataset_and_space_or_those_named(extracted, headstart, headstart_json, photos, tmp_path):
    headstart_json("extract", photos, "--backbone", BACKBONE, "--crop", "96", "--resize", "96")
    done = headstart_json("cache", "export", "latest.h5")
    named = headstart_json("cache", "export", "named.h5", photos, "--crop", "224")
    assert (done["rows"], done["dim"]) == (36, 1280)
    assert done["space"] != named["space"] == extracted["space"]
    with h5py.File(tmp_path / "named.h5") as file:
        assert file["embedding"].shape == (36, 1280)
        assert file["path"][0] == b"circle/00.jpg"
        assert file["label"][0] == b"circle"
        assert list(file.attrs["classes"]) == ["circle", "cross", "stripes"]
    assert headstart("cache", "export", "named.h5")[0] == 1
    assert headstart("cache", "export", "named.h5", "--overwrite")[0] == 0
    status, _, err = headstart("cache", "export", "x.h5", "--backbone", "resnet50")
    assert status == 1
    assert "was not extracted with backbone resnet50" in err


def test_remove_by_space_and_by_dataset(extracted, headstart, headstart_json, photos):
    headstart_json("extract", photos, "--backbone", BACKBONE, "--crop", "96", "--resize", "96")
    assert headstart_json("cache", "remove", "--space", extracted["space"][:8])["rows"] == 36
    assert len(headstart_json("cache", "info")["spaces"]) == 1
    done = headstart_json("cache", "remove", "--dataset", photos)
    assert done["listings"] == 2
    status, _, err = headstart("fit-head")
    assert status == 1
    assert "holds no dataset" in err
    assert headstart_json("extract", photos, "--backbone", BACKBONE, "--crop", "96", "--resize", "96")["embedded"] == 0


def test_info_says_when_a_space_was_last_used(extracted, headstart_json, tmp_path):
    import os

    (before,) = headstart_json("cache", "info")["spaces"]
    os.utime(tmp_path / ".headstart" / "spaces" / before["id"] / "space.json", (1, 1))
    assert headstart_json("cache", "info")["spaces"][0]["used"] == 1, "to look is not to use"
    headstart_json("fit-head")
    assert headstart_json("cache", "info")["spaces"][0]["used"] >= before["used"]


DRY = ["--dry-run", "--json"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(extracted, headstart, headstart_json, photos, tmp_path):
    draw("circle", 100).save(photos / "circle" / "new.png")
    draw("circle", 101).save(photos / "circle" / "03.jpg")
    before = tree(tmp_path / ".headstart")
    plan = headstart_json("extract", photos, "--backbone", BACKBONE, "--dry-run")
    assert (plan["images"], plan["new"], plan["changed"], plan["missing"]) == (37, 1, 1, 0)
    assert plan["reused"] + plan["to_read"] == 37
    assert plan["space"] == extracted["space"]
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE, "--dry-run")
    assert status == 0
    assert "1 new, 1 changed by size, time or inode" in err
    plan = headstart_json("extract", photos, "--backbone", BACKBONE, "--dry-run", "--crop", "160", "--resize", "160")
    assert (plan["missing"] + plan["to_read"], plan["reused"]) == (37, 0)
    assert tree(tmp_path / ".headstart") == before
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 2


def test_a_dry_run_on_an_empty_cache_makes_none(headstart_json, photos, tmp_path):
    plan = headstart_json("extract", photos, "--backbone", BACKBONE, "--dry-run")
    assert (plan["new"], plan["to_read"], plan["missing"], plan["failed"]) == (36, 36, 0, 0)
    assert not (tmp_path / ".headstart").exists()


def test_a_dry_run_downloads_nothing(headstart_json, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    plan = headstart_json("extract", photos, "--backbone", "resnet18", "--dry-run")
    assert (plan["space"], plan["to_read"]) == (None, 36)
    assert not (tmp_path / "hub").exists()


def test_f38_f39_a_miss_says_what_differs(extracted, headstart, headstart_json, photos):
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE, "--resize", "160", "--crop", "160")
    assert status == 0
    assert "cached with --resize 256 --crop 224, asked for --resize 160 --crop 160" in err
    done = headstart_json("extract", photos, "--backbone", BACKBONE, "--store-dtype", "float16")
    assert done["misses"] == [
        {"space": extracted["space"], "images": 36,
         "why": "cached with --store-dtype float32, asked for --store-dtype float16"}
    ]  # fmt: skip
    done = headstart_json("extract", photos, "--backbone", BACKBONE, "--weights", "none")
    assert [miss["why"].split(":")[0] for miss in done["misses"]] == ["weights changed"]
    assert "…" in done["misses"][0]["why"]
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["misses"] == []


def test_f39_other_versions_of_what_reads_pictures_are_warned_of(extracted, headstart, photos, tmp_path):
    path = next((tmp_path / ".headstart").glob("spaces/*/space.json"))
    content = json.loads(path.read_text())
    content["facts"]["pillow"] = "9.0.1"
    path.write_text(json.dumps(content))
    _, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert "pillow" not in err, "nothing is read, nothing is warned of"
    draw("circle", 100).save(photos / "circle" / "new.png")
    _, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert "warning: the embeddings in space" in err
    assert "were begun with pillow 9.0.1, this is" in err
    assert "headstart cache verify --sample 20" in err


def test_f07_where_nothing_can_be_written_the_backbone_is_not_even_loaded(headstart, photos, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    def never(*_arguments, **_options):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr("os.mkdir", refuse)
    monkeypatch.setattr("headstart.extract.network.load_backbone", never)
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert status == 1
    assert "error: cache .headstart is read-only: pass --cache with a folder that can be written" in err


def test_a_damaged_latest_listing_is_not_passed_over_in_silence(extracted, headstart, headstart_json, photos, tmp_path):
    draw("circle", 101).save(photos / "circle" / "03.jpg")
    headstart_json("extract", photos, "--backbone", BACKBONE)
    latest = max((tmp_path / ".headstart").glob("datasets/*/*.h5"))
    data = bytearray(latest.read_bytes())
    data[700] ^= 1
    latest.write_bytes(data)
    status, _, err = headstart("fit-head")
    assert status == 1
    assert f"run `headstart extract {photos}` to list the images anew, or `headstart cache verify`" in err
    assert headstart("cache", "verify")[0] == 1
    assert headstart("fit-head")[0] == 0, "set aside on purpose, the one before it serves"
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 0
    assert info(tmp_path / ".headstart").quarantined == 1
