import logging
from pathlib import Path

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

from headstart.cache.listing import SPLITS, Listing
from headstart.cache.store import FeatureStore
from headstart.classify.dataset import Dedupe, labelled_set, warn_of_copies, without_copies
from headstart.errors import TrainingError
from headstart.extract.features import Features
from support import make_space

CLASSES = ("ants", "bees")


@pytest.fixture
def said(caplog, monkeypatch):
    """Return what was logged; the command line, where it ran before, keeps it from the root logger."""
    monkeypatch.setattr(logging.getLogger("headstart"), "propagate", True)
    caplog.set_level(logging.INFO, logger="headstart")
    return caplog


def features(*images, failures=None):
    """Return a dataset of (path, label, split, content), which need not be cached to be divided."""
    images = sorted(images)
    digest = np.zeros((len(images), 32), np.uint8)
    for row, (*_, content) in enumerate(images):
        digest[row] = content + 100  # so high that none of them is held out
    listing = Listing(
        root="photos",
        source="/photos",
        layout="splits",
        classes=CLASSES,
        paths=[path.encode() for path, *_ in images],
        label=np.array([-1 if label is None else CLASSES.index(label) for _, label, *_ in images], np.int32),
        split=np.array([SPLITS.index(split) for *_, split, _ in images], np.uint8),
        stat=np.zeros((len(images), 4), np.int64),
        digest=digest,
        failures=failures or {},
    )
    return Features(listing, (make_space(),), FeatureStore(Path("nowhere")))


def names(data):
    return [path.removeprefix("photos/") for split in ("train", "val", "test") for path in data.paths(split)]


def test_f34_copies_under_one_label_leave_the_first_by_path():
    data = labelled_set(
        features(("b", "ants", "train", 1), ("a", "ants", "train", 1), ("c", "bees", "train", 2)), dedupe=True
    )
    assert names(data) == ["a", "c"]
    assert data.dedupe == Dedupe(kept=2, copies=1, contradictory=0)
    assert len(data.y) == len(data.split) == len(data.group) == len(data.rows) == 2


def test_f34_a_copy_in_another_split_is_dropped_from_train():
    images = [("a", "ants", "train", 1), ("b", "ants", "val", 1), ("c", "ants", "val", 1), ("d", "bees", "train", 2)]
    data = labelled_set(features(*images, ("e", "bees", "test", 2)), dedupe=True)
    assert names(data) == ["b", "e"]
    assert data.dedupe == Dedupe(kept=2, copies=3, contradictory=0)


def test_f34_the_same_bytes_under_two_labels_are_dropped_in_all_splits(said):
    images = [("a", "ants", "train", 1), ("b", "ants", "val", 1), ("c", "bees", "val", 1), ("d", "bees", "train", 2)]
    data = labelled_set(features(*images), dedupe=True)
    warn_of_copies(data)
    assert names(data) == ["d"]
    assert data.dedupe == Dedupe(kept=1, copies=0, contradictory=3)
    assert said.messages == [
        "dropped 0 copies of images that are kept, and 3 images that have two labels, neither to be believed"
        " (photos/a = photos/c)"
    ]


def test_f34_without_dedupe_all_are_kept_and_warned_of(said):
    images = [
        ("a", "ants", "train", 1),
        ("b", "ants", "train", 1),
        ("c", "bees", "train", 1),
        ("d", "bees", "train", 2),
    ]
    data = labelled_set(features(*images))
    warn_of_copies(data)
    assert (names(data), data.dedupe) == (["a", "b", "c", "d"], None)
    assert said.messages == [
        "1 images have two labels, byte for byte the same (photos/a = photos/c); --dedupe drops them"
    ]


def test_f34_an_unlabelled_copy_contradicts_nothing():
    data = labelled_set(features(("a", None, "train", 1), ("b", "ants", "train", 1)), dedupe=True)
    assert (names(data), data.dedupe) == (["b"], Dedupe(kept=1, copies=0, contradictory=0))


@pytest.mark.parametrize("split", ["val", "test"])
def test_f35_leakage_is_counted_and_named_by_one_path_of_each_side(said, split):
    images = [("a", "ants", "train", 1), ("b", "ants", "train", 1), ("c", "ants", split, 1)]
    warn_of_copies(labelled_set(features(*images, ("d", "bees", "val", 3)), 0.0))
    assert said.messages == [
        "leakage: 1 images are in train and in another split, byte for byte (photos/a = photos/c);"
        " --dedupe drops them from train"
    ]
    said.clear()
    images += [("e", "bees", "train", 2), ("f", "bees", split, 2)]
    warn_of_copies(labelled_set(features(*images), 0.0))
    assert said.messages == [
        "leakage: 2 images are in train and in another split, byte for byte (photos/a = photos/c, and 1 more);"
        " --dedupe drops them from train"
    ]


def slowly(y, split, group):
    """Choose as `without_copies` should, one image at a time."""
    kept, copies, contradictory = [], 0, 0
    for row in range(len(y)):
        same = [other for other in range(len(y)) if group[other] == group[row]]
        if len({y[other] for other in same}) > 1:
            contradictory += 1
        elif row == next((other for other in same if split[other] != "train"), same[0]):
            kept.append(row)
        else:
            copies += 1
    return kept, Dedupe(len(kept), copies, contradictory)


def test_f34_what_is_kept_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 40))
        y, group = rng.integers(0, 2, n).astype(np.int32), rng.integers(0, int(rng.integers(1, 60)), n)
        split = rng.choice(["train", "val", "test"], n)
        kept, dedupe = without_copies(y, split, group)
        assert (kept.tolist(), dedupe) == slowly(y, split, group)
        assert dedupe.kept + dedupe.copies + dedupe.contradictory == n


def test_a_dataset_without_labels_and_one_without_images_say_so():
    with pytest.raises(TrainingError, match=r"^no image of photos has a label: make one folder a class"):
        labelled_set(features(("a", None, "", 1)))
    broken = features(("a", "ants", "", 1), ("b\n", "bees", "", 2), failures={0: "truncated", 1: "empty file"})
    with pytest.raises(TrainingError, match=r"^none of the 2 images of photos could be used; the first, a: truncated$"):
        labelled_set(broken)


# Near copies and several labels


@pytest.fixture
def made():
    """Eighty pictures, of which 1 is nearly 0, in val, 5 nearly 4, in train as well, and 9 is 8, in test, byte for byte."""
    made = classes_made()
    made.split[:10] = ["train", "val", "train", "val", "train", "train", "train", "train", "train", "test"]
    for first, second in ((0, 1), (4, 5)):
        made.phash[second], made.X[second] = made.phash[first] ^ np.uint64(3), made.X[first] + 0.01
    made.digest[9], made.X[9] = made.digest[8], made.X[8]
    made.y[[1, 5, 9]] = made.y[[0, 4, 8]]
    return made


def in_one_group(data):
    members = [np.flatnonzero(data.group == one).tolist() for one in np.unique(data.group)]
    return [rows for rows in members if len(rows) > 1]


def test_near_copies_share_a_group_where_they_are_looked_for(made, tmp_path):
    features = made.features(tmp_path)
    assert in_one_group(labelled_set(features)) == [[8, 9]]
    for near_copies in ("auto", "all"):
        assert in_one_group(labelled_set(features, near_copies=near_copies)) == [[0, 1], [4, 5], [8, 9]]


def test_near_copies_in_train_and_val_are_counted_and_named(made, tmp_path, said):
    features = made.features(tmp_path)
    exactly = (
        "leakage: 1 images are in train and in another split, byte for byte (photos/0008.jpg = photos/0009.jpg);"
        " --dedupe drops them from train"
    )
    warn_of_copies(labelled_set(features, near_copies="auto"))
    assert said.messages == [
        exactly,
        "leakage: 1 images of another split are nearly copies of training images (photos/0000.jpg ~ photos/0001.jpg);"
        " --dedupe drops those from train",
    ]
    said.clear()
    warn_of_copies(labelled_set(features))
    assert said.messages == [exactly], "none is looked for"


def test_dedupe_drops_near_copies_of_other_splits_from_train(made, tmp_path, said):
    data = labelled_set(made.features(tmp_path), dedupe=True, near_copies="auto")
    assert data.dedupe == Dedupe(kept=78, copies=1, contradictory=0, near=1)
    gone = set(range(80)) - set(data.rows.tolist())
    assert gone == {0, 8}, "the training side of each; 5 stays beside 4"
    assert "dropped 1 training images that are nearly copies of images of another split" in said.messages
    said.clear()
    warn_of_copies(data)
    assert said.messages == []
    for column in (data.y, data.split, data.exact, data.group):
        assert len(column) == 78
    np.testing.assert_array_equal(data.y, made.y[data.rows])
    assert in_one_group(data) == [[place for place, row in enumerate(data.rows) if row in (4, 5)]]


def test_a_near_copy_of_an_image_that_is_dropped_for_its_two_labels_stays(made, tmp_path):
    made.split[2], made.digest[2] = "val", made.digest[1]  # 1 and 2 are the same bytes, in val, under two labels
    made.X[2], made.phash[2], made.y[2] = made.X[1], made.phash[1], (made.y[1] + 1) % 3
    data = labelled_set(made.features(tmp_path), dedupe=True, near_copies="auto")
    assert data.dedupe == Dedupe(kept=77, copies=1, contradictory=2, near=0)
    assert 0 in data.rows


def test_pictures_that_all_look_alike_are_no_copies_and_that_is_said_once(made, tmp_path, said):
    made.phash[20:40] = made.phash[20]
    made.X[20:40] = made.X[20] + 0.01 * np.arange(20)[:, None]
    data = labelled_set(made.features(tmp_path), near_copies="auto")
    assert in_one_group(data) == [[0, 1], [4, 5], [8, 9]]
    warn_of_copies(data)
    assert [line for line in said.messages if "look so much alike" in line] == [
        "20 images look so much alike that they are taken for different ones (photos/0020.jpg and others):"
        " no near copies are looked for among them"
    ]


def test_among_too_many_they_are_looked_for_only_when_all_are_asked_for(made, tmp_path, said, monkeypatch):
    monkeypatch.setattr("headstart.classify.near_copies.MAX_COMPARED", 50)
    features = made.features(tmp_path)
    data = labelled_set(features, near_copies="auto")
    assert in_one_group(data) == [[8, 9]]
    warn_of_copies(data)
    assert "near copies are not looked for among so many images; --near-copies all does, for minutes" in said.messages
    assert in_one_group(labelled_set(features, near_copies="all")) == [[0, 1], [4, 5], [8, 9]]


def test_several_labels_are_a_table_and_a_number_for_each_set(tmp_path):
    made = labels_made()
    listing = made.listing()
    listing.tags.count[:3] = np.where(made.y[:3].any(axis=1), listing.tags.count[:3], -1)  # not known
    unknown = np.flatnonzero(listing.tags.count < 0)
    made.put(tmp_path)
    data = labelled_set(Features(listing, (made.space,), FeatureStore(tmp_path)))
    known = np.setdiff1d(np.arange(120), unknown)
    np.testing.assert_array_equal(data.rows, known)
    np.testing.assert_array_equal(data.Y, made.y[known])
    sets = {tuple(row) for row in data.Y.tolist()}
    assert (
        len(np.unique(data.y))
        == len(sets)
        == len({(*row, int(y)) for row, y in zip(data.Y.tolist(), data.y, strict=True)})
    )
    X, Y = data.part("val")
    np.testing.assert_array_equal(Y, data.Y[data.split == "val"])
    np.testing.assert_array_equal(X, made.X[known][data.split == "val"])


def test_copies_with_other_sets_of_labels_contradict_each_other(tmp_path):
    made = labels_made()
    made.y[[0, 1]] = [[True, False, False, False], [True, True, False, False]]
    made.digest[1], made.X[1] = made.digest[0], made.X[0]
    data = labelled_set(made.features(tmp_path), dedupe=True)
    assert data.dedupe == Dedupe(kept=118, copies=0, contradictory=2)
    assert len(data.Y) == 118
