"""A dataset in which an image may have several labels, from its CSV to the arrays and the files that others read."""

import csv
import io

import h5py
import numpy as np
import pytest
from command_line import BACKBONE, SHAPES, draw

from headstart import extract
from headstart.errors import DataError
from headstart.extract.features import load_features


def labels_of(shape, number):
    """Return what is said of a picture: its shape, whether its number is even, nothing at all of every fifth."""
    return [] if number % 5 == 4 else sorted([shape, *(["even"] if number % 2 == 0 else [])])


def write(folder, name="list.csv", change=lambda shape, number, labels: labels):
    """Write the CSV of `photos`; return its path."""
    lines = [
        f"photos/{shape}/{number:02d}.jpg,{'|'.join(change(shape, number, labels_of(shape, number)))}"
        for shape in SHAPES
        for number in range(12)
    ]
    (folder / name).write_text("\n".join(["path,labels", *lines, ""]))
    return folder / name


@pytest.fixture
def listed(photos, tmp_path):
    return write(tmp_path)


CLASSES = ("circle", "cross", "even", "stripes")


def expected(skip=()):
    """Return the table of labels in the order of the paths."""
    rows = [labels_of(shape, number) for shape in SHAPES for number in range(12) if (shape, number) not in skip]
    return np.array([[name in labels for name in CLASSES] for labels in rows])


def test_counts_are_printed_under_each_label(headstart, listed):
    status, _, err = headstart("extract", listed, "--backbone", BACKBONE)
    assert status == 0
    assert f"{listed}: 36 images, read as a CSV file with any number of labels an image" in err
    counts = [
        line.split() for line in err.splitlines() if line.rstrip().endswith(("10", "15", "6")) and "split" in line
    ]
    assert counts == [
        ["circle", "no", "split", "10"],
        ["cross", "no", "split", "10"],
        ["even", "no", "split", "15"],
        ["stripes", "no", "split", "10"],
        ["(no", "label)", "no", "split", "6"],
    ]


def test_features_have_a_column_a_label(listed, tmp_path):
    done = extract(listed, BACKBONE, cache=tmp_path / "cache")
    for features in (done, load_features(tmp_path / "cache", listed), done.each[0]):
        assert (features.multi_label, features.classes) == (True, CLASSES)
        assert (features.Y.dtype, features.Y.shape, features.X.shape[0]) == (np.dtype(bool), (36, 4), 36)
        np.testing.assert_array_equal(features.Y, expected())
        assert features.tags.count.tolist() == expected().sum(axis=1).tolist()
        assert features.y.tolist() == [-1] * 36


def test_failed_images_have_no_row(headstart_json, listed, photos, tmp_path):
    (photos / "circle" / "00.jpg").write_bytes(b"")
    (photos / "cross" / "03.jpg").unlink()
    assert headstart_json("extract", listed, "--backbone", BACKBONE)["failed"] == 2
    features = load_features(tmp_path / ".headstart")
    np.testing.assert_array_equal(features.Y, expected(skip=[("circle", 0), ("cross", 3)]))


def test_a_dataset_of_one_label_has_no_such_table(photos, tmp_path):
    done = extract(photos, BACKBONE, cache=tmp_path / "cache")
    assert not done.multi_label
    with pytest.raises(DataError, match=r"photos has one label an image: take y, or list it by a CSV"):
        _ = done.Y


def test_new_labels_cost_no_embedding(headstart_json, listed, photos, tmp_path):
    assert headstart_json("extract", listed, "--backbone", BACKBONE)["embedded"] == 36
    write(tmp_path, change=lambda shape, number, labels: [*labels, f"new {number % 3}"])
    plan = headstart_json("extract", listed, "--backbone", BACKBONE, "--dry-run")
    assert (plan["images"], plan["missing"], plan["new"], plan["changed"]) == (36, 0, 0, 0)
    done = headstart_json("extract", listed, "--backbone", BACKBONE)
    assert (done["embedded"], done["reused"]) == (0, 36)
    features = load_features(tmp_path / ".headstart", listed)
    assert features.classes == ("circle", "cross", "even", "new 0", "new 1", "new 2", "stripes")
    assert features.Y[:, 3:6].sum(axis=1).tolist() == [1] * 36
    # From one label to several and back, and the same pictures in a folder.
    (tmp_path / "list.csv").write_text(listed.read_text().replace("path,labels", "path,label"))
    assert headstart_json("extract", listed, "--backbone", BACKBONE)["embedded"] == 0
    assert not load_features(tmp_path / ".headstart", listed).multi_label
    write(tmp_path)
    assert headstart_json("extract", listed, "--backbone", BACKBONE)["embedded"] == 0
    np.testing.assert_array_equal(load_features(tmp_path / ".headstart", listed).Y, expected())
    assert headstart_json("extract", photos, "--backbone", BACKBONE)["embedded"] == 0


def test_a_run_that_finds_nothing_new_writes_no_listing(headstart_json, listed, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.cache.listing.RACY_NS", -(10**12))  # files of this moment are old enough
    for number in range(3):
        headstart_json("extract", listed, "--backbone", BACKBONE)
        assert len(list((tmp_path / ".headstart").glob("datasets/*/*.h5"))) == 1, number
    write(tmp_path, change=lambda shape, number, labels: labels[:1])
    headstart_json("extract", listed, "--backbone", BACKBONE)
    assert len(list((tmp_path / ".headstart").glob("datasets/*/*.h5"))) == 2


def test_a_part_of_the_images(headstart_json, listed, tmp_path):
    headstart_json("extract", listed, "--backbone", BACKBONE, "--limit", "4")
    features = load_features(tmp_path / ".headstart")
    np.testing.assert_array_equal(features.Y, expected()[np.linspace(0, 35, 4).round().astype(int)])


def test_cache_commands(headstart_json, listed, tmp_path):
    headstart_json("extract", listed, "--backbone", BACKBONE)
    (dataset,) = headstart_json("cache", "info")["datasets"]
    assert (dataset["images"], dataset["classes"], dataset["failed"]) == (36, 4, 0)
    assert headstart_json("cache", "verify", "--sample", "3")["sampled"] == 3
    assert headstart_json("cache", "compact", "--prune", "--now")["pruned"] == 0
    headstart_json("cache", "merge", tmp_path / ".headstart", "--cache", tmp_path / "other")
    for cache in (".headstart", "other"):
        headstart_json("cache", "export", f"{cache}.h5", "--cache", tmp_path / cache)
        with h5py.File(tmp_path / f"{cache}.h5") as file:
            text = file["label"].asstr()[()].tolist()
            assert file.attrs["multi_label"] == 1
        assert text == ["|".join(np.array(CLASSES)[row]) for row in expected()]
        np.testing.assert_array_equal(load_features(tmp_path / cache).Y, expected())


def test_a_head_that_learns_one_class_an_image_is_refused_in_one_line(headstart, headstart_json, listed, tmp_path):
    headstart_json("extract", listed, "--backbone", BACKBONE)
    for head in ("linear", "mlp", "knn", "ncm"):
        status, out, err = headstart("fit-head", "--head", head)
        assert (status, out) == (2, "")
        said = f"--head {head} learns one class an image, and this dataset has several: use --head logistic"
        assert err.splitlines()[-1] == f"error: {said}"
        assert "Traceback" not in err
    assert not (tmp_path / "models").exists()


def test_a_head_is_fitted_scored_and_gives_labels(headstart, headstart_json, listed, photos, tmp_path):
    headstart_json("extract", listed, "--backbone", BACKBONE)
    words = ["fit-head", "--cv", "3", "--near-copies", "none", "--val-fraction", ".4"]
    fit = headstart_json(*words, "--details", "--curve")
    assert (fit["multi_label"], fit["classes"], fit["baseline"].keys()) == (True, list(CLASSES), {"map"})
    assert list(fit["thresholds"]) == list(CLASSES) and all(0 <= value <= 1 for value in fit["thresholds"].values())
    assert {"n", "map", "macro_f1", "accuracy", "low", "high", "log_loss", "ece"} <= set(fit["val"])
    assert fit["train"]["n"] + fit["val"]["n"] == 36, "pictures without a label are pictures, too"
    assert fit["val"]["map"] > fit["baseline"]["map"]
    assert [row["label"] for row in fit["per_class"]] == list(CLASSES)
    assert fit["details"]["suspicious"] == [] and fit["curve"]["measure"] == "map"
    status, out, err = headstart(*words, "--details", "--curve", "--overwrite")
    assert (status, out) == (0, "")
    assert "4 labels, any number an image" in err and "mean average precision" in err

    scored = headstart_json("evaluate", fit["out"])
    assert (scored["n"], scored["map"], scored["accuracy"]) == tuple(fit["val"][k] for k in ("n", "map", "accuracy"))
    for error in scored["errors"]:
        assert (error["label"] == "") != (error["predicted"] == "")
        assert error["label"] or error["predicted"] in CLASSES
    same = headstart_json("evaluate", fit["out"], "--against", fit["out"])["against"]
    assert (same["only_first"], same["only_second"], same["verdict"]) == (0, 0, "no difference beyond chance")

    found = headstart_json("predict", fit["out"], photos)["predictions"]
    for row in found:
        given = [name for name in CLASSES if row["probabilities"][name] >= fit["thresholds"][name]]
        assert (row["labels"], row["label"], row["set"]) == (given, "|".join(given), None)
        assert row["probability"] == max(row["probabilities"].values())
    truth = {f"{shape}/{number:02d}.jpg": labels_of(shape, number) for shape in SHAPES for number in range(12)}
    wrong = sum(set(row["labels"]) != set(truth["/".join(row["path"].split("/")[-2:])]) for row in found)
    assert wrong < 18
    status, out, _ = headstart("predict", fit["out"], photos, "--csv")
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["label"] for row in table] == [row["label"] for row in found]
    status, out, err = headstart("predict", fit["out"], photos, "--coverage", ".9")
    assert (status, out) == (2, "")
    assert "--coverage asks for sets of which one class is right; this model gives several" in err.splitlines()[-1]


def test_models_and_datasets_of_the_other_kind_are_refused(headstart, headstart_json, photos, tmp_path):
    headstart_json("extract", photos, "--backbone", BACKBONE)
    model = headstart_json("fit-head")["out"]
    listed = write(tmp_path, change=lambda shape, number, labels: [shape])
    headstart_json("extract", listed, "--backbone", BACKBONE)
    several = headstart_json("fit-head", "--out", "several")["out"]
    for words in (
        ["evaluate", model, listed],
        ["evaluate", several, photos],
        ["evaluate", several, "--against", model],
    ):
        status, out, err = headstart(*words)
        assert (status, out) == (1, "")
        assert "several labels an image" in err.splitlines()[-1] and "one class an image" in err.splitlines()[-1]


def test_bad_csvs_are_one_line_and_leave_no_cache(headstart, photos, tmp_path):
    for text, said in (
        ("path,labels\nphotos/cross/00.jpg,a||b\n", "line 2: the labels 'a||b' hold an empty name"),
        ("path,label,labels\nphotos/cross/00.jpg,a,a|b\n", "line 1 names the columns label and labels"),
    ):
        (tmp_path / "list.csv").write_text(text)
        status, out, err = headstart("extract", "list.csv", "--backbone", BACKBONE)
        assert (status, out) == (1, "")
        assert said in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / ".headstart").exists()


def test_ten_thousand_labels(headstart, headstart_json, photos, tmp_path):
    lines = [f"photos/cross/{n:02d}.jpg,{'|'.join(f'{label:05d}' for label in range(n, 10_000, 2))}" for n in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["path,labels", *lines]))
    status, _, err = headstart("extract", "list.csv", "--backbone", BACKBONE)
    assert status == 0
    assert "and 9988 more classes" in err
    features = load_features(tmp_path / ".headstart")
    assert features.Y.shape == (12, 10_000)
    assert features.Y[1].tolist() == [label % 2 == 1 for label in range(10_000)]
    headstart_json("cache", "export", "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["label"].asstr()[3].split("|") == [f"{label:05d}" for label in range(3, 10_000, 2)]


def test_pictures_that_join_keep_their_labels_apart(headstart_json, listed, photos, tmp_path):
    headstart_json("extract", listed, "--backbone", BACKBONE)
    draw("circle", 500).save(photos / "circle" / "+.png")  # sorts before all others
    listed.write_text(listed.read_text() + "photos/circle/+.png,new|even\n")
    assert headstart_json("extract", listed, "--backbone", BACKBONE)["embedded"] == 1
    features = load_features(tmp_path / ".headstart")
    assert features.classes == ("circle", "cross", "even", "new", "stripes")
    np.testing.assert_array_equal(features.Y[0], [False, False, True, True, False])
    np.testing.assert_array_equal(np.delete(features.Y[1:], 3, axis=1), expected())
