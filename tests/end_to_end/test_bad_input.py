import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, draw, in_own_process
from PIL import Image

from headstart.cache.maintain import info


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["extract", "nowhere"], 1, "nowhere"),
        (["extract"], 1, "data"),
        (["extract", "photos", "--backbone", "resnet81"], 1, "resnet18"),
        (["extract", "photos", "--backbone", "timm/nothing_like_it"], 1, "timm/"),
        (["extract", "photos", "--weights", "missing.pth", "--backbone", BACKBONE], 1, "missing.pth"),
        (["extract", "photos", "--layer", "layer9", "--backbone", BACKBONE], 1, "layer9"),
        (["extract", "photos", "--crop", "0"], 2, "--crop"),
        (["extract", "photos", "--resize", "tall"], 2, "'tall' is neither a number above 0 nor 'none'"),
        (["extract", "photos", "--mean", "1,2"], 2, "'1,2' is not three numbers"),
        (["extract", "photos", "--colour"], 2, "--colour"),
        (["extract", "photos", "--device", "cuda"], 1, "device cuda is not available here"),
        (["extrakt"], 2, "extrakt"),
        (["fit-head"], 1, "holds no dataset; run `headstart extract DATA` first"),
        (["fit-head", "photos"], 1, "holds nothing of photos; run `headstart extract photos` first"),
        (["fit-head", "--head", "forest"], 2, "forest"),
        (["fit-head", "--C", "-1"], 2, "--C"),
        (["evaluate"], 2, "MODEL"),
        (["evaluate", "photos"], 1, "photos"),
        (["evaluate", "absent"], 1, "absent"),
        (["predict", "photos", "photos"], 1, "photos"),
        (["predict", "photos"], 2, "PATH"),
        (["backbones", "no-such-name"], 1, "no-such-name"),
    ],
)
def test_a_mistake_gets_one_line_and_its_status(headstart, photos, words, status, said):
    got, out, err = headstart(*words)
    assert got == status, err
    assert said in one_line(err)
    assert out == ""


def test_a_group_alone_shows_what_it_has(headstart):
    status, out, err = headstart("cache")
    assert (status, out) == (2, "")
    assert err.startswith("Usage: headstart cache")
    assert "Show what the cache holds" in err


def test_with_json_a_mistake_is_an_object(headstart):
    status, out, err = headstart("extract", "nowhere", "--json")
    assert status == 1
    error = json.loads(out)["error"]
    assert error["type"] == "DataNotFoundError"
    assert "nowhere" in error["message"]
    assert "error:" not in err


def test_an_unexpected_exception_is_one_line_and_debug_shows_the_traceback(headstart, photos, monkeypatch):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("headstart.extract.job.list_images", broken)
    status, _, err = headstart("extract", photos)
    assert status == 1
    assert one_line(err).startswith("error: internal error: ZeroDivisionError: of all things; run again with --debug")
    _, _, err = headstart("extract", photos, "--debug")
    assert "Traceback" in err


def test_weights_that_cannot_be_downloaded(photos, tmp_path):
    # In a process of its own: urllib remembers the proxies that it first saw.
    hub, nobody = str(tmp_path / "hub"), "http://127.0.0.1:9"
    environment = {"TORCH_HOME": hub, "http_proxy": nobody, "https_proxy": nobody, "no_proxy": ""}
    done, _ = in_own_process("extract", photos, "--backbone", "resnet18", cwd=tmp_path, environment=environment)
    line = one_line(done.stderr)
    assert done.returncode == 1
    assert "resnet18-f37072fd.pth" in line
    assert hub in line
    assert "--weights" in line
    assert not list((tmp_path / "hub").rglob("*.pth"))
    assert info(tmp_path / ".headstart").spaces == ()


def test_broken_files_are_skipped_listed_and_counted(headstart, headstart_json, photos):
    (photos / "circle" / "empty.jpg").write_bytes(b"")
    (photos / "circle" / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    whole = (photos / "circle" / "00.jpg").read_bytes()
    (photos / "circle" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "cross" / "link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "cross" / "fifo.jpg")
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["images"], done["embedded"], done["failed"]) == (41, 36, 5)
    reasons = {Path(row["path"]).name: row["error"] for row in done["failures"]}
    assert reasons["empty.jpg"] == "empty file"
    assert "HTML" in reasons["page.jpg"]
    assert "truncated" in reasons["half.jpg"]
    assert reasons["link.jpg"] == "dangling link"
    assert "not a regular file" in reasons["fifo.jpg"]

    status, _, err = headstart("extract", photos, "--backbone", BACKBONE, "--strict")
    assert status == 1
    assert "5 of 41 images failed" in one_line(err)
    assert "half.jpg: truncated" in err
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"], again["failed"]) == (0, 36, 5)
    (photos / "circle" / "half.jpg").write_bytes(whole + b"\0")
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 1
    assert headstart_json("fit-head")["train"]["n"] > 0


def test_nothing_readable_at_all(headstart, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.jpg").write_bytes(b"")
    status, _, err = headstart("extract", "bad", "--backbone", BACKBONE)
    assert status == 1
    assert "0 of 1 images could be used; the first, bad/1.jpg: empty file" in one_line(err)


def test_a_picture_over_the_limit_is_named_and_the_limit_can_be_raised(headstart_json, photos):
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(photos / "circle" / "large.png")
    done = headstart_json("extract", photos, "--backbone", BACKBONE, "--max-pixels", "50000")
    assert done["failed"] == 1
    assert "--max-pixels" in done["failures"][0]["error"]
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 1


def keep(folder, numbers):
    for path in folder.iterdir():
        if int(path.stem) not in numbers:
            path.unlink()


def test_labels_that_cannot_be_learnt(headstart, headstart_json, photos):
    (photos / "empty").mkdir()
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head")
    assert status == 1
    assert "'empty'" in one_line(err)
    (photos / "empty").rmdir()

    keep(photos / "circle", {0, 1, 2, 3})
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--val-fraction", "0")
    assert status == 1
    line = one_line(err)
    assert "'circle' has 4" in line
    assert "--cv 4" in line
    assert headstart("fit-head", "--val-fraction", "0", "--cv", "4")[0] == 0

    for shape in ("circle", "stripes"):
        keep(photos / shape, set())
        (photos / shape).rmdir()
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--out", "models/two")
    assert status == 1
    assert "cross" in one_line(err)


def test_an_option_without_meaning_for_the_head_is_refused(headstart, headstart_json, photos):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--lr", "0.1")
    assert status == 2
    assert "--lr" in one_line(err)
    assert "logistic" in one_line(err)


def test_a_model_is_not_overwritten_by_accident(headstart, headstart_json, photos, tmp_path):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    out = headstart_json("fit-head")["out"]
    before = (tmp_path / out / "model.json").read_bytes()
    status, _, err = headstart("fit-head")
    assert status == 1
    assert "--overwrite" in one_line(err)
    assert (tmp_path / out / "model.json").read_bytes() == before
    assert headstart("fit-head", "--overwrite")[0] == 0
    status, _, err = headstart("fit-head", "--out", photos, "--overwrite")
    assert status == 1
    assert (photos / "cross" / "00.jpg").exists()


def test_other_classes_are_named(headstart, headstart_json, photos, tmp_path):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    out = headstart_json("fit-head")["out"]
    (photos / "cross").rename(photos / "plus")
    status, _, err = headstart("evaluate", out, photos)
    assert status == 1
    line = one_line(err)
    assert "'cross'" in line
    assert "'plus'" in line


def test_same_bytes_in_two_splits_or_under_two_labels_are_warned_of(headstart, headstart_json, photos, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "val"):
        for shape in ("circle", "cross"):
            (data / split / shape).mkdir(parents=True)
            for number in range(6):
                draw(shape, number + (100 if split == "val" else 0)).save(data / split / shape / f"{number}.png")
    (data / "val" / "cross" / "leak.png").write_bytes((data / "train" / "cross" / "0.png").read_bytes())
    (data / "train" / "circle" / "wrong.png").write_bytes((data / "train" / "cross" / "1.png").read_bytes())
    headstart_json("extract", data, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head")
    assert status == 0
    assert "warning: leakage: 1 images are in train and in another split" in err
    assert "leak.png" in err
    assert "warning: 1 images have two labels" in err
    assert "wrong.png" in err


def start_extract(photos, tmp_path, **environment):
    """Start a slow extraction of many pictures and wait until its first part is on the disk."""
    for seed in range(100, 500):
        draw("circle", seed).save(photos / "circle" / f"{seed}.jpg")
    environment = {**os.environ, "HEADSTART_PART_SECONDS": "0.2", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())",
         "extract", str(photos), "--backbone", BACKBONE, "--batch-size", "8"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / ".headstart").glob("spaces/*/*.h5")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_finishes_the_part_and_the_next_run_goes_on(headstart_json, photos, tmp_path):
    process = start_extract(photos, tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; what was embedded is in the cache, run again to go on" in err
    assert "Traceback" not in err
    done = info(tmp_path / ".headstart")
    safe = sum(space.rows for space in done.spaces)
    assert 0 < safe < 436
    assert done.temporary == 0
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (436 - safe, safe)


def test_kill_loses_at_most_the_part_in_progress(headstart_json, photos, tmp_path):
    process = start_extract(photos, tmp_path)
    assert process.poll() is None, "the victim must be alive"
    process.kill()
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    safe = sum(space.rows for space in info(tmp_path / ".headstart").spaces)
    assert 0 < safe < 436
    again = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (again["embedded"], again["reused"]) == (436 - safe, safe)
