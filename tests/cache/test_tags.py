import numpy as np
import pytest

from headstart.cache.tags import Tags


def tags_of(*sets) -> Tags:
    """Return the labels of images given as lists; None where they are not known."""
    count = [-1 if labels is None else len(labels) for labels in sets]
    index = [label for labels in sets for label in labels or ()]
    return Tags(np.array(count, np.int32), np.array(index, np.int32))


def random_sets(count: int, n_classes: int, seed: int):
    rng = np.random.default_rng(seed)
    sets = [sorted(rng.choice(n_classes, rng.integers(0, n_classes), replace=False).tolist()) for _ in range(count)]
    return [None if rng.random() < 0.2 else labels for labels in sets]


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_taken_in_any_order_and_more_than_once(seed):
    sets = random_sets(40, 6, seed)
    rows = np.random.default_rng(seed).integers(0, 40, 100)
    assert tags_of(*sets).take(rows) == tags_of(*[sets[row] for row in rows])
    assert tags_of(*sets).take(rows[:0]) == tags_of()


@pytest.mark.parametrize("seed", range(5))
def test_the_table_has_each_label_of_each_image_and_no_other(seed):
    sets = random_sets(30, 7, seed)
    table = tags_of(*sets).table(7)
    assert (table.dtype, table.shape) == (np.dtype(bool), (30, 7))
    assert [np.flatnonzero(row).tolist() for row in table] == [labels or [] for labels in sets]


def test_nothing_at_all_is_a_table_too():
    assert tags_of().table(3).shape == (0, 3)
    assert tags_of([], None).table(0).shape == (2, 0)


def test_names_are_joined_in_their_order():
    names = [b"a", b"\xff", b"c"]
    assert tags_of([0, 2], [], [1], None, [0, 1, 2]).joined(names) == [b"a|c", b"", b"\xff", b"", b"a|\xff|c"]
    assert tags_of([], None).joined([]) == [b"", b""]
    assert tags_of().joined(names) == []


def test_equal_are_those_of_the_same_labels_only():
    assert tags_of([0], [1]) == tags_of([0], [1])
    assert tags_of([0], [1]) != tags_of([0, 1], [])
    assert tags_of([], [1]) != tags_of(None, [1])
    assert tags_of([0]) != None  # noqa: E711  (what a listing of one label has)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_numbers_of_another_kind_are_refused(dtype):
    good = tags_of([0, 1], [1])
    good.check(2, 2)
    for bad in (Tags(good.count.astype(dtype), good.index), Tags(good.count, good.index.astype(dtype))):
        with pytest.raises(ValueError, match="another shape"):
            bad.check(2, 2)


def test_a_label_may_be_followed_by_a_smaller_one_of_the_next_image():
    tags_of([1, 2], [], None, [0, 1], [0]).check(5, 3)


def test_counts_that_overflow_together_do_not_add_up():
    bad = Tags(np.full(4, 2**31 - 1, np.int32), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="do not add up"):
        bad.check(4, 3)
