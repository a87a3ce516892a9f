"""The head of several labels an image: what it minimises, what it chooses, what it refuses."""

import numpy as np
import pytest
from cached_datasets import labels_made

from headstart.classify.multilabel import best_thresholds, mean_average_precision
from headstart.classify.network import sigmoid
from headstart.classify.search import label_task
from headstart.classify.several import LabelsHead, labels_head
from headstart.errors import TrainingError, UsageError

MADE = labels_made()


def fitted(**options):
    return LabelsHead(**options).fit(MADE.X, MADE.y, MADE.classes)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_each_label_is_a_logistic_regression_of_its_own(class_weight):
    from sklearn.linear_model import LogisticRegression

    head = fitted(C=0.3, class_weight=class_weight, tol=1e-12)
    Z = head.preparation_.apply(MADE.X).astype(np.float64)
    for label in range(4):
        weight = None if class_weight == "none" else "balanced"
        reference = LogisticRegression(C=0.3, class_weight=weight, tol=1e-10, max_iter=5000)
        reference.fit(Z, MADE.y[:, label])
        np.testing.assert_allclose(head.coef_[label], reference.coef_[0], atol=2e-4)
        assert head.intercept_[label] == pytest.approx(reference.intercept_[0], abs=2e-4)


def test_held_out_logits_are_of_fits_without_the_fold():
    from sklearn.linear_model import LogisticRegression

    from headstart.classify.several import rarest_label
    from headstart.classify.splits import stratified_folds

    head = fitted(C=0.1, tol=1e-10)
    folds = stratified_folds(rarest_label(MADE.y), 5, random_state=0)
    Z = head.preparation_.apply(MADE.X).astype(np.float64)
    for label in range(4):
        inside = folds != 2
        reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(Z[inside], MADE.y[inside, label])
        expected = reference.decision_function(Z[~inside])
        np.testing.assert_allclose(head.oof_logits_[~inside, label], expected, atol=5e-3)


def test_the_chosen_penalty_has_the_lowest_held_out_loss():
    head = fitted()
    assert head.cv_["Cs"][int(np.argmin(head.cv_["log_losses"]))] == head.C_
    assert len(head.cv_["Cs"]) == 11
    at_both_ends = [fitted(C=C).cv_["log_loss"] for C in (1e-4, 1e2)]
    assert fitted(C=head.C_).cv_["log_loss"] < min(at_both_ends)


def test_thresholds_and_scores_are_of_held_out_probabilities():
    head = fitted()
    np.testing.assert_allclose(head.oof_proba_, sigmoid(head.oof_logits_ / head.temperature_))
    np.testing.assert_array_equal(head.thresholds_, best_thresholds(MADE.y, head.oof_proba_))
    assert head.cv_["map"] == mean_average_precision(MADE.y, head.oof_proba_)
    assert head.cv_["accuracy"] == ((head.oof_proba_ >= head.thresholds_) == MADE.y).all(axis=1).mean()
    assert head.cv_["log_loss_calibrated"] <= head.cv_["log_loss"]
    np.testing.assert_array_equal(head.predict(MADE.X), head.predict_proba(MADE.X) >= head.thresholds_)
    assert head.facts()["thresholds"] == head.thresholds_.tolist()


def test_it_learns_what_can_be_learnt_and_ranks_noise_as_noise():
    other = labels_made(seed=0, count=600)
    good = LabelsHead().fit(other.X[:300], other.y[:300])
    assert mean_average_precision(other.y[300:], good.predict_proba(other.X[300:])) > 0.9
    noise = np.random.default_rng(5).random((300, 4)) < 0.3
    bad = LabelsHead().fit(other.X[:300], noise)
    assert bad.cv_["map"] < 0.45


def test_a_seed_fixes_it_and_again_is_the_same_fit():
    first, second = fitted(random_state=3), fitted(random_state=3)
    for name, array in first.network_.arrays().items():
        np.testing.assert_array_equal(array, second.network_.arrays()[name])
    before = {name: array.copy() for name, array in first.network_.arrays().items()}
    again = first.again(MADE.X, MADE.y)
    np.testing.assert_allclose(again.logits(MADE.X), first.network_.logits(MADE.X), atol=0.02)
    first.again(MADE.X[:20], MADE.y[:20])
    for name, array in before.items():
        np.testing.assert_array_equal(first.network_.arrays()[name], array)


def test_copies_share_a_fold():
    X, Y = np.repeat(MADE.X[:40], 3, axis=0), np.repeat(MADE.y[:40], 3, axis=0)
    head = LabelsHead(C=0.1).fit(X, Y, groups=np.repeat(np.arange(40), 3))
    logits = head.oof_logits_.reshape(40, 3, 4)
    assert np.ptp(logits, axis=1).max() < 1e-9, "each was scored by the same fit"
    apart = LabelsHead(C=0.1).fit(X, Y).oof_logits_.reshape(40, 3, 4)
    assert np.ptp(apart, axis=1).max() > 1e-3


@pytest.mark.parametrize("count", [0, 1, 119, 120])
def test_a_label_that_nobody_can_learn_is_noted_and_stays_finite(count):
    Y = MADE.y.copy()
    Y[:, 2] = np.arange(120) < count
    head = LabelsHead().fit(MADE.X, Y, MADE.classes)
    assert [note for note in head.notes_ if "fewer than two training images with or without them, 'r'" in note]
    assert np.isfinite(head.oof_logits_).all() and np.isfinite(head.coef_).all() and np.isfinite(head.intercept_).all()
    proba = head.predict_proba(MADE.X)
    assert ((proba >= 0) & (proba <= 1)).all()
    assert proba[:, 2].mean() == pytest.approx(count / 120, abs=0.03)
    if count in (0, 120):
        assert head.thresholds_[2] == 0.5


@pytest.mark.parametrize(
    ("X", "Y", "said"),
    [
        (MADE.X[:5], MADE.y[:4], "with n labels"),
        (np.full((30, 3), np.nan, np.float32), MADE.y[:30], "hold NaN or infinity"),
        (MADE.X[:4], MADE.y[:4], "there are 4 training images, 5 folds need 5"),
        (MADE.X, np.zeros((120, 3), bool), "no label is given to two training images and absent from two"),
        (MADE.X, np.ones((120, 3), bool), "no label is given to two training images and absent from two"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_one_line(X, Y, said):
    with pytest.raises(TrainingError, match=said) as caught:
        LabelsHead().fit(X, Y)
    assert "\n" not in str(caught.value)


def test_copies_of_one_image_are_too_few_for_folds():
    with pytest.raises(TrainingError, match="there are 4 training images, 5 folds need 5"):
        LabelsHead().fit(MADE.X[:40], MADE.y[:40], groups=np.arange(40) % 4)


def test_other_heads_and_options_that_mean_nothing_are_refused():
    for kind in ("linear", "mlp", "knn", "ncm"):
        with pytest.raises(UsageError, match=f"--head {kind} learns one class an image"):
            labels_head(kind)
    with pytest.raises(UsageError, match="--weight-decay means nothing to --head logistic"):
        labels_head("logistic", weight_decay=0.1)
    with pytest.raises(UsageError, match="--C must be 'auto' or a number above 0"):
        fitted(C=-1)


def test_balanced_weights_make_presence_and_absence_count_alike_in_every_fit():
    folds = np.arange(120) % 3
    Y = MADE.y.copy()
    Y[:, 3] = False  # one side only, which counts as it is
    task = label_task(MADE.X, Y, folds, balanced=True)
    assert (task.class_weight.shape, task.all_weight.shape) == ((3, 4, 2), (1, 4, 2))
    for fold in range(3):
        inside = Y[folds != fold]
        sums = np.stack([(~inside).sum(axis=0), inside.sum(axis=0)], axis=1) * task.class_weight[fold]
        np.testing.assert_allclose(sums[:3], len(inside) / 2)
        np.testing.assert_array_equal(task.class_weight[fold, 3], [1, 1])
    np.testing.assert_array_equal(label_task(MADE.X, Y, folds).class_weight, 1)
