import numpy as np
import pytest

from headstart.classify import preparation
from headstart.classify.preparation import Preparation, fit_preparation, standardisation
from headstart.errors import ModelError, UsageError


def rows(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) * np.logspace(0, 1, dim) + 3).astype(np.float32)


@pytest.mark.parametrize(("n", "most"), [(50, 0.8), (5000, 0.03), (200_000, 1e-3)])
def test_standardised_features_have_mean_0_and_deviation_1_the_more_so_the_more_rows_there_are(n, most):
    Z = fit_preparation(rows(n, 6)).apply(rows(n, 6))
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=2e-5)
    assert 0 < np.abs(Z.var(axis=0) - 1).max() < most


def shrunk(X):
    """Return the variances as the paper has them, equation by equation."""
    n, X = len(X), X.astype(np.float64)
    w = (X - X.mean(axis=0)) ** 2
    v = n / (n - 1) * w.mean(axis=0)
    noise = n / (n - 1) ** 3 * ((w - w.mean(axis=0)) ** 2).sum(axis=0)
    share = min(1.0, noise.sum() / ((v - v.mean()) ** 2).sum())
    return share * v.mean() + (1 - share) * v, share


@pytest.mark.parametrize("n", [3, 8, 60])
def test_variances_are_drawn_together_as_far_as_they_are_luck(n, monkeypatch):
    X = rows(n, 40)
    expected, share = shrunk(X)
    assert 0 < share <= 1
    for numbers in (1 << 20, 100):  # whole, and in blocks of two rows
        monkeypatch.setattr(preparation, "_BLOCK_NUMBERS", numbers)
        mean, scale = standardisation(X)
        np.testing.assert_allclose(mean, X.mean(axis=0, dtype=np.float64), rtol=1e-6)
        np.testing.assert_allclose(scale**2, expected, rtol=1e-5)


def test_of_two_rows_only_the_mean_variance_is_believed():
    X = rows(2, 40)
    _, scale = standardisation(X)
    np.testing.assert_allclose(scale, np.sqrt(X.astype(np.float64).var(axis=0, ddof=1).mean()), rtol=1e-5)
    assert set(standardisation(X[:1])[1]) == {1.0}


def test_each_backbones_variances_are_drawn_together_apart_from_the_others():
    X = rows(10, 12)
    X[:, 4:] *= 1000
    joined = standardisation(X, (4, 8))[1]
    np.testing.assert_array_equal(joined, np.concatenate([standardisation(X[:, :4])[1], standardisation(X[:, 4:])[1]]))
    np.testing.assert_array_equal(fit_preparation(X, blocks=(4, 8)).scale, joined)


def test_each_block_is_divided_by_its_own_length():
    X = rows(50, 6)
    made = fit_preparation(X, l2_norm=True, blocks=(2, 4))
    scaled = np.concatenate(
        [X[:, s] / np.linalg.norm(X[:, s], axis=1, keepdims=True) for s in (np.s_[:2], np.s_[2:])], 1
    )
    deviation = np.sqrt(np.concatenate([shrunk(scaled[:, :2])[0], shrunk(scaled[:, 2:])[0]]))
    np.testing.assert_allclose(made.apply(X), (scaled - scaled.mean(0)) / deviation, atol=2e-4)
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
