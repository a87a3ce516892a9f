"""The learning curve: which images are fitted, which are scored on, and what is said of the gain."""

import json

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

from headstart.classify import curve as module
from headstart.classify.curve import SHARES, _verdict, learning_curve
from headstart.classify.heads import make_head
from headstart.classify.several import LabelsHead

FAST = {"linear": {"epochs": 5}, "mlp": {"epochs": 20, "lr": 0.03, "hidden": (8,)}}


def each(count):
    return np.arange(count)


def fitted(made, **options):
    return make_head("logistic", **{"C": 0.1, **options}).fit(made.X, made.y)


def test_accuracy_grows_with_the_images_where_classes_are_hard():
    made = classes_made(200, 4, dim=200, spread=12.0)
    curve = learning_curve(fitted(made), made.X, made.y, each(200))
    sizes = [point["n"] for point in curve.points]
    assert sizes == [round(share * 160) for share in SHARES]
    assert curve.points[-1]["mean"] > curve.points[0]["mean"] + 0.1
    assert curve.measure == "accuracy" and "hardly" not in curve.verdict
    for point in curve.points:
        assert 0 <= point["low"] <= point["mean"] <= point["high"] <= 1 and point["std"] >= 0
    json.dumps(curve.as_dict(), allow_nan=False)
    assert [line.split()[0] for line in curve.lines()[1:-1]] == list(map(str, sizes))
    assert curve.lines()[-1] == curve.verdict


def test_more_images_hardly_help_where_all_is_known():
    made = classes_made(200, 2, spread=0.1)
    curve = learning_curve(fitted(made), made.X, made.y, each(200))
    assert curve.points[-1]["mean"] == 1
    assert curve.verdict.startswith("more labelled images of the same kind would hardly help")


def test_a_seed_fixes_it_and_the_head_stays_as_it_is():
    made = classes_made(90)
    head = fitted(made)
    before = {name: array.copy() for name, array in head.network_.arrays().items()}
    first = learning_curve(head, made.X, made.y, each(90), repeats=3, seed=1)
    assert first == learning_curve(head, made.X, made.y, each(90), repeats=3, seed=1)
    assert first != learning_curve(head, made.X, made.y, each(90), repeats=3, seed=2)
    for name, array in before.items():
        np.testing.assert_array_equal(head.network_.arrays()[name], array)


@pytest.mark.parametrize("repeats", [2, 4])
def test_nothing_is_scored_that_was_fitted_and_parts_are_nested(monkeypatch, repeats):
    made = classes_made(90)
    made.X[:, 0] = each(90)  # a picture's name
    made.y = np.repeat(made.y[:30], 3)
    groups, seen = np.repeat(each(30), 3), []
    monkeypatch.setattr(module, "_score", lambda head, X, y, X_2, y_2: seen.append((X[:, 0], y, X_2[:, 0])) or 0.5)
    learning_curve(None, made.X, made.y, groups, repeats=repeats)
    assert len(seen) == 5 * repeats
    asides = set()
    for place, (mine, y, aside) in enumerate(seen):
        assert not set(groups[mine.astype(int)]) & set(groups[aside.astype(int)]), "copies are on one side"
        assert set(y) == {0, 1, 2}, "each class has a row"
        if place % 5:
            assert set(seen[place - 1][0]) <= set(mine)
        asides.add(tuple(sorted(aside)))
    assert len(asides) == repeats, "another fifth each time"


@pytest.mark.parametrize("kind", ["logistic", "linear", "mlp", "knn", "ncm"])
def test_every_head_has_one(kind):
    made = classes_made(60)
    head = make_head(kind, cv=2, **FAST.get(kind, {})).fit(made.X, made.y)
    curve = learning_curve(head, made.X, made.y, each(60), repeats=2)
    assert curve.points[-1]["mean"] > 0.5
    json.dumps(curve.as_dict(), allow_nan=False)


def test_several_labels_are_measured_by_ranking():
    made = labels_made(150)
    head = LabelsHead().fit(made.X, made.y)
    curve = learning_curve(head, made.X, made.y, each(150), repeats=3)
    assert curve.measure == "map" and curve.points[-1]["mean"] > 0.8
    assert "mAP" in curve.lines()[0]


@pytest.mark.parametrize("positives", [2, 3, 4])
def test_labels_so_rare_that_few_repeats_can_be_measured_give_numbers_or_none(positives):
    made = labels_made(40)
    made.y[:] = False
    made.y[:positives, 0] = True
    head = LabelsHead(C=0.1).fit(made.X, made.y)
    for seed in range(6):
        curve = learning_curve(head, made.X, made.y, each(40), repeats=2, seed=seed)
        json.dumps(curve.as_dict(), allow_nan=False)
        assert "nan" not in "".join(curve.lines())


@pytest.mark.parametrize("count", [4, 6, 9])
def test_a_point_never_claims_more_images_than_there_are(count):
    made = classes_made(count, 2)
    head = make_head("logistic", cv=2, C=0.1).fit(made.X, made.y)
    curve = learning_curve(head, made.X, made.y, each(count), repeats=2)
    assert max(point["n"] for point in curve.points) < count
    json.dumps(curve.as_dict(), allow_nan=False)


def test_the_verdict_weighs_a_gain_against_its_error():
    steady = np.tile([0.5, 0.8], (10, 1)) + np.linspace(0, 0.02, 10)[:, None]
    assert _verdict(steady) == (
        True, "more labelled images still help: the last step brought +30.0 points (standard error 0.0)"
    )  # fmt: skip
    noisy = np.stack([np.full(10, 0.5), 0.52 + 0.1 * (-1.0) ** each(10)], axis=1)
    helps, words = _verdict(noisy)
    assert helps is None
    assert words.startswith("too few images to tell whether more would help: the last step brought +2.0")
    helps, words = _verdict(steady[:, ::-1])
    assert helps is False and words.startswith("more labelled images of the same kind would hardly help")
    assert _verdict(steady[:, :1]) == (None, "too few training images for a learning curve")


@pytest.mark.parametrize("kind", ["logistic", "knn", "ncm"])
def test_again_fits_other_rows_with_what_was_chosen(kind):
    made = classes_made(90)
    head = make_head(kind, cv=3, l2_norm=True, pca=6).fit(made.X, made.y)
    chosen = {name: head.facts()[name] for name in ("C", "k") if name in head.facts()}
    anew = make_head(kind, cv=3, l2_norm=True, pca=6, **chosen).fit(made.X[:45], made.y[:45])
    found = head.again(made.X[:45], made.y[:45]).logits(made.X)
    np.testing.assert_allclose(found, anew.network_.logits(made.X), atol=0.02)
    assert np.abs(found - head.network_.logits(made.X)).max() > 0.02, "of other rows"
