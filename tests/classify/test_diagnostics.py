"""What is odd about a dataset is named by path, the oddest first."""

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

from headstart.classify.dataset import labelled_set
from headstart.classify.diagnostics import SHOWN, diagnose
from headstart.classify.heads import make_head
from headstart.classify.novelty import fit_novelty
from headstart.classify.several import LabelsHead


def diagnosed(made, cache, near_copies="auto"):
    data = labelled_set(made.features(cache), near_copies=near_copies)
    X, y = data.part("train")
    groups = data.group[data.split == "train"]
    head = LabelsHead(C=0.01) if data.Y is not None else make_head("logistic", C=0.01)
    head.fit(X, y, made.classes, groups=groups)
    return diagnose(data, fit_novelty(X, data.y[data.split == "train"], groups=groups), head.oof_proba_)


@pytest.fixture
def made():
    return classes_made(200, 3, spread=0.8)


def test_planted_label_errors_come_first_and_say_what_they_look_like(made, tmp_path):
    truth = made.y.copy()
    wrong = np.flatnonzero(made.split == "train")[[3, 30, 60, 90, 120]]
    made.y[wrong] = (truth[wrong] + 1) % 3
    found = diagnosed(made, tmp_path)
    first = found.suspicious[: len(wrong)]
    assert {row["path"] for row in first} == {f"photos/{row:04d}.jpg" for row in wrong}
    for row in first:
        place = int(row["path"][7:11])
        assert (row["label"], row["suggested"]) == (made.classes[made.y[place]], made.classes[truth[place]])
        assert row["score"] > 0.5
    assert len(found.suspicious) == (made.split == "train").sum(), "none of the validation images"
    scores = [row["score"] for row in found.suspicious]
    assert scores == sorted(scores, reverse=True)
    assert sum(row["confident"] for row in first) >= 3
    assert not any(row["confident"] for row in found.suspicious[20:])
    lines = found.lines()
    assert lines[0] == "the 10 most suspicious labels of the training images:"
    for line, row in zip(lines[1:11], found.suspicious, strict=False):
        assert line.endswith(", probably wrong") == row["confident"]
    assert {line.split()[1].rstrip(":") for line in lines[1:6]} == {row["path"] for row in first}


def test_a_picture_from_elsewhere_is_the_first_outlier(made, tmp_path):
    (place, *_) = np.flatnonzero(made.split == "train")
    made.X[place] = -made.X[made.split == "train"].mean(axis=0) * 5
    outliers = diagnosed(made, tmp_path).outliers
    assert outliers[0]["path"] == f"photos/{place:04d}.jpg"
    assert outliers[0]["score"] == pytest.approx(1 / 150)
    scores = [row["score"] for row in outliers]
    assert scores == sorted(scores) and scores[0] > 0 and scores[-1] <= 1
    assert any(f"photos/{place:04d}.jpg (" in line for line in diagnosed(made, tmp_path).lines())


def test_groups_of_copies_are_listed_in_all_splits(made, tmp_path):
    made.split[:6] = ["train", "train", "val", "test", "train", "train"]
    made.digest[3] = made.digest[0]  # byte for byte
    made.X[3] = made.X[0]
    made.phash[2], made.X[2] = made.phash[1] ^ np.uint64(7), made.X[1] + 0.01
    made.y[[3, 2]] = made.y[[0, 1]]
    expected = [
        [("photos/0000.jpg", "train"), ("photos/0003.jpg", "test")],
        [("photos/0001.jpg", "train"), ("photos/0002.jpg", "val")],
    ]
    found = diagnosed(made, tmp_path)
    assert [[(row["path"], row["split"]) for row in group] for group in found.near_copies] == expected
    assert "  photos/0001.jpg (train), photos/0002.jpg (val)" in found.lines()
    assert diagnosed(made, tmp_path, "none").near_copies == found.near_copies[:1]


def test_several_labels_have_outliers_with_all_their_labels_and_no_suspicions(tmp_path):
    made = labels_made()
    found = diagnosed(made, tmp_path)
    assert found.suspicious == []
    for row in found.outliers:
        mine = made.y[int(row["path"][7:11])]
        assert row["label"] == "|".join(np.array(made.classes)[mine])


def test_lines_are_few_however_much_is_odd(made, tmp_path):
    made.y[:] = np.arange(200) % 3
    for pair in range(40):
        made.phash[2 * pair + 1], made.X[2 * pair + 1] = made.phash[2 * pair], made.X[2 * pair]
    assert len(diagnosed(made, tmp_path).lines()) <= 3 * (SHOWN + 1)


def test_a_name_that_would_move_the_cursor_is_printed_harmlessly(made, tmp_path):
    made.classes = ("a\x1b[2J", "b\n", "c")
    for line in diagnosed(made, tmp_path).lines():
        assert line.isprintable()
