"""`show` and `predict --grid`: the pictures that the tutorials end with, from real photographs."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, in_own_process
from PIL import Image

import headstart as package
from headstart.classify.lettering import GREEN, RED


def pixels(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def count(image, colour):
    return int((image == colour).all(axis=2).sum())


def test_sample_pictures_of_real_photographs(samples, headstart):
    status, out, err = headstart("show", samples / "hymenoptera")
    assert (status, out) == (0, "")
    assert err.startswith("wrote samples.png: 10 of 398 images, 2 classes")
    image = pixels("samples.png")
    assert image.shape[1] == 880
    ground = count(image, (240, 242, 244)) + count(image, (255, 255, 255))
    assert 0.3 < 1 - ground / image[..., 0].size < 0.95, "photographs fill a good part of the page"


def test_a_split_can_be_shown_and_is_named(samples, headstart, headstart_json):
    done = headstart_json("show", samples / "hymenoptera", "--split", "val", "--per-class", 3)
    assert done["classes"] == {"ants": 3, "bees": 3}
    assert (done["split"], done["n_images"], done["failures"]) == ("val", 153, [])
    assert done["bytes"] == os.path.getsize(done["out"])  # noqa: PTH202
    _, _, err = headstart("show", samples / "hymenoptera", "--split", "val", "--overwrite")
    assert "10 of 153 images of the val split" in err
    status, _, err = headstart("show", samples / "hymenoptera", "--split", "test", "--overwrite")
    assert (status, err) == (1, f"error: {samples}/hymenoptera has no test split: it has train and val\n")


def test_the_seed_chooses_and_the_choice_stays_as_pictures_come(headstart, photos):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        assert headstart("show", photos, "--seed", seed, "-o", f"{name}.png")[0] == 0
    assert (pixels("a.png") == pixels("again.png")).all()
    assert (pixels("a.png") != pixels("b.png")).any()
    shutil.copytree(photos, "moved")
    headstart("show", "moved", "-o", "moved.png")
    assert (pixels("a.png") == pixels("moved.png")).all()


def test_more_pictures_a_class_begin_with_the_same_ones(headstart, photos):
    headstart("show", photos, "--per-class", 5, "-o", "five.png")
    headstart("show", photos, "--per-class", 7, "-o", "seven.png")
    five, seven = pixels("five.png"), pixels("seven.png")
    assert (five[60:230, :850] == seven[60:230, :850]).all()


def test_nothing_is_replaced_unasked_and_nothing_is_written_into_the_dataset(headstart, headstart_json, photos):
    with open("samples.png", "w") as file:  # noqa: PTH123
        file.write("mine")
    failed = headstart_json("show", photos, expect=1)["error"]
    assert failed["type"] == "OutputError"
    assert "--overwrite" in failed["message"]
    assert os.path.getsize("samples.png") == 4  # noqa: PTH202
    assert headstart("show", photos, "--overwrite")[0] == 0
    status, _, err = headstart("show", photos, "-o", photos / "circle" / "samples.png")
    assert (status, err.count("\n")) == (1, 1)
    assert "name a file elsewhere with --out" in err
    assert headstart("show", photos, "-o", "samples.jpg")[0] == 2
    assert not list(Path().glob("*.tmp"))


def test_broken_pictures_are_passed_over_for_others_and_listed(headstart, headstart_json, photos):
    for number in range(12):
        if number not in (3, 7):
            (photos / "cross" / f"{number:02d}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    done = headstart_json("show", photos, "--per-class", 4)
    assert done["classes"] == {"circle": 4, "cross": 2, "stripes": 4}
    assert len(done["failures"]) == 10
    assert done["failures"][0]["path"].startswith("cross/")
    assert done["failures"][0]["error"].startswith("broken JPEG")
    _, _, err = headstart("show", photos, "--per-class", 4, "--overwrite")
    assert "passed over 10 that could not be read: cross/" in err
    assert "and 7 more" in err


def test_where_nothing_can_be_read_nothing_is_written(headstart, photos):
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"<html>")
    status, _, err = headstart("show", photos)
    assert (status, err.count("\n")) == (1, 1)
    assert "no picture of" in err
    assert not os.path.exists("samples.png")  # noqa: PTH110


def test_hostile_names_reach_neither_the_terminal_nor_the_layout(headstart, photos):
    names = [b"<img src=x onerror=alert(1)>", b"\x1b[31m", b"new\nline", "žluťoučký 蜂".encode(), b"x" * 200]
    if sys.platform == "linux":
        names.append(b"caf\xe9")  # no UTF-8
    for name in names:
        folder = os.path.join(os.fsencode(photos), name)  # noqa: PTH118
        os.mkdir(folder)  # noqa: PTH102
        shutil.copy(photos / "circle" / "00.jpg", os.path.join(folder, b"<img src=x onerror=alert(1)>.jpg"))  # noqa: PTH118
        with open(os.path.join(folder, b"bro\x1b[31mken\n.jpg"), "wb"):  # noqa: PTH118, PTH123
            pass
    status, _, err = headstart("show", photos)
    assert status == 0
    assert "\x1b" not in err
    assert err.count("\n") == 2
    assert pixels("samples.png").shape[1] == 880


def test_of_many_classes_some_are_shown_and_a_line_says_so(headstart, photos):
    for number in range(30):
        (photos / f"class {number:02d}").mkdir()
        shutil.copy(photos / "circle" / "00.jpg", photos / f"class {number:02d}" / "a.jpg")
    _, _, err = headstart("show", photos)
    assert "20 of 33 classes, evenly chosen by name; --max-classes shows more" in err
    _, _, err = headstart("show", photos, "--max-classes", 33, "--overwrite")
    assert "evenly" not in err


def test_more_pictures_than_a_grid_takes_are_refused(headstart, photos):
    for number in range(1000):
        os.link(photos / "circle" / "00.jpg", photos / "circle" / f"more {number}.jpg")
    status, _, err = headstart("show", photos, "--per-class", 2000)
    assert (status, err.count("\n")) == (1, 1)
    assert "more than the 1000" in err


def test_a_flat_folder_is_one_block_without_a_name(headstart_json, headstart, photos):
    assert headstart_json("show", photos / "circle", "--per-class", 2)["classes"] == {"": 2}
    assert "2 of 12 images, no labels" in headstart("show", photos / "circle", "--per-class", 2, "--overwrite")[2]


def test_an_image_of_several_labels_stands_under_each(headstart_json, photos):
    lines = ["path,labels", "circle/00.jpg,round|small", "circle/01.jpg,small", "circle/02.jpg,"]
    (photos / "list.csv").write_text("\n".join(lines))
    shown = headstart_json("show", photos / "list.csv", "-o", photos / "samples.png")
    assert shown["classes"] == {"round": 1, "small": 2, "": 1}
    (photos / "picture.png").write_bytes((photos / "samples.png").read_bytes())
    (photos / "list.csv").write_text("path,label\npicture.png,a\n")
    failed = headstart_json("show", photos / "list.csv", "-o", photos / "picture.png", "--overwrite", expect=1)
    assert "one of the pictures" in failed["error"]["message"]


def test_showing_needs_neither_torch_nor_scikit_learn(photos, tmp_path):
    done, loaded = in_own_process("show", photos, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not loaded & {"torch", "sklearn", "scipy", "torchvision"}


def test_from_python(photos, tmp_path):
    shown = package.show(photos, tmp_path / "new folder" / "grid.png", per_class=2, seed=3)
    assert shown.classes == {"circle": 2, "cross": 2, "stripes": 2}
    with pytest.raises(package.HeadstartError, match="per_class"):
        package.show(photos, tmp_path / "other.png", per_class=0)


def test_predictions_of_real_photographs_are_drawn_right_and_wrong(samples, headstart, headstart_json, tmp_path):
    data, model = samples / "hymenoptera", tmp_path / "model"
    assert headstart("extract", data, "--backbone", BACKBONE)[0] == 0
    assert headstart("fit-head", data, "--out", model)[0] == 0
    folder = tmp_path / "sorted by a stranger"
    shutil.copytree(data / "val" / "ants", folder / "bees")  # every ant in here is wrong where the model is right
    shutil.copytree(data / "val" / "bees", folder / "new")
    done = headstart_json("predict", model, data / "val", folder, "--grid", "grid.png", "--grid-limit", 100)
    grid = done["grid"]
    assert (grid["shown"], grid["of"], grid["left_out"]) == (100, 306, 0)
    assert len(done["predictions"]) == 306
    assert grid["right"] > 40
    assert grid["wrong"] > 15
    assert grid["right"] + grid["wrong"] < 100
    image = pixels("grid.png")
    assert count(image, GREEN) > 500 * grid["right"]
    assert count(image, RED) > 500 * grid["wrong"]
    status, out, err = headstart("predict", model, folder / "bees", "--grid", "grid.png")
    assert (status, out) == (1, "")
    assert "--overwrite" in err
    status, out, err = headstart("predict", model, folder / "bees", "--grid", "grid.png", "--overwrite")
    assert status == 0
    assert len(out.splitlines()) == 70, "the table is printed as ever"
    assert "64 pictures of 70, evenly chosen" in err
    assert "the folder's name is a class for 64 of them" in err
