"""Few shots: what is drawn, what is scored, what settings are chosen by, and what is said of it."""

import json
import sys

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

from headstart.classify import few_shots as module
from headstart.classify.few_shots import FewShots, drawn, few_shot_curve, growing, plain_of
from headstart.classify.fit import fit_head
from headstart.classify.heads import make_head
from headstart.classify.knn import NCMHead
from headstart.errors import UsageError

FAST = {"linear": {"epochs": 5}, "mlp": {"epochs": 8, "lr": (0.01, 0.03), "hidden": (8,)}}
HEADS = ["logistic", "linear", "mlp", "knn", "ncm"]


class OfViews(NCMHead):
    """The nearest class mean of all views of each image."""

    def anew(self, X, y, cv):
        views = X.shape[1] if X.ndim == 3 else 1
        return super().anew(X.reshape(-1, X.shape[-1]), np.repeat(y, views), cv)


def ncm(made, kind=NCMHead):
    return kind(cv=2).fit(made.X, made.y)


def curve_of(head, made, groups=None, **options):
    groups = np.arange(len(made.y)) if groups is None else groups
    return few_shot_curve(head, made.X, made.y, groups, **{"shots": 4, "repeats": 3, **options})


@pytest.mark.parametrize(
    "most, sizes", [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_sizes_are_powers_of_two_and_the_last(most, sizes):
    assert growing(most) == sizes


@pytest.mark.parametrize("name", ["hymenoptera", "hotdog"])
def test_draws_of_photographs_are_nested_exact_and_apart_from_what_is_scored(photographs, name):
    found = photographs[name]
    groups = found.groups // 2  # as if photographs were copies of each other two by two, some of the other class
    asides = set()
    for seed in range(5):
        draw = drawn(found.y, groups, seed)
        before = set()
        for shots in growing(16):
            rows = draw.first(shots)
            assert np.bincount(found.y[rows]).tolist() == [shots, shots]
            assert before < set(rows.tolist())
            assert len(set(groups[rows])) == len(rows), "no copies"
            assert not set(groups[rows]) & set(groups[draw.aside])
            before = set(rows.tolist())
        assert 0.15 < draw.aside.mean() < 0.25
        asides.add(draw.aside.tobytes())
    assert len(asides) == 5, "another fifth each time"


@pytest.mark.parametrize("kind", ["logistic", "knn", "mlp"])
def test_what_is_chosen_and_fitted_depends_on_the_draw_alone(kind):
    made = classes_made(90, spread=4.0)
    draw = drawn(made.y, np.arange(90), 0)
    head = make_head(kind, cv=3, **FAST.get(kind, {})).fit(made.X, made.y)
    other = make_head(kind, cv=3, **FAST.get(kind, {})).fit(made.X, made.y)
    if kind == "mlp":
        other._best_setting, other.epochs_ = None, 0
    else:
        setattr(other, {"logistic": "C_", "knn": "k_"}[kind], 1e9)
    rows = draw.first(8)
    y = (made.y + 1) % 3
    y[rows], y[draw.aside] = made.y[rows], made.y[draw.aside]
    X = -made.X
    X[rows], X[draw.aside] = made.X[rows], made.X[draw.aside]
    scores = [
        module._score(head, made.X, made.X, made.y, draw, 8),
        module._score(other, X, X, y, draw, 8),
    ]
    assert scores[0] == scores[1] and 0.3 < scores[0] < 1
    network = head.anew(made.X[rows], made.y[rows], 3)
    own = make_head(kind, cv=3, **FAST.get(kind, {})).fit(made.X[rows], made.y[rows]).network_
    np.testing.assert_array_equal(network.logits(made.X), own.logits(made.X))


def test_folds_are_as_many_as_images_a_class_and_one_image_is_not_cross_validated(monkeypatch):
    made, seen = classes_made(90), []
    head = make_head("logistic", cv=5, class_weight="balanced", l2_norm=True).fit(made.X, made.y)
    monkeypatch.setattr(type(head), "_fit", lambda self, Z, y, folds: seen.append((len(y), self.settings())) or 1 / 0)
    for shots, folds in ((2, 2), (4, 4), (8, 5)):
        with pytest.raises(ZeroDivisionError):
            curve_of(head, made, shots=shots) if shots == 2 else module._score(
                head, made.X, made.X, made.y, drawn(made.y, np.arange(90), 0), shots
            )
        assert seen[-1] == (3 * shots, {**head.settings(), "cv": folds})
    assert len(seen) == 3, "one image a class was fitted before, without a search"


@pytest.mark.parametrize(
    "kind, options, chosen",
    [
        ("logistic", {}, {"C_": 1.0}),
        ("logistic", {"C": 0.3}, {"C_": 0.3}),
        ("knn", {}, {"k_": 1}),
        ("knn", {"k": 7}, {"k_": 7}),
        ("linear", {}, {"epochs_": 100}),
        ("linear", {"lr": (0.1, 0.2, 0.3), "epochs": 9}, {"epochs_": 9}),
        ("mlp", {"hidden": (8,)}, {"epochs_": 100}),
        ("ncm", {}, {}),
    ],
)
def test_without_a_search_options_count_and_the_others_are_ordinary(kind, options, chosen):
    head = make_head(kind, **options)
    head._settle()
    assert {name: getattr(head, name) for name in chosen} == chosen
    if kind in ("linear", "mlp"):
        assert head._best_setting.lr == (0.2 if "lr" in options else 1e-3)


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_has_one(kind):
    made = classes_made(60)
    head = make_head(kind, cv=2, pca=3, **FAST.get(kind, {})).fit(made.X, made.y)
    before = {name: array.copy() for name, array in head.network_.arrays().items()}
    found = curve_of(head, made, shots=3, repeats=2)
    assert [(point["shots"], point["n"]) for point in found.points] == [(1, 3), (2, 6), (3, 9)]
    assert all(0.3 < point["mean"] <= 1 for point in found.points)
    json.dumps(found.as_dict(), allow_nan=False)
    for name, array in before.items():
        np.testing.assert_array_equal(head.network_.arrays()[name], array)


def test_neighbours_that_were_given_vote_as_far_as_a_draw_has_them():
    made = classes_made(60)
    found = curve_of(make_head("knn", k=20).fit(made.X, made.y), made, shots=8)
    assert [point["shots"] for point in found.points] == [1, 2, 4, 8]


def test_a_seed_fixes_it():
    made = classes_made(90, spread=4.0)
    head = ncm(made)
    assert curve_of(head, made, seed=1) == curve_of(head, made, seed=1)
    assert curve_of(head, made, seed=1) != curve_of(head, made, seed=2)


def test_intervals_are_those_of_nadeau_and_bengio(monkeypatch):
    made = classes_made(60)
    scores = iter([0.5, 0.6, 0.7, 0.8, 0.9, 0.7])
    monkeypatch.setattr(module, "_score", lambda *_: next(scores))
    found = curve_of(ncm(made), made, shots=2)
    for point, of_it in zip(found.points, ([0.5, 0.7, 0.9], [0.6, 0.8, 0.7]), strict=True):
        mean = sum(of_it) / 3
        std = (sum((score - mean) ** 2 for score in of_it) / 2) ** 0.5
        half = 1.96 * std * (1 / 3 + 1 / 4) ** 0.5
        assert point["mean"] == pytest.approx(mean) and point["std"] == pytest.approx(std)
        assert point["low"] == pytest.approx(mean - half)
        assert point["high"] == pytest.approx(min(1, mean + half))


def test_a_class_with_fewer_images_ends_the_curve_and_is_named():
    made = classes_made(60)
    few = np.flatnonzero(made.y == 1)[6:]
    made.y[few] = 0
    found = curve_of(ncm(made), made, shots=16)
    assert [point["shots"] for point in found.points] == [1, 2, 4, 5]
    assert found.lines()[-1] == found.ended == (
        "the curve ends at 5 images a class, not 16: class '1' has no more, copies apart, when a fifth of the training "
        "images is set aside"
    )  # fmt: skip
    assert not curve_of(ncm(made), made, shots=5).ended


def test_copies_count_once():
    made = classes_made(60)
    groups = np.arange(60)
    mine = np.flatnonzero(made.y == 2)
    groups[mine] = mine[0] + np.arange(len(mine)) % 5 * 100  # five pictures, four times each
    found = curve_of(ncm(made), made, groups, shots=16)
    assert found.points[-1]["shots"] == 4 and "class '2'" in found.ended


def test_where_nothing_can_be_drawn_it_is_said():
    made = classes_made(30)
    groups = np.where(made.y == 2, 1000, np.arange(30))  # one picture, ten times
    for repeats in (2, 10):
        found = curve_of(ncm(made), made, groups, repeats=repeats)
        if not found.points:
            assert found.lines() == [found.ended] and "no few-shot curve: class '2'" in found.ended
        json.dumps(found.as_dict(), allow_nan=False)
    assert not found.points


def test_scores_are_of_plain_images_and_fits_of_all_views(monkeypatch):
    made, seen = classes_made(60, dim=4), []
    X = np.stack([made.X, made.X + 100, made.X + 200], axis=1)
    monkeypatch.setattr(module, "_score", lambda head, X, plain, *_: seen.append((X.shape, plain)) or 0.5)
    few_shot_curve(ncm(made), X, made.y, np.arange(60), shots=1, repeats=2)
    assert [shape for shape, _ in seen] == [(60, 3, 4), (60, 4)] * 2
    assert all((plain == made.X).all() for _, plain in seen)
    assert (plain_of(X) == made.X).all() and plain_of(made.X) is made.X


@pytest.mark.parametrize(
    "first, others, words", [(3, 0, "views help by "), (0, 60, "views cost "), (0, 0, "no difference that")]
)
def test_views_are_compared_within_each_repeat(first, others, words):
    made, rng = classes_made(150, spread=0.5), np.random.default_rng(1)
    noisy = [made.X + noise * rng.standard_normal(made.X.shape).astype(np.float32) for noise in (first, others, others)]
    X = np.stack(noisy, axis=1)
    head = ncm(made, OfViews)
    both = few_shot_curve(head, X, made.y, np.arange(150), shots=2, repeats=10)
    alone = few_shot_curve(head, X[:, 0], made.y, np.arange(150), shots=2, repeats=10)
    assert (both.views, alone.views) == (3, 1)
    for point, plain in zip(both.points, alone.points, strict=True):
        assert point["plain"] == {name: plain[name] for name in ("mean", "low", "high", "std")}
        assert point["difference"]["mean"] == pytest.approx(point["mean"] - plain["mean"])
        assert point["verdict"].startswith(words)
    assert "with 3 views" in both.lines()[1] and "plain crops alone" in both.lines()[1]
    assert all(point["verdict"] in line for point, line in zip(both.points, both.lines()[2:], strict=True))
    assert FewShots(**json.loads(json.dumps(both.as_dict()))) == both


def test_one_view_is_the_plain_image():
    made = classes_made(60)
    head, groups = ncm(made), np.arange(60)
    one = few_shot_curve(head, made.X[:, None], made.y, groups, shots=2, repeats=2)
    assert one == few_shot_curve(head, made.X, made.y, groups, shots=2, repeats=2)


def test_a_table_says_what_a_person_needs():
    numbers = {"mean": 0.5, "low": 0.40625, "high": 0.6, "std": 0.1}
    assert FewShots([{"shots": 1, "n": 2, **numbers}, {"shots": 16, "n": 32, **numbers}], 7).lines() == [
        "  images a class  accuracy on images that were set aside, 7 times",
        "               1   50.0 %  (40.6 to 60.0)    ####################",
        "              16   50.0 %  (40.6 to 60.0)    ####################",
    ]


def test_a_fit_has_it_beside_its_model_and_never_looks_at_validation_images(tmp_path):
    made = classes_made(spread=3.0)
    cache = made.put(tmp_path / "cache")
    plain = fit_head(cache=cache, out=tmp_path / "plain", head="knn")
    first = fit_head(cache=cache, out=tmp_path / "first", head="knn", shots=3, repeats=5)
    assert "shots" not in plain.summary() and plain.model.scores["shots"] is None
    assert first.summary()["shots"] == first.model.scores["shots"] == first.shots.as_dict()
    assert "few shots:" in first.lines() and set(first.shots.lines()) <= set(first.lines())
    for name, array in plain.model.network.arrays().items():
        np.testing.assert_array_equal(first.model.network.arrays()[name], array)
    val = np.flatnonzero(made.split == "val")
    made.y[val] = made.y[np.random.default_rng(1).permutation(val)]
    made.X[val] *= -3
    second = fit_head(cache=made.put(tmp_path / "other"), out=tmp_path / "second", head="knn", shots=3, repeats=5)
    assert second.shots == first.shots and second.summary()["val"] != first.summary()["val"]


def test_repeats_are_of_both_curves(tmp_path, caplog):
    cache = classes_made().put(tmp_path / "cache")
    fit = fit_head(cache=cache, out=tmp_path / "model", head="ncm", shots=1, curve=True, repeats=2)
    assert fit.curve.repeats == fit.shots.repeats == fit.summary()["curve"]["repeats"] == 2
    assert sum(line.endswith("set aside, 2 times") for line in fit.lines()) == 2
    assert "the intervals of 2 repeats are too narrow" in caplog.text
    assert fit_head(cache=cache, out=tmp_path / "other", head="ncm", shots=1).shots.repeats == 10


@pytest.mark.parametrize(
    "options, words",
    [
        ({"repeats": 3}, "--repeats is of --curve and --shots, and neither was given"),
        ({"repeats": 1, "shots": 2}, "--repeats must be 2 or more, and is 1"),
        ({"shots": 0}, "--shots must be 1 or more, and is 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_before_the_work(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        fit_head(cache=tmp_path / "nothing", **options)


def test_several_labels_an_image_are_refused_and_nothing_is_saved(tmp_path):
    cache = labels_made().put(tmp_path / "cache")
    with pytest.raises(UsageError, match=r"--shots draws images of one class each, .* several labels an image"):
        fit_head(cache=cache, out=tmp_path / "model", shots=4)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["logistic", "knn"])
def test_photographs_grow_better_with_their_number(photographs, kind):
    found = photographs["hymenoptera"]
    head = make_head(kind).fit(found.train, found.y, groups=found.groups)
    curve = few_shot_curve(head, found.train, found.y, found.groups, shots=16, repeats=3)
    means = [point["mean"] for point in curve.points]
    assert means[-1] > means[0] + 0.1 and means[-1] > 0.85


def test_a_terminal_shows_one_bar_at_a_time(monkeypatch):
    from headstart.extract.progress import progress_bar

    class Terminal:
        encoding, text = "utf-8", ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("logging.Logger.isEnabledFor", lambda *_: True)
    with progress_bar(2, "outer") as tick:
        with progress_bar(2, "inner") as other:
            other(1)
        tick(1)
    with progress_bar(2, "after"):
        pass
    assert "outer" in terminal.text and "after" in terminal.text and "inner" not in terminal.text
