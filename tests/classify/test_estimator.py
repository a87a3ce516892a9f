"""LogisticRegressionPath as scikit-learn has it: its own checks, its own objective, its own loop over folds and C."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from headstart import LogisticRegressionPath


@parametrize_with_checks([LogisticRegressionPath(Cs=3, cv=3)])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def problem(n=240, dim=20, classes=4, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = rng.standard_normal((classes, dim))[y] + 1.5 * rng.standard_normal((n, dim))
    return X.astype(dtype), np.array(["lynx", "otter", "stoat", "vole", "wren"])[y]


def objective(model, X, y, weight=None):
    """Return scikit-learn's objective over C, in float64."""
    codes = np.searchsorted(model.classes_, y)
    logits = X.astype(np.float64) @ model.coef_.astype(np.float64).T + model.intercept_
    logits = logits if logits.shape[1] > 1 else np.hstack([np.zeros_like(logits), logits])
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), codes]
    weight = np.ones(len(y)) if weight is None else weight
    return (weight * losses).sum() + 0.5 * (model.coef_.astype(np.float64) ** 2).sum() / model.C_


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("C", [1e-4, 0.01, 1.0, 100.0])
def test_its_minimum_is_that_of_scikit_learn(classes, dtype, C):
    X, y = problem(classes=classes, dtype=dtype)
    ours = LogisticRegressionPath([C], cv=3).fit(X, y)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(X.astype(np.float64), y)
    theirs.C_ = C
    assert objective(ours, X, y) <= objective(theirs, X, y) * (1 + 1e-5)
    ranked = np.sort(theirs.predict_proba(X), axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 1e-3
    np.testing.assert_array_equal(ours.predict(X)[clear], theirs.predict(X)[clear])
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=5e-3)


@pytest.mark.parametrize("weight", ["balanced", {"lynx": 3.0, "otter": 0.5}])
@pytest.mark.parametrize("classes", [2, 3])
def test_class_weights_are_those_of_scikit_learn(weight, classes):
    X, y = problem(n=150, classes=classes)
    keep = (y != "otter") | (np.arange(len(y)) % 4 == 0)
    X, y = X[keep], y[keep]
    ours = LogisticRegressionPath([0.5], cv=3, class_weight=weight, tol=1e-10).fit(X, y)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000, class_weight=weight).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=2e-4)


@pytest.mark.parametrize(
    ("cv", "split"),
    [(4, StratifiedKFold(4)), (KFold(3), KFold(3)), (StratifiedKFold(3, shuffle=True, random_state=1),) * 2],
)
def test_scores_are_those_of_the_plain_loop(cv, split):
    X, y = problem()
    ours = LogisticRegressionPath(4, cv=cv, tol=1e-9).fit(X, y)
    plain = np.array(
        [
            [
                -log_loss(
                    y[test],
                    LogisticRegression(C=C, tol=1e-9, max_iter=10_000).fit(X[train], y[train]).predict_proba(X[test]),
                )
                for C in ours.Cs_
            ]
            for train, test in split.split(X, y)
        ]
    )
    assert ours.scores_.shape == plain.shape
    np.testing.assert_allclose(ours.scores_, plain, rtol=1e-3)
    assert ours.Cs_[plain.mean(axis=0).argmax()] == ours.C_


def test_any_scorer_chooses():
    X, y = problem()
    ours = LogisticRegressionPath(5, scoring="accuracy").fit(X, y)
    assert ((ours.scores_ >= 0) & (ours.scores_ <= 1)).all()
    assert ours.Cs_[ours.scores_.mean(axis=0).argmax()] == ours.C_
    constant = LogisticRegressionPath(5, scoring=lambda model, X, y: 1.0).fit(X, y)
    assert constant.Cs_[0] == constant.C_, "of equally good ones the smallest"


def test_an_integer_spans_six_decades():
    X, y = problem(n=60)
    np.testing.assert_allclose(LogisticRegressionPath(11).fit(X, y).Cs_, np.logspace(-4, 2, 11))


def test_blocks_give_what_memory_gives(tmp_path):
    X, y = problem(n=500, dtype=np.float32)
    mapped = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    whole = LogisticRegressionPath(3, cv=StratifiedKFold(3, shuffle=True, random_state=0), tol=1e-8)
    blocks = LogisticRegressionPath(3, cv=StratifiedKFold(3, shuffle=True, random_state=0), tol=1e-8, block_rows=70)
    whole.fit(X, y)
    blocks.fit(np.memmap(tmp_path / "X", np.float32, "r", shape=X.shape), y)
    np.testing.assert_allclose(blocks.coef_, whole.coef_, atol=1e-3)
    np.testing.assert_allclose(blocks.scores_, whole.scores_, rtol=1e-3)


def test_a_seed_shuffles_the_folds_and_none_leaves_the_order():
    X, y = problem()
    fits = [LogisticRegressionPath(3, random_state=seed).fit(X, y).scores_ for seed in (None, None, 0, 0, 1)]
    np.testing.assert_array_equal(fits[0], fits[1])
    np.testing.assert_array_equal(fits[2], fits[3])
    assert not np.allclose(fits[2], fits[4])


def test_groups_may_be_kept_together_by_a_splitter():
    X, y = problem()
    groups = np.arange(len(y)) // 2
    split = list(GroupKFold(3).split(X, y, groups))
    model = LogisticRegressionPath(3, cv=split).fit(X, y)
    assert model.scores_.shape == (3, 3)


def test_settings_without_meaning_are_refused():
    X, y = problem(n=60)
    for settings, words in [
        ({"Cs": 0}, "Cs must be at least 1"),
        ({"Cs": [1.0, -1.0]}, "or values from 1e-30 to 1e"),
        ({"Cs": 2.5}, "or the values themselves, and is 2.5"),
        ({"Cs": None}, "or the values themselves, and is None"),
        ({"Cs": [1e-320]}, "or values from 1e-30 to 1e"),
        ({"cv": []}, "at least 2 folds, and makes 0"),
        ({"class_weight": {"lynx": -1.0}}, "finite weights above 0"),
        ({"class_weight": {"dodo": 1.0}}, "of classes that there are"),
        ({"scoring": None}, "scoring must be"),
        ({"scoring": lambda *_: float("nan")}, "the score of a fold is not a number"),
        ({"tol": -1.0}, "tol must be above 0"),
        ({"max_iter": 0}, "max_iter at least 1"),
        ({"cv": ShuffleSplit(3, random_state=0)}, "cv must divide the rows"),
        ({"class_weight": "even"}, "class_weight must be"),
        ({"device": "abacus"}, "device must be"),
        ({"block_rows": 0}, "block_rows must be above 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            LogisticRegressionPath(**settings).fit(X, y)
    with pytest.raises(ValueError, match="a class is held out as a whole"):
        LogisticRegressionPath(cv=KFold(3)).fit(X[:6], np.array(list("aabbcc")))


def test_masks_divide_rows_as_numbers_do():
    X, y = problem(n=90)
    numbers = list(StratifiedKFold(3).split(X, y))
    masks = [tuple(np.isin(np.arange(90), side) for side in sides) for sides in numbers]
    one, other = (LogisticRegressionPath(3, cv=cv).fit(X, y).scores_ for cv in (numbers, masks))
    np.testing.assert_array_equal(one, other)


def test_rows_with_nan_are_refused_in_blocks_too():
    X, y = problem(n=60)
    X[50, 3] = np.nan
    with pytest.raises(ValueError, match="X holds NaN or infinity"):
        LogisticRegressionPath(block_rows=20).fit(X, y)


@pytest.mark.parametrize("C", [1.0, 1e4, 1e6])
def test_folds_that_are_separable_lead_the_fit_to_all_rows_nowhere_wrong(C):
    # Each half can be told apart, all rows together cannot: the folds' coefficients are far too large for them.
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 20)), (np.arange(200) < 10).astype(int)
    ours = LogisticRegressionPath([C], cv=2).fit(X, y)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(X, y)
    theirs.C_ = C
    assert objective(ours, X, y) <= objective(theirs, X, y) * (1 + 1e-5)


def test_more_features_than_rows_are_turned_into_as_few():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 3000)), np.arange(60) % 3
    ours = LogisticRegressionPath([0.01, 1.0], cv=3, tol=1e-10, scoring="accuracy").fit(X, y)
    theirs = LogisticRegression(C=ours.C_, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)


def test_far_from_zero_float32_keeps_its_digits():
    X, y = problem(n=200, dim=5)
    near, far = (LogisticRegressionPath([1.0], cv=3).fit(some.astype(np.float32), y) for some in (X, X + 1000))
    np.testing.assert_allclose(far.coef_, near.coef_, atol=5e-3)


def test_logarithms_of_probabilities_stay_finite():
    X, y = problem(n=60)
    found = LogisticRegressionPath([1e3], cv=3).fit(X, y).predict_log_proba(1e4 * X)
    assert np.isfinite(found).all()
    assert found.min() < -1000


def test_threads_of_other_fits_get_their_products_threads_back():
    from concurrent.futures import ThreadPoolExecutor

    from threadpoolctl import threadpool_info

    X, y = problem(n=4000, dim=100, classes=3)
    before = [pool["num_threads"] for pool in threadpool_info()]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: LogisticRegressionPath(3, random_state=seed).fit(X, y), range(6)))
    assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_too_few_steps_are_told():
    X, y = problem()
    with pytest.warns(ConvergenceWarning, match="stopped at 2 steps before it had converged at C = 100"):
        LogisticRegressionPath([100.0], max_iter=2).fit(X, y)


def test_classes_that_are_nearly_certain_keep_their_digits():
    # Under a weak penalty on separable rows almost every probability is 1 to float32's last digit.
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    X = (8 * np.eye(3)[y] @ rng.standard_normal((3, 30)) + rng.standard_normal((300, 30))).astype(np.float32)
    ours = LogisticRegressionPath([1e4], cv=3).fit(X, y)
    exact = LogisticRegressionPath([1e4], cv=3, tol=1e-8, max_iter=2000).fit(X.astype(np.float64), y)
    # 1e-9 nats a row are as good as nothing; probabilities of 1 - 1e-7 in float32 would miss by far more.
    assert objective(ours, X, y) <= objective(exact, X, y) * (1 + 1e-5) + len(y) * 3e-9


@pytest.mark.parametrize("name", ["hymenoptera", "hotdog"])
def test_on_photographs_it_predicts_what_scikit_learn_predicts(photographs, name):
    rows = photographs[name]
    mean, scale = rows.train.mean(axis=0), rows.train.std(axis=0)
    X, new = ((some - mean) / np.where(scale > 0, scale, 1) for some in (rows.train, rows.val))
    for Cs in (11, [0.001]):
        ours = LogisticRegressionPath(Cs, random_state=0).fit(X, rows.y)
        theirs = LogisticRegression(C=ours.C_, tol=1e-6, max_iter=10_000).fit(X, rows.y)
        theirs.C_ = ours.C_
        assert objective(ours, X, rows.y) <= objective(theirs, X, rows.y) * (1 + 1e-5)
        np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))
