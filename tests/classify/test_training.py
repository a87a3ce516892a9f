"""Training of linear and MLP heads: the same numbers as torch alone, the search, and what it may look at."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from headstart.classify.grid import _Course, cross_validate, grid
from headstart.classify.heads import make_head
from headstart.classify.metrics import log_loss
from headstart.classify.network import forward, softmax
from headstart.classify.optimizers import SCHEDULES, Optimizer, rate_factor
from headstart.classify.splits import stratified_folds
from headstart.classify.training import Batches, Recipe, Rows, Setting, Stack, batch_loss, initial_parameters, train
from headstart.errors import DeviceError, TrainingError, UsageError

RECIPE = {
    "optimizer": "adamw",
    "momentum": 0.9,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "batch_size": 16,
    "epochs": 5,
    "patience": 5,
    "random_state": 3,
    "device": "cpu",
}


def recipe(**changes):
    return Recipe(**{**RECIPE, **changes})


def data(n=60, dim=7, classes=3, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(9).standard_normal((classes, dim))
    return (centres[y] + noise * rng.standard_normal((n, dim))).astype(np.float32), y


def plain_training(Z, y, weight, setting, members, made, fold, epochs):
    """Train one network as anybody would with torch.optim, on the batches that `Batches` deals to a fold."""
    n_classes = int(y.max()) + 1
    first = initial_parameters((Z.shape[1], *setting.hidden, n_classes), float(np.square(Z).sum(1).mean()), 3)
    layers = [nn.Linear(*w.shape) for w in first[::2]]
    for layer, w, b in zip(layers, first[::2], first[1::2], strict=True):
        layer.weight.data, layer.bias.data = w.T.clone(), b[0].clone()
    module = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    extra = {"momentum": made.momentum} if made.optimizer == "sgd" else {}
    optimizer = kinds[made.optimizer](module.parameters(), lr=setting.lr, weight_decay=setting.weight_decay, **extra)
    third = math.ceil(made.epochs / 3)
    scheduler = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=made.epochs),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, step_size=third, gamma=0.1),
    }[made.schedule]()
    batches = Batches(members, made.batch_size, made.random_state)
    real = batches.real.reshape(len(members), batches.steps, -1)
    loss_of = nn.CrossEntropyLoss(label_smoothing=made.label_smoothing, reduction="none")
    for _ in range(epochs):
        for rows, keep in zip(batches.epoch()[fold], real[fold], strict=True):
            inside = torch.from_numpy(rows[keep])
            each = loss_of(module(torch.from_numpy(Z)[inside]), torch.from_numpy(y)[inside])
            counted = torch.from_numpy(weight)[inside]
            optimizer.zero_grad()
            ((each * counted).sum() / counted.sum()).backward()
            optimizer.step()
        scheduler.step()
    return [parameter.detach().numpy() for layer in layers for parameter in (layer.weight, layer.bias)]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("hidden", [(), (8, 5)])
def test_a_stack_trains_each_network_as_torch_optim_trains_it_alone(optimizer, schedule, hidden):
    Z, y = data()
    made = recipe(optimizer=optimizer, schedule=schedule, label_smoothing=0.1, epochs=6)
    settings = grid((0.01, 0.1), (0.0, 0.3), [(width,) for width in hidden], (0.0,))
    rows = Rows.on("cpu", Z, y, 3, "balanced")
    folds = np.arange(len(y)) % 4 % 3  # of unequal sizes
    members = [np.flatnonzero(folds != fold) for fold in range(3)]
    stack, batches = Stack(settings, 3, rows, made), Batches(members, made.batch_size, made.random_state)
    for epoch in range(1, 7):
        stack.train_epoch(rows, batches, epoch)
    for number, setting in enumerate(settings):
        for fold in range(3):
            expected = plain_training(Z, y, rows.weight.numpy(), setting, members, made, fold, 6)
            found = [parameter.detach()[number, fold] for parameter in stack.parameters]
            for ours, theirs in zip(found, expected, strict=True):
                ours = ours[0] if theirs.ndim == 1 else ours.T
                np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-3, atol=2e-5)


def test_the_optimizers_go_on_with_the_settings_that_are_kept():
    first = torch.arange(6.0).reshape(3, 1, 2, 1)
    column = torch.tensor([0.1, 0.2, 0.3])[:, None, None, None]
    whole, part = [first.clone()], [first.clone()]
    options = {"lr": column, "weight_decay": column, "momentum": 0.9}
    of_all, of_some = Optimizer("adamw", whole, **options), Optimizer("adamw", part, **options)
    keep = torch.tensor([True, False, True])
    for step in range(4):
        of_all.step(whole, [torch.sin(whole[0] + step)], 1.0)
        of_some.step(part, [torch.sin(part[0] + step)], 1.0)
        if step == 1:
            of_some.keep(keep)
            part = [part[0][keep]]
    torch.testing.assert_close(part[0], whole[0][keep], rtol=0, atol=0)


def test_schedules_begin_with_the_rate_given_and_fall():
    assert [rate_factor("constant", epoch, 9) for epoch in (1, 9)] == [1, 1]
    np.testing.assert_allclose(
        [rate_factor("step", epoch, 9) for epoch in (1, 3, 4, 6, 7, 9)], [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    cosine = [rate_factor("cosine", epoch, 9) for epoch in range(1, 11)]
    assert cosine[0] == 1
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] == pytest.approx(0)


def test_smoothing_and_class_weights_are_those_of_torch():
    rng = np.random.default_rng(0)
    logits, y = torch.from_numpy(rng.standard_normal((1, 1, 9, 4))), torch.from_numpy(rng.integers(0, 4, (1, 9)))
    ones = torch.ones(1, 9, dtype=torch.float64)
    smooth = nn.functional.cross_entropy(logits[0, 0], y[0], label_smoothing=0.2)
    torch.testing.assert_close(batch_loss(logits, y, ones, 0.2)[0, 0], smooth)
    by_class = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    weighted = nn.functional.cross_entropy(logits[0, 0], y[0], weight=by_class)
    torch.testing.assert_close(batch_loss(logits, y, by_class[y], 0.0)[0, 0], weighted)


def test_an_epoch_takes_every_row_of_each_fold_once():
    members = [np.arange(0, 50), np.arange(10, 47)]
    batches = Batches(members, 16, 0)
    real = batches.real.reshape(2, batches.steps, -1)
    assert batches.steps == 4
    assert batches.size <= 16
    first, second = batches.epoch(), batches.epoch()
    for fold, rows in enumerate(members):
        np.testing.assert_array_equal(np.sort(first[fold][real[fold]]), rows)
        assert not np.array_equal(first[fold], second[fold])
        assert real[fold].sum(axis=1).min() >= len(rows) // 4
    assert Batches([np.arange(6400)], None, 0).steps == 64
    assert Batches([np.arange(100)], None, 0).steps == 2


def test_a_setting_comes_out_the_same_in_any_company():
    Z, y = data(noise=2.0)
    rows, folds = Rows.on("cpu", Z, y, 3, "none"), stratified_folds(y, 3)
    some = grid((0.003, 0.03), (0.0,), [(8, 16)], (0.0, 0.5))
    made = recipe(epochs=8)
    together = cross_validate(rows, folds, some, made, lambda _: None)
    for trial in together:
        (alone,) = cross_validate(rows, folds, [trial.setting], made, lambda _: None)
        np.testing.assert_allclose(alone.logits, trial.logits, rtol=1e-4, atol=1e-5)
        assert alone.epochs == trial.epochs


def test_little_memory_gives_the_same_search(monkeypatch):
    Z, y = data(noise=2.0)
    rows, folds = Rows.on("cpu", Z, y, 3, "none"), stratified_folds(y, 3)
    some = grid((0.003, 0.03), (0.0, 0.1), [(8,)], (0.5,))
    whole = cross_validate(rows, folds, some, recipe(), lambda _: None)
    monkeypatch.setattr("headstart.classify.grid._STACK_BYTES", 1)
    monkeypatch.setattr("headstart.classify.training._HELD_OUT_BYTES", 1000)
    apart = cross_validate(rows, folds, some, recipe(), lambda _: None)
    for one, other in zip(whole, apart, strict=True):
        assert one.setting == other.setting
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_a_folds_own_rows_do_not_choose_the_epoch_at_which_it_is_scored():
    # Three folds of one row. The first fold's own loss is lowest in epoch 3, that of the others in epoch 2.
    course = _Course(Setting(1.0, 0.0), [np.array([0]), np.array([1]), np.array([2])])
    losses = np.array([[9, 5, 5], [5, 1, 1], [0, 2, 2], [9, 9, 9]], float)
    for epoch, loss in enumerate(losses, 1):
        course.add(epoch, 0.1, loss, 1, torch.full((3, 1, 2), float(epoch)))
    trial = course.trial(np.zeros(3, int))
    # Others of the second and third: 14, 6, 2, 18, so they are scored in epoch 3; in sum epoch 3 is best too.
    np.testing.assert_array_equal(trial.logits[:, 0], [2, 3, 3])
    assert trial.epochs == 3
    assert [epoch["dev_loss"] for epoch in trial.history] == pytest.approx(losses.mean(axis=1))


def held_out_rows_of(monkeypatch, kind, X, y, groups):
    """Return, for each fold, the rows trained on and the rows that were scored, as the training loop gets them."""
    seen = SimpleNamespace(trained=None, scored=None)
    begin, score = Batches.__init__, Stack.held_out_logits

    def counted(self, members, size, random_state):
        if len(members) > 1:
            seen.trained = [set(rows.tolist()) for rows in members]
        begin(self, members, size, random_state)

    def looked(self, rows, numbers):
        seen.scored = [set(part) for part in numbers.tolist()]
        return score(self, rows, numbers)

    monkeypatch.setattr(Batches, "__init__", counted)
    monkeypatch.setattr(Stack, "held_out_logits", looked)
    make_head(kind, cv=3, epochs=3).fit(X, y, groups=groups)
    return seen


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_copies_never_watch_over_each_other(monkeypatch, kind):
    X, y = data(30)
    X, y, groups = np.tile(X, (3, 1)), np.tile(y, 3), np.tile(np.arange(30), 3)
    order = np.random.default_rng(0).permutation(90)
    seen = held_out_rows_of(monkeypatch, kind, X[order], y[order], groups[order])
    for trained, scored in zip(seen.trained, seen.scored, strict=True):
        scored = scored if 0 in scored and 0 not in trained else scored - {0}  # 0 fills shorter folds up
        assert not trained & scored
        assert not {groups[order][row] for row in trained} & {groups[order][row] for row in scored}


def test_copies_do_not_prolong_training_that_learns_nothing():
    # Labels at random, each picture six times: where copies straddled, memorising would look like learning.
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((40, 30)).astype(np.float32), rng.permutation(np.arange(40) % 2)
    X, y, groups = np.tile(X, (6, 1)), np.tile(y, 6), np.tile(np.arange(40), 6)
    options = {"cv": 4, "lr": 0.01, "epochs": 60, "dropout": 0.0, "hidden": (32,)}
    told = make_head("mlp", **options).fit(X, y, groups=groups)
    not_told = make_head("mlp", **options).fit(X, y)
    assert told.cv_["accuracy"] < 0.7
    assert told.epochs_ < 10
    assert not_told.cv_["accuracy"] > 0.95, "the test would see copies that straddle"


def test_the_grid_is_reported_and_its_best_setting_taken():
    X, y = data(noise=2.0)
    head = make_head("mlp", cv=3, lr=(1e-3, 1e-2), weight_decay=(0.0, 0.1), hidden=((4, 8),), dropout=0.3, epochs=12)
    head.fit(X, y)
    tried = head.cv_["grid"]
    assert (len(tried), head.cv_["fits"]) == (8, 24)
    assert {(*entry["hidden"], entry["lr"], entry["weight_decay"]) for entry in tried} == {
        (width, lr, decay) for width in (4, 8) for lr in (1e-3, 1e-2) for decay in (0.0, 0.1)
    }
    best = min(tried, key=lambda entry: entry["log_loss"])
    assert head.setting_ == {name: best[name] for name in ("lr", "weight_decay", "hidden", "dropout")}
    assert head.epochs_ == best["epochs"]
    assert head.cv_["log_loss"] == pytest.approx(best["log_loss"])
    assert head.cv_["log_loss"] == pytest.approx(log_loss(y, softmax(head.oof_logits_)))
    assert head.cv_["log_loss_calibrated"] == pytest.approx(log_loss(y, head.oof_proba_))
    assert head.facts()["setting"] == head.setting_
    assert head.choice().endswith(f", {head.epochs_} epochs, the best of 8 settings in 24 fits")
    assert len(head.network_.weights[0]) == best["hidden"][0]


def test_the_last_fit_is_on_all_rows_for_the_best_number_of_epochs():
    X, y = data(noise=2.0)
    head = make_head("mlp", cv=3, lr=3e-3, hidden=(8,), dropout=0.5, epochs=20, random_state=3, batch_size=16)
    head.fit(X, y)
    rows = Rows.on("cpu", head.preparation_.apply(X), y, 3, "none")
    setting = Setting(3e-3, 1e-2, (8,), 0.5)
    weights, biases = train(rows, setting, head.epochs_, recipe(epochs=20, patience=10))
    np.testing.assert_array_equal(head.decision_function(X), forward(rows.Z.numpy(), weights, biases))


@pytest.mark.parametrize(("kind", "options"), [("linear", {}), ("mlp", {"dropout": 0.5, "hidden": (16, 8)})])
def test_a_seed_fixes_every_bit_in_another_process_too(kind, options):
    program = (
        "import sys, hashlib, numpy as np\n"
        "from headstart.classify.heads import make_head\n"
        "rng = np.random.default_rng(0)\n"
        "X, y = rng.standard_normal((80, 150)).astype(np.float32), np.arange(80) % 2\n"
        f"head = make_head({kind!r}, cv=3, epochs=6, random_state=5, **{options!r}).fit(X, y)\n"
        "print(hashlib.sha256(head.decision_function(X).tobytes()).hexdigest())\n"
    )
    run = [sys.executable, "-c", program]
    found = {subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(found) == 1


def test_the_callers_numbers_and_threads_stay_as_they_were():
    X, y = data()
    torch.manual_seed(1)
    np.random.seed(1)
    states, threads = (torch.get_rng_state(), np.random.get_state()[1].copy()), torch.get_num_threads()
    make_head("mlp", cv=3, epochs=2).fit(X, y)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert torch.get_num_threads() == threads


def test_a_setting_that_diverges_is_left_out_with_a_note():
    X, y = data()
    head = make_head("mlp", cv=3, lr=(0.01, 1e30), epochs=4, hidden=(8,), dropout=0.0).fit(X, y)
    assert head.setting_["lr"] == 0.01
    assert "training diverged with a learning rate of 1e+30: left out of the choice" in head.notes_
    lost = next(entry for entry in head.cv_["grid"] if entry["lr"] == 1e30)
    assert (lost["log_loss"], lost["accuracy"], lost["epochs"]) == (None, None, 0)


def test_where_all_settings_diverge_the_error_names_the_option():
    X, y = data()
    with pytest.raises(TrainingError, match=r"try a smaller --lr than 1e\+30"):
        make_head("mlp", lr=1e30, cv=3).fit(X, y)


def test_patience_ends_a_search_and_the_best_epoch_counts():
    X, y = data(90, noise=4.0)
    head = make_head("mlp", cv=2, epochs=200, patience=5, lr=0.01, dropout=0.0).fit(X, y)
    losses = [epoch["dev_loss"] for epoch in head.history_]
    assert len(losses) < 200
    assert len(losses) - 1 - int(np.argmin(losses)) == 5
    assert head.epochs_ == 1 + int(np.argmin(losses))


def test_a_falling_schedule_runs_to_its_end():
    X, y = data(90, noise=4.0)
    head = make_head("linear", cv=2, epochs=25, lr=0.3, schedule="cosine").fit(X, y)
    assert len(head.history_) == 25


def test_training_that_wanted_more_epochs_says_so():
    X, y = data()
    head = make_head("linear", cv=3, epochs=2, lr=1e-4).fit(X, y)
    assert head.notes_ == ["the best epoch was the last of 2: more --epochs may do better"]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_very_few_images_still_train(kind):
    X, y = data(6, 4, 3)
    assert make_head(kind, cv=2, epochs=3).fit(X, y).predict(X).shape == (6,)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("hidden", [(), (5,), (60,)])
@pytest.mark.parametrize("pca", [None, 12])
def test_fewer_rows_than_features_are_trained_in_fewer_coordinates(optimizer, hidden, pca):
    X, y = data(40, 90, 2, noise=2.0)
    options = {"hidden": hidden, "dropout": 0.0} if hidden else {}
    head = make_head(
        "mlp" if hidden else "linear", cv=3, optimizer=optimizer, pca=pca, lr=0.01, epochs=40, **options
    ).fit(X, y)
    assert head.network_.n_features == 90
    new, new_y = data(200, 90, 2, seed=1, noise=2.0)
    assert (head.predict(new) == new_y).mean() > 0.8
    assert head.cv_["accuracy"] > 0.7


def test_sgd_goes_the_same_way_in_turned_coordinates(monkeypatch):
    X, y = data(40, 90, 2, noise=2.0)
    options = {"cv": 3, "optimizer": "sgd", "lr": 1e-3, "epochs": 8}
    turned = make_head("linear", **options).fit(X, y).decision_function(X)
    monkeypatch.setattr("headstart.classify.heads._TURN_UP_TO", 0)
    plain = make_head("linear", **options).fit(X, y).decision_function(X)
    np.testing.assert_allclose(turned, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_class_weights_help_the_rare_class(kind):
    X, y = data(300, 5, 2, noise=3.0)
    keep = (y == 0) | (np.arange(300) < 60)
    X, y = X[keep], y[keep]
    share = [
        (make_head(kind, cv=3, lr=0.01, epochs=20, class_weight=weight).fit(X, y).predict(X)[y == 1] == 1).mean()
        for weight in ("none", "balanced")
    ]
    assert share[1] > share[0] + 0.1


def test_smoothing_makes_a_head_less_sure():
    X, y = data(noise=0.3)
    sure = [
        softmax(make_head("linear", cv=3, lr=0.1, epochs=30, label_smoothing=e).fit(X, y).decision_function(X))
        .max(1)
        .mean()
        for e in (0.0, 0.3)
    ]
    assert sure[1] < sure[0] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "options"),
    [
        (576, {"hidden": (1024,), "lr": 1e-3}),
        (25_088, {"hidden": (4096, 4096), "lr": 1e-4, "epochs": 4}),
    ],
)
def test_the_heads_of_the_tutorials_can_be_trained(dim, options):
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = rng.standard_normal((400, dim)).astype(np.float32)
    X[:, :50] += y[:, None]
    head = make_head("mlp", dropout=0.5, **options).fit(X, y)
    assert head.cv_["accuracy"] > 0.7
    assert [len(bias) for bias in head.network_.biases] == [*options["hidden"], 2]
    assert head.network_.n_features == dim


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("linear", {"optimizer": "lion"}, "--optimizer must be one of sgd, adam, adamw, and is 'lion'"),
        ("linear", {"schedule": "up"}, "--schedule must be one of constant, cosine, step"),
        ("linear", {"class_weight": "odd"}, "--class-weight must be one of"),
        ("linear", {"device": "tpu"}, "--device must be one of auto, cpu, cuda"),
        ("linear", {"lr": 0}, "--lr cannot be 0 in --head linear"),
        ("linear", {"lr": (0.1, float("nan"))}, "--lr cannot be nan"),
        ("linear", {"weight_decay": -1}, "--weight-decay cannot be -1"),
        ("linear", {"label_smoothing": 1.0}, "--label-smoothing must be from 0 to below 1, and is 1"),
        ("linear", {"momentum": 1.0}, "--momentum must be from 0 to below 1"),
        ("linear", {"epochs": 0}, "--epochs must be 1 or more, and is 0"),
        ("linear", {"batch_size": 0}, "--batch-size must be 1 or more"),
        ("mlp", {"dropout": 1.0}, "--dropout cannot be 1"),
        ("mlp", {"hidden": ()}, "--hidden takes widths of 1 or more"),
        ("mlp", {"hidden": (4, (8, 0))}, "--hidden takes widths of 1 or more"),
    ],
)
def test_options_that_mean_nothing_are_refused(kind, options, said):
    X, y = data()
    with pytest.raises(UsageError) as caught:
        make_head(kind, cv=3, **options).fit(X, y)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_here_is_refused():
    X, y = data()
    with pytest.raises(DeviceError, match="device cuda is not available here"):
        make_head("linear", cv=3, device="cuda").fit(X, y)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "floor"), [("hymenoptera", 0.93), ("hotdog", 0.84)])
@pytest.mark.parametrize("kind", ["linear", "mlp", "knn", "ncm"])
def test_heads_on_photographs(photographs, dataset, floor, kind):
    X, y, groups = (getattr(photographs[dataset], name) for name in ("train", "y", "groups"))
    assert make_head(kind).fit(X, y, groups=groups).cv_["accuracy"] > floor
