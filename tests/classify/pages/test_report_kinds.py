"""A report on every kind of model: each shows what there is, and says what there is not."""

import json
import re

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made
from finetuned import QUICK
from reports import data_of

import headstart
from headstart.classify.fit import fit_head
from headstart.classify.model import load_model
from headstart.classify.pages.commands import commands_of
from headstart.classify.pages.findings import gather
from headstart.classify.pages.report import report
from headstart.classify.pages.tables import MOST_CLASSES
from headstart.classify.predict import Classifier


@pytest.fixture
def write(tmp_path):
    """Fit a head on a dataset that is in a cache alone, and report; return the model, the page and its data."""

    def run(made, head="logistic", **options):
        made.put(tmp_path / "cache")
        fit = fit_head(None, head, cache=tmp_path / "cache", out=tmp_path / "model", overwrite=True, **options)
        out = tmp_path / "report.html"
        report(fit.out, out=out, cache=tmp_path / "cache", overwrite=True)
        page = out.read_text("utf-8").replace("\u00a0", " ")
        return fit.model, page, json.loads(data_of(page))

    return run


@pytest.mark.parametrize(
    ("head", "options", "shown"),
    [
        ("logistic", {}, {"Loss over C", "search"}),
        ("knn", {}, {"settings-title"}),
        ("ncm", {}, {"Nothing was searched"}),
        ("linear", {"epochs": 5}, {"losses-title"}),
        ("mlp", {"epochs": 5, "hidden": ((8, 16),), "device": "cpu"}, {"settings-title", "losses-title"}),
    ],
)
def test_each_head_shows_how_it_was_chosen(write, head, options, shown):
    model, page, data = write(classes_made(), head, **options)
    training = page[page.index('<section id="training"') : page.index('<section id="made"')]
    assert any(words in training for words in shown), training[:2000]
    assert f"A {head} head on 12 features" in training
    assert f"Right on {100 * model.scores['val']['accuracy']:.1f} %" in page
    assert not data["pictures"] and set(data["missing"].values()) == {"not found"}


def test_several_labels_have_a_table_of_what_was_found_and_missed(write):
    made = labels_made()
    model, page, data = write(made)
    held = made.split == "val"
    found = {name: data["cells"].get(str(3 * label), {"count": 0})["count"] for label, name in enumerate(model.classes)}
    missed = {
        name: data["cells"].get(str(3 * label + 1), {"count": 0})["count"] for label, name in enumerate(model.classes)
    }
    for label, name in enumerate(model.classes):
        assert found[name] + missed[name] == made.y[held, label].sum()
    assert "Mean average precision" in page and "Labels to check" not in page
    assert "average precision" in page.lower() and "found" in page


def test_of_many_classes_the_most_confused_are_shown(write):
    rng = np.random.default_rng(0)
    made = classes_made(900, 8, spread=4.0)
    names = [f"class {number:02}" for number in range(60)]
    made.y, made.classes = rng.permutation(np.arange(900) % 60), tuple(names)
    _, page, data = write(made, C=1.0)
    table = page[page.index('<table class="confusion">') : page.index("</table>")]
    assert table.count('<th scope="row">') == MOST_CLASSES and "most errors of 60" in page
    assert sum(cell["count"] for cell in data["cells"].values()) <= 225
    assert "other classes" in page, "on the map"


def test_a_dataset_without_validation_pictures_is_told_of(write, tmp_path):
    made = classes_made()
    made.split[:] = "train"
    model, page, _ = write(made, val_fraction=0.25)
    assert f"{model.scores['val']['n']} validation pictures" in page and "--val-fraction 0.25" in page


def test_a_model_with_few_pictures_says_so(write):
    _, page, _ = write(classes_made(40))
    assert "10 pictures are few: the interval is wide." in page
    assert "fewer than 10 pictures were scored" in page


def test_a_finetuned_network_shows_its_epochs(few, tmp_path):
    made = headstart.finetune(few, out=tmp_path / "tuned", cache=tmp_path / "cache", **QUICK)
    written = report(made.out, out=tmp_path / "tuned.html", cache=tmp_path / "cache")
    page = (tmp_path / "tuned.html").read_text("utf-8")
    assert "losses-title" in page
    (command,) = re.findall(r"headstart finetune .*", page)
    given = {"--train _blocks.15", "--resize 36", "--crop 32", "--epochs 2", "--augment none", "--select-on last"}
    assert given | {"--batch-size 8"} == set(re.findall(r"--(?!backbone)[a-z-]+ \S+", command))
    assert "Labels to check" not in page, "no cross-validation has seen its last layer"
    assert written.pictures == 36 and written.missing == 0


def test_another_dataset_is_reported_without_what_only_training_tells(write, few, samples, tmp_path):
    cache = tmp_path / "cache"
    headstart.extract(few, backbone="efficientnet_lite0", cache=cache)
    model = fit_head(few, cache=cache, out=tmp_path / "real").out
    report(model, samples / "hymenoptera", out=tmp_path / "other.html", split="val", cache=cache)
    page = (tmp_path / "other.html").read_text("utf-8")
    assert "153 validation pictures" in page and "Labels to check" not in page
    assert "Not looked for: the dataset is another one" in page


@pytest.mark.parametrize(
    ("head", "options", "words"),
    [
        ("logistic", {"C": 0.5, "l2_norm": True}, ["--C 0.5", "--l2-norm"]),
        ("logistic", {}, ["headstart fit-head photos"]),
        ("mlp", {"epochs": 3, "hidden": (8, 4), "seed": 3}, ["--hidden 8", "--hidden 4", "--epochs 3", "--seed 3"]),
        ("linear", {"epochs": 3, "lr": (0.1, 0.01), "dedupe": True}, ["--lr 0.1,0.01", "--epochs 3", "--dedupe"]),
        ("knn", {"near_copies": "none"}, ["--head knn", "--near-copies none"]),
    ],
)
def test_the_command_lists_what_was_asked_for_and_no_more(tmp_path, head, options, words):
    classes_made().put(tmp_path / "cache")
    model = fit_head(None, head, cache=tmp_path / "cache", out=tmp_path / "model", **options).model
    command = commands_of(model, tmp_path / "cache")[-1]
    for word in words:
        assert word in command
    given = sum(word.startswith("--") for word in command.split())
    named = sum(word.count("--") for word in words) + (head != "logistic" and "--head knn" not in words)
    assert given == named, command


def test_a_dataset_that_has_shrunk_is_reported_without_its_labels(write, tmp_path, caplog):
    made = classes_made(40, 2)
    write(made)
    left = np.flatnonzero((made.y == 0) | (made.split == "val") | (np.cumsum(made.y == 1) == 1))
    for name in ("X", "y", "split", "digest", "phash"):
        setattr(made, name, getattr(made, name)[left])
    made.put(tmp_path / "cache")
    report(tmp_path / "model", out=tmp_path / "again.html", cache=tmp_path / "cache")
    assert "labels are not checked: class 'b' has" in caplog.text
    assert "Labels to check" not in (tmp_path / "again.html").read_text()


def test_copies_are_no_neighbours(tmp_path):
    made = classes_made(60, 2)
    train = np.flatnonzero(made.split == "train")
    wrong = np.flatnonzero(made.split == "val")[0]
    made.X[train[:3]] = made.X[wrong]
    made.digest[train[:3]] = made.digest[wrong]
    made.put(tmp_path / "cache")
    model = fit_head(None, cache=tmp_path / "cache", out=tmp_path / "model").out
    found = gather(Classifier(load_model(model), tmp_path / "cache"), None, "val")
    row = int(np.flatnonzero(found.labelled.rows == wrong)[0])
    (near,) = found.neighbours(np.array([row]))
    X = made.X / np.linalg.norm(made.X, axis=1, keepdims=True)
    order = [place for place in np.argsort(-X[train] @ X[wrong], kind="stable") if place > 2][:3]
    assert near == train[order].tolist()
