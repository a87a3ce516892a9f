import numpy as np
import pytest

from headstart.classify.heads import make_head
from headstart.classify.mislabelled import suspicious_labels

SEEDS = range(4)


def relabelled(y, seed, share=0.1):
    """Give a share of the images another label; return the labels and which were changed."""
    rng = np.random.default_rng(seed)
    changed = np.zeros(len(y), bool)
    changed[rng.choice(len(y), round(share * len(y)), replace=False)] = True
    return np.where(changed, (y + rng.integers(1, y.max() + 1, len(y))) % (y.max() + 1), y), changed


def found_in_first_15_percent(X, y_true, neighbours):
    """Return the share of changed labels among the first 15 % of the ranking, for each seed."""
    shares = []
    for seed in SEEDS:
        y, changed = relabelled(y_true, seed)
        proba = make_head("logistic", C=0.004).fit(X, y).oof_proba_
        rows = suspicious_labels(proba, y, X if neighbours else None).rows
        shares.append(changed[rows[: int(0.15 * len(y))]].sum() / changed.sum())
    return np.array(shares)


def test_wrong_labels_of_real_photographs_come_first(photographs):
    mine = photographs["hymenoptera"]
    shares = found_in_first_15_percent(mine.train, mine.y, neighbours=True)
    assert shares.mean() >= 0.93
    assert shares.min() >= 0.85


def test_neighbours_help_where_classes_are_hard(photographs):
    mine = photographs["hotdog"]
    shares = found_in_first_15_percent(mine.train, mine.y, neighbours=True)
    assert shares.mean() >= 0.8
    assert shares.mean() >= found_in_first_15_percent(mine.train, mine.y, neighbours=False).mean()


def test_the_suggested_class_is_mostly_the_right_one_and_confident_calls_mostly_are(photographs):
    X = np.concatenate([photographs["hymenoptera"].train, photographs["hotdog"].train])
    y_true = np.append(photographs["hymenoptera"].y, photographs["hotdog"].y + 2)
    y, changed = relabelled(y_true, 0)
    found = suspicious_labels(make_head("logistic", C=0.002).fit(X, y).oof_proba_, y, X)
    wrong = changed[found.rows]
    assert (found.suggested == y_true[found.rows])[wrong].mean() > 0.85
    assert wrong[found.confident].mean() > 0.7
    assert found.confident[wrong].mean() > 0.55


def test_the_ranking_of_a_known_case():
    proba = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8], [0.5, 0.4, 0.1]])
    found = suspicious_labels(proba, np.array([0, 0, 2, 1]))
    assert found.rows.tolist() == [1, 3, 2, 0]
    assert found.score == pytest.approx([0.8, 0.6, 0.2, 0.1])
    assert found.suggested.tolist() == [1, 0, 1, 1]
    # Class 0 is believed at 0.55 on average, class 1 at 0.4: 0.7 is enough against the label 0, 0.5 is not against 1.
    assert found.confident.tolist() == [True, False, False, False]


def test_neighbours_of_another_label_raise_the_score():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(m, 0.1, (30, 2)) for m in ([1, 0], [0, 1])]).astype(np.float32)
    y = np.repeat([0, 1], 30)
    y[4] = 1
    found = suspicious_labels(np.full((60, 2), 0.5), y, X)
    assert (found.rows[0], found.score[0]) == (4, 0.75)
    assert (found.score[1:] <= 0.25 + 0.05).all()
    assert found.score.min() == 0.25


def test_copies_are_no_witnesses_for_each_other():
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.normal(m, 0.1, (30, 2)) for m in ([1, 0], [0, 1])]).astype(np.float32)
    y, groups = np.repeat([0, 1], 30), np.arange(60)
    X[:12], y[:12], groups[:12] = X[0], 1, 0  # one picture of class 0, twelve times, always under the other label
    half = np.full((60, 2), 0.5)
    for known, expected in ((None, 0.25), (groups, 0.75)):
        found = suspicious_labels(half, y, X, groups=known)
        assert found.score[np.argsort(found.rows)][:12] == pytest.approx(expected)


def test_a_class_of_few_images_is_not_suspicious_for_being_small():
    rng = np.random.default_rng(2)
    X = np.concatenate([rng.normal(m, 0.1, (n, 2)) for m, n in (([1, 0], 50), ([0, 1], 4))]).astype(np.float32)
    y = np.repeat([0, 1], [50, 4])
    found = suspicious_labels(np.full((54, 2), 0.5), y, X)
    assert found.score.max() == 0.25


def test_a_single_image_and_none_are_ranked_too():
    assert suspicious_labels(np.array([[0.3, 0.7]]), np.array([0]), np.ones((1, 3), np.float32)).rows.tolist() == [0]
    assert suspicious_labels(np.empty((0, 2)), np.empty(0, int)).rows.tolist() == []
