import math

import numpy as np
import pytest

from headstart.classify import metrics
from headstart.classify.preparation import standardisation


@pytest.fixture
def predictions():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 300)
    logits = rng.standard_normal((300, 4)) * 2
    logits[np.arange(300), y] += 1.5
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, proba


def test_scores_agree_with_scikit_learn(predictions):
    from sklearn import metrics as reference

    y, proba = predictions
    predicted = proba.argmax(axis=1)
    ours = metrics.score(y, proba, "abcd")
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))
    assert ours["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(y, predicted))
    assert ours["log_loss"] == pytest.approx(reference.log_loss(y, proba))
    assert ours["confusion"] == reference.confusion_matrix(y, predicted).tolist()
    precision, recall, f1, n = reference.precision_recall_fscore_support(y, predicted)
    for index, row in enumerate(ours["per_class"]):
        got = (row["label"], row["n"], row["precision"], row["recall"], row["f1"])
        assert got[:2] == ("abcd"[index], n[index])
        assert got[2:] == pytest.approx((precision[index], recall[index], f1[index]))


@pytest.mark.parametrize("successes", [0, 1, 7, 50, 99, 100])
def test_the_wilson_interval_agrees_with_scipy(successes):
    from scipy.stats import binomtest

    expected = binomtest(successes, 100).proportion_ci(0.95, method="wilson")
    assert metrics.wilson_interval(successes, 100) == pytest.approx((expected.low, expected.high))


def test_the_wilson_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.9, 0.97):
        draws = rng.binomial(153, truth, 4000)
        held = [low <= truth <= high for low, high in (metrics.wilson_interval(int(k), 153) for k in draws)]
        assert 0.93 < np.mean(held) < 0.97


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (3, 9), (9, 3), (10, 10), (400, 500), (3000, 2900)])
def test_mcnemar_agrees_with_scipy(first, second):
    from scipy.stats import binomtest

    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert metrics.mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_a_known_case():
    # Ten answers at 95 %, eight of them right: off by .15; ten at 65 %, all right: off by .35.
    proba = np.array([[0.95, 0.05]] * 10 + [[0.65, 0.35]] * 10)
    y = np.array([0] * 8 + [1] * 2 + [0] * 10)
    assert metrics.expected_calibration_error(y, proba) == pytest.approx((0.15 + 0.35) / 2)


def test_calibration_error_of_honest_probabilities_is_small():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 50_000)
    y = (rng.uniform(size=50_000) > p).astype(int)
    assert metrics.expected_calibration_error(y, np.stack([p, 1 - p], axis=1)) < 0.01


def test_certainty_that_is_wrong_costs_a_finite_price():
    assert metrics.log_loss(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(-math.log(np.finfo(float).eps))


def test_a_class_without_images_has_no_recall_and_one_never_predicted_no_precision():
    scores = metrics.score(
        np.array([0, 0, 1]), np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.7, 0.3, 0]]), ["a", "b", "c"]
    )
    a, b, c = scores["per_class"]
    assert (a["recall"], b["recall"], c["recall"]) == (1.0, 0.0, None)
    assert (a["precision"], b["precision"], c["f1"]) == (pytest.approx(2 / 3), None, None)
    assert scores["balanced_accuracy"] == 0.5


def test_baselines():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((60, 3)).astype(np.float32) + np.repeat([[0, 0, 0], [9, 9, 9]], 30, axis=0).astype(
        np.float32
    )
    y = np.repeat([0, 1], 30)
    assert metrics.majority_baseline(np.array([1, 1, 0]), np.array([0, 1, 0, 0])) == 0.25
    assert metrics.nearest_mean_baseline(X, y, X, y) == 1.0
    assert metrics.nearest_mean_baseline(X, y, X, 1 - y) == 0.0


def test_the_nearest_mean_agrees_with_scikit_learn():
    from sklearn.neighbors import NearestCentroid

    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((200, 10)).astype(np.float32), rng.integers(0, 3, 200)
    mean, scale = standardisation(X[:100])
    Z = (X - mean) / scale
    expected = NearestCentroid().fit(Z[:100], y[:100]).score(Z[100:], y[100:])
    assert metrics.nearest_mean_baseline(X[:100], y[:100], X[100:], y[100:]) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_agrees_with_scikit_learn_also_where_classes_are_missing(seed):
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(seed)
    y, predicted = rng.choice([0, 1, 3, 6], 40), rng.choice([1, 2, 3, 8], 40)
    expected = f1_score(y, predicted, average="macro", zero_division=0)
    found = metrics.score(y, np.eye(9)[predicted], [""] * 9)["macro_f1"]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_agrees_with_scikit_learn(predictions, k):
    from sklearn.metrics import top_k_accuracy_score

    y, proba = predictions
    assert metrics.top_k_accuracy(y, proba, k) == pytest.approx(top_k_accuracy_score(y, proba, k=k))


def test_of_equal_probabilities_the_earlier_class_comes_first_as_in_argmax():
    rng = np.random.default_rng(0)
    proba, y = rng.integers(0, 3, (500, 6)) / 2, rng.integers(0, 6, 500)
    assert metrics.top_k_accuracy(y, proba, 1) == metrics.accuracy(y, proba.argmax(axis=1))
    assert metrics.top_k_accuracy(y, proba, 6) == 1
    assert metrics.top_k_accuracy(np.array([0, 1, 2]), np.full((3, 3), 1 / 3), 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("n_classes", "k"), [(2, None), (3, 2), (5, 2), (6, 3), (8, 4), (10, 5), (100, 5)])
def test_scores_count_five_classes_but_no_more_than_half(n_classes, k):
    rng = np.random.default_rng(0)
    y, proba = rng.integers(0, n_classes, 50), rng.dirichlet(np.ones(n_classes), 50)
    top = metrics.score(y, proba, list(map(str, range(n_classes))))["top_k"]
    assert (top and top["k"]) == k
    assert top is None or top["accuracy"] == metrics.top_k_accuracy(y, proba, k)


@pytest.mark.parametrize("decimals", [1, 2, 15])
@pytest.mark.parametrize("seed", range(4))
def test_roc_auc_agrees_with_scikit_learn_with_and_without_ties(seed, decimals):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    y, p = rng.random(200) < 0.3, rng.random(200).round(decimals)
    both = np.stack([1 - p, p], axis=1)
    assert metrics.roc_auc(y.astype(int), both) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    many, proba = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    expected = roc_auc_score(many, proba, multi_class="ovr", average="macro")
    assert metrics.roc_auc(many, proba) == pytest.approx(expected, abs=1e-12)


def test_roc_auc_is_the_chance_of_the_right_order():
    assert metrics.binary_auc(np.array([True, True, False, False]), np.array([3.0, 1.0, 1.0, 0.0])) == 0.875


def test_roc_auc_leaves_out_what_has_no_area():
    rng = np.random.default_rng(2)
    y, proba = rng.integers(0, 2, 50), rng.dirichlet(np.ones(3), 50)
    two = [metrics.binary_auc(y == label, proba[:, label]) for label in (0, 1)]
    assert metrics.roc_auc(y, proba) == pytest.approx(np.mean(two))
    assert metrics.roc_auc(np.zeros(50, int), proba[:, :2]) is None
    assert metrics.roc_auc(np.zeros(50, int), proba) is None


def test_the_reliability_curve_agrees_with_scikit_learn_and_gives_the_calibration_error(predictions):
    from sklearn.calibration import calibration_curve

    y, proba = predictions
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    curve = metrics.reliability_curve(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    full = curve.counts > 0
    assert curve.accuracy[full] == pytest.approx(accuracy)
    assert curve.confidence[full] == pytest.approx(mean)
    assert np.isnan(curve.accuracy[~full]).all()
    assert curve.counts.sum() == len(y)
    assert curve.edges[[0, -1]].tolist() == [0, 1]
    by_hand = sum(
        abs(right[mine].mean() - confidence[mine].mean()) * mine.mean()
        for low in np.arange(15) / 15
        if (mine := (confidence >= low) & (confidence < low + 1 / 15)).any()
    )
    assert metrics.expected_calibration_error(y, proba) == curve.ece == pytest.approx(by_hand)


@pytest.mark.parametrize("n", [20, 50, 150])
@pytest.mark.parametrize("truth", [0.5, 0.9, 0.95])
def test_the_wilson_interval_holds_the_truth_as_often_as_it_says_exactly(n, truth):
    from scipy.stats import binom

    held = sum(
        binom.pmf(k, n, truth)
        for k in range(n + 1)
        if metrics.wilson_interval(k, n)[0] <= truth <= metrics.wilson_interval(k, n)[1]
    )
    # Few trials have few outcomes, so that no interval can keep 95 % exactly: 92.5 % at 19 of 20 is its worst here.
    assert 0.92 <= held <= 0.975


def test_mcnemar_agrees_with_scipy_over_a_grid():
    from scipy.stats import binomtest

    for first in range(0, 41, 3):
        for second in range(1, 41, 3):
            expected = binomtest(first, first + second).pvalue
            assert metrics.mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_seldom_finds_a_difference_where_there_is_none():
    rng = np.random.default_rng(0)
    found = [metrics.mcnemar_exact(int(k), 60 - int(k)) < 0.05 for k in rng.binomial(60, 0.5, 3000)]
    assert 0.01 < np.mean(found) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)
