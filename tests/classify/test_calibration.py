import numpy as np
import pytest

from headstart.classify.calibration import BOUNDS, fit_temperature
from headstart.classify.metrics import expected_calibration_error, log_loss, reliability_curve
from headstart.classify.network import softmax
from headstart.errors import TrainingError

SCALES = [0.3, 1, 3]


def draw(rng, logits):
    """Draw a label of each row from its own probabilities."""
    return (softmax(logits).cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("seed", range(3))
def test_a_known_miscalibration_is_found_and_undone(scale, n_classes, seed):
    rng = np.random.default_rng(seed)
    honest = 2 * rng.standard_normal((8000, n_classes))
    y, shown = draw(rng, honest), scale * honest
    temperature = fit_temperature(shown[:4000], y[:4000])
    assert temperature == pytest.approx(scale, rel=0.08)
    before = expected_calibration_error(y[4000:], softmax(shown[4000:]))
    after = expected_calibration_error(y[4000:], softmax(shown[4000:] / temperature))
    assert after < 0.035
    if scale != 1:
        assert before > 3 * after
        assert before > 0.07


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(3))
def test_a_known_miscalibration_of_several_labels_is_found_and_undone(scale, seed):
    rng = np.random.default_rng(seed)
    honest = 2 * rng.standard_normal((2000, 4)) - 1
    Y = rng.random(honest.shape) < sigmoid(honest)
    temperature = fit_temperature(scale * honest[:1000], Y[:1000])
    assert temperature == pytest.approx(scale, rel=0.12)
    after = reliability_curve(sigmoid(scale * honest[1000:] / temperature).ravel(), Y[1000:].ravel()).ece
    assert after < 0.035


@pytest.mark.parametrize("seed", range(40))
def test_the_log_loss_of_what_it_was_fitted_on_never_rises(seed):
    rng = np.random.default_rng(seed)
    n, n_classes = rng.integers(1, 40), rng.integers(2, 6)
    logits = rng.standard_normal((n, n_classes)) * 10 ** rng.uniform(-3, 3)
    y = rng.integers(0, n_classes, n) if seed % 2 else logits.argmax(axis=1)
    temperature = fit_temperature(logits, y)
    assert BOUNDS[0] <= temperature <= BOUNDS[1]
    assert log_loss(y, softmax(logits / temperature)) <= log_loss(y, softmax(logits)) + 1e-12


def test_the_temperature_is_the_best_one_that_a_search_finds():
    from scipy.optimize import minimize_scalar

    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((20_000, 5))
    y = draw(rng, logits / 2)
    best = minimize_scalar(lambda b: log_loss(y, softmax(b * logits)), bounds=(0.01, 100), method="bounded")
    assert fit_temperature(logits, y) == pytest.approx(1 / best.x, rel=2e-3)


@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize("gap", [1.0, 30.0])
def test_answers_that_are_never_wrong_end_as_sure_as_their_number_warrants(n, gap):
    y = np.arange(n) % 2
    logits = np.where(y[:, None] == [0, 1], gap, 0.0)
    proba = softmax(logits / fit_temperature(logits, y))
    expected = 1 - 1 / (2 * (n + 1)) if gap == 1 else softmax(logits).max()
    assert proba.max(axis=1) == pytest.approx(expected, abs=1e-6)


def test_gaps_too_small_for_any_temperature_stop_at_the_bound():
    y = np.arange(50) % 2
    logits = np.where(y[:, None] == [0, 1], 1e-6, 0.0)
    assert fit_temperature(logits, y) == pytest.approx(BOUNDS[0], rel=1e-6)


def test_answers_that_are_always_sure_and_wrong_stop_at_the_other_bound():
    y = np.arange(50) % 2
    logits = np.where(y[:, None] == [1, 0], 5.0, 0.0)
    assert fit_temperature(logits, y) == pytest.approx(BOUNDS[1], rel=1e-6)


def test_logits_that_say_nothing_are_left_alone():
    assert fit_temperature(np.full((9, 3), 0.1), np.arange(9) % 3) == 1
    assert fit_temperature(np.zeros((9, 3)), np.arange(27).reshape(9, 3) % 2 == 0) == 1
    assert fit_temperature(np.empty((0, 3)), np.empty(0, int)) == 1


def test_one_image_is_enough_and_huge_logits_do_no_harm():
    assert fit_temperature(np.array([[0.0, 2.0]]), np.array([1])) <= 1
    rng = np.random.default_rng(0)
    logits = 1e5 * rng.standard_normal((50, 3))
    assert BOUNDS[0] <= fit_temperature(logits, rng.integers(0, 3, 50)) <= BOUNDS[1]


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(TrainingError, match=r"\(n, K\) logits with n labels, and got \(4, 3\) and \(5,\)"):
        fit_temperature(np.zeros((4, 3)), np.zeros(5, int))
    with pytest.raises(TrainingError, match="NaN"):
        fit_temperature(np.full((4, 3), np.nan), np.zeros(4, int))
