import hashlib

import numpy as np
import pytest

from headstart.classify.splits import check_trainable, hold_out, stratified_folds
from headstart.errors import TrainingError


def digests(count, start=0):
    return np.stack([np.frombuffer(hashlib.sha256(b"%d" % i).digest(), np.uint8) for i in range(start, start + count)])


def test_the_share_held_out_is_about_the_fraction():
    for fraction in (0.0, 0.1, 0.2, 0.5):
        assert hold_out(digests(5000), fraction).mean() == pytest.approx(fraction, abs=0.02)


def test_the_first_eight_bytes_decide_big_endian():
    digest = np.zeros((3, 32), np.uint8)
    digest[0, 0], digest[1, 0], digest[2, 7] = 51, 52, 255  # 51 / 256 is below .2, 52 / 256 is not
    assert hold_out(digest, 0.2).tolist() == [True, False, True]


def test_an_image_stays_where_it_is_as_others_arrive():
    before = hold_out(digests(100))
    after = hold_out(digests(300))
    assert (after[:100] == before).all()


def test_folds_are_even_and_stratified():
    y = np.repeat([0, 1, 2], [50, 23, 7])
    folds = stratified_folds(y, 5)
    assert set(folds) == set(range(5))
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        counts = np.bincount(folds[y == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_folds_depend_on_the_seed_and_on_nothing_else():
    y = np.repeat([0, 1], 30)
    assert (stratified_folds(y, 5, random_state=1) == stratified_folds(y, 5, random_state=1)).all()
    assert (stratified_folds(y, 5, random_state=1) != stratified_folds(y, 5, random_state=2)).any()


def test_a_group_shares_a_fold():
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 2, 200), rng.integers(0, 60, 200)
    folds = stratified_folds(y, 5, groups=groups)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    assert np.bincount(folds).min() > 10


@pytest.mark.parametrize(
    ("y", "names", "said"),
    [
        ([0, 0, 0], ["ants"], r"there is one class only \('ants'\)"),
        ([0] * 9, ["ants", "bees"], "class 'bees' has 0 training images, at least 2 are needed"),
        ([0] * 9 + [1], ["ants", "bees"], "class 'bees' has 1 training image, at least 2 are needed"),
        (
            [0] * 9 + [1] * 3,
            ["ants", "bees"],
            "class 'bees' has 3 training images, 5 folds need 5: add some or pass --cv 3",
        ),
    ],
)
def test_f37_what_cannot_be_learnt_is_named(y, names, said):
    with pytest.raises(TrainingError, match=said):
        check_trainable(np.array(y), names, 5)


def test_copies_count_once():
    y, groups = np.repeat([0, 1], 6), np.array([0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6])
    check_trainable(y, ["a", "b"], 5)
    with pytest.raises(TrainingError, match="class 'b' has 1 training image"):
        check_trainable(y, ["a", "b"], 5, groups)
