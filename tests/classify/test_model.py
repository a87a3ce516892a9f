import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from headstart.classify.model import MODEL_FILE, SavedModel, check_target, load_model, save_model
from headstart.classify.network import Network
from headstart.classify.novelty import Novelty
from headstart.classify.preparation import Preparation
from headstart.errors import ModelError
from support import make_space

CLASSES = ("ants", 'b"<img src=x onerror=alert(1)>', "\udcff\n")


def make_model(shift=0.0, classes=CLASSES):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((len(classes), 8)) + shift).astype(np.float32)
    preparation = Preparation(np.zeros(8, np.float32), np.ones(8, np.float32), np.zeros(0, np.int64))
    network = Network(preparation, (weight,), (np.zeros(len(classes), np.float32),))
    return SavedModel(
        kind="logistic",
        classes=classes,
        spaces=[make_space().as_dict()],
        network=network,
        facts={"C": 0.1},
        temperature=2.0,
        training={"root": "photos"},
        scores={"val": None},
    )


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", make_model())


def test_it_comes_back_as_it_was(folder):
    model, again = make_model(), load_model(folder)
    X = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.classes == CLASSES
    for name in ("kind", "spaces", "facts", "temperature", "training", "scores"):
        assert getattr(again, name) == getattr(model, name)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


def test_a_temperature_divides_the_logits():
    X = np.ones((1, 8), np.float32)
    model = make_model()
    expected = np.exp(model.network.logits(X) / 2)
    np.testing.assert_allclose(model.predict_proba(X), expected / expected.sum())


def test_an_existing_model_is_replaced_only_on_demand(folder):
    with pytest.raises(ModelError, match="holds a model already; pass --overwrite"):
        save_model(folder, make_model(1.0))
    save_model(folder, make_model(1.0), overwrite=True)
    np.testing.assert_array_equal(load_model(folder).network.weights[0], make_model(1.0).network.weights[0])
    assert len(list(folder.iterdir())) == 2, "the old numbers are gone"


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="a folder of something else"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(ModelError, match="is a file"):
        check_target(tmp_path / "thesis.tex", overwrite=True)
    check_target(tmp_path / "new")


def test_a_save_that_was_killed_before_there_was_a_model_is_saved_again(folder):
    (folder / MODEL_FILE).unlink()  # what a kill leaves that comes before the last step
    (folder / ".tensors-00.safetensors.0123456789ab.tmp").write_bytes(b"half of the numbers")
    check_target(folder)
    save_model(folder, make_model(1.0))
    np.testing.assert_array_equal(load_model(folder).network.weights[0], make_model(1.0).network.weights[0])
    assert len(list(folder.iterdir())) == 2, "what the killed one left is gone"


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2])
def test_f46_a_save_that_fails_at_any_step_leaves_the_old_model(folder, monkeypatch, call, number):
    real, calls = getattr(os, call), []

    def fail(*arguments, **options):
        calls.append(call)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ModelError, match="the model was not saved: disk full"):
        save_model(folder, make_model(1.0), overwrite=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(load_model(folder).network.weights[0], make_model().network.weights[0])


KILLS = """
import os, signal, sys
from pathlib import Path
from headstart.classify.model import load_model, save_model
old, new = load_model(Path(sys.argv[1])), load_model(Path(sys.argv[2]))

def save_and_die(number):
    left = [number]
    for name in ("open", "write", "fsync", "replace", "unlink"):
        def counted(*arguments, real=getattr(os, name), **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        setattr(os, name, counted)
    save_model(Path(sys.argv[1]), new, overwrite=True)
    os._exit(0)

for number in range(100):
    save_model(Path(sys.argv[1]), old, overwrite=True)
    child = os.fork() or save_and_die(number)
    status = os.waitpid(child, 0)[1]
    weight = load_model(Path(sys.argv[1])).network.weights[0]
    found = [name for name, model in (("old", old), ("new", new)) if (model.network.weights[0] == weight).all()]
    print("killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9 else "done", *found)
    if not status:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed at any call")
def test_f46_a_save_that_is_killed_at_any_step_leaves_the_old_model_or_the_new(folder, tmp_path):
    other = save_model(tmp_path / "other", make_model(1.0))
    command = [sys.executable, "-c", KILLS, folder, other]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    outcomes = done.stdout.splitlines()
    kills = [line for line in outcomes if line.startswith("killed ")]
    print(
        f"{len(kills)} kills: {kills.count('killed old')} left the old model, {kills.count('killed new')} the new one"
    )
    assert outcomes[-1] == "done new"
    assert kills.count("killed old") >= 8
    assert len(kills) == len(outcomes) - 1 == kills.count("killed old") + kills.count("killed new")


def tensors(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def edit(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_model_of_before_spaces_could_be_joined_is_read_as_one_of_a_single_space(folder):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    (content["space"],) = content.pop("spaces")
    content["training"]["request"] = {"weights": "none", "seed": 3}
    path.write_text(json.dumps(content))
    model = load_model(folder)
    assert model.spaces == [make_space().as_dict()]
    assert model.training["requests"] == [{"weights": "none", "seed": 3}]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: flip(tensors(f)), r"do not match the SHA-256 in its name"),
        (lambda f: tensors(f).unlink(), r"cannot be read"),
        (lambda f: (f / "model.json").unlink(), r"holds no model"),
        (lambda f: (f / "model.json").write_bytes((f / "model.json").read_bytes()[:200]), r"model\.json is damaged"),
        (lambda f: (f / "model.json").write_text("[]"), r"holds no object"),
        (lambda f: (f / "model.json").write_text("[" * 100_000), r"model\.json is damaged"),
        (lambda f: (f / "model.json").write_bytes(b" " * (17 << 20)), r"is larger than 16 MB"),
        (lambda f: edit(f, format=3), r"written by format 3, this reads up to 1; upgrade headstart"),
        (lambda f: edit(f, tensors="../../secret.safetensors"), r"names no file of numbers"),
        (lambda f: edit(f, tensors=7), r"names no file of numbers"),
        (lambda f: edit(f, classes=["a", "b"]), r"do not fit its classes"),
        (lambda f: edit(f, classes=[1, 2, 3]), r"its list of classes is none"),
        (lambda f: edit(f, classes=["x" * 2000, "b", "c"]), r"its list of classes is none"),
        (lambda f: edit(f, spaces=[make_space(dim=9).as_dict()]), r"do not fit"),
        (lambda f: edit(f, spaces=[make_space(dim=8).as_dict(), make_space(dim=1).as_dict()]), r"do not fit"),
        (lambda f: edit(f, spaces=[]), r"do not fit"),
        (lambda f: edit(f, spaces=7), r"model\.json is damaged"),
        (lambda f: edit(f, spaces=["resnet18"]), r"model\.json is damaged"),
        (lambda f: edit(f, spaces=[{"dim": 8}]), r"is damaged: not a feature space"),
        (lambda f: edit(f, spaces=[make_space(dim="8").as_dict()]), r"model\.json is damaged"),
        (lambda f: edit(f, space={}, training=7), r"model\.json is damaged"),
    ],
)  # fmt: skip
def test_damage_is_named_in_one_line(folder, harm, said):
    harm(folder)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_f46_every_truncation_is_refused_and_names_the_file(folder):
    for path in folder.iterdir():
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError, match="is damaged: ") as caught:
                load_model(folder)
            assert str(caught.value).startswith(f"{path} ")
        path.write_bytes(whole)
    load_model(folder)


def test_what_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="is not there"):
        load_model(tmp_path / "absent")
    with pytest.raises(ModelError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file and not a model folder"):
        load_model(tmp_path / "file")


def test_arrays_that_do_not_fit_are_refused():
    arrays = make_model().network.arrays()
    with pytest.raises(ModelError, match="lacks the array 'bias_0'"):
        Network.from_arrays({name: array for name, array in arrays.items() if name != "bias_0"})
    with pytest.raises(ModelError, match="do not fit each other"):
        Network.from_arrays({**arrays, "weight_0": arrays["weight_0"][:, :5]})
    with pytest.raises(ModelError, match="not finite"):
        Network.from_arrays({**arrays, "mean": np.full(8, np.nan, np.float32)})
    with pytest.raises(ModelError, match="width 8, and got an array of"):
        make_model().network.logits(np.zeros((2, 9), np.float32))


# What was added later: several labels, sets of classes, novelty


def make_full(**changes):
    """Return a model that has all of it."""
    rng = np.random.default_rng(1)
    novelty = Novelty(rng.standard_normal((6, 8)).astype(np.float32), np.array([0.1, 0.2, 0.4], np.float32))
    true = np.array([0.2, 0.5, 0.9])
    several = {"multi_label": True, "thresholds": [0.5, 0.25, 1 / 3], "true_probabilities": true, "novelty": novelty}
    return dataclasses.replace(make_model(), **{**several, **changes})


@pytest.fixture
def full(tmp_path):
    return save_model(tmp_path / "full", make_full())


def test_all_of_it_comes_back_as_it_was(full):
    model, again = make_full(), load_model(full)
    assert (again.multi_label, again.thresholds) == (True, model.thresholds)
    np.testing.assert_array_equal(again.true_probabilities, model.true_probabilities)
    for name, array in model.novelty.arrays().items():
        np.testing.assert_array_equal(again.novelty.arrays()[name], array)
    X = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)
    proba = again.predict_proba(X)
    np.testing.assert_allclose(proba, 1 / (1 + np.exp(-model.network.logits(X) / 2)))
    assert not np.allclose(proba.sum(axis=1), 1)
    assert set(json.loads((full / "model.json").read_text())) & {"novelty", "true_probabilities"} == set()


def test_a_model_of_before_there_were_several_labels_has_one_class_an_image(folder):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    assert content.pop("multi_label") is False and content.pop("thresholds") == []
    path.write_text(json.dumps(content))
    model = load_model(folder)
    assert (model.multi_label, model.thresholds, model.novelty, model.true_probabilities.size) == (False, [], None, 0)
    np.testing.assert_allclose(model.predict_proba(np.ones((1, 8), np.float32)).sum(), 1)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thresholds": [0.5, 0.5]}, "it has not one threshold for each label"),
        ({"thresholds": []}, "it has not one threshold for each label"),
        ({"thresholds": [0.5, 0.5, "x"]}, "it has not one threshold for each label"),
        ({"thresholds": [0.5, 0.5, True]}, "it has not one threshold for each label"),
        ({"thresholds": [0.5, 0.5, NAN]}, "it has not one threshold for each label"),
        ({"thresholds": 7}, "damaged"),
        ({"thresholds": None}, "damaged"),
        ({"multi_label": False}, "it has not one threshold for each label"),
        ({"multi_label": "no"}, "damaged"),
        ({"multi_label": 1}, "damaged"),
        ({"temperature": "2"}, "damaged"),
        ({"temperature": 0.0}, "damaged"),
        ({"temperature": -1.0}, "damaged"),
        ({"temperature": NAN}, "damaged"),
        ({"temperature": INFINITE}, "damaged"),
        ({"temperature": None}, "damaged"),
        ({"training": []}, "damaged"),
        ({"scores": 7}, "damaged"),
        ({"facts": "x"}, "damaged"),
        ({"kind": ["knn"]}, "damaged"),
    ],
)
def test_damage_of_its_fields_is_named_in_one_line(full, changes, said):
    edit(full, **changes)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(full)
    assert "\n" not in str(caught.value) and str(full) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("true_probabilities", np.array([0.5, 0.2]), "cross-validated probabilities"),
        ("true_probabilities", np.array([0.5, np.nan]), "cross-validated probabilities"),
        ("true_probabilities", np.array([[0.5]]), "cross-validated probabilities"),
        ("true_probabilities", np.array([0.2, 0.5], np.float32), "cross-validated probabilities"),
        ("true_probabilities", np.array([0.2, 1.5]), "cross-validated probabilities"),
        ("true_probabilities", np.array([-0.2, 0.5]), "cross-validated probabilities"),
        ("novelty.reference", np.zeros((6, 7), np.float32), "its training pictures are not of its width"),
        ("novelty.reference", np.zeros(8, np.float32), "do not fit each other"),
        ("novelty.reference", None, "lacks the array 'reference'"),
        ("novelty.distances", None, "lacks the array 'distances'"),
        ("novelty.distances", np.array([0.2, 0.1], np.float32), "are not in order"),
        ("novelty.distances", np.zeros(0, np.float32), "do not fit each other"),
        ("novelty.distances", np.array([np.inf], np.float32), "not finite"),
    ],
)
def test_damage_of_its_numbers_is_named_in_one_line(full, name, array, said):
    import hashlib

    from safetensors.numpy import load, save

    arrays = load(tensors(full).read_bytes())
    arrays = {**arrays, name: array}
    data = save({name: array for name, array in arrays.items() if array is not None})
    tensors(full).unlink()
    file = f"tensors-{hashlib.sha256(data).hexdigest()}.safetensors"
    (full / file).write_bytes(data)
    edit(full, tensors=file)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(full)
    assert "\n" not in str(caught.value) and str(full) in str(caught.value)


def test_every_truncation_of_a_full_model_is_refused(full):
    path = tensors(full)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="is damaged: "):
            load_model(full)
