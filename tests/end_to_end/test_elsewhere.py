"""All commands that take DATA, on pictures that are not on this machine."""

import io
import sys
from pathlib import Path

import pytest
from object_store import ObjectStore
from PIL import Image
from remote_pictures import hold, upload
from tar_files import samples_of, tar_of

NETWORK = ("--backbone", "mobilenet_v3_small")
SMALL = (*NETWORK, "--weights", "none", "--resize", "32", "--crop", "32", "--batch-size", "8")


@pytest.fixture
def bucket(object_store: ObjectStore, few: Path) -> str:
    upload(few, f"{object_store.root}/photos")
    for split in ("train", "val"):
        content = tar_of(samples_of(sorted((few / split).rglob("*.jpg"))))
        hold(f"{object_store.root}/shards/{split}-0000.tar", content)
    return object_store.root


def test_a_dataset_in_a_bucket_from_extract_to_report(headstart, headstart_json, bucket, tmp_path) -> None:
    photos = f"{bucket}/photos"
    assert headstart_json("extract", photos, *SMALL)["embedded"] == 36
    assert headstart_json("extract", photos, *SMALL, "--dry-run")["to_read"] == 0
    fitted = headstart_json("fit-head", photos)
    assert fitted["out"] == "models/photos-mobilenet_v3_small-logistic" and fitted["val"]["n"] == 12
    model = fitted["out"]
    scored = headstart_json("evaluate", model, photos)
    assert scored["n"] == 12 and headstart_json("evaluate", model)["n"] == 12
    assert all(error["path"].startswith(f"{photos}/val/") for error in scored["errors"])
    assert headstart_json("evaluate", model, "--views", "2")["n"] == 12  # whose views are made of the pictures
    written = headstart_json("report", model)
    page = Path(written["out"]).read_text()
    assert written["bytes"] > 20_000 and page.count("data:image/webp") + page.count("UklG") > 10  # thumbnails
    assert headstart_json("show", photos, "--per-class", "3")["classes"] == {"ants": 3, "bees": 3}
    assert Image.open("samples.png").size[0] > 200
    compared = headstart_json("compare", photos)
    assert compared["rows"][0]["backbone"] == "mobilenet_v3_small"
    assert headstart_json("cache", "info")["datasets"][0]["root"] == photos
    assert headstart("cache", "verify", "--sample", "3")[0] == 0
    assert headstart("cache", "remove", "--dataset", photos)[0] == 0


def test_pictures_in_a_bucket_are_predicted_sorted_and_drawn(headstart, headstart_json, bucket, few, tmp_path) -> None:
    photos, shards = f"{bucket}/photos", f"{bucket}/shards"
    headstart_json("extract", shards, *SMALL)
    model = headstart_json("fit-head", shards)["out"]
    one = sorted(path.relative_to(few) for path in few.rglob("*.jpg"))[0]
    rows = headstart_json("predict", model, f"{photos}/{one}", f"{photos}/val", few / "val" / "ants")["predictions"]
    assert len(rows) == 1 + 12 + 6 and not [row for row in rows if row["error"]]
    assert rows[-1]["path"].startswith("s3://") and {row["label"] for row in rows} <= {"ants", "bees"}
    rows = headstart_json("predict", model, f"{shards}/val-0000.tar")["predictions"]
    assert [row["path"] for row in rows] == [f"{shards}/val-0000.tar/{number:06d}.jpg" for number in range(12)]
    words = ("--sort-into", "sorted", "--grid", "grid.png")
    assert headstart("predict", model, f"{shards}/val-0000.tar", f"{photos}/{one}", *words)[0] == 0
    assert len(list(Path("sorted").rglob("*.jpg"))) == 13 and Path("grid.png").stat().st_size > 10_000


def test_finetune_on_a_bucket(headstart_json, bucket) -> None:
    for data in (f"{bucket}/photos", f"{bucket}/shards"):
        words = (*NETWORK, "--weights", "none", "--resize", "32", "--crop", "32", "--epochs", "1", "--train", "head")
        tuned = headstart_json("finetune", data, *words)
        assert tuned["val"]["n"] == 12 and tuned["epochs"] == 1


def test_words_that_are_wrong_are_one_line(headstart, bucket) -> None:
    for data, wanted, status in (
        (f"{bucket}/none", "nothing is there", 1),
        ("nowhere://bucket/x", "nothing is known of nowhere://", 2),
        ("s3://no-such-bucket/x", "nothing is there", 1),
        (f"{bucket}/shards/train.tar.gz", "compressed tar", 1),
        ("s3:/photographs/photos", "has lost a slash", 2),
    ):
        found, _, said = headstart("extract", data, *SMALL)
        assert (found, said.count("\n")) == (status, 1), said
        assert said.startswith("error: ") and wanted in said
    status, _, said = headstart("fit-head", f"{bucket}/photos")
    assert status == 1 and f"run `headstart extract {bucket}/photos` first" in said


def test_paths_of_a_list_may_be_urls(headstart_json, bucket, few, monkeypatch) -> None:
    headstart_json("extract", f"{bucket}/photos", *SMALL)
    model = headstart_json("fit-head")["out"]
    names = [f"{bucket}/photos/{path.relative_to(few)}" for path in sorted(few.rglob("*.jpg"))[:3]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    assert [row["path"] for row in headstart_json("predict", model, "-")["predictions"]] == names
