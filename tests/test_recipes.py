"""Every command of every recipe runs, one after the other, in folders like the tutorial's own, for a step.

The photographs are a few ants and bees under the tutorial's names. Options that make a command small are added behind
its own, where the last one counts: so what a page says is still parsed, and everything else of it is done as it stands.
Weights that are downloaded become random ones.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from networks import random, save

import headstart
from headstart.classify.model import load_model
from headstart.cli import main
from headstart.extract.registry import describe

RECIPES = Path(headstart.__file__).parent / "docs" / "recipes"
PICTURES = {"train": 6, "val": 3}  # of each class; five folds need five
PACKAGED = "efficientnet_lite0"
SMALL = {
    "extract": "--crop 32 --weights none --batch-size 4",
    "finetune": "--crop 32 --weights none --batch-size 4 --epochs 1",
    "fit-head": "",
    "evaluate": "",
    "predict": "",
    "show": "",
}
TAKE_DATA = ("extract", "finetune", "fit-head", "show")


class Tutorial(NamedTuple):
    """How a tutorial's data lies, and the widths of heads that its page leads to."""

    data: str
    splits: dict[str, str]
    classes: tuple[str, str]
    unlabelled: str | None = None
    widths: dict[str, tuple[int, ...]] = {}


TUTORIALS = {
    "cats-and-rabbits": Tutorial(
        "cat-vs-rabbit", {"train-cat-rabbit": "train", "val-cat-rabbit": "val"}, ("cat", "rabbit"), "test-images",
        {"cats-head": (576, 1024, 2), "cats-all": (576, 1024, 2)},
    ),
    "hotdog": Tutorial(
        "hotdog", {"train": "train", "test": "val"}, ("hotdog", "not-hotdog"),
        widths={"hotdog-finetuned": (512, 2), "hotdog-imagenet": (1280, 2)},
    ),
    "three-ways": Tutorial(
        "photos", {"train": "train", "val": "val"}, ("ants", "bees"),
        widths={"vgg16-features": (25_088, 64, 64, 2), "resnet34-features": (512, 2), "resnet50-partial": (2048, 2)},
    ),
    "ants-and-bees": Tutorial("hymenoptera_data", {"train": "train", "val": "val"}, ("ants", "bees")),
    "alien-and-predator": Tutorial(
        "alien_vs_predator_thumbnails/data", {"train": "train", "validation": "val"}, ("alien", "predator"),
        widths={"alien-resnet18": (512, 2), "alien-vgg19": (4096, 2), "data-vgg19-classifier.5-logistic": (4096, 2)},
    ),
}  # fmt: skip


def commands(page: str) -> list[list[str]]:
    """Return the words of each command of a page; a block of code holds commands and nothing else."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", (RECIPES / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            assert program == "headstart", line
            found.append(words)
    return found


def replaced(words: list[str], old: list[str], new: list[str]) -> list[str]:
    """Return the words with `old` replaced by `new`, once; a page that lacks `old` fails here."""
    places = [place for place in range(len(words)) if words[place : place + len(old)] == old]
    assert len(places) == 1, f"{' '.join(old)} stands {len(places)} times in: headstart {' '.join(words)}"
    return words[: places[0]] + new + words[places[0] + len(old) :]


def made_small(words: list[str]) -> list[str]:
    name = words[0]
    assert name in SMALL, f"no way is known to make `headstart {name}` small"
    small = SMALL[name].split()
    if name == "fit-head" and "--head" in words:
        small += ["--epochs", "1"]
    if words.count("4096") == 2:  # half a gigabyte, which the widths below stand for
        words = replaced(words, ["--hidden", "4096", "--hidden", "4096"], ["--hidden", "64", "--hidden", "64"])
    if any(word.startswith("imagenet:") for word in words):  # rows of a classifier that knows something
        words = replaced(words, ["--backbone", "resnet18"], ["--backbone", PACKAGED])
        small = replaced(small, ["--weights", "none"], [])
    if "--reinit" in words:  # of random weights nothing would be made anew: the same ones as a file
        small = replaced(small, ["--weights", "none"], ["--weights", str(random_weights(words))])
    return [*words, *small]


def random_weights(words: list[str]) -> Path:
    """Write random weights of a command's backbone into a file of the working directory, and name it."""
    name = words[words.index("--backbone") + 1]
    return save(random(name).release().state_dict(), Path(f"{name}.safetensors"))


def lay_out(tutorial: Tutorial, samples: Path, root: Path) -> None:
    """Copy photographs into folders like those of the tutorial's data."""
    for folder, split in tutorial.splits.items():
        for name, theirs in zip(("ants", "bees"), tutorial.classes, strict=True):
            copied(samples / "hymenoptera" / split / name, root / folder / theirs, PICTURES[split])
    if tutorial.unlabelled:
        copied(samples / "hymenoptera" / "val" / "ants", root / tutorial.unlabelled, 2)


def copied(source: Path, target: Path, count: int) -> None:
    target.mkdir(parents=True)
    for picture in sorted(source.glob("*.jpg"))[:count]:
        shutil.copy(picture, target)


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_command_of_a_page_runs(page, samples, tmp_path, monkeypatch, capsys):
    tutorial = TUTORIALS[page]
    lay_out(tutorial, samples, tmp_path / tutorial.data)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        assert words[0] not in TAKE_DATA or words[1] == tutorial.data, words
        status = main(made_small(words))
        told = capsys.readouterr().err
        assert status == 0, f"headstart {' '.join(words)}\n{told}"
    for model, widths in tutorial.widths.items():
        weights = load_model(Path("models") / model).network.weights
        assert (weights[0].shape[1], *map(len, weights)) == widths, model


def test_a_folder_of_pictures_beside_the_splits_is_passed_over_and_predicted(samples, tmp_path, monkeypatch, capsys):
    tutorial = TUTORIALS["cats-and-rabbits"]
    lay_out(tutorial, samples, tmp_path / tutorial.data)
    monkeypatch.chdir(tmp_path)
    assert main(made_small(["finetune", tutorial.data, "--train", "head", "--out", "model"])) == 0
    told = capsys.readouterr().err
    assert "6 validation images, 2 classes" in told
    assert main(["predict", "model", f"{tutorial.data}/{tutorial.unlabelled}", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3  # with the header


def test_imagenets_row_needs_weights(samples, tmp_path, monkeypatch, capsys):
    tutorial = TUTORIALS["hotdog"]
    lay_out(tutorial, samples, tmp_path / tutorial.data)
    monkeypatch.chdir(tmp_path)
    [words] = [words for words in commands("hotdog") if any(word.startswith("imagenet:") for word in words)]
    assert main([*words, *SMALL["finetune"].split()]) != 0
    assert "--weights none" in capsys.readouterr().err


def test_vggs_own_widths_are_those_of_the_page():
    heads = [words for words in commands("three-ways") if words.count("4096") == 2]
    assert len(heads) == 3
    assert {"vgg16"} == {words[words.index("--backbone") + 1] for words in heads}
    assert describe("vgg16").dim == 512 * 7 * 7
    assert describe("mobilenet_v3_small").dim == 576


def test_the_index_leads_to_every_page_and_every_page_has_its_figures():
    index = (RECIPES / "README.md").read_text()
    assert {page.stem for page in RECIPES.glob("*.md")} - {"README"} == set(TUTORIALS)
    for page in TUTORIALS:
        assert f"({page}.md)" in index
        assert (
            "| what | set | validation % (95 % interval) | seconds | epochs |" in (RECIPES / f"{page}.md").read_text()
        )
