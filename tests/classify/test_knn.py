"""Nearest neighbours and nearest means, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from headstart.classify import voters
from headstart.classify.heads import make_head
from headstart.classify.knn import _nearest_mean
from headstart.classify.metrics import log_loss, nearest_mean_baseline
from headstart.classify.model import SavedModel, load_model, save_model
from headstart.classify.network import softmax
from headstart.classify.splits import stratified_folds
from headstart.classify.voters import Neighbours, vote_logits
from headstart.errors import ModelError, UsageError
from support import make_space


def data(n=120, dim=10, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(9).standard_normal((classes, dim))
    return ((centres[y] + 1.5 * rng.standard_normal((n, dim))) * np.logspace(-1, 1, dim) + 3).astype(np.float32), y


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 15])
def test_neighbours_are_those_of_scikit_learn(metric, k):
    X, y = data()
    new, _ = data(seed=1)
    head = make_head("knn", k=k, metric=metric).fit(X, y)
    prepared = head.preparation_.apply
    reference = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(prepared(X), y)
    votes = reference.predict_proba(prepared(new)) * k
    np.testing.assert_allclose(softmax(head.decision_function(new)), (votes + 1 / 3) / (k + 1), atol=1e-9)
    np.testing.assert_array_equal(head.predict(new), reference.predict(prepared(new)))


def test_small_blocks_change_nothing(monkeypatch):
    X, y = data()
    head = make_head("knn").fit(X, y)
    logits, cv = head.decision_function(X), head.cv_
    monkeypatch.setattr(voters, "BLOCK_NUMBERS", 700)
    head.fit(X, y)
    np.testing.assert_array_equal(head.decision_function(X), logits)
    assert head.cv_ == cv


def test_k_is_chosen_by_held_out_log_loss_of_fits_that_leave_the_fold_out():
    X, y = data()
    head = make_head("knn", cv=4, metric="euclidean").fit(X, y)
    Z, folds = head.preparation_.apply(X), stratified_folds(y, 4)
    for tried in head.cv_["grid"]:
        held_out = np.empty((len(y), 3))
        for fold in range(4):
            model = KNeighborsClassifier(tried["k"], algorithm="brute").fit(Z[folds != fold], y[folds != fold])
            held_out[folds == fold] = model.predict_proba(Z[folds == fold]) * tried["k"]
        assert tried["log_loss"] == pytest.approx(log_loss(y, (held_out + 1 / 3) / (tried["k"] + 1)))
    assert [tried["k"] for tried in head.cv_["grid"]] == [1, 3, 5, 10, 20, 50]
    assert head.k_ == min(head.cv_["grid"], key=lambda tried: tried["log_loss"])["k"]
    assert head.network_.k == head.k_ == head.facts()["k"]


def test_copies_in_one_fold_do_not_vote_for_each_other():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 20)).astype(np.float32), np.arange(60) % 2
    X, y, groups = np.tile(X, (2, 1)), np.tile(y, 2), np.tile(np.arange(60), 2)
    assert make_head("knn", k=1).fit(X, y, groups=groups).cv_["accuracy"] < 0.75
    assert make_head("knn", k=1).fit(X, y).cv_["accuracy"] > 0.75, "the test would see copies that straddle"


def test_votes_leave_every_class_a_chance():
    proba = np.exp(vote_logits(np.array([[2, 2, 0], [1, 1, 1]]), 4))
    np.testing.assert_allclose(
        proba, [[1.25 / 4, 0.25 / 4, 2.25 / 4, 0.25 / 4], [0.25 / 4, 3.25 / 4, 0.25 / 4, 0.25 / 4]]
    )


@pytest.mark.parametrize("k", [0, -3, 2.5, 97, "many"])
def test_a_number_of_neighbours_that_is_none_is_refused(k):
    X, y = data()
    with pytest.raises(UsageError, match="--k must be 'auto' or from 1 to 96"):
        make_head("knn", k=k).fit(X, y)
    with pytest.raises(UsageError, match="--metric must be one of cosine, euclidean, and is 'taxi'"):
        make_head("knn", metric="taxi").fit(X, y)


def test_nearest_means_are_those_of_scikit_learn_and_of_the_baseline():
    X, y = data()
    new, new_y = data(seed=1)
    head = make_head("ncm").fit(X, y)
    prepared = head.preparation_.apply
    reference = NearestCentroid().fit(prepared(X), y)
    np.testing.assert_array_equal(head.predict(new), reference.predict(prepared(new)))
    assert (head.predict(new) == new_y).mean() == nearest_mean_baseline(X, y, new, new_y)


def test_nearest_means_are_cross_validated_on_the_folds():
    X, y = data()
    head = make_head("ncm", cv=4).fit(X, y)
    Z, folds = head.preparation_.apply(X), stratified_folds(y, 4)
    right = [NearestCentroid().fit(Z[folds != f], y[folds != f]).score(Z[folds == f], y[folds == f]) for f in range(4)]
    assert head.cv_["accuracy"] == pytest.approx(np.mean(right))
    assert head.cv_["accuracy_std"] == pytest.approx(np.std(right))


def test_a_class_without_rows_is_never_the_nearest():
    X, y = data(60, classes=2)
    weight, bias = _nearest_mean(X, y, 3)
    assert set((X @ weight.T + bias).argmax(axis=1)) == {0, 1}
    assert set((np.zeros_like(X) @ weight.T + bias).argmax(axis=1)) <= {0, 1}, "not even where its mean would be"


@pytest.fixture
def saved(tmp_path):
    X, y = data(dim=8)
    head = make_head("knn", k=5).fit(X, y)
    model = SavedModel(
        kind="knn", classes=("a", "b", "c"), spaces=[make_space().as_dict()], network=head.network_, facts=head.facts()
    )
    return head, X, save_model(tmp_path / "model", model)


def test_a_saved_model_answers_as_before(saved):
    head, X, folder = saved
    again = load_model(folder)
    assert isinstance(again.network, Neighbours)
    np.testing.assert_array_equal(again.network.logits(X), head.decision_function(X))
    assert again.network.n_classes == 3
    np.testing.assert_allclose(again.network.predict_proba(X, 1e9), 1 / 3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": None}, "lacks the array 'rows'"),
        ({"labels": None}, "lacks the array 'labels'"),
        ({"neighbours": None}, "lacks the array 'neighbours'"),
        ({"rows": np.zeros((120, 7), np.float32)}, "do not fit each other"),
        ({"rows": np.zeros((100, 8), np.float32)}, "do not fit each other"),
        ({"rows": np.zeros((120, 8))}, "not finite numbers of 32 bits"),
        ({"rows": np.full((120, 8), np.nan, np.float32)}, "not finite"),
        ({"labels": np.full(120, 3, np.int32)}, "do not fit each other"),
        ({"labels": np.full(120, -1, np.int32)}, "do not fit each other"),
        ({"labels": np.zeros(120, np.int64)}, "do not fit each other"),
        ({"neighbours": np.array([121, 3, 0])}, "do not fit each other"),
        ({"neighbours": np.array([0, 3, 0])}, "do not fit each other"),
        ({"neighbours": np.array([5, 3, 2])}, "do not fit each other"),
        ({"neighbours": np.array([5.0, 3, 0])}, "do not fit each other"),
        ({"neighbours": np.array([5, 3])}, "do not fit each other"),
        ({"mean": np.full(8, np.inf, np.float32)}, "not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(saved, changes, said):
    head, _, _ = saved
    arrays = {**head.network_.arrays(), **changes}
    with pytest.raises(ModelError, match=said):
        Neighbours.from_arrays({name: array for name, array in arrays.items() if array is not None})


def test_a_kind_that_is_not_that_of_the_numbers_is_named(saved):
    _, _, folder = saved
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"kind": "knn"', '"kind": "ncm"'))
    with pytest.raises(ModelError, match="is damaged: "):
        load_model(folder)
