import sys

import numpy as np
import pytest

from headstart.classify.pages import projection
from headstart.classify.pages.projection import project
from headstart.errors import MissingExtraError, UsageError


def groups(n=200, width=64, count=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, n)
    return (rng.normal(0, 4, (count, width))[labels] + rng.normal(0, 1, (n, width))).astype(np.float32), labels


@pytest.mark.parametrize(("n", "width"), [(200, 64), (40, 300)])
def test_principal_axes_agree_with_scikit_learn(n, width):
    from sklearn.decomposition import PCA

    X, _ = groups(n, width)
    found = project(X)
    reference = PCA(2, svd_solver="full").fit(X.astype(np.float64))
    expected = reference.transform(X)
    expected *= np.sign((expected * found.points).sum(axis=0))  # the direction of an axis is convention
    assert found.points.dtype == np.float32
    assert found.points == pytest.approx(expected, abs=2e-3 * np.abs(expected).max())
    assert found.explained == pytest.approx(reference.explained_variance_ratio_, abs=1e-5)


def test_more_rows_than_are_fitted_on_lie_where_those_would(monkeypatch):
    X, _ = groups(3000)
    whole = project(X)
    monkeypatch.setattr(projection, "_FIT_ON", 1000)
    monkeypatch.setattr(projection, "_BLOCK", 64 * 700)  # blocks that do not divide the rows
    part = project(X, seed=1)
    for axis in range(2):
        assert abs(np.corrcoef(part.points[:, axis], whole.points[:, axis])[0, 1]) > 0.99
    assert part.points == pytest.approx(project(X, seed=1).points)
    assert part.explained == pytest.approx(whole.explained, abs=0.03)


def test_rows_are_not_copied_and_not_changed(monkeypatch):
    import tracemalloc

    X, _ = groups(20_000, 256)
    before = X.copy()
    monkeypatch.setattr(projection, "_FIT_ON", 1000)
    monkeypatch.setattr(projection, "_BLOCK", 1 << 18)
    tracemalloc.start()
    project(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 2
    assert np.array_equal(X, before)


NEXT_TO_NOTHING = {
    "none": np.zeros((0, 5)),
    "one": np.ones((1, 5)),
    "two": np.eye(2, 5),
    "three alike": np.ones((3, 5)),
    "nine alike": np.full((9, 5), 3.0),
    "one feature": np.eye(6, 1),
    "no feature": np.zeros((4, 0)),
}


@pytest.mark.parametrize("rows", NEXT_TO_NOTHING)
def test_next_to_nothing_has_a_place_too(rows):
    X = NEXT_TO_NOTHING[rows].astype(np.float32)
    for method in ("pca", "umap") if len(X) < 4 else ("pca",):  # which lays out fewer rows than UMAP can
        found = project(X, method)
        assert found.points.shape == (len(X), 2)
        assert np.isfinite(found.points).all()
        assert all(0 <= share <= 1 for share in found.explained)


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="pca, umap, and is 'tsne'"):
        project(np.eye(3, dtype=np.float32), "tsne")


def test_umap_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "headstart\[umap\]"') as raised:
        project(np.eye(9, dtype=np.float32), "umap")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_umap_keeps_neighbours_together_silently_and_the_same_each_time(capfd, recwarn):
    X, labels = groups(150, 64)
    first = project(X, "umap", seed=3)
    assert first.explained is None
    assert np.isfinite(first.points).all()
    distance = np.linalg.norm(first.points[:, None] - first.points, axis=2) + np.diag(np.full(150, np.inf))
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.95
    assert np.array_equal(first.points, project(X, "umap", seed=3).points)
    for rows in (np.ones((9, 5)), X[:4], X[:20]):
        assert np.isfinite(project(rows.astype(np.float32), "umap").points).all()
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
