"""What is measured of a head: right by hand, sayable as JSON however small the data, blind to validation labels."""

import json

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

from headstart.classify.conformal import KEPT_PROBABILITIES
from headstart.classify.evaluate import evaluate
from headstart.classify.fit import fit_head
from headstart.classify.model import load_model
from headstart.classify.network import softmax
from headstart.errors import DataError, ModelError, UsageError

DESIGN = {"head", "backbone", "dim", "classes", "train", "cv", "C", "val", "baseline", "seconds", "out"}
VAL = {"n", "accuracy", "low", "high", "log_loss", "ece"}
EVALUATE = {
    "split", "n", "accuracy", "low", "high", "balanced_accuracy", "log_loss", "ece", "per_class", "confusion",
    "errors", "against",
}  # fmt: skip


def run(made, folder, out="model", **options):
    """Fit on a dataset; return the fit, after checking that all it says is JSON and text."""
    fit = fit_head(cache=made.put(folder / "cache"), out=folder / out, overwrite=True, **options)
    json.dumps(fit.summary(), allow_nan=False)
    assert not any("nan" in line for line in fit.lines())
    return fit


def test_the_fields_of_the_design_and_more_only_when_asked(tmp_path):
    made = classes_made()
    found = run(made, tmp_path).summary()
    assert set(found) >= DESIGN and set(found["val"]) >= VAL
    assert {"folds", "accuracy"} <= set(found["cv"]) and {"n", "accuracy"} <= set(found["train"])
    assert set(found["baseline"]) == {"majority", "nearest_mean"}
    assert not {"details", "curve", "per_class"} & set(found)
    assert set(run(made, tmp_path, details=True).summary()) - set(found) == {"details", "per_class"}
    assert set(run(made, tmp_path, curve=True).summary()) - set(found) == {"curve"}
    scored = evaluate(tmp_path / "model", cache=tmp_path / "cache").summary()
    assert set(scored) >= EVALUATE


def test_scores_agree_with_a_count_by_hand(tmp_path):
    made = classes_made(spread=3.0)
    fit = run(made, tmp_path)
    val, train = made.split == "val", made.split == "train"
    proba = fit.model.predict_proba(made.X[val])
    right = proba.argmax(axis=1) == made.y[val]
    scores = fit.summary()
    assert scores["val"]["accuracy"] == right.mean() < 1
    assert scores["val"]["log_loss"] == pytest.approx(-np.log(proba[np.arange(20), made.y[val]]).mean())
    commonest = np.bincount(made.y[train]).argmax()
    assert scores["baseline"]["majority"] == (made.y[val] == commonest).mean()
    means = np.stack([made.X[train & (made.y == label)].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(made.X[val][:, None] - means, axis=2).argmin(axis=1)
    assert scores["baseline"]["nearest_mean"] == pytest.approx((nearest == made.y[val]).mean(), abs=0.11)
    np.testing.assert_allclose(proba, softmax(fit.head.decision_function(made.X[val]) / fit.head.temperature_))


@pytest.mark.parametrize("several", [False, True])
def test_f25_validation_labels_are_never_seen(tmp_path, several):
    made = labels_made() if several else classes_made(spread=3.0)
    first = run(made, tmp_path, curve=True, details=True)
    val = np.flatnonzero(made.split == "val")
    made.y[val] = made.y[np.random.default_rng(1).permutation(val)]
    second = run(made, tmp_path, curve=True, details=True)
    assert first.summary()["val"] != second.summary()["val"], "the labels did change"
    for name, array in first.model.network.arrays().items():
        np.testing.assert_array_equal(array, second.model.network.arrays()[name])
    for name, array in first.model.novelty.arrays().items():
        np.testing.assert_array_equal(array, second.model.novelty.arrays()[name])
    np.testing.assert_array_equal(first.model.true_probabilities, second.model.true_probabilities)
    assert first.model.facts == second.model.facts
    assert (first.model.temperature, first.model.thresholds) == (second.model.temperature, second.model.thresholds)
    assert (first.curve, first.diagnostics) == (second.curve, second.diagnostics)


def test_f25_validation_embeddings_are_never_seen(tmp_path):
    made = classes_made()
    first = run(made, tmp_path / "a")
    made.X[made.split == "val"] *= -3
    second = run(made, tmp_path / "b")
    for name, array in first.model.network.arrays().items():
        np.testing.assert_array_equal(array, second.model.network.arrays()[name])
    assert first.model.temperature == second.model.temperature


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("val", [0, 1, 2])
@pytest.mark.parametrize("head", ["logistic", "knn", "ncm"])
def test_the_smallest_datasets_are_scored_in_numbers_that_json_has(tmp_path, n_classes, val, head):
    made = classes_made(2 * n_classes + val, n_classes)
    made.y = np.arange(len(made.y)) % n_classes
    made.split[:] = "train"
    made.split[2 * n_classes :] = "val"
    fit = run(made, tmp_path, head=head, cv=2, details=True, curve=True, val_fraction=0.0)
    assert (fit.summary()["val"] or {"n": 0})["n"] == val
    if val:
        scored = evaluate(tmp_path / "model", cache=tmp_path / "cache")
        json.dumps(scored.summary(), allow_nan=False)
        assert not any("nan" in line for line in scored.lines())
        assert len({row["label"] for row in scored.scores["per_class"]}) == n_classes


@pytest.mark.parametrize("val", [0, 1, 2])
def test_the_smallest_datasets_of_several_labels_too(tmp_path, val):
    made = labels_made(6 + val)
    made.y[:] = False
    made.y[:3, 0] = made.y[2:5, 1] = True
    made.split[:] = "train"
    made.split[6:] = "val"
    run(made, tmp_path, cv=2, details=True, curve=True, val_fraction=0.0)
    if val:
        scored = evaluate(tmp_path / "model", cache=tmp_path / "cache")
        json.dumps(scored.summary(), allow_nan=False)
        assert not any("nan" in line for line in scored.lines())


def test_a_class_that_val_lacks_has_no_recall_and_spoils_nothing(tmp_path):
    made = classes_made()
    made.split[made.y == 1] = "train"
    fit = run(made, tmp_path, details=True)
    (row,) = [row for row in fit.summary()["per_class"] if row["label"] == "b"]
    assert (row["n"], row["recall"]) == (0, None)
    scored = evaluate(tmp_path / "model", cache=tmp_path / "cache")
    json.dumps(scored.summary(), allow_nan=False)
    assert any(line.split() == ["b", "0", "images,", "-", "found"] for line in scored.lines())


def test_evaluate_agrees_with_fit_head_and_lists_the_surest_errors_first(tmp_path):
    made = classes_made(spread=3.0)
    fit = run(made, tmp_path)
    found = evaluate(tmp_path / "model", cache=tmp_path / "cache").summary()
    for name in ("n", "accuracy", "low", "high", "log_loss", "ece", "ece_uncalibrated"):
        assert found[name] == fit.summary()["val"][name], name
    assert found["conformal"] == fit.summary()["conformal"]
    assert len(found["errors"]) == round(found["n"] * (1 - found["accuracy"])) > 1
    sure = [error["probability"] for error in found["errors"]]
    assert sure == sorted(sure, reverse=True)
    for error in found["errors"]:
        assert error["label"] == made.classes[made.y[int(error["path"][7:11])]] != error["predicted"]


@pytest.mark.parametrize("several", [False, True])
def test_comparisons_count_discordant_images_and_say_who_is_better(tmp_path, several):
    made = labels_made(400, noise=0.3) if several else classes_made(400, spread=2.0)
    run(made, tmp_path, out="good")
    truth, train = made.y.copy(), np.flatnonzero(made.split == "train")
    made.y[train] = made.y[np.random.default_rng(0).permutation(train)]
    run(made, tmp_path, out="bad")
    made.y = truth
    cache = made.put(tmp_path / "cache")
    both = {
        name: evaluate(tmp_path / name, against=tmp_path / other, cache=cache).summary()
        for name, other in (("good", "bad"), ("bad", "good"))
    }
    good, bad = both["good"], both["bad"]
    assert good["against"]["verdict"] == "the first is better, by more than chance"
    assert bad["against"]["verdict"] == "the second is better, by more than chance"
    assert good["against"]["accuracy"] == bad["accuracy"] < good["accuracy"]
    assert good["against"]["only_first"] == bad["against"]["only_second"] > good["against"]["only_second"]
    gap = good["against"]["only_first"] - good["against"]["only_second"]
    assert gap == round(100 * (good["accuracy"] - bad["accuracy"]))
    same = evaluate(tmp_path / "good", against=tmp_path / "good", cache=cache)
    assert same.against["verdict"] == "no difference beyond chance" and same.against["p_value"] == 1
    assert "no difference beyond chance" in same.lines()[-1]
    json.dumps(same.summary(), allow_nan=False)


def test_models_of_one_class_and_of_several_labels_are_not_compared(tmp_path):
    run(classes_made(120), tmp_path, out="one")
    several = labels_made()
    run(several, tmp_path, out="several")
    for first, second in (("one", "several"), ("several", "one")):
        with pytest.raises(ModelError, match="several labels an image") as caught:
            evaluate(tmp_path / first, against=tmp_path / second, cache=tmp_path / "cache")
        assert "one class an image" in str(caught.value) and "\n" not in str(caught.value)


def test_a_split_without_images_is_named(tmp_path):
    run(classes_made(), tmp_path)
    with pytest.raises(DataError, match="photos has no labelled image in split test"):
        evaluate(tmp_path / "model", split="test", cache=tmp_path / "cache")


def test_probabilities_for_sets_are_thinned_evenly_and_ascend(tmp_path, monkeypatch):
    made = classes_made()
    full = run(made, tmp_path).model.true_probabilities
    assert len(full) == 60 and (np.diff(full) >= 0).all() and full.dtype == np.float64
    monkeypatch.setattr("headstart.classify.conformal.KEPT_PROBABILITIES", 7)
    few = run(made, tmp_path).model.true_probabilities
    assert len(few) == 7 and (few[0], few[-1]) == (full[0], full[-1]) and np.isin(few, full).all()
    assert KEPT_PROBABILITIES >= 1000


def test_what_is_saved_is_what_was_said(tmp_path):
    fit = run(labels_made(), tmp_path)
    saved = load_model(tmp_path / "model")
    found = fit.summary()
    assert found["multi_label"] is saved.multi_label is True
    assert found["thresholds"] == dict(zip(saved.classes, saved.thresholds, strict=True))
    assert saved.scores == fit.model.scores
    assert (found["val"]["map"], found["temperature"]) == (saved.scores["val"]["map"], saved.temperature)
    X = fit.data.part("val")[0]
    np.testing.assert_array_equal(saved.predict_proba(X), fit.head.predict_proba(X))
    np.testing.assert_array_equal(saved.novelty.score(X), fit.model.novelty.score(X))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"near_copies": "some"}, "--near-copies must be one of auto, all, none, and is 'some'"),
        ({"near_copies": ""}, "--near-copies must be one of"),
        ({"val_fraction": 1.0}, "--val-fraction must be from 0 to below 1, and is 1"),
        ({"val_fraction": float("nan")}, "--val-fraction must be from 0 to below 1, and is nan"),
    ],
)
def test_nonsense_is_refused_in_one_line_before_anything_is_read(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        fit_head(cache=tmp_path / "absent", **options)
