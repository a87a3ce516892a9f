import logging
from pathlib import Path

import numpy as np
import pytest

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
