"""Rows dealt to mini-batches: each once an epoch, whoever asks for which batch, and the sums that a batch gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.classify import mini_batches
from headstart.classify.mini_batches import Dealer, Dealing, linear_sums
from headstart.classify.scratch import Table
from headstart.classify.share import HeldRows, Share
from headstart.classify.training import batch_loss
from headstart.extract.views import PLAIN, Views

N, WIDTH, CLASSES, FOLDS = 1000, 5, 3, 3
RNG = np.random.default_rng(0)
Z = RNG.standard_normal((N, WIDTH)).astype(np.float32)
Z[:, 0] = np.arange(N)  # by which rows are told apart
Y, FOLD = RNG.integers(0, CLASSES, N), RNG.integers(0, FOLDS, N)
WEIGHT = np.array([1.0, 2.0, 0.5])


TABLES: list[Table] = []


@pytest.fixture(autouse=True)
def _closed():
    """Let go of what a test has put aside."""
    yield
    while TABLES:
        TABLES.pop().close()


def dealer(*, in_memory=True, memory=1 << 20, rows=slice(None), views=PLAIN, smoothing=0.0, place=(0, 1)):
    """Return what deals some of the rows."""
    mine = Z[rows]
    table = Table(len(mine), WIDTH, in_memory=in_memory)
    TABLES.append(table)
    table.put(0, mine)
    images = slice(None, len(mine) // views.count)
    share = Share(
        Path(), (), views, np.zeros((0, 32), np.uint8), Y[rows][images], FOLD[rows][images], np.zeros(0, int), memory,
        device="cpu", place=place,
    )  # fmt: skip
    return Dealer(share, HeldRows(table, np.arange(len(mine)), 100), Dealing(WEIGHT, smoothing, 7))


def fits(n_settings=2):
    return RNG.standard_normal((n_settings, FOLDS, CLASSES, WIDTH + 1)).astype(np.float32) / 100


def dealt(one, epoch, steps=7):
    """Return the rows of each batch of an epoch, by their first number."""
    one._stream, batches = mini_batches._Stream(one._pieces(epoch, 18)), []
    for step in range(steps):
        count = (step + 1) * N // steps - step * N // steps
        taken = list(one._stream.take(count))
        for numbers, rows in taken:
            np.testing.assert_array_equal(rows, Z[numbers])
        batches.append(np.concatenate([numbers for numbers, _ in taken]))
    return batches


@pytest.mark.parametrize(("in_memory", "memory"), [(True, 1 << 20), (True, 4000), (False, 1 << 20), (False, 30_000)])
def test_an_epoch_deals_each_row_once_and_the_next_one_otherwise(in_memory, memory, monkeypatch):
    monkeypatch.setattr(mini_batches, "CHUNK_ROWS", 64)
    one = dealer(in_memory=in_memory, memory=memory)
    first, second = dealt(one, 1), dealt(one, 2)
    for batches in (first, second):
        assert sorted(np.concatenate(batches).tolist()) == list(range(N))
        assert {len(batch) for batch in batches} == {142, 143}
    assert (np.concatenate(first) != np.concatenate(second)).mean() > 0.9
    # No batch is a run of neighbours, also where a buffer holds a few chunks of them only.
    assert max((np.diff(np.sort(batch)) == 1).mean() for batch in first) < 0.75


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_batch_is_the_same_whoever_is_asked_for_it_and_when(in_memory, monkeypatch):
    monkeypatch.setattr(mini_batches, "CHUNK_ROWS", 64)
    W, steps = fits(), 6
    in_order = dealer(in_memory=in_memory)
    expected = {(epoch, step): in_order.step(epoch, step, steps, W, True) for epoch in (1, 2) for step in range(steps)}
    for epoch, step in ((1, 3), (1, 3), (2, 0), (1, 5), (2, 5), (1, 0)):  # one that takes over begins anywhere
        found = dealer(in_memory=in_memory).step(epoch, step, steps, W, True)
        again = in_order.step(epoch, step, steps, W, True)
        for name, value in expected[epoch, step].items():
            np.testing.assert_array_equal(found[name], value)
            np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sums_of_shards_are_the_gradient_that_torch_finds_of_all_rows(folds, smoothing):
    W = fits()
    found = dealer(smoothing=smoothing).step(1, 0, 1, W, folds)
    parts = [dealer(rows=rows, smoothing=smoothing) for rows in (slice(0, 130), slice(130, 700), slice(700, None))]
    several = [part.step(1, 0, 1, W, folds) for part in parts]
    for name, value in found.items():
        np.testing.assert_allclose(sum(each[name] for each in several), value, rtol=1e-3, atol=1e-2)

    parameters = torch.from_numpy(W).requires_grad_()
    logits = torch.from_numpy(Z) @ parameters[..., :-1].transpose(2, 3) + parameters[..., None, :, -1]
    y = torch.from_numpy(Y).expand(FOLDS, N)
    mine = torch.from_numpy(FOLD) != torch.arange(FOLDS)[:, None] if folds else torch.ones(FOLDS, N)
    weight = torch.from_numpy(WEIGHT).float()[y] * mine
    loss = batch_loss(logits, y, weight, smoothing)
    (gradient,) = torch.autograd.grad(loss.sum(), parameters)
    np.testing.assert_allclose(found["weight"], weight.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found["loss"] / found["weight"], loss.detach(), rtol=1e-4)
    scaled = found["gradient"] / found["weight"][:, None, None]
    np.testing.assert_allclose(scaled, gradient, rtol=1e-3, atol=1e-3)


def test_shards_of_few_rows_take_turns():
    """Else all of many workers would have a row in one batch, and none in the next."""
    steps, W = 50, fits()
    parts = [dealer(rows=slice(start, start + 20), place=(start // 20, 50)) for start in range(0, N, 20)]
    counted = [sum(part.step(1, step, steps, W, False)["weight"][0] for part in parts) for step in range(steps)]
    assert sum(counted) == pytest.approx(WEIGHT[Y].sum(), rel=1e-5)
    assert min(counted) >= 10 and max(counted) <= 40  # 20 rows, whose weights are 0.5 to 2


def test_rows_of_an_image_have_its_label_and_its_fold():
    one = dealer(views=Views(4, "flip"))
    y, counted = one._labels(np.array([0, 3, 4, 401]), FOLDS, True)
    images = np.array([0, 0, 1, 100])
    np.testing.assert_array_equal(y, Y[images])
    np.testing.assert_array_equal(counted, (FOLD[images] != np.arange(FOLDS)[:, None]) * WEIGHT[Y[images]])


def test_logits_far_apart_give_no_nan():
    W = torch.zeros(1, 1, 2, 2)
    W[0, 0, 0, 0] = 1e4
    rows, y = torch.ones(3, 1), torch.tensor([0, 1, 1])
    gradient, loss, counted = linear_sums(W, rows, y, torch.ones(1, 3), smoothing=0.0)
    assert torch.isfinite(gradient).all()
    assert loss.item() == pytest.approx(2e4)
    assert counted.item() == 3
