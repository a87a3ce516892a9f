import numpy as np
import pytest

from headstart.classify.preparation import Preparation, fit_preparation
from headstart.errors import ModelError, UsageError


def rows(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) * np.logspace(0, 1, dim) + 3).astype(np.float32)


def test_standardised_features_have_mean_0_and_deviation_1():
    Z = fit_preparation(rows(200, 6)).apply(rows(200, 6))
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(Z.std(axis=0), 1, atol=1e-5)


def test_each_block_is_divided_by_its_own_length():
    X = rows(50, 6)
    made = fit_preparation(X, l2_norm=True, blocks=(2, 4))
    scaled = np.concatenate(
        [X[:, s] / np.linalg.norm(X[:, s], axis=1, keepdims=True) for s in (np.s_[:2], np.s_[2:])], 1
    )
    np.testing.assert_allclose(made.apply(X), (scaled - scaled.mean(0)) / scaled.std(0), atol=2e-4)
    longer = X * np.array([5, 5, 3, 3, 3, 3], np.float32)
    np.testing.assert_allclose(made.apply(longer), made.apply(X), atol=1e-4)
    assert np.isfinite(made.apply(np.zeros((1, 6), np.float32))).all()


@pytest.mark.parametrize(("n", "dim"), [(300, 20), (12, 40)])
def test_principal_components_are_those_of_scikit_learn(n, dim):
    from sklearn.decomposition import PCA

    X = rows(n, dim)
    Z = fit_preparation(X).apply(X)
    ours, theirs = fit_preparation(X, pca=5).apply(X), PCA(5).fit_transform(Z)
    assert ours.shape == (n, 5)
    np.testing.assert_allclose(abs((ours * theirs).sum(0)), (theirs**2).sum(0), rtol=1e-3)


def test_a_share_of_the_variance_takes_as_many_as_it_needs():
    X = rows(300, 20)
    full = fit_preparation(X, pca=20).apply(X).var(axis=0)
    for share in (0.3, 0.9):
        kept = fit_preparation(X, pca=share).n_outputs
        assert full[: kept - 1].sum() < share * full.sum() <= full[:kept].sum() * (1 + 1e-6)


def test_there_are_never_more_components_than_rows_can_tell():
    assert fit_preparation(rows(10, 40), pca=40).n_outputs == 9


@pytest.mark.parametrize("pca", [0, -1, 2.5, float("nan"), float("inf")])
def test_a_number_of_components_that_is_none_is_refused(pca):
    with pytest.raises(UsageError, match="--pca must be a number of components or a share"):
        fit_preparation(rows(30, 5), pca=pca)


def test_it_survives_as_arrays_and_damage_is_seen():
    made = fit_preparation(rows(50, 6), l2_norm=True, blocks=(2, 4), pca=3)
    arrays = made.arrays()
    np.testing.assert_array_equal(Preparation.from_arrays(arrays).apply(rows(5, 6, 1)), made.apply(rows(5, 6, 1)))
    for name, bad in {
        "scale": np.ones(5, np.float32),
        "blocks": np.array([2, 5]),
        "projection": np.ones((5, 3), np.float32),
    }.items():
        with pytest.raises(ModelError, match="do not fit"):
            Preparation.from_arrays({**arrays, name: bad})
    with pytest.raises(ModelError, match="lacks the array 'mean'"):
        Preparation.from_arrays({"scale": made.scale})
    with pytest.raises(ModelError, match="takes embeddings of width 6"):
        made.apply(np.zeros((2, 7), np.float32))
