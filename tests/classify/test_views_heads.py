"""Heads on several views of each image: they count as one, and what is chosen or measured goes by view 0."""

import tracemalloc

import numpy as np
import pytest

from headstart.classify import head as head_module
from headstart.classify import knn, logistic, several, voters
from headstart.classify.curve import learning_curve
from headstart.classify.heads import make_head
from headstart.classify.model import SavedModel, load_model, save_model
from headstart.classify.passes import Passes
from headstart.classify.path import solve_path
from headstart.classify.preparation import fit_preparation
from headstart.classify.search import class_task, fit_rows, label_task
from headstart.classify.several import labels_head
from headstart.classify.splits import stratified_folds
from headstart.classify.torch_passes import TorchPasses
from headstart.classify.training import Batches, Rows, Stack
from headstart.classify.turning import turned
from headstart.classify.views import as_rows, plain_of
from headstart.classify.voters import Neighbours
from headstart.errors import TrainingError
from support import make_space

KINDS = {
    "logistic": {},
    "labels": {},
    "linear": {"epochs": 12, "lr": 0.01},
    "mlp": {"epochs": 12, "lr": 0.01, "hidden": (16,), "dropout": 0.5},
    "knn": {},
    "ncm": {},
}


def images(n=60, n_views=3, dim=12, classes=3, seed=0, apart=1.0):
    """Return embeddings (n, V, D) of views that differ as augmented photographs do, and labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(99).standard_normal((classes, dim)) * apart
    image = centres[y] + rng.standard_normal((n, dim))
    X = image[:, None] + 0.5 * rng.standard_normal((n, n_views, dim))
    return (X * np.logspace(-1, 1, dim) + 3).astype(np.float32), y


def head_of(kind, **options):
    options = {"cv": 3, **KINDS[kind], **options}
    return labels_head("logistic", **options) if kind == "labels" else make_head(kind, **options)


def target_of(kind, y):
    """Return classes, or for several labels an image two that have to do with them."""
    return np.stack([y == 0, (y > 0) ^ (np.arange(len(y)) % 7 == 0)], axis=1) if kind == "labels" else y


def same(X, n_views):
    return np.repeat(X[:, None], n_views, axis=1)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("n_views", [1, 2, 5])
@pytest.mark.parametrize(("n", "dim"), [(60, 12), (40, 90)])  # of images more than features, and fewer
def test_equal_views_give_what_one_view_gives(kind, n, dim, n_views):
    X, y = images(n, 1, dim)
    X, y = X[:, 0], target_of(kind, y)
    options = {"optimizer": "sgd"} if kind == "linear" else {}
    one = head_of(kind, **options).fit(X, y)
    all_views = head_of(kind, **options).fit(same(X, n_views), y)
    close = {"rtol": 1e-4, "atol": 2e-5}
    np.testing.assert_allclose(all_views.decision_function(X), one.decision_function(X), **close)
    np.testing.assert_allclose(all_views.oof_logits_, one.oof_logits_, **close)
    assert all_views.oof_proba_.shape == (n, len(one.classes_))
    assert all_views.choice() == one.choice()
    assert all_views.temperature_ == pytest.approx(one.temperature_, rel=1e-3)
    again = [head.again(rows, y).logits(X) for head, rows in ((one, X), (all_views, same(X, n_views)))]
    np.testing.assert_allclose(again[1], again[0], **close)


def test_equal_views_take_adams_steps_in_the_same_batches():
    # From zeros, Adam makes steps of gradients that are nothing but rounding: it is those that may differ.
    X, y = images(40, 1, 90)
    one, three = (head_of("linear").fit(rows, y) for rows in (X, same(X[:, 0], 3)))
    np.testing.assert_allclose(three.decision_function(X[:, 0]), one.decision_function(X[:, 0]), atol=0.01)
    assert three.epochs_ == one.epochs_


@pytest.mark.parametrize("kind", ["logistic", "labels", "linear", "mlp"])
@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_equal_views_leave_the_weights_of_classes_as_they_are(kind, weight):
    X, y = images(60, 1)
    keep = (y > 0) | (np.arange(60) < 20)  # one class has a third of the others' images
    X, y = X[keep, 0], target_of(kind, y[keep])
    options = {"optimizer": "sgd"} if kind == "linear" else {}
    one, three = (head_of(kind, class_weight=weight, **options).fit(rows, y) for rows in (X, same(X, 3)))
    np.testing.assert_allclose(three.decision_function(X), one.decision_function(X), rtol=1e-4, atol=2e-5)


def test_other_views_are_learnt_from(kind):
    X, y = images(n_views=4)
    y = target_of(kind, y)
    found = [head_of(kind).fit(rows, y).decision_function(X[:, 0]) for rows in (X, plain_of(X))]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_what_a_fold_is_scored_by_is_view_0_alone(kind):
    """Other views of the images of one fold become wrong, and nothing of that fold's scores changes."""
    X, y = images(n_views=3)
    target = target_of(kind, y)
    folds = stratified_folds(head_of(kind)._strata(target), 3)
    broken = X.copy()
    broken[folds == 1, 1:] = 6 - X[::-1][folds == 1, 1:]  # other images', with the opposite sign
    options = {"logistic": {"C": 0.1, "tol": 1e-13}, "labels": {"C": 0.1, "tol": 1e-13}, "knn": {"k": 5}}.get(kind, {})
    # Of several epochs, the one at which a fold is scored would be chosen by the others, which train on those views.
    options |= {"epochs": 1} if kind in ("linear", "mlp") else {}
    fitted = [head_of(kind, **options) for _ in range(2)]
    whole, other = (head.fit(rows, target).oof_logits_ for head, rows in zip(fitted, (X, broken), strict=True))
    np.testing.assert_allclose(other[folds == 1], whole[folds == 1], rtol=1e-4, atol=1e-4)
    assert np.abs(other[folds != 1] - whole[folds != 1]).max() > 1e-3, (
        "the test would see it: other folds trained on them"
    )
    for name in ("mean", "scale"):
        np.testing.assert_array_equal(*(getattr(head.preparation_, name) for head in fitted))


def test_preparation_is_learnt_on_view_0(kind):
    X, y = images()
    head = head_of(kind, pca=5, l2_norm=True).fit(X, target_of(kind, y))
    expected = fit_preparation(plain_of(X), pca=5, l2_norm=True)
    for name in ("mean", "scale", "projection"):
        np.testing.assert_array_equal(getattr(head.preparation_, name), getattr(expected, name))


def folds_of(monkeypatch, kind, X, y, groups):
    """Return the folds of images as the head divides them, and those that each of the solvers' rows is in."""
    seen = {}

    def kept(name, module, made=None):
        plain = getattr(module, name)

        def look(*args, **options):
            result = plain(*args, **options)
            seen[made or name] = (args, result)
            return result

        monkeypatch.setattr(module, name, look)

    kept("stratified_folds", head_module)
    kept("class_task", logistic)
    kept("label_task", several)
    kept("_nearest_of_other_folds", knn)
    head_of(kind, **({"epochs": 2} if kind in ("linear", "mlp") else {})).fit(X, y, groups=groups)
    return seen


def test_no_fold_shares_an_image_or_its_copies(monkeypatch, kind):
    X, y = images(40, 3)
    X, y, groups = np.tile(X, (2, 1, 1)), np.tile(y, 2), np.tile(np.arange(40), 2)
    order = np.random.default_rng(0).permutation(80)
    X, y, groups = X[order], y[order], groups[order]
    batches = []
    begin = Batches.__init__
    monkeypatch.setattr(Batches, "__init__", lambda self, *args: batches.append(args[0]) or begin(self, *args))
    seen = folds_of(monkeypatch, kind, X, target_of(kind, y), groups)
    folds = seen["stratified_folds"][1]
    assert len(folds) == 80
    for group in range(40):
        assert len(set(folds[groups == group])) == 1
    if kind in ("logistic", "labels"):
        task = seen["class_task" if kind == "logistic" else "label_task"][1]
        np.testing.assert_array_equal(task.fold, np.repeat(folds, 3))
        np.testing.assert_array_equal(np.sort(task.rows.numbers), np.arange(240))
        rows = np.empty_like(task.rows.Z)
        rows[task.rows.numbers] = task.rows.Z
        if kind == "logistic":
            np.testing.assert_allclose(rows, fit_preparation(plain_of(X)).apply(as_rows(X)), rtol=1e-6)
    elif kind == "knn":
        nearest = seen["_nearest_of_other_folds"][1]
        assert (folds[nearest] != folds[:, None]).all()
    elif kind in ("linear", "mlp"):
        for fold, members in enumerate(batches[0]):
            np.testing.assert_array_equal(members, np.flatnonzero(folds != fold))


def objective(coef, intercept, Z, target, weight, C):
    logits = Z @ coef.T + intercept
    if target.ndim == 1 and len(coef) > 1:
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(target)), target]
        return C * (losses * weight).sum() + 0.5 * (coef**2).sum()
    losses = np.logaddexp(0, np.where(target.reshape(len(Z), -1), -logits, logits))
    return C * (losses * weight.reshape(len(Z), -1)).sum() + 0.5 * (coef**2).sum()


def prepared(head, X):
    return head.preparation_.apply(as_rows(X)).astype(np.float64)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("weight", ["none", "balanced"])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("n", "dim"), [(150, 16), (60, 300), (60, 150)])  # as it is; turned by either Gram matrix
def test_the_minimum_is_that_of_scikit_learn_with_a_vth_of_the_weight(n, dim, classes, weight, C):
    from sklearn.linear_model import LogisticRegression

    X, y = images(n, 4, dim, classes, apart=0.5)
    X, y = X[n // 5 :], np.where(y == 1, 0, y)[n // 5 :] if classes > 2 else y[n // 5 :]
    y = np.unique(y, return_inverse=True)[1]  # four classes, one of them twice as large as the others
    head = make_head("logistic", C=C, cv=3, class_weight=weight).fit(X, y)
    Z, rows_y = prepared(head, X), np.repeat(y, 4)
    model = LogisticRegression(C=C, tol=1e-10, max_iter=20_000, class_weight=None if weight == "none" else weight)
    model.fit(Z, rows_y, sample_weight=np.full(len(Z), 0.25))
    by_class = np.ones(y.max() + 1) if weight == "none" else len(y) / (np.bincount(y) * (y.max() + 1))
    row_weight = by_class[rows_y] / 4
    theirs = objective(model.coef_, model.intercept_, Z, rows_y, row_weight, C)
    ours = objective(head.coef_.astype(float), head.intercept_.astype(float), Z, rows_y, row_weight, C)
    assert ours <= theirs * (1 + 1e-5)


@pytest.mark.parametrize("weight", ["none", "balanced"])
@pytest.mark.parametrize("dim", [12, 300])
def test_each_label_is_fitted_as_scikit_learn_fits_it(dim, weight):
    from sklearn.linear_model import LogisticRegression

    X, y = images(60, 4, dim, apart=0.5)
    Y = np.repeat(target_of("labels", y), 4, axis=0)
    head = labels_head("logistic", C=0.5, cv=3, class_weight=weight).fit(X, Y[::4])
    Z, theirs, ours = prepared(head, X), 0.0, 0.0
    for label, target in enumerate(Y.T):
        model = LogisticRegression(C=0.5, tol=1e-10, max_iter=20_000, class_weight=None if weight == "none" else weight)
        model.fit(Z, target, sample_weight=np.full(len(Z), 0.25))
        counts = np.bincount(target)
        row_weight = np.full(len(Z), 0.25) if weight == "none" else 0.25 * len(Z) / (2 * counts[target.astype(int)])
        theirs += objective(model.coef_, model.intercept_, Z, target, row_weight, 0.5)
        coef, intercept = head.coef_[label : label + 1].astype(float), head.intercept_[label : label + 1].astype(float)
        ours += objective(coef, intercept, Z, target, row_weight, 0.5)
    assert ours <= theirs * (1 + 1e-5)


@pytest.mark.parametrize("n_views", [1, 3])
def test_turning_changes_nothing(n_views):
    X, y = images(30, n_views, 80, apart=0.5)
    Z, folds = fit_preparation(plain_of(X)).apply(as_rows(X)), np.arange(30) // 3 % 3
    features = turned(Z, 30)
    assert features.along_axes
    assert features.Z.shape[1] <= 80
    second = features.Z.T @ features.Z
    np.testing.assert_allclose(second, np.diag(np.diag(second)), atol=1e-6 * second.max())

    def fitted(rows):
        return fit_rows(class_task(rows, y, folds, 3, n_views=n_views), 0.1, tol=1e-13).W[0]

    coef, intercept = features.straight(fitted(features.Z))
    plain = fitted(Z.astype(np.float64))
    np.testing.assert_allclose(coef, plain[:, :-1], atol=1e-5)
    np.testing.assert_allclose(intercept, plain[:, -1], atol=1e-5)
    assert not turned(Z[:, :30], 30).along_axes


def test_rows_that_are_all_the_same_are_turned_to_nothing():
    features = turned(np.zeros((12, 40), np.float32), 6)
    coef, intercept = features.straight(np.zeros((3, features.Z.shape[1] + 1)))
    assert np.abs(features.Z).max() < 1e-100
    assert coef.shape == (3, 40)
    assert not coef.any()
    assert not intercept.any()


def tasks(n_views=3):
    X, y = images(50, n_views, 10, 4)
    Z, folds = as_rows(X).astype(np.float64), np.random.default_rng(1).permutation(50) % 3
    labels = target_of("labels", y)
    return [
        class_task(Z, y, folds, 4, balanced=True, n_views=n_views),
        class_task(Z, (y > 0).astype(int), folds, 2, n_views=n_views),
        label_task(Z, labels, folds, balanced=True, n_views=n_views),
    ]


@pytest.mark.parametrize("number", range(3))
def test_passes_of_torch_are_those_of_numpy(number):
    task = tasks()[number]
    W = np.random.default_rng(1).standard_normal((3, task.n_outputs, 11))
    with Passes(task) as ours, TorchPasses(task, "cpu") as theirs:
        everyone = np.ones(3, bool)
        mine, other = (passes.run(W, everyone, curvature=True) for passes in (ours, theirs))
        np.testing.assert_allclose(mine.loss, other.loss, rtol=1e-10)
        np.testing.assert_allclose(mine.gradient, other.gradient, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(mine.curvature.second, other.curvature.second, rtol=1e-8, atol=1e-10)
        decided = [passes.decide(W) for passes in (ours, theirs)]
        solved = [next(solve_path(passes, [0.1], tol=1e-10)).W for passes in (ours, theirs)]
    assert decided[0].shape == (50, task.n_outputs)
    np.testing.assert_allclose(decided[0], decided[1], rtol=1e-8)
    np.testing.assert_allclose(solved[0], solved[1], atol=1e-6)


def test_the_first_row_of_an_image_is_decided_by_the_fit_without_its_fold():
    X, y = images(50, 3, 10, 4)
    folds = np.random.default_rng(1).permutation(50) % 3
    task = class_task(as_rows(X).astype(np.float64), y, folds, 4, n_views=3)
    W = np.random.default_rng(1).standard_normal((3, 4, 11))
    with Passes(task) as passes:
        found = passes.decide(W)
    expected = np.stack([W[fold, :, :-1] @ x + W[fold, :, -1] for fold, x in zip(folds, X[:, 0], strict=True)])
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(task.totals(), [(folds != fold).sum() for fold in range(3)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7])
def test_an_image_is_as_near_as_its_nearest_view_and_votes_once(metric, k):
    X, y = images(45, 4)
    new, _ = images(30, 1, seed=5)
    head = make_head("knn", k=k, metric=metric, cv=3).fit(X, y)
    Z, queries = prepared(head, X), head.preparation_.apply(new[:, 0]).astype(np.float64)
    if metric == "cosine":
        Z, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (Z, queries))
    distance = np.linalg.norm(queries[:, None] - Z, axis=2).reshape(30, 45, 4).min(axis=2)
    nearest = np.argsort(distance, axis=1)[:, :k]
    votes = np.stack([(y[nearest] == label).sum(axis=1) for label in range(3)], axis=1)
    np.testing.assert_allclose(head.decision_function(new[:, 0]), np.log((votes + 1 / 3) / (k + 1)))


def test_blocks_of_distances_stay_as_small_as_without_views(monkeypatch):
    X, y = images(60, 4)
    head = make_head("knn", cv=3).fit(X, y)
    whole = head.decision_function(X[:, 0]), head.cv_
    sizes = []
    plain = voters._distances
    monkeypatch.setattr(voters, "_distances", lambda Z, rows: sizes.append(len(Z) * len(rows)) or plain(Z, rows))
    for module in (voters, knn):
        monkeypatch.setattr(module, "BLOCK_NUMBERS", 700)
    head.fit(X, y)
    np.testing.assert_array_equal(head.decision_function(X[:, 0]), whole[0])
    assert head.cv_ == whole[1]
    assert max(sizes) <= 700


@pytest.mark.parametrize("n_views", [1, 3])
def test_a_saved_model_has_its_views(tmp_path, n_views):
    X, y = images(40, n_views, 8)
    head = make_head("knn", k=5, cv=3).fit(X, y)
    model = SavedModel(
        kind="knn", classes=("a", "b", "c"), spaces=[make_space().as_dict()], network=head.network_, facts=head.facts()
    )
    again = load_model(save_model(tmp_path / "model", model)).network
    assert isinstance(again, Neighbours)
    assert again.rows.shape == (40, n_views, 8)
    np.testing.assert_array_equal(again.logits(X[:, 0]), head.decision_function(X[:, 0]))
    assert head.network_.arrays()["rows"].ndim == (2 if n_views == 1 else 3), "one view is saved as ever"


def test_a_vote_with_views_is_exported_as_it_is():
    import torch

    from headstart.classify.export.network import _head

    X, y = images(40, 3, 8)
    head = make_head("knn", k=5, cv=3).fit(X, y)
    model = SavedModel(
        kind="knn", classes=("a", "b", "c"), spaces=[make_space().as_dict()], network=head.network_, facts={}
    )
    found = _head(model)(torch.from_numpy(X[:, 0])).numpy()
    np.testing.assert_allclose(found, model.predict_proba(X[:, 0]), atol=1e-5)


def test_means_are_of_all_views():
    X, y = images(45, 4)
    head = make_head("ncm", cv=3).fit(X, y)
    Z = prepared(head, X).reshape(X.shape)
    np.testing.assert_allclose(head.network_.weights[0], [Z[y == c].mean(axis=(0, 1)) for c in range(3)], rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_batches_are_those_without_views(monkeypatch, kind):
    X, y = images(50, 4)
    seen = {}

    def counted(rows):
        steps = []
        plain = Rows.views_of
        with monkeypatch.context() as patch:
            patch.setattr(Rows, "views_of", lambda self, images: steps.append(images.tolist()) or plain(self, images))
            patch.setattr(Stack, "held_out_logits", lambda self, rows, numbers: torch_zeros(self, rows, numbers))
            head_of(kind, epochs=3, batch_size=16).fit(rows, y)
        return steps

    def torch_zeros(stack, rows, numbers):
        seen["held"] = numbers.shape
        return stack.logits(rows.plain_of(numbers)).detach()

    with_views, without = counted(X), counted(plain_of(X))
    assert with_views == without
    assert seen["held"] == (3, 17)


def test_shapes_that_are_none_are_named(kind):
    X, y = images()
    y = target_of(kind, y)
    wanted = r"embeddings \(n, D\), or \(n, V, D\) of V views of each image, with n labels, and got \(60, 0, 12\)"
    with pytest.raises(TrainingError, match=wanted):
        head_of(kind).fit(X[:, :0], y)
    for wrong in (X[None], X[:50], X[:, 0, 0]):
        with pytest.raises(TrainingError, match="embeddings"):
            head_of(kind).fit(wrong, y)
    X[3, 2, 1] = np.nan
    with pytest.raises(TrainingError, match="NaN or infinity"):
        head_of(kind).fit(X, y)


@pytest.mark.parametrize("kind", ["logistic", "knn", "labels"])
def test_a_learning_curve_trains_on_views_and_scores_view_0(kind):
    X, y = images(100, 3, apart=0.7)
    target, groups = target_of(kind, y), np.arange(100)
    head = head_of(kind, **({"C": 0.1} if kind != "knn" else {"k": 3})).fit(X, target)
    curve = learning_curve(head, X, target, groups, repeats=3)
    assert [point["n"] for point in curve.points][-1] == 80
    one, three = (
        learning_curve(
            head_of(kind, **({"C": 0.1} if kind != "knn" else {"k": 3})).fit(rows, target),
            rows,
            target,
            groups,
            repeats=3,
        )
        for rows in (X[:, 0], same(X[:, 0], 3))
    )
    for plain, views in zip(one.points, three.points, strict=True):
        assert views == pytest.approx(plain, abs=0.02)
    assert curve.points != one.points


@pytest.mark.parametrize("kind", list(KINDS))
def test_memory_grows_with_views_as_with_images(kind):
    def peak(n_views):
        X, y = images(200, n_views, 64)
        options = {"epochs": 2} if kind in ("linear", "mlp") else {}
        head = head_of(kind, **options)
        y = target_of(kind, y)
        tracemalloc.start()
        try:
            head.fit(X, y)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # libraries are loaded
    few, many = peak(8), peak(16)
    assert many < 2.2 * few
