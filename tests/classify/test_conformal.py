import itertools
import math

import numpy as np
import pytest

from headstart.classify.conformal import conformal_threshold, coverage_of, prediction_sets
from headstart.classify.metrics import wilson_interval
from headstart.classify.network import softmax
from headstart.errors import UsageError

REPEATS = 400


def fit_conformal(proba, y, coverage):
    return conformal_threshold(np.sort(proba[np.arange(len(y)), y]), coverage)


def exchangeable(rng, n, n_classes, scale, imbalance):
    """Draw labels from honest probabilities, and return them with probabilities that are `scale` times as sure."""
    logits = 1.5 * rng.standard_normal((n, n_classes)) + np.log(np.linspace(1, imbalance, n_classes))
    y = (softmax(logits).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(scale * logits), y


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize(
    ("n_classes", "scale", "imbalance"), [(3, 1, 1), (6, 1, 1), (6, 4, 1), (6, 0.2, 1), (6, 1, 30), (6, 4, 30)]
)
@pytest.mark.parametrize("n", [25, 100])
def test_sets_hold_the_true_class_as_often_as_promised_and_hardly_more(n, n_classes, scale, imbalance, coverage):
    rng = np.random.default_rng(n)
    found = []
    for _ in range(REPEATS):
        proba, y = exchangeable(rng, n + 100, n_classes, scale, imbalance)
        threshold = fit_conformal(proba[:n], y[:n], coverage)
        found.append(coverage_of(prediction_sets(proba[n:], threshold), y[n:])["coverage"])
    error = np.std(found) / math.sqrt(REPEATS)
    exact = math.ceil((n + 1) * coverage) / (n + 1)
    assert np.mean(found) >= coverage - 3 * error
    # More than the exact figure only where an empty set had to be filled, which is rare at this accuracy.
    assert np.mean(found) <= exact + 3 * error + 0.01


def test_a_classifier_that_is_better_than_promised_gives_single_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 2000)
    logits = rng.standard_normal((2000, 4))
    logits[np.arange(2000), y] += 6
    proba = softmax(logits)
    sets = prediction_sets(proba[1000:], fit_conformal(proba[:1000], y[:1000], 0.9))
    found = coverage_of(sets, y[1000:])
    assert (found["mean_size"], found["single"]) == (1, 1)
    assert found["coverage"] == (proba[1000:].argmax(axis=1) == y[1000:]).mean()


def test_more_coverage_never_makes_a_set_smaller():
    rng = np.random.default_rng(1)
    proba, y = exchangeable(rng, 300, 5, 1, 1)
    by_coverage = [prediction_sets(proba, fit_conformal(proba, y, c)) for c in (0.5, 0.8, 0.9, 0.99, 0.999)]
    for fewer, more in itertools.pairwise(by_coverage):
        assert (more >= fewer).all()
    assert all(sets[np.arange(300), proba.argmax(axis=1)].all() for sets in by_coverage)


@pytest.mark.parametrize(("coverage", "fewest"), [(0.9, 9), (0.95, 19), (0.99, 99)])
def test_too_few_images_for_the_promise_leave_all_classes_in(coverage, fewest):
    rng = np.random.default_rng(2)
    proba, y = exchangeable(rng, fewest, 4, 1, 1)
    assert fit_conformal(proba, y, coverage) == proba[np.arange(fewest), y].min()
    assert fit_conformal(proba[1:], y[1:], coverage) == 0
    assert prediction_sets(proba, 0.0).all()
    assert fit_conformal(proba[:0], y[:0], coverage) == 0


def test_the_rank_is_that_of_the_promise_and_not_of_its_rounding():
    proba = np.linspace(0.01, 0.99, 99)[:, None]  # 0.55 * 100 is above 55 by rounding
    assert fit_conformal(proba, np.zeros(99, int), 0.55) == pytest.approx(0.45)


def test_coverage_is_counted_with_its_interval():
    sets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    found = coverage_of(sets, np.array([0, 1, 2, 0]))
    assert (found["n"], found["coverage"], found["mean_size"], found["single"]) == (4, 0.75, 1.75, 0.5)
    assert (found["low"], found["high"]) == wilson_interval(3, 4)


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, math.nan])
def test_a_coverage_outside_is_refused(coverage):
    with pytest.raises(UsageError, match="between 0 and 1"):
        fit_conformal(np.ones((3, 1)), np.zeros(3, int), coverage)
