import numpy as np
import pytest

from headstart.classify.heads import make_head
from headstart.classify.logistic import LogisticHead
from headstart.classify.network import Network, softmax
from headstart.classify.preparation import standardisation
from headstart.classify.voters import Neighbours
from headstart.errors import TrainingError, UsageError

KINDS = {
    "logistic": {},
    "linear": {"epochs": 40, "lr": 0.03},
    "mlp": {"epochs": 40, "lr": 0.03, "hidden": (16,), "dropout": 0.2},
    "knn": {},
    "ncm": {},
}


def blobs(n=90, dim=12, classes=3, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(99).standard_normal((classes, dim)) * 2
    X = centres[y] + spread * rng.standard_normal((n, dim))
    return (X * np.logspace(-2, 2, dim) + 5).astype(np.float32), y


@pytest.fixture(params=KINDS)
def head(request):
    return make_head(request.param, cv=3, **KINDS[request.param])


def test_a_head_learns_what_can_be_learnt(head):
    X, y = blobs()
    assert head.fit(X, y, ["a", "b", "c"]) is head
    new_X, new_y = blobs(seed=1)
    assert (head.predict(new_X) == new_y).mean() > 0.9
    assert head.cv_["accuracy"] > 0.9
    assert head.classes_ == ("a", "b", "c")


def test_probabilities_are_such_and_agree_with_the_decision(head):
    X, y = blobs()
    proba = head.fit(X, y).predict_proba(X)
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(proba.argmax(axis=1), head.predict(X))
    np.testing.assert_array_equal(head.decision_function(X).argmax(axis=1), head.predict(X))
    np.testing.assert_allclose(head.oof_proba_.sum(axis=1), 1)


def test_two_classes_work(head):
    X, y = blobs(classes=2)
    assert (head.fit(X, y).predict(X) == y).mean() > 0.95


def test_a_seed_fixes_the_result_and_leaves_the_callers_numbers_alone(head):
    import torch

    X, y = blobs()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = head.fit(X, y).network_.arrays()
    assert torch.equal(torch.rand(3), expected)
    second = head.fit(X, y).network_.arrays()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_a_fitted_head_survives_as_arrays(head):
    X, y = blobs()
    network = head.fit(X, y).network_
    stored = Neighbours if head.kind == "knn" else Network
    again = stored.from_arrays({name: array.copy() for name, array in network.arrays().items()})
    np.testing.assert_array_equal(again.logits(X), head.decision_function(X))


def test_the_constructor_only_stores(head):
    assert head.settings() == {**head.settings(), "cv": 3, "random_state": 0}
    assert not [name for name in vars(head) if name.endswith("_")]


def test_bad_input_is_refused(head):
    X, y = blobs()
    bad = X.copy()
    bad[3, 3] = np.nan
    with pytest.raises(TrainingError, match="NaN or infinity"):
        head.fit(bad, y)
    with pytest.raises(TrainingError, match="labels"):
        head.fit(X[:50], y)
    with pytest.raises(TrainingError, match="one class only"):
        head.fit(X, np.zeros(90, int))


def test_out_of_fold_probabilities_are_of_fits_that_did_not_see_the_row(head):
    # Labels without any relation to the features: a fit that saw a row would know its label.
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((120, 200)).astype(np.float32), rng.integers(0, 2, 120)
    head.fit(X, y)
    assert head.cv_["accuracy"] < 0.65
    assert (head.oof_proba_.argmax(axis=1) == y).mean() == pytest.approx(head.cv_["accuracy"])


def test_options_without_meaning_are_refused():
    with pytest.raises(UsageError, match="--lr means nothing to --head logistic; leave it out"):
        make_head("logistic", lr=0.1)
    with pytest.raises(UsageError, match="--hidden means nothing to --head linear"):
        make_head("linear", hidden=(3,))
    with pytest.raises(UsageError, match="there is no head 'forest': take one of logistic, linear, mlp, knn, ncm"):
        make_head("forest")


@pytest.mark.parametrize(("n", "dim", "classes"), [(60, 8, 2), (60, 8, 3), (40, 100, 2), (40, 100, 3)])
@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_it_agrees_with_the_plain_pipeline_of_scikit_learn(n, dim, classes, weight):
    from sklearn.linear_model import LogisticRegression

    X, y = blobs(n, dim, classes, spread=3.0)
    ours = LogisticHead(C=0.1, cv=3, class_weight=weight, tol=1e-10).fit(X, y)
    plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000, class_weight=None if weight == "none" else weight)
    Z = ours.preparation_.apply(X).astype(np.float64)
    np.testing.assert_allclose(softmax(ours.decision_function(X)), plain.fit(Z, y).predict_proba(Z), atol=2e-4)
    np.testing.assert_allclose(ours.coef_, plain.coef_, rtol=5e-3, atol=2e-4)
    np.testing.assert_allclose(ours.intercept_, plain.intercept_, rtol=5e-3, atol=2e-4)


def test_c_is_chosen_by_held_out_log_loss():
    X, y = blobs(60, 40, 2, spread=4.0)
    head = LogisticHead(cv=3).fit(X, y)
    losses = head.cv_["log_losses"]
    assert len(losses) == len(head.cv_["Cs"]) == 11
    assert head.cv_["Cs"][int(np.argmin(losses))] == head.C_
    assert head.cv_["log_loss"] == pytest.approx(min(losses), rel=0.02)


def test_a_constant_feature_does_no_harm(head):
    X, y = blobs()
    X[:, 2] = 7.25
    assert np.isfinite(head.fit(X, y).predict_proba(X)).all()
    mean, scale = standardisation(X)
    assert (mean[2], scale[2]) == (7.25, 1.0)


def test_a_solver_that_stops_early_says_so():
    X, y = blobs()
    head = LogisticHead(C=100.0, cv=3, max_iter=2).fit(X, y)
    assert head.notes_ == ["the solver stopped at 2 steps before it had converged at C = 100"]
