"""The solver beneath logistic heads: its passes against plain formulas and against torch, its minima against others."""

import numpy as np
import pytest

from headstart.classify.passes import Passes, passes_over
from headstart.classify.path import Metric, solve_path
from headstart.classify.search import class_task, rotated, search
from headstart.classify.task import InBlocks, InMemory, Task
from headstart.errors import DeviceError, UsageError


def softmax_problem(n=150, dim=12, classes=5, dtype=np.float64, seed=0, folds=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    Z = rng.standard_normal((n, dim)) + rng.standard_normal((classes, dim))[y]
    return class_task(Z.astype(dtype), y, rng.permutation(n) % folds, classes, balanced=True)


def labels_problem(n=150, dim=12, labels=4, dtype=np.float64, seed=0, folds=3):
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n, dim)).astype(dtype)
    Y = Z @ rng.standard_normal((dim, labels)) + rng.standard_normal((n, labels)) > 1
    weight = rng.uniform(0.5, 2, (folds, labels, 2))
    return Task(InMemory(Z, np.arange(n)), Y, rng.permutation(n) % folds, "sigmoid", labels, weight)


PROBLEMS = {"softmax": softmax_problem, "sigmoid": labels_problem}


def coefficients(task, seed=1):
    return np.random.default_rng(seed).standard_normal((task.n_fits, task.n_outputs, task.rows.shape[1] + 1))


def plain(task, W):
    """Return loss and second derivative terms as the textbook has them, a row and a fit at a time."""
    numbers, Z = next(task.rows.blocks())
    losses, gradient = np.zeros(task.n_fits), np.zeros(W.shape)
    for fit in range(task.n_fits):
        for number, z in zip(numbers, Z.astype(np.float64), strict=True):
            if task.fold[number] == fit:
                continue
            logits = W[fit, :, :-1] @ z + W[fit, :, -1]
            if task.link == "softmax":
                label, proba = task.target[number], np.exp(logits) / np.exp(logits).sum()
                weight = task.class_weight[fit, label]
                losses[fit] -= weight * np.log(proba[label])
                slope = weight * (proba - np.eye(len(proba))[label])
            else:
                present, proba = task.target[number], 1 / (1 + np.exp(-logits))
                weight = task.class_weight[fit, np.arange(len(present)), present.astype(int)]
                losses[fit] -= (weight * np.log(np.where(present, proba, 1 - proba))).sum()
                slope = weight * (proba - present)
            gradient[fit] += slope[:, None] * np.append(z, 1)
    return losses, gradient


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_pass_is_the_textbooks_sum(kind, threads, monkeypatch):
    monkeypatch.setattr("headstart.classify.passes.THREADS_FROM", 0)
    monkeypatch.setattr("headstart.classify.passes.TILE_ROWS", 16)
    monkeypatch.setattr("headstart.classify.passes.available_cores", lambda: threads)
    task = PROBLEMS[kind]()
    W = coefficients(task)
    with Passes(task) as passes:
        sums = passes.run(W, np.ones(task.n_fits, bool))
    losses, gradient = plain(task, W)
    np.testing.assert_allclose(sums.loss, losses, rtol=1e-10)
    np.testing.assert_allclose(sums.gradient, gradient, atol=1e-9)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_fits_that_have_ended_cost_and_say_nothing(kind):
    task = PROBLEMS[kind]()
    W = coefficients(task)
    with Passes(task) as passes:
        some, all_ = passes.run(W, np.array([False, True, False])), passes.run(W, np.ones(3, bool))
    np.testing.assert_allclose(some.gradient[1], all_.gradient[1])
    assert not some.loss[[0, 2]].any()
    assert not some.gradient[[0, 2]].any()


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_torch_sums_up_the_same(kind, diagonal, monkeypatch):
    from headstart.classify import torch_passes

    monkeypatch.setattr(torch_passes, "LOGITS_AT_A_TIME", 500)
    task = PROBLEMS[kind]()
    W, active = coefficients(task), np.array([True, False, True])
    ours = Passes(task, diagonal=diagonal)
    theirs = torch_passes.TorchPasses(task, "cpu", diagonal=diagonal)
    with ours, theirs:
        one, other = ours.run(W, active, curvature=True), theirs.run(W, active, curvature=True)
        np.testing.assert_allclose(one.loss, other.loss)
        np.testing.assert_allclose(one.gradient, other.gradient, atol=1e-9)
        for name in ("total", "mean", "second", "outputs"):
            np.testing.assert_allclose(getattr(one.curvature, name), getattr(other.curvature, name), atol=1e-9)
        np.testing.assert_allclose(ours.decide(W), theirs.decide(W))
        first, second = (next(solve_path(passes, [0.1], tol=1e-9)) for passes in (ours, theirs))
    np.testing.assert_allclose(first.W, second.W, atol=1e-4)


def test_rows_in_blocks_are_sums_of_the_same_rows():
    task = softmax_problem(dtype=np.float32)
    numbers, Z = next(task.rows.blocks())
    original = np.empty_like(Z)
    original[numbers] = Z
    blocks = Task(InBlocks(original, 40), task.target, task.fold, "softmax", 5, task.class_weight)
    W = coefficients(task)
    with Passes(task) as one, Passes(blocks) as other:
        np.testing.assert_allclose(one.run(W, np.ones(3, bool)).loss, other.run(W, np.ones(3, bool)).loss, rtol=1e-6)
        np.testing.assert_allclose(one.decide(W), other.decide(W), rtol=1e-5)


def test_with_one_row_factor_the_metric_is_newtons():
    # Where all rows have the same probabilities the Hessian is a Kronecker product, and its inverse exact.
    task = softmax_problem(n=400, dim=6)
    _, Z = next(task.rows.blocks())
    plain_task = Task(task.rows, task.target, np.full(400, -1), "softmax", 5, np.ones((1, 5)))
    W = np.zeros((1, 5, 7))
    with Passes(plain_task) as passes:
        curvature = passes.run(W, np.ones(1, bool), curvature=True).curvature
    penalty = 0.03
    step = Metric(curvature, 400.0, penalty, np.dtype(np.float64)).apply(
        coefficients(plain_task) - coefficients(plain_task).mean(1, keepdims=True)
    )[0]
    rows = np.hstack([Z, np.ones((400, 1))])
    outputs = np.eye(5) / 5 - 1 / 25
    hessian = np.kron(outputs, rows.T @ rows / 400) + np.kron(np.eye(5), np.diag([penalty] * 6 + [0.0]))
    gradient = (coefficients(plain_task) - coefficients(plain_task).mean(1, keepdims=True))[0]
    np.testing.assert_allclose(hessian @ step.ravel(), gradient.ravel(), atol=1e-8)


@pytest.mark.parametrize("diagonal", [False, True])
def test_independent_labels_reach_the_minimum_of_scikit_learn(diagonal):
    from sklearn.linear_model import LogisticRegression

    task = labels_problem()
    task = Task(task.rows, task.target, task.fold, "sigmoid", 4, np.ones((3, 4, 2)))
    _, Z = next(task.rows.blocks())
    with Passes(task, diagonal=diagonal) as passes:
        found = next(solve_path(passes, [0.3], tol=1e-11))
    for label in range(4):
        mine = task.fold != 1
        theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=5000).fit(Z[mine], task.target[mine, label])
        np.testing.assert_allclose(found.W[1, label, :-1], theirs.coef_[0], atol=1e-4)
        np.testing.assert_allclose(found.W[1, label, -1], theirs.intercept_[0], atol=1e-4)


def test_a_large_c_alone_is_reached_by_steps_on_the_way():
    task = softmax_problem(n=300, dim=20)
    with Passes(task) as passes:
        (alone,) = solve_path(passes, [1e3])
        *_, last = solve_path(passes, np.logspace(-4, 3, 15))
    assert alone.converged
    np.testing.assert_allclose(alone.objective, last.objective, rtol=1e-5)


def test_the_same_rows_give_the_same_bits():
    def run():
        task = softmax_problem(n=900, dim=40, dtype=np.float32)
        with Passes(task) as passes:
            return [s.W for s in solve_path(passes, [0.01, 0.1])]

    np.testing.assert_array_equal(run(), run())


def test_turning_to_fewer_features_changes_nothing():
    rng = np.random.default_rng(0)
    Z, y, folds = rng.standard_normal((40, 100)), np.arange(40) % 3, np.arange(40) // 2 % 4
    turned, back = rotated(Z)
    assert turned.shape == (40, 40)

    def coef(Z):
        return search(class_task(Z, y, folds, 3), [0.1], lambda *_: np.zeros(4), tol=1e-12).fit.W[0, :, :-1]

    np.testing.assert_allclose(coef(turned) @ back.T, coef(Z), atol=1e-6)


def test_devices_that_are_not_there_are_refused():
    import torch

    with pytest.raises(UsageError, match="device must be auto, cpu or cuda, and is 'abacus'"):
        passes_over(softmax_problem(), "abacus")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no NVIDIA GPU"):
            passes_over(softmax_problem(), "cuda")
