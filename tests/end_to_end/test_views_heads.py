"""Heads trained on views of real photographs, from the command line to the score: what is seen, and what must not be.

Pictures are embedded as small crops, so that whole sample sets take seconds.
"""

import csv
import dataclasses
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, in_own_process, safe_rows
from PIL import Image
from safetensors.numpy import load_file

import headstart as package
from headstart.cache.datasets import latest_listing
from headstart.cache.info import info
from headstart.cache.listing import save_listing
from headstart.cache.store import FeatureStore
from headstart.classify import head as head_module
from headstart.classify import logistic
from headstart.classify.dataset import labelled_set
from headstart.classify.fit import fit_head
from headstart.classify.heads import make_head
from headstart.classify.model import load_model
from headstart.cli import main
from headstart.extract.features import load_features
from headstart.extract.views import PLAIN, Views

SMALL = {"resize": 72, "crop": 64}
THREE = Views(3, "tutorial")
HEADS = {
    "logistic": [],
    "linear": ["--epochs", "5"],
    "mlp": ["--epochs", "5", "--hidden", "8"],
    "knn": [],
    "ncm": [],
}
# What asks for views of a recipe that the model was not trained on, from a model that says that it was.
FLIPPED = {"augment": "flip", "recipes": Views(2, "flip").recipes()}


@pytest.fixture(scope="module")
def whole(samples, tmp_path_factory) -> dict[str, Path]:
    """A cache for each sample set with three views of each of its pictures."""
    caches = {name: tmp_path_factory.mktemp(name) / "cache" for name in ("hymenoptera", "hotdog")}
    for name, cache in caches.items():
        package.extract(samples / name, BACKBONE, cache=cache, views=3, **SMALL)
    return caches


@pytest.fixture(scope="module")
def some(few, tmp_path_factory) -> Path:
    """A folder of a few photographs, two of them there twice, one nearly so, and beside it a cache with three views."""
    folder = tmp_path_factory.mktemp("some") / "photos"
    shutil.copytree(few, folder)
    ant, bee = (min((folder / "train" / name).glob("*.jpg")) for name in ("ants", "bees"))
    shutil.copy(ant, ant.with_name("twin.jpg"))
    shutil.copy(bee, folder / "val" / "bees" / "leak.jpg")
    with Image.open(ant) as picture:
        picture.save(ant.with_name("nearly.jpg"), quality=60)
    package.extract(folder, BACKBONE, cache=folder.parent / "cache", views=3, **SMALL)
    assert main(["fit-head", str(folder), "--cache", str(folder.parent / "cache"), "--out", str(folder.parent / "model"),
                 "-q"]) == 0  # fmt: skip
    return folder


@pytest.fixture
def own(some, tmp_path) -> Path:
    """A copy of the cache of `some` in the working directory, for those who add to it."""
    shutil.copytree(some.parent / "cache", tmp_path / ".headstart")
    return some


@pytest.fixture
def model(some, tmp_path) -> Path:
    """A copy of the model of `some`, trained on three views of each picture."""
    return Path(shutil.copytree(some.parent / "model", tmp_path / "model"))


def by_hand(cache: Path, data: Path, split: str, views: Views = THREE) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (n, V, D) of a split, each view read by itself, and labels."""
    features = load_features(cache, data, views=1)
    mine = features.split == split
    digest = features.digest[mine]
    read = [
        FeatureStore(cache).gather(features.space.id, views.keys_of(digest, np.full(len(digest), view)))
        for view in range(views.count)
    ]
    return np.stack(read, axis=1), features.y[mine]


def averaged(model: Path, X: np.ndarray) -> np.ndarray:
    """Return the mean over views of the probabilities that a model of one class an image gives each of them."""
    saved = load_model(model)
    each = []
    for view in range(X.shape[1]):
        odds = np.exp(saved.network.logits(X[:, view]) / saved.temperature)
        each.append(odds / odds.sum(axis=1, keepdims=True))
    return np.mean(each, axis=0)


def numbers(model: Path) -> dict[str, np.ndarray]:
    """Return all saved numbers of a model."""
    (file,) = model.glob("*.safetensors")
    return load_file(file)


def rewritten(data: Path, cache: Path, into: Path, change=lambda X: X, views: Views = THREE) -> Path:
    """Write a cache with the same dataset and other embeddings: `change` is given those (n, V, D) of its images."""
    listing = latest_listing(cache, data)
    features = load_features(cache, data, views=1)
    X, _ = _all_views(features, cache)
    X, store = change(X)[:, : views.count], FeatureStore(into)
    first = np.sort(np.unique(features.digest, axis=0, return_index=True)[1])
    store.prepare(features.space)
    with store.writer(features.space, recipes=views.recipes()) as writer:
        writer.add(views.keys(features.digest[first]), X[first].reshape(-1, X.shape[2]))
    request = {name: value for name, value in listing.request.items() if name not in THREE.request()}
    save_listing(into, dataclasses.replace(listing, request=request | views.request()))
    return into


def _all_views(features, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    digest, store = features.digest, FeatureStore(cache)
    read = [store.gather(features.space.id, THREE.keys_of(digest, np.full(len(digest), view))) for view in range(3)]
    return np.stack(read, axis=1), features.y


def edited(model: Path, **training: object) -> Path:
    """Change what a model says of its training."""
    content = json.loads((model / "model.json").read_bytes())
    content["training"] |= training
    (model / "model.json").write_text(json.dumps(content))
    return model


# What a head is trained on


@pytest.mark.parametrize("name", ["hymenoptera", "hotdog"])
def test_a_head_trains_on_as_many_views_as_were_extracted_or_as_are_asked_for(whole, samples, name, headstart_json):
    cache = ["--cache", whole[name]]
    fits = {3: headstart_json("fit-head", samples / name, "--out", "three", *cache)}
    fits[2] = headstart_json("fit-head", samples / name, "--views", 2, "--out", "two", *cache)
    groups = labelled_set(load_features(whole[name], samples / name), near_copies="auto")
    X, y = by_hand(whole[name], samples / name, "train")
    for count, fit in fits.items():
        assert (fit["views"], fit["augment"], fit["train"]["n"]) == (count, "tutorial", len(y))
        head = make_head("logistic").fit(X[:, :count], y, groups=groups.group[groups.split == "train"])
        assert (fit["C"], fit["cv"]["accuracy"]) == (head.facts()["C"], head.cv_["accuracy"])
        saved = load_model(Path(fit["out"]))
        np.testing.assert_array_equal(saved.network.weights[0], head.network_.weights[0])
        assert saved.views == Views(count, "tutorial")
        assert saved.training["recipes"] == THREE.recipes()
    assert not np.array_equal(*(load_model(Path(fit["out"])).network.weights[0] for fit in fits.values()))


@pytest.mark.parametrize("name", ["hymenoptera", "hotdog"])
def test_one_view_is_a_fit_to_a_cache_that_never_had_views(whole, samples, name, headstart_json, tmp_path):
    data = samples / name
    plain = rewritten(data, whole[name], tmp_path / "plain", views=PLAIN)
    assert sum(space.rows for space in info(plain).spaces) < sum(space.rows for space in info(whole[name]).spaces) / 2
    before = headstart_json("fit-head", data, "--out", "before", "--cache", plain)
    one = headstart_json("fit-head", data, "--views", 1, "--out", "one", "--cache", whole[name])
    assert one | {"seconds": 0, "out": ""} == before | {"seconds": 0, "out": ""}
    assert (one["views"], one["augment"]) == (1, "none")
    then, now = numbers(Path("before")), numbers(Path("one"))
    assert then.keys() == now.keys() and all(np.array_equal(then[key], now[key]) for key in then)
    assert not {"views", "augment", "recipes"} & set(load_model(Path("one")).training)


def test_a_person_reads_how_many_views_there_were(own, headstart):
    status, _, err = headstart("fit-head")
    assert status == 0
    assert "26 training (3 views each, tutorial), 13 validation images, 2 classes" in err
    assert "26 training, 13 validation images, 2 classes" in headstart("fit-head", "--views", 1, "--out", "one")[2]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_says_all_there_is_to_say(own, headstart_json, head):
    words = ["fit-head", "--head", head, *HEADS[head], "--cv", 2]
    found = headstart_json(*words, "--details", "--curve", "--shots", 2, "--repeats", 2)
    assert found["views"] == 3 and found["train"]["n"] == 26
    assert len(found["details"]["suspicious"]) == 26 and found["curve"]["points"]
    for point in found["shots"]["points"]:
        assert {"plain", "difference", "verdict"} <= set(point), "views are set against the plain crop"
    assert load_model(Path(found["out"])).views == THREE
    assert headstart_json("evaluate", found["out"])["accuracy"] == found["val"]["accuracy"], "scored on plain crops"
    done = headstart_json("evaluate", found["out"], "--views", 3)
    assert done["views"] == 3
    assert (
        headstart_json("fit-head", "--head", head, *HEADS[head], "--cv", 2, "--views", 1, "--overwrite")["cv"]
        != (found["cv"])
    ), "views make a difference"


def test_copies_are_left_out_with_all_their_views(own, headstart_json):
    fit = headstart_json("fit-head", "--dedupe")
    assert (fit["dedupe"]["copies"], fit["train"]["n"], fit["views"]) == (2, 24, 3)
    again = load_model(Path(fit["out"]))
    X, y = by_hand(Path(".headstart"), own, "train")
    data = labelled_set(load_features(Path(".headstart"), own), dedupe=True, near_copies="auto")
    kept = np.isin(np.flatnonzero(load_features(Path(".headstart"), own).split == "train"), data.rows)
    head = make_head("logistic").fit(X[kept], y[kept], groups=data.group[data.split == "train"])
    np.testing.assert_array_equal(again.network.weights[0], head.network_.weights[0])


def test_joined_embeddings_have_their_views_side_by_side(few, headstart, headstart_json, tmp_path):
    small = ["--resize", 40, "--crop", 32]
    block = f"{BACKBONE}:_blocks.10"
    headstart_json(
        "extract", few, "--backbone", BACKBONE, "--layer", "fc.input", "--layer", "_blocks.10",
        "--views", 2, "--augment", "flip", *small,
    )  # fmt: skip
    joined = ["--features", f"{BACKBONE}:fc.input", "--features", block]
    fit = headstart_json("fit-head", *joined)
    assert (fit["views"], fit["augment"]) == (2, "flip")
    features = load_features(tmp_path / ".headstart", few, features=joined[1::2])
    X, digest = features.of_views(np.arange(len(features.rows))), features.digest
    start = 0
    for space in features.spaces:
        for view in range(2):
            rows = features.store.gather(space.id, features.views.keys_of(digest, np.full(len(digest), view)))
            np.testing.assert_array_equal(X[:, view, start : start + space.dim], rows)
        start += space.dim
    assert X.shape[2] == start == fit["dim"]
    before = safe_rows(tmp_path)
    proba = package.evaluate(fit["out"], views=3).proba
    assert safe_rows(tmp_path) == before + 2 * 12, "one view more of each validation picture, in both spaces"
    shown = headstart_json("predict", fit["out"], few / "val", "--views", 3)["predictions"]
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in shown], proba)

    # A space without views: the plain crop alone, unless they are asked for.
    headstart_json("extract", few, "--backbone", BACKBONE, "--layer", "_blocks.5", *small)
    mixed = ["fit-head", "--features", block, "--features", f"{BACKBONE}:_blocks.5", "--out", "mixed"]
    status, _, err = headstart(*mixed)
    assert status == 0 and "made with different views: the plain crop alone is taken" in err
    status, _, err = headstart(*mixed, "--views", 2, "--overwrite")
    assert status == 1 and "made views to train on in all of these feature spaces (there are 2 of flip)" in err
    for command in re.findall(r"`headstart ([^`]+)`", err):
        assert headstart(*shlex.split(command), "-q")[0] == 0
    assert headstart_json(*mixed, "--views", 2, "--overwrite")["views"] == 2


def test_several_labels_an_image(own, headstart, headstart_json, tmp_path):
    lines = ["path,labels,split"]
    for number, path in enumerate(sorted(own.rglob("*.jpg"))):
        labels = [path.parent.name, *(["odd"] if number % 2 else [])]
        lines.append(f"{path},{'|'.join(labels)},{path.parent.parent.name}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    done = headstart_json("extract", "list.csv", "--backbone", BACKBONE, "--views", 3, *_options(SMALL))
    assert done["embedded"] == 0
    fit = headstart_json("fit-head", "--near-copies", "none")
    assert fit["multi_label"] and fit["views"] == 3
    found, saved = package.evaluate(fit["out"], views=3), load_model(Path(fit["out"]))
    X, _ = by_hand(Path(".headstart"), tmp_path / "list.csv", "val")
    each = [1 / (1 + np.exp(-saved.network.logits(X[:, view]) / saved.temperature)) for view in range(3)]
    np.testing.assert_allclose(found.proba, np.mean(each, axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.predicted, found.proba >= np.array(saved.thresholds))
    assert headstart_json("evaluate", fit["out"], "--views", 3)["accuracy"] == found.scores["accuracy"]
    rows = headstart_json("predict", fit["out"], own / "val", "--views", 3)["predictions"]
    assert [row["labels"] for row in rows] == [
        [saved.classes[place] for place in np.flatnonzero(given)] for given in found.predicted
    ]


def test_without_a_validation_split_images_are_held_out_with_all_their_views(own, headstart_json, tmp_path):
    listed = [f"{path},{path.parent.name}" for path in sorted(own.rglob("*.jpg"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *listed]))
    words = ["--backbone", BACKBONE, "--views", 3, "--views-split", "train", *_options(SMALL)]
    assert headstart_json("extract", "list.csv", *words)["embedded"] == 0, "an image without a split is for training"
    fit = headstart_json("fit-head")
    assert fit["views"] == 3 and 0 < fit["val"]["n"] < 12
    found = package.evaluate(fit["out"], views=3)
    assert len(found.y) == fit["val"]["n"]
    X, _ = by_hand(Path(".headstart"), tmp_path / "list.csv", "")
    listed = load_features(Path(".headstart"))
    held = np.isin(listed.paths, found.paths)
    np.testing.assert_allclose(found.proba, averaged(Path(fit["out"]), X[held]), rtol=1e-9)
    before = safe_rows(tmp_path)
    package.evaluate(fit["out"], views=4)
    assert safe_rows(tmp_path) == before + len(np.unique(listed.digest[held], axis=0))


def test_views_of_other_splits_are_not_trained_on(few, headstart, headstart_json):
    words = ["--backbone", BACKBONE, "--views", 2, "--resize", 40, "--crop", 32]
    headstart_json("extract", few, *words, "--views-split", "val")
    assert headstart_json("fit-head")["views"] == 1
    status, _, err = headstart("fit-head", "--views", 2, "--overwrite")
    assert status == 1 and "made views to train on in this feature space (there are plain crops alone); run" in err
    (command,) = re.findall(r"`headstart ([^`]+)`", err)
    assert headstart(*shlex.split(command))[0] == 0
    assert headstart_json("fit-head", "--overwrite")["views"] == 2


def test_fitting_on_views_from_the_cache_loads_no_torch(own, tmp_path):
    fitted, loaded = in_own_process("fit-head", own, "--json", cwd=tmp_path)
    assert json.loads(fitted.stdout)["views"] == 3, fitted.stderr
    assert not loaded & {"torch", "torchvision", "PIL", "sklearn", "scipy"}
    scored, loaded = in_own_process("evaluate", json.loads(fitted.stdout)["out"], "--views", 3, "--json", cwd=tmp_path)
    assert json.loads(scored.stdout)["views"] == 3, scored.stderr
    assert not loaded & {"torch", "torchvision", "sklearn", "scipy"}


def test_views_that_are_not_there_are_named_with_the_command_that_makes_them(own, headstart, headstart_json):
    for words, said in (
        (["--views", 5], "26 of 26 images lack views of the preset tutorial in"),
        (["--views", 5], "the cache has 3 of 5; run `headstart extract"),
        (["--views", 2, "--augment", "crop"], "the cache has none but the plain crop; run `headstart extract"),
        (["--augment", "crop"], "made views of the preset crop to train on in this feature space (there are 3 of tu"),
        (["--views", 1000, "--augment", "strong"], "the cache has none but the plain crop"),
    ):
        status, out, err = headstart("fit-head", *words)
        assert (status, out) == (1, "") and said in err.splitlines()[-1], err
    (command,) = re.findall(r"`headstart ([^`]+)`", headstart("fit-head", "--views", 4)[2])
    headstart_json(*shlex.split(command))
    assert headstart_json("fit-head")["views"] == 4
    for words, said in ((["--views", 1, "--augment", "flip"], "has no effect"), (["--views", 100_000], "from 1 to")):
        status, out, err = headstart("fit-head", *words)
        assert (status, out) == (2, "") and said in err and err.count("\n") == 2


def test_views_that_are_not_there_are_named_where_there_is_no_room_for_them(own, headstart, monkeypatch):
    class Full:
        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, *_):
            raise MemoryError("no room for so many rows")

    monkeypatch.setattr("headstart.extract.features.np", Full())
    for views, said in ((1000, "the cache has 3 of 1000; run `headstart extract"), (3, "no room for so many rows")):
        status, _, err = headstart("fit-head", "--views", views, "--near-copies", "none")
        assert status == 1 and said in err.splitlines()[-1]


# What must not be seen


@pytest.mark.parametrize("head", ["logistic", "linear", "knn"])
def test_all_rows_of_an_image_and_of_its_copies_have_one_fold(own, monkeypatch, tmp_path, head):
    asked, fitted, tasks = [], [], []
    real, task_of = head_module.stratified_folds, logistic.class_task

    def folds_of(strata, cv, **options):
        asked.append((real(strata, cv, **options), options["groups"]))
        return asked[-1][0]

    def class_task(Z, y, folds, *rest, **options):
        tasks.append(task_of(Z, y, folds, *rest, **options))
        return tasks[-1]

    monkeypatch.setattr(head_module, "stratified_folds", folds_of)
    monkeypatch.setattr(logistic, "class_task", class_task)
    kind = type(make_head(head))
    fit = kind._fit
    monkeypatch.setattr(
        kind, "_fit", lambda self, Z, y, folds: (fitted.append((Z.shape, folds)), fit(self, Z, y, folds))
    )
    epochs = {"epochs": 3} if head == "linear" else {}
    done = fit_head(own, head, cache=tmp_path / ".headstart", out=tmp_path / "new", cv=3, **epochs)
    (folds, groups), (shape, taken) = asked[0], fitted[0]
    assert shape[:2] == (26, 3) and np.array_equal(taken, folds), "there is one fold for all views of an image"
    paths = [Path(path).name for path in done.data.paths("train")]
    first = sorted(path.name for path in (own / "train" / "ants").glob("*.jpg"))[0]
    assert len({groups[paths.index(name)] for name in (first, "twin.jpg", "nearly.jpg")}) == 1
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    for task in tasks[:1]:
        assert np.array_equal(task.fold.reshape(26, 3), np.repeat(folds[:, None], 3, axis=1))
    assert len(tasks) == (head == "logistic")


@pytest.mark.parametrize(("head", "options"), [("logistic", {"C": 0.1, "tol": 1e-10}), ("ncm", {}), ("knn", {"k": 3})])
def test_an_image_that_is_held_out_is_scored_by_its_plain_crop_and_nothing_of_it_was_trained_on(
    whole, samples, monkeypatch, tmp_path, head, options
):
    data, folds = samples / "hotdog", []
    real = head_module.stratified_folds
    monkeypatch.setattr(head_module, "stratified_folds", lambda *a, **k: folds.append(real(*a, **k)) or folds[-1])
    true = fit_head(data, head, cache=whole["hotdog"], out=tmp_path / "true", **options)
    train = np.zeros(250, bool)
    train[true.data.rows[true.data.split == "train"]] = True

    def spoilt(X):
        """Put other pictures in the place of views 1 and 2 of all images of the first fold."""
        X, held = X.copy(), np.flatnonzero(train)[folds[0] == 0]
        X[held, 1:] = X[np.flatnonzero(train)[::-1][: len(held)], 1:] + 5
        return X

    cache = rewritten(data, whole["hotdog"], tmp_path / "spoilt", spoilt)
    other = fit_head(data, head, cache=cache, out=tmp_path / "other", **options)
    assert np.array_equal(folds[0], folds[1])
    moved = np.abs(true.head.oof_logits_ - other.head.oof_logits_).max(axis=1)
    assert moved[folds[0] == 0].max() < 1e-3 < 0.1 < moved[folds[0] != 0].max()
    assert not np.allclose(*(numbers(tmp_path / name)[key] for name in ("true", "other") for key in _weights(head)))


def _weights(head: str) -> list[str]:
    return ["rows"] if head == "knn" else ["weight_0"]


# evaluate


@pytest.mark.parametrize("name", ["hymenoptera", "hotdog"])
def test_a_score_over_views_is_that_of_their_mean_probability(whole, samples, name, headstart_json, headstart):
    words = ["--cache", whole[name]]
    fit_head(samples / name, cache=whole[name], out="fitted")
    found = headstart_json("evaluate", "fitted", "--views", 3, *words)
    X, y = by_hand(whole[name], samples / name, "val")
    proba = averaged(Path("fitted"), X)
    right = proba.argmax(axis=1) == y
    assert (found["views"], found["augment"], found["accuracy"]) == (3, "tutorial", right.mean())
    assert found["log_loss"] == pytest.approx(-np.log(proba[np.arange(len(y)), y]).mean())
    assert [row["probability"] for row in found["errors"]] == pytest.approx(sorted(proba.max(axis=1)[~right])[::-1])
    assert found["conformal"] is None, "sets were calibrated on one view"
    assert (
        "probabilities are averages over 3 views (tutorial)" in headstart("evaluate", "fitted", "--views", 3, *words)[2]
    )
    plain = headstart_json("evaluate", "fitted", *words)
    assert headstart_json("evaluate", "fitted", "--views", 1, *words) == plain and plain["views"] == 1
    assert plain["log_loss"] != found["log_loss"]


def test_what_the_cache_lacks_is_embedded_of_the_scored_split_alone(own, model, headstart_json, tmp_path):
    before = safe_rows(tmp_path)
    headstart_json("evaluate", model, "--views", 4)
    assert safe_rows(tmp_path) == before + 13, "one view more of each of 13 pictures"
    headstart_json("evaluate", model, "--views", 4)
    assert safe_rows(tmp_path) == before + 13
    headstart_json("evaluate", model, "--views", 2, "--augment", "flip")
    assert safe_rows(tmp_path) == before + 13 + 13


def test_pictures_may_be_gone_where_their_views_are_cached(own, model, headstart, headstart_json, tmp_path):
    here = shutil.copytree(own, tmp_path / "here")
    headstart_json("extract", "here", "--backbone", BACKBONE, "--views", 3, *_options(SMALL))
    fit = headstart_json("fit-head", "here", "--out", "fitted")
    there = headstart_json("evaluate", fit["out"], "--views", 3)
    moved = here.rename(tmp_path / "moved")
    assert headstart_json("evaluate", fit["out"], "--views", 3) == there
    status, out, err = headstart("evaluate", fit["out"], "--views", 5)
    assert (status, out) == (1, "")
    assert re.fullmatch(
        r"error: of 13 images the cache has 3 of 5 views \(tutorial\), and \S+/here/val/ants/\S+ is not there to make "
        r"the others of; name the folder where the pictures are now as DATA, or pass --views 3\n", err,
    )  # fmt: skip
    assert headstart_json("evaluate", fit["out"], moved, "--views", 5)["views"] == 5
    assert headstart_json("evaluate", fit["out"], moved, "--views", 3)["log_loss"] == there["log_loss"]


def test_pictures_that_changed_are_told(own, headstart, headstart_json, tmp_path):
    here = shutil.copytree(own, tmp_path / "here")
    headstart_json("extract", "here", "--backbone", BACKBONE, "--views", 2, *_options(SMALL))
    fit = headstart_json("fit-head", "here", "--out", "fitted")
    first, second = sorted((here / "val" / "ants").glob("*.jpg"))[:2]
    shutil.copy(second, first)
    for said in (
        f"1 pictures changed since the dataset was listed ({first} first)",
        f"1 pictures have no such views; the first, {first}: ",
    ):
        status, out, err = headstart("evaluate", fit["out"], "--views", 4)
        assert (status, out) == (1, "")
        assert said in err and "name DATA to score it as it is now" in err.splitlines()[-1]
        first.write_bytes(b"no picture")
    assert headstart_json("evaluate", fit["out"], here, "--views", 4)["n"] == 12


def test_two_models_are_compared_on_the_same_views(own, model, headstart_json, tmp_path):
    headstart_json("fit-head", "--views", 1, "--out", "plain")
    flipped = edited(Path(shutil.copytree(model, tmp_path / "flipped")), **FLIPPED)
    before = safe_rows(tmp_path)
    for other in ("plain", flipped):
        found = headstart_json("evaluate", model, "--views", 3, "--against", other)
        assert found["against"]["accuracy"] == package.evaluate(other, views=3, augment="tutorial").scores["accuracy"]
    assert safe_rows(tmp_path) == before, "the second model is given the views of the first"
    assert headstart_json("evaluate", flipped, "--views", 2)["augment"] == "flip"
    assert headstart_json("evaluate", "plain", "--views", 2)["augment"] == "tutorial"
    assert safe_rows(tmp_path) > before


def test_a_finetuned_network_averages_over_views_of_the_preset_it_was_trained_with(few, headstart_json, tmp_path):
    headstart_json(
        "finetune", few, "--backbone", BACKBONE, "--resize", 36, "--crop", 32, "--train", "_blocks.15", "--epochs", 1,
        "--augment", "crop", "--select-on", "last", "--batch-size", 8, "--out", "tuned",
    )  # fmt: skip
    found = headstart_json("evaluate", "tuned", "--views", 2)
    assert (found["views"], found["augment"], found["n"]) == (2, "crop", 12)
    rows = headstart_json("predict", "tuned", few / "val", "--views", 2)["predictions"]
    right = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) / 12 == found["accuracy"]
    assert found["log_loss"] != headstart_json("evaluate", "tuned")["log_loss"]
    assert headstart_json("evaluate", "tuned", few, "--views", 2, "--augment", "flip")["augment"] == "flip"


# predict


def test_every_form_of_a_prediction_has_the_mean_over_views(own, model, headstart, headstart_json):
    rows = headstart_json("predict", model, own / "val", "--views", 3)["predictions"]
    X, _ = by_hand(Path(".headstart"), own, "val")
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in rows], averaged(model, X), rtol=1e-9)
    status, out, err = headstart("predict", model, own / "val", "--views", 3, "--jsonl")
    assert status == 0 and [json.loads(line) for line in out.splitlines()] == rows
    assert "probabilities are averages over 3 views (tutorial)" in err
    table = list(csv.DictReader(io.StringIO(headstart("predict", model, own / "val", "--views", 3, "--csv")[1])))
    assert [row["label"] for row in table] == [row["label"] for row in rows]
    shown = headstart("predict", model, own / "val", "--views", 3)[1].splitlines()
    assert all(
        f"{row['label']} {100 * row['probability']:.1f} %" in line for row, line in zip(rows, shown, strict=True)
    )
    loaded = package.load(model, views=3).predict([own / "val"])
    assert [row.as_dict() for row in loaded] == rows

    plain = headstart_json("predict", model, own / "val")["predictions"]
    assert headstart_json("predict", model, own / "val", "--views", 1)["predictions"] == plain
    assert [row["novelty"] for row in plain] == [row["novelty"] for row in rows], "told by the plain crop"
    assert [row["probability"] for row in plain] != [row["probability"] for row in rows]


def test_a_prediction_is_the_same_in_any_company_and_from_the_cache(some, model, tmp_path):
    paths = sorted((some / "val").rglob("*.jpg"))
    run = {"views": 4, "augment": "strong", "device": "cpu"}
    fresh = package.load(model, cache=tmp_path / "fresh", batch_size=5, **run).predict(paths)
    kept = package.load(model, cache=tmp_path / "fresh", **run).predict(paths)
    assert [row.as_dict() for row in kept] == [row.as_dict() for row in fresh], "rows of the run are those of the cache"
    other = package.load(model, cache=tmp_path / "other", batch_size=3, **run)
    alone = {row.path: row for path in reversed(paths) for row in other.predict([path])}
    for row in fresh:
        assert alone[row.path].probability == pytest.approx(row.probability, rel=1e-4)
        assert alone[row.path].label == row.label


def test_options_of_predict_go_by_the_mean_over_views(own, model, headstart, headstart_json, tmp_path):
    words = ["predict", model, own / "val", "--views", 3]
    rows = headstart_json(*words)["predictions"]
    middle = sorted(row["probability"] for row in rows)[6]
    unsure = headstart_json(*words, "--min-probability", middle)["predictions"]
    assert [row["unsure"] for row in unsure] == [row["probability"] < middle for row in rows]
    assert headstart(*words, "--sort-into", "sorted")[0] == 0
    for name in ("ants", "bees"):
        wanted = {Path(row["path"]).name for row in rows if row["label"] == name}
        assert {path.name for path in Path("sorted", name).iterdir()} == wanted
    assert headstart(*words, "--grid", "grid.png")[0] == 0 and Path("grid.png").stat().st_size > 10_000
    status, out, err = headstart(*words, "--coverage", 0.9)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: --coverage was calibrated on probabilities of one view, and --views averages several: leave one out"
    )
    status, out, err = headstart("predict", model, own / "val", "--augment", "flip")
    assert (status, out) == (2, "") and "has no effect: pass --views 2" in err


# compare


def test_compare_embeds_views_of_training_images_and_names_what_leads_to_its_row(
    few, headstart, headstart_json, tmp_path
):
    words = [
        "compare",
        few,
        "--backbone",
        BACKBONE,
        "--head",
        "logistic",
        "--head",
        "ncm",
        "--resize",
        40,
        "--crop",
        32,
    ]
    found = headstart_json(*words, "--views", 2, "--augment", "flip")
    assert safe_rows(tmp_path) == 24 * 2 + 12
    assert (found["views"], found["augment"]) == (2, "flip")
    for row in found["rows"]:
        fit = headstart_json(*shlex.split(row["command"])[1:], "--out", row["head"])
        assert (fit["cv"]["accuracy"], fit["views"], fit["augment"]) == (row["cv_accuracy"], 2, "flip")
        assert fit["cv"]["log_loss_calibrated"] == row["log_loss"]
    out = headstart(*words, "--views", 2, "--overwrite")[1]
    assert "24 training images (2 views each, flip), 2 classes" in out, "the preset is that of the views that are there"
    page = Path("comparisons", few.name, "compare.html").read_text("utf-8")
    assert "Heads were trained on 2 views of each (flip)." in page
    assert safe_rows(tmp_path) == 24 * 2 + 12

    # Without views, beside a space that never had any: each command says what fit-head would not take by itself.
    headstart_json("extract", few, "--backbone", BACKBONE, "--layer", "_blocks.5", "--resize", 40,
                   "--crop", 32)  # fmt: skip
    status, out, err = headstart("compare", few, "--overwrite")
    assert status == 0 and "trains them on the views that were extracted" in err
    rows = json.loads(Path("comparisons", few.name, "compare.json").read_bytes())["rows"]
    for row in rows:
        assert ("--views 1" in row["command"]) == (row["layer"] == "fc.input")
        fit = headstart_json(*shlex.split(row["command"])[1:], "--out", row["layer"])
        assert (fit["cv"]["accuracy"], fit["views"]) == (row["cv_accuracy"], 1)

    status, out, err = headstart("compare", few, "--views", 3, "--overwrite")
    assert (status, out) == (1, "") and "left out, as 24 images lack views" in err
    assert "no backbone has embedded 3 views (flip) of all training images" in err
    assert headstart("compare", few, "--augment", "flip", "--overwrite")[0] == 2


# report, export, serve


def test_the_commands_of_a_report_lead_to_the_model(few, headstart, headstart_json, tmp_path):
    small = ["--resize", 40, "--crop", 32]
    headstart_json("extract", few, "--backbone", BACKBONE, "--views", 3, "--augment", "crop", *small)
    headstart_json("fit-head", "--views", 2, "--out", "first")
    headstart_json("fit-head", "--views", 1, "--out", "one")
    for name, views in (("first", 2), ("one", 1)):
        status, _, err = headstart("report", name, "-o", f"{name}.html")
        assert status == 0 and "warning" not in err
        page = Path(f"{name}.html").read_text("utf-8")
        assert "Labels to check" in page
        assert ("2 of each training picture (crop)" in page) == (views == 2)
        commands = [line for line in re.findall(r"headstart (?:extract|fit-head) [^<\n]*", page) if str(few) in line]
        assert len(commands) == 2 and ("--views 2 --augment crop" in commands[0]) == (views == 2)
        for number, command in enumerate(commands):
            out = ["--out", f"{name}-again"] if number else []
            assert headstart(*shlex.split(command)[1:], *out)[0] == 0
        then, now = numbers(Path(name)), numbers(Path(f"{name}-again"))
        assert all(np.array_equal(then[key], now[key]) for key in then)
        assert load_model(Path(name)).views == load_model(Path(f"{name}-again")).views


def test_a_report_goes_on_where_views_are_not_cached(own, model, headstart):
    edited(model, views=4)
    status, _, err = headstart("report", model, "-o", "lacking.html")
    assert status == 0
    assert "warning: labels are not checked: 26 of 26 images lack views of the preset tutorial" in err
    page = Path("lacking.html").read_text("utf-8")
    assert "Labels to check" not in page and "Right on" in page


@pytest.mark.slow
def test_a_model_trained_on_views_is_exported_as_any_other(some, model, headstart_json):
    done = headstart_json("export", model, some, "--pictures", 3, "--cache", some.parent / "cache")
    assert done["max_difference"] < 1e-4


def test_a_model_trained_on_views_is_served_as_any_other(some, model, tmp_path):
    from headstart.classify.predict import Classifier
    from headstart.classify.serve.model_runner import ModelRunner

    runner = ModelRunner(Classifier(load_model(model), tmp_path / "unused"))
    runner.load(1)
    path = min((some / "val" / "ants").glob("*.jpg"))
    (answer,) = runner.predict([runner.read(path.read_bytes())])
    (predicted,) = package.load(model, cache=some.parent / "cache").predict([path])
    assert answer.probability == pytest.approx(predicted.probability, rel=1e-4)


# Models that are old, damaged or of another version


def test_a_model_of_before_views_is_one_of_plain_crops(own, model, headstart_json):
    content = json.loads((model / "model.json").read_bytes())
    for name in ("views", "augment", "views_split", "recipes"):
        del content["training"][name]
    (model / "model.json").write_text(json.dumps(content))
    assert load_model(model).views == PLAIN
    found = headstart_json("evaluate", model, "--views", 2)
    assert (found["views"], found["augment"]) == (2, "tutorial")
    assert headstart_json("report", model)["bytes"] > 10_000


@pytest.mark.parametrize(
    "training",
    [
        {"views": "three"},
        {"views": 0},
        {"views": -1},
        {"views": True},
        {"views": 10**9},
        {"views": 1},
        {"views": None},
        {"augment": ["tutorial"]},
        {"augment": "none"},
        {"views_split": "holiday"},
        {"views_split": 3},
    ],
)
def test_views_that_are_none_are_told_in_one_line(own, model, headstart, training):
    edited(model, **training)
    for words in (["evaluate", model], ["predict", model, own / "val"], ["report", model]):
        status, out, err = headstart(*words)
        assert (status, out) == (1, "")
        assert re.fullmatch(
            r"error: \S+model.json is damaged: there are no views .+ of .+, split .+; fit the head again\n", err
        ), err


def test_a_preset_of_another_version_is_told(own, model, headstart):
    edited(model, augment="mosaic")
    status, out, err = headstart("evaluate", model)
    assert (status, out) == (1, "")
    said = (
        "was trained on views of the preset 'mosaic', which this headstart does not have; upgrade it, or fit the head"
    )
    assert said in err and "damaged" not in err


def test_a_recipe_that_has_changed_since_is_told_wherever_views_of_it_are_made(own, model, headstart):
    edited(model, recipes={"7": {"augment": "tutorial", "version": 0}})
    said = "warning: the preset tutorial is another one than it was when the model was trained"
    for words in (["evaluate", model, "--views", 2], ["predict", model, own / "val", "--views", 2], ["report", model]):
        status, _, err = headstart(*words)
        assert status == 0 and err.count(said) == 1, err
    for words in (["evaluate", model], ["evaluate", model, "--views", 2, "--augment", "flip"]):
        status, _, err = headstart(*words)
        assert status == 0 and said not in err


def _options(fields: dict[str, int]) -> list[object]:
    return [word for name, value in fields.items() for word in (f"--{name}", value)]
