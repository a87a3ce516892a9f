import math

import numpy as np
import pytest

from headstart.classify import metrics


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
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((200, 10)).astype(np.float32), rng.integers(0, 3, 200)
    scaler = StandardScaler().fit(X[:100])
    expected = NearestCentroid().fit(scaler.transform(X[:100]), y[:100]).score(scaler.transform(X[100:]), y[100:])
    assert metrics.nearest_mean_baseline(X[:100], y[:100], X[100:], y[100:]) == pytest.approx(expected)
