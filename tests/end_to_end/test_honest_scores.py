"""From pictures to scores: copies are seen, wrong labels come first, sets hold what they promise, novelty tells."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from command_line import BACKBONE, SHAPES, draw, in_own_process
from PIL import Image, ImageOps

import headstart as package


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return a folder of thirty training and eight validation drawings of each class, and a cache that has them."""
    folder = tmp_path_factory.mktemp("drawn")
    for shape in SHAPES:
        for seed in range(38):
            path = folder / "data" / ("train" if seed < 30 else "val") / shape / f"{seed:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(shape, seed).save(path)
    package.extract(folder / "data", BACKBONE, cache=folder / "cache")
    return folder


@pytest.fixture
def cached(drawn, tmp_path):
    """Return the words that name a copy of the cache."""
    shutil.copytree(drawn / "cache", tmp_path / "cache")
    return ["--cache", tmp_path / "cache"]


FAST = {"linear": ["--epochs", "5"], "mlp": ["--epochs", "5", "--hidden", "8"]}


@pytest.mark.parametrize("head", ["logistic", "linear", "mlp", "knn", "ncm"])
def test_every_head_says_all_there_is_to_say(headstart, headstart_json, cached, head):
    words = ["fit-head", "--head", head, *FAST.get(head, []), "--cv", "2", *cached]
    found = headstart_json(*words, "--details", "--curve", "--shots", "4", "--repeats", "2")
    assert {"details", "curve", "per_class", "shots"} <= set(found)
    assert [point["shots"] for point in found["shots"]["points"]] == [1, 2, 4] and found["shots"]["repeats"] == 2
    assert found["curve"]["points"][-1]["n"] > found["curve"]["points"][0]["n"]
    assert len(found["details"]["suspicious"]) == found["train"]["n"] == 90
    status, out, err = headstart(*words, "--details", "--curve", "--overwrite")
    assert (status, out) == (0, "")
    assert "the 10 most suspicious labels of the training images:" in err and "learning curve:" in err
    assert not {"details", "curve", "shots"} & set(headstart_json(*words, "--overwrite"))


def test_a_logistic_head_needs_neither_torch_nor_sklearn_nor_scipy(cached, tmp_path):
    done, loaded = in_own_process("fit-head", "--details", "--curve", "--shots", "2", "--json", *cached, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not loaded & {"torch", "torchvision", "sklearn", "scipy"}
    done, loaded = in_own_process("evaluate", json.loads(done.stdout)["out"], *cached, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not loaded & {"torch", "torchvision", "sklearn", "scipy"}


def test_planted_label_errors_are_the_first_that_are_shown(headstart, headstart_json, drawn, tmp_path):
    shutil.copytree(drawn / "cache", tmp_path / "cache")
    wrong = {("circle", 3): "stripes", ("stripes", 7): "cross", ("cross", 11): "stripes"}
    lines = ["path,label,split"]
    for shape in SHAPES:
        for seed in range(38):
            split = "train" if seed < 30 else "val"
            lines.append(f"{drawn}/data/{split}/{shape}/{seed:02d}.png,{wrong.get((shape, seed), shape)},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    cached = ["--cache", tmp_path / "cache"]
    assert headstart_json("extract", "list.csv", "--backbone", BACKBONE, *cached)["embedded"] == 0
    found = headstart_json("fit-head", "--details", "--near-copies", "none", *cached)["details"]["suspicious"]
    expected = {f"{shape}/{seed:02d}.png": (label, shape) for (shape, seed), label in wrong.items()}
    assert {"/".join(row["path"].split("/")[-2:]) for row in found[:3]} == set(expected)
    for row in found[:3]:
        assert (row["label"], row["suggested"]) == expected["/".join(row["path"].split("/")[-2:])]
    _, _, err = headstart("fit-head", "--details", "--near-copies", "none", "--overwrite", *cached)
    begin = err.splitlines().index("the 10 most suspicious labels of the training images:")
    shown = err.splitlines()[begin + 1 : begin + 11]
    assert all(any(name in line for line in shown[:3]) for name in expected)


def test_sets_novelty_and_the_columns_of_the_csv(headstart, headstart_json, cached, drawn, tmp_path):
    model = headstart_json("fit-head", "--near-copies", "none", *cached)["out"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(foreign / "noise.png")
    (foreign / "broken.jpg").write_bytes(b"no picture")
    words = ["predict", model, drawn / "data" / "val", foreign, *cached]
    broken, *rows = sorted(headstart_json(*words, "--coverage", ".95")["predictions"], key=lambda row: not row["error"])
    assert (broken["label"], broken["set"], broken["novelty"], broken["labels"]) == (None, None, None, None)
    (noise,) = [row for row in rows if row["path"].endswith("noise.png")]
    known = [row for row in rows if row is not noise]
    for row in rows:
        assert row["set"][0] == row["label"]
        proba = [row["probabilities"][name] for name in row["set"]]
        assert proba == sorted(proba, reverse=True)
        assert min(proba) >= max([p for name, p in row["probabilities"].items() if name not in row["set"]], default=0)
        assert 0 < row["novelty"] <= 1
    assert sum(row["path"].split("/")[-2] in row["set"] for row in known) >= 0.9 * len(known)
    assert noise["novelty"] == pytest.approx(1 / 91)
    assert np.median([row["novelty"] for row in known]) > 0.2
    assert all(row["set"] is None for row in headstart_json(*words)["predictions"])

    status, out, err = headstart(*words, "--coverage", ".95", "--csv")
    table = list(csv.DictReader(io.StringIO(out)))
    assert status == 0 and list(table[0]) == ["path", "label", "probability", "error", "set", "novelty", "unsure"]
    by_path = {row["path"]: row for row in rows}
    for row in table:
        if not row["error"]:
            assert row["set"].split("|") == by_path[row["path"]]["set"]
            assert float(row["novelty"]) == pytest.approx(by_path[row["path"]]["novelty"], abs=1e-6)
    assert "are too few" not in err
    status, out, err = headstart(*words, "--coverage", ".995")
    assert "warning: 90 training images are too few for a coverage of 0.995: every set holds all classes" in err
    assert all(line.count("; one of {") == 1 for line in out.splitlines() if "not read" not in line)
    for wrong in ("0", "1", "x", "-1", "nan"):
        status, out, err = headstart(*words, "--coverage", wrong)
        assert (status, out) == (2, "") and "coverage" in err.splitlines()[-1], wrong


def test_nonsense_is_one_line(headstart, cached):
    for words in (["--near-copies", "some"], ["--val-fraction", "1"], ["--val-fraction", "x"]):
        status, out, err = headstart("fit-head", *words, *cached)
        assert (status, out) == (2, "") and words[0] in err.splitlines()[-1]


@pytest.fixture
def photographs(samples, tmp_path):
    """Return photographs of ants and bees in train and val, and in val a changed copy of one that is in train."""
    data = tmp_path / "data"
    for name in ("ants", "bees"):
        for split, some in (("train", slice(0, 12)), ("val", slice(12, 18))):
            (data / split / name).mkdir(parents=True)
            for path in sorted((samples / "hymenoptera" / "train" / name).glob("*.jpg"))[some]:
                shutil.copy(path, data / split / name)
    picture = Image.open(sorted((data / "train" / "ants").iterdir())[2]).convert("RGB")
    half = picture.resize((picture.width // 2, picture.height // 2))
    ImageOps.mirror(half).save(data / "val" / "ants" / "zz changed.jpg", quality=60)
    return data


def test_a_photograph_mirrored_resized_and_recompressed_is_seen_and_dropped(headstart, headstart_json, photographs):
    headstart_json("extract", photographs, "--backbone", BACKBONE)
    source = sorted((photographs / "train" / "ants").iterdir())[2]
    _, _, err = headstart("fit-head", "--cv", "3")
    (line,) = [line for line in err.splitlines() if "leakage" in line]
    assert line == (
        f"warning: leakage: 1 images of another split are nearly copies of training images "
        f"({source} ~ {photographs}/val/ants/zz changed.jpg); --dedupe drops those from train"
    )
    found = headstart_json("fit-head", "--cv", "3", "--details", "--overwrite")
    assert [[row["split"] for row in group] for group in found["details"]["near_copies"]] == [["train", "val"]]
    for words in (["--dedupe"], ["--near-copies", "none"]):
        _, _, err = headstart("fit-head", "--cv", "3", "--overwrite", *words)
        assert "leakage" not in err
    found = headstart_json("fit-head", "--cv", "3", "--overwrite", "--dedupe")
    assert found["dedupe"] == {"kept": 36, "copies": 0, "contradictory": 0, "near": 1}
    assert (found["train"]["n"], found["val"]["n"]) == (23, 13)
    assert headstart_json("evaluate", found["out"])["n"] == 13
    assert headstart_json("evaluate", found["out"], "--split", "train")["n"] == 23
