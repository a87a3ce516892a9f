import numpy as np
import pytest

from headstart.classify import multilabel
from headstart.classify.metrics import wilson_interval


@pytest.fixture
def labelled():
    rng = np.random.default_rng(4)
    proba = rng.random((200, 5)) ** np.array([0.5, 1, 1, 2, 4])
    return rng.random((200, 5)) < proba, proba


@pytest.mark.parametrize("decimals", [1, 2, 15])
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_agrees_with_scikit_learn_with_and_without_ties(seed, decimals):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)
    y, score = rng.random(150) < 0.2, rng.random(150).round(decimals)
    assert multilabel.average_precision(y, score) == pytest.approx(average_precision_score(y, score), abs=1e-12)


def test_scores_agree_with_scikit_learn(labelled):
    from sklearn import metrics as reference

    Y, proba = labelled
    thresholds = np.array([0.5, 0.4, 0.6, 0.5, 0.2])
    given = proba >= thresholds
    ours = multilabel.score_multilabel(Y, proba, thresholds, "abcde")
    assert ours["map"] == pytest.approx(reference.average_precision_score(Y, proba, average="macro"))
    assert ours["map"] == multilabel.mean_average_precision(Y, proba)
    assert ours["micro_f1"] == pytest.approx(reference.f1_score(Y, given, average="micro"))
    assert ours["macro_f1"] == pytest.approx(reference.f1_score(Y, given, average="macro"))
    assert ours["subset_accuracy"] == pytest.approx(reference.accuracy_score(Y, given))
    assert (ours["low"], ours["high"]) == wilson_interval(round(ours["subset_accuracy"] * 200), 200)
    assert ours["log_loss"] == pytest.approx(reference.log_loss(Y.ravel(), proba.ravel()))
    precision, recall, f1, n = reference.precision_recall_fscore_support(Y, given)
    for i, row in enumerate(ours["per_label"]):
        assert (row["label"], row["n"], row["threshold"]) == ("abcde"[i], n[i], thresholds[i])
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[i], recall[i], f1[i]))
        assert row["average_precision"] == pytest.approx(reference.average_precision_score(Y[:, i], proba[:, i]))


def test_honest_probabilities_have_a_small_calibration_error_and_shifted_ones_a_large_one():
    rng = np.random.default_rng(0)
    proba = rng.random((5000, 4))
    Y = rng.random(proba.shape) < proba
    half = np.full(4, 0.5)
    assert multilabel.score_multilabel(Y, proba, half, "abcd")["ece"] < 0.02
    assert multilabel.score_multilabel(Y, proba**3, half, "abcd")["ece"] > 0.15


def test_labels_that_nobody_has_are_none_and_are_left_out_of_means():
    Y = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]], bool)
    proba = np.array([[0.9, 0.1, 0.8], [0.2, 0.1, 0.1], [0.7, 0.1, 0.1]])
    scores = multilabel.score_multilabel(Y, proba, np.full(3, 0.5), ["a", "b", "c"])
    a, b, c = scores["per_label"]
    assert (a["f1"], a["average_precision"]) == (1, 1)
    assert (b["precision"], b["recall"], b["f1"], b["average_precision"]) == (None, None, None, None)
    assert (c["precision"], c["recall"], c["f1"]) == (0, None, 0)
    assert (scores["macro_f1"], scores["map"], scores["micro_f1"]) == (0.5, 1, 0.8)
    nothing = multilabel.score_multilabel(Y[:, 1:2], proba[:, 1:2], np.array([0.5]), ["b"])
    assert (nothing["map"], nothing["macro_f1"], nothing["micro_f1"]) == (None, None, None)
    assert nothing["subset_accuracy"] == 1


@pytest.mark.parametrize("decimals", [1, 15])
def test_no_other_threshold_has_a_better_f1(decimals):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        proba = rng.random((60, 1)).round(decimals)
        Y = rng.random((60, 1)) < proba**2
        tried = np.append(np.linspace(0, 1, 1001), multilabel.best_thresholds(Y, proba))
        given = proba >= tried
        f1 = 2 * (given & Y).sum(axis=0) / (given.sum(axis=0) + Y.sum())
        assert f1[-1] >= f1.max() - 1e-12


@pytest.fixture
def whatever_the_ranking(monkeypatch):
    """Choose thresholds also where a ranking may be chance."""
    monkeypatch.setattr(multilabel, "_BEYOND_CHANCE", -np.inf)


def test_labels_that_are_ranked_by_chance_are_not_given_to_all():
    rng = np.random.default_rng(0)
    Y, proba = rng.random((200, 20)) < 0.03, 0.1 * rng.random((200, 20))
    assert (multilabel.best_thresholds(Y, proba) == 0.5).sum() >= 19
    informed = np.where(Y, 0.2, 0) + proba
    assert (multilabel.best_thresholds(Y, informed)[Y.sum(axis=0) > 4] < 0.5).all()


def test_a_threshold_lies_in_the_middle_of_the_gap(whatever_the_ranking):
    Y, proba = np.array([[0], [0], [1], [1]], bool), np.array([[0.1], [0.2], [0.3], [0.9]])
    assert multilabel.best_thresholds(Y, proba) == pytest.approx([0.25])


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken(whatever_the_ranking):
    Y = np.array([[1], [0], [0], [1]], bool)  # taking one, or all: F1 is 2/3 either way
    proba = np.array([[0.9], [0.5], [0.45], [0.1]])
    assert multilabel.best_thresholds(Y, proba) == pytest.approx([0.7])


def test_where_there_is_nothing_to_tell_apart_the_threshold_is_a_half():
    proba = np.array([[0.1, 0.9, 0.3], [0.2, 0.8, 0.3]])
    Y = np.array([[0, 1, 0], [0, 1, 1]], bool)
    thresholds = multilabel.best_thresholds(Y, proba)
    assert thresholds.tolist() == [0.5, 0.5, 0.5]
    assert multilabel.best_thresholds(Y[:0], proba[:0]).tolist() == [0.5, 0.5, 0.5]


def test_neighbouring_floats_are_told_apart(whatever_the_ranking):
    low = 0.3
    high = np.nextafter(low, 1)
    threshold = multilabel.best_thresholds(np.array([[False], [True]]), np.array([[low], [high]]))[0]
    assert low < threshold <= high
