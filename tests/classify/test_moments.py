"""Moments summed up block by block are those of all rows."""

import itertools

import numpy as np
import pytest

from headstart.classify.moments import Moments, MomentSums
from headstart.classify.preparation import _moments, standardisation, standardisation_of


def rows_of(seed=0, n=5000, dim=7):
    rng = np.random.default_rng(seed)
    X = rng.gamma(2.0, size=(n, dim)) * np.logspace(-3, 3, dim) + np.array([0, 1e3, -1e4, 0, 5, 1e5, 0])
    X[:, 3] = 4.25
    return X[np.argsort(X[:, 0])].astype(np.float32)  # the first block is nothing like the last


def summed(X, size):
    sums = MomentSums(X.shape[1])
    for start in range(0, len(X), size):
        sums.add(X[start : start + size])
    return sums.moments()


@pytest.mark.parametrize("size", [1, 64, 5000])
def test_blocks_of_any_size_have_the_moments_of_all_rows(size):
    X = rows_of()
    for one, other in zip(summed(X, size).unbiased(), _moments(X), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def test_shards_of_uneven_size_add_up():
    X = rows_of()
    ends = [0, 3, 3, 1200, 5000]
    together = sum((summed(X[a:b], 100) for a, b in itertools.pairwise(ends[1:])), summed(X[:3], 2))
    for one, other in zip(together.unbiased(), _moments(X), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def test_a_feature_that_never_varies_keeps_its_scale():
    X = rows_of()
    mean, scale = standardisation_of(*summed(X, 333).unbiased(), [3, 4])
    expected = standardisation(X, [3, 4])
    assert scale[3] == 1.0
    np.testing.assert_allclose(mean, expected[0], rtol=1e-6)
    np.testing.assert_allclose(scale, expected[1], rtol=1e-6)


def test_nothing_has_no_moments():
    nothing = MomentSums(3).moments()
    assert nothing.count == 0
    X = rows_of(dim=7)[:, :3]
    assert (nothing + summed(X, 50)).count == len(X)
    assert isinstance(nothing, Moments)
