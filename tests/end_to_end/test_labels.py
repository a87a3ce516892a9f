"""Labels that contradict each other, change, or are too few."""

import json
import shutil

import pytest
from command_line import BACKBONE, SHAPES, draw

# Drawings of a few lines are nearly copies of each other often enough.
EXACT = ("--near-copies", "none")


def last_line(err):
    assert "Traceback" not in err
    return err.splitlines()[-1]


def write(data, split, shape, number, seed):
    path = data / split / shape / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(shape, seed).save(path)
    return path


@pytest.fixture
def data(tmp_path):
    """Eight training and six validation pictures of each of two classes, no two alike."""
    folder = tmp_path / "data"
    for shape in ("circle", "cross"):
        for number in range(8):
            write(folder, "train", shape, number, number)
        for number in range(6):
            write(folder, "val", shape, number, 100 + number)
    return folder


def test_f34_the_same_bytes_under_two_labels_are_warned_of_and_both_kept(headstart, headstart_json, data):
    shutil.copy(data / "train" / "cross" / "1.png", data / "train" / "circle" / "wrong.png")
    shutil.copy(data / "train" / "circle" / "wrong.png", data / "train" / "circle" / "wrong again.png")
    headstart_json("extract", data, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--near-copies", "none")
    assert status == 0
    both = f"{data}/train/circle/wrong again.png = {data}/train/cross/1.png"
    assert f"warning: 1 images have two labels, byte for byte the same ({both}); --dedupe drops them" in err
    fit = headstart_json("fit-head", "--near-copies", "none", "--overwrite")
    assert (fit["train"]["n"], fit["val"]["n"], fit["dedupe"]) == (18, 12, None)


def test_f34_dedupe_keeps_one_of_each_and_none_of_what_contradicts_itself(headstart, headstart_json, data, tmp_path):
    train, val = data / "train", data / "val"
    shutil.copy(train / "cross" / "1.png", train / "circle" / "wrong.png")  # two labels: both go
    shutil.copy(train / "cross" / "2.png", train / "cross" / "copy.png")  # the first by path stays
    shutil.copy(train / "cross" / "3.png", val / "cross" / "leak.png")  # the one in train goes
    shutil.copy(val / "circle" / "4.png", val / "circle" / "copy.png")
    headstart_json("extract", data, "--backbone", BACKBONE)
    status, out, err = headstart("fit-head", *EXACT, "--dedupe", "--out", "clean")
    assert (status, out) == (0, "")
    assert "warning" not in err
    dropped = [line for line in err.splitlines() if line.startswith("dropped")]
    assert dropped == [
        "dropped 3 copies of images that are kept, and 2 images that have two labels, neither to be believed "
        f"({train}/circle/wrong.png = {train}/cross/1.png)"
    ]
    fit = headstart_json("fit-head", *EXACT, "--dedupe", "--out", "clean", "--overwrite")
    assert fit["dedupe"] == {"kept": 27, "copies": 3, "contradictory": 2, "near": 0}
    assert (fit["train"]["n"], fit["val"]["n"]) == (14, 13)
    assert json.loads((tmp_path / "clean" / "model.json").read_text())["training"]["dedupe"] == fit["dedupe"]

    for named in ([], [data]):
        assert headstart_json("evaluate", "clean", *named)["n"] == 13
        assert headstart_json("evaluate", "clean", *named, "--split", "train")["n"] == 14
    assert headstart_json("evaluate", "clean")["accuracy"] == pytest.approx(fit["val"]["accuracy"])

    plain = headstart_json("fit-head", *EXACT, "--out", "plain")
    assert (plain["train"]["n"], plain["val"]["n"], plain["dedupe"]) == (18, 14, None)
    assert headstart_json("evaluate", "plain")["n"] == 14
    assert headstart_json("evaluate", "clean", "--against", "plain")["n"] == 13, "both on what the first is scored on"
    assert headstart_json("evaluate", "plain", "--against", "clean")["n"] == 14


def test_f34_dedupe_that_leaves_a_class_with_too_little_says_what_was_dropped(headstart, headstart_json, data):
    for path in (data / "train" / "cross").iterdir():
        shutil.copy(path, data / "train" / "circle" / f"again-{path.name}")
    headstart_json("extract", data, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--near-copies", "none", "--dedupe")
    assert status == 1
    assert "dropped 0 copies of images that are kept, and 16 images that have two labels" in err
    said = "class 'cross' has 0 training images, at least 2 are needed: add some or remove it"
    assert last_line(err) == f"error: {said}"


@pytest.mark.parametrize("split", ["val", "test"])
def test_f35_the_same_bytes_in_train_and_another_split_are_counted_and_named(headstart, headstart_json, data, split):
    train = data / "train" / "cross"
    other = write(data, split, "cross", "zero", 300).parent
    shutil.copy(train / "0.png", train / "0 again.png")
    shutil.copy(train / "0.png", other / "leak.png")
    headstart_json("extract", data, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", *EXACT)
    assert status == 0
    pair = " = ".join(sorted([f"{train}/0 again.png", f"{other}/leak.png"]))
    said = "images are in train and in another split, byte for byte"
    assert f"warning: leakage: 1 {said} ({pair}); --dedupe drops them from train" in err

    shutil.copy(data / "train" / "circle" / "5.png", data / "val" / "circle" / "leak.png")
    headstart_json("extract", data, "--backbone", BACKBONE)
    _, _, err = headstart("fit-head", *EXACT, "--overwrite")
    (line,) = [line for line in err.splitlines() if "leakage" in line]
    assert line.startswith(f"warning: leakage: 2 {said} ({data}/")
    assert "leak.png" in line and f"{data}/train/" in line and ", and 1 more); " in line


def test_f36_a_renamed_label_costs_no_embedding_and_the_head_names_both_lists(headstart, headstart_json, photos):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    model = headstart_json("fit-head")["out"]
    (photos / "cross").rename(photos / "plus")
    done = headstart_json("extract", photos, "--backbone", BACKBONE)
    assert (done["embedded"], done["reused"]) == (0, 36)
    lists = f"the model knows the classes {list(SHAPES)}, {photos} has ['circle', 'plus', 'stripes']"
    for words in (["evaluate", model], ["evaluate", model, photos]):
        status, out, err = headstart(*words)
        assert (status, out) == (1, "")
        assert last_line(err) == f"error: {lists}; fit a head anew with `headstart fit-head {photos}`"
    other = headstart_json("fit-head", "--out", "models/new")
    assert other["classes"] == ["circle", "plus", "stripes"]
    assert headstart("evaluate", "models/new", "--against", model)[0] == 1


def keep(folder, count):
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


@pytest.mark.parametrize(("count", "has"), [(0, "0 training images"), (1, "1 training image")])
@pytest.mark.parametrize("head", ["logistic", "linear"])
def test_f37_a_class_with_too_few_images_is_named_with_the_minimum(
    headstart, headstart_json, photos, tmp_path, count, has, head
):
    keep(photos / "cross", count)
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, out, err = headstart("fit-head", "--head", head, "--val-fraction", "0")
    assert (status, out) == (1, "")
    assert last_line(err) == f"error: class 'cross' has {has}, at least 2 are needed: add some or remove it"
    assert not (tmp_path / "models").exists()


def test_f37_a_class_whose_images_are_all_broken_is_named(headstart, headstart_json, photos):
    keep(photos / "cross", 2)
    for path in (photos / "cross").iterdir():
        path.write_bytes(b"")
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head")
    assert status == 1
    said = "class 'cross' has 0 training images, at least 2 are needed: add some or remove it"
    assert last_line(err).startswith(f"error: {said} (")
    assert "images are held out for validation, see --val-fraction" in last_line(err)


def test_f37_one_class_only_is_named(headstart, headstart_json, photos, tmp_path):
    for shape in ("circle", "stripes"):
        shutil.rmtree(photos / shape)
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"photos/cross/{n:02d}.jpg,cross\n" for n in range(12)))
    for data in (photos, "list.csv"):
        status, _, err = headstart("extract", data, "--backbone", BACKBONE, "--layout", "auto")
        assert status == 0, err
        status, out, err = headstart("fit-head", data)
        assert (status, out) == (1, "")
        assert last_line(err) == "error: there is one class only ('cross'): a classifier needs two, one folder each"
    assert not (tmp_path / "models").exists()


def test_f37_fewer_images_than_folds_are_named_with_what_would_do(headstart, headstart_json, photos):
    keep(photos / "circle", 4)
    headstart_json("extract", photos, "--backbone", BACKBONE)
    status, _, err = headstart("fit-head", "--val-fraction", "0")
    assert status == 1
    said = "class 'circle' has 4 training images, 5 folds need 5: add some or pass --cv 4"
    assert last_line(err) == f"error: {said}"
    assert headstart("fit-head", "--val-fraction", "0", "--cv", "4")[0] == 0
