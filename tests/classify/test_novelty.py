import numpy as np
import pytest

from headstart.classify.metrics import binary_auc
from headstart.classify.neighbours import nearest, references
from headstart.classify.novelty import Novelty, fit_novelty, training_outliers
from headstart.classify.preparation import of_length_one
from headstart.errors import ModelError, TrainingError


def cloud(rng, n, centre, dim=24):
    return (rng.standard_normal((n, dim)) + 4 * np.eye(dim)[centre]).astype(np.float32)


def auc(familiar, strange):
    return binary_auc(np.arange(len(familiar) + len(strange)) >= len(familiar), np.r_[familiar, strange])


@pytest.mark.parametrize(("known", "other"), [("hymenoptera", "hotdog"), ("hotdog", "hymenoptera")])
def test_other_photographs_and_drawings_are_told_from_fresh_ones_of_the_same_kind(photographs, drawings, known, other):
    mine, theirs = photographs[known], photographs[other]
    novelty = fit_novelty(mine.train, mine.y)
    fresh = novelty.distance(mine.val)
    assert auc(fresh, novelty.distance(np.concatenate([theirs.train, theirs.val]))) > 0.98
    assert auc(fresh, novelty.distance(drawings)) > 0.99
    assert (novelty.score(theirs.train) <= 0.05).mean() > 0.95
    assert (novelty.score(drawings) <= 0.05).mean() > 0.95


@pytest.mark.parametrize("known", ["hymenoptera", "hotdog"])
def test_fresh_photographs_are_seldom_called_novel(photographs, known):
    mine = photographs[known]
    score = fit_novelty(mine.train, mine.y).score(mine.val)
    for level in (0.01, 0.05, 0.2):
        error = np.sqrt(level * (1 - level) / len(score))
        assert (score <= level).mean() <= level + 3 * error


def test_a_foreign_photograph_among_those_of_training_is_the_odd_one_out(photographs):
    mine, theirs = photographs["hymenoptera"], photographs["hotdog"]
    y, share = np.append(mine.y, 0), []
    for intruder in theirs.train[::20]:  # each alone: strangers who come together are each other's neighbours
        X = np.concatenate([mine.train, intruder[None]])
        share.append(training_outliers(X, y, fit_novelty(X, y))[-1])
    assert np.median(share) <= 0.03
    assert max(share) <= 0.06


def test_no_more_false_alarms_than_said_whether_all_rows_are_kept_or_some():
    for most in (1000, 60):
        alarms = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            X, y = cloud(rng, 200, 0), rng.integers(0, 3, 200)
            alarms.append((fit_novelty(X, y, most=most).score(cloud(rng, 100, 0)) <= 0.1).mean())
        assert np.mean(alarms) == pytest.approx(0.1, abs=0.02)


def test_the_score_is_the_share_of_training_pictures_that_are_farther():
    novelty = Novelty(np.eye(2, dtype=np.float32)[:1], np.array([0.1, 0.2, 1.0, 1.5], np.float32))
    X = np.array([[3, 0], [0, 9], [-1, 0]], np.float32)
    assert novelty.distance(X) == pytest.approx([0, np.sqrt(2), 2])
    assert novelty.score(X) == pytest.approx([1, 2 / 5, 1 / 5])


def test_training_scores_are_the_ranks_of_the_pictures_among_themselves():
    rng = np.random.default_rng(0)
    X, y = cloud(rng, 50, 0), np.arange(50) % 2
    outlier = training_outliers(X, y, fit_novelty(X, y))
    assert np.sort(outlier) == pytest.approx(np.arange(1, 51) / 50, abs=0.021)  # a rank off where rounding differs
    X[7] = -40 * np.eye(24, dtype=np.float32)[3]
    assert training_outliers(X, y, fit_novelty(X, y)).argmin() == 7


def test_a_picture_is_not_its_own_neighbour_nor_are_its_copies():
    rng = np.random.default_rng(1)
    once = cloud(rng, 40, 0)
    X, y, groups = np.repeat(once, 6, axis=0), np.zeros(240, int), np.repeat(np.arange(40), 6)
    assert fit_novelty(X, y).distances.max() < 1e-3
    assert fit_novelty(X, y, groups=groups).distances.min() > 0.1
    assert training_outliers(X, y, fit_novelty(X, y, groups=groups), groups=groups).min() < 0.05


def test_what_is_kept_is_bounded_seeded_and_has_rare_classes():
    rng = np.random.default_rng(2)
    y = np.repeat([0, 1, 2], [900, 95, 5])
    kept = references(y, 60, random_state=3)
    assert np.bincount(y[kept]).tolist() == [28, 27, 5] or np.bincount(y[kept]).tolist() == [27, 28, 5]
    assert (np.diff(kept) > 0).all()
    assert (kept == references(y, 60, random_state=3)).all()
    assert (kept != references(y, 60, random_state=4)).any()
    novelty = fit_novelty(cloud(rng, 1000, 0), y, most=60)
    assert (novelty.reference.shape, novelty.distances.shape) == ((60, 24), (60,))


def test_neighbours_agree_with_scikit_learn(monkeypatch):
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr("headstart.classify.neighbours.BLOCK_ROWS", 7)
    rng = np.random.default_rng(3)
    X, reference = cloud(rng, 40, 0), of_length_one(cloud(rng, 90, 1))
    distance, place = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(reference).kneighbors(of_length_one(X))
    blocks = list(nearest(X, reference, 4))
    assert np.concatenate([block[1] for block in blocks]) == pytest.approx(distance, abs=1e-5)
    assert (np.concatenate([block[2] for block in blocks]) == place).all()
    assert len(blocks) == 6


def test_novelty_survives_being_saved():
    rng = np.random.default_rng(4)
    X = cloud(rng, 30, 0)
    novelty = fit_novelty(X, np.zeros(30, int))
    again = Novelty.from_arrays(novelty.arrays())
    assert all(array.dtype == np.float32 for array in novelty.arrays().values())
    assert (again.score(X) == novelty.score(X)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": None}, "lacks the array 'distances'"),
        ({"reference": np.ones(3, np.float32)}, "do not fit"),
        ({"distances": np.empty(0, np.float32)}, "do not fit"),
        ({"distances": np.array([1.0, 2.0])}, "32 bits"),
        ({"reference": np.full((2, 3), np.nan, np.float32)}, "finite"),
        ({"distances": np.array([2, 1], np.float32)}, "not in order"),
    ],
)
def test_damaged_arrays_are_refused(change, message):
    arrays = {"reference": np.ones((2, 3), np.float32), "distances": np.array([1, 2], np.float32), **change}
    with pytest.raises(ModelError, match=message):
        Novelty.from_arrays({name: array for name, array in arrays.items() if array is not None})


def test_what_cannot_be_measured_is_refused():
    X = np.ones((1, 3), np.float32)
    with pytest.raises(TrainingError, match="2 different training pictures, and there are 1"):
        fit_novelty(X, np.zeros(1, int))
    with pytest.raises(ModelError, match="width 24"):
        fit_novelty(cloud(np.random.default_rng(0), 5, 0), np.zeros(5, int)).score(X)
