"""Views by the command line: runs that are killed, the commands of the cache, and what is said where something lacks."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, headstart, headstart_json, parts, safe_rows

from headstart.cache.info import info
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.cli import commands
from headstart.extract.augment import PRESETS
from headstart.extract.features import load_features
from headstart.extract.views import Views

__all__ = ["headstart", "headstart_json"]  # fixtures

SMALL = ("--backbone", BACKBONE, "--resize", "40", "--crop", "32")
FIXTURES = Path(__file__).parents[1] / "fixtures"


def rows_of(cache: Path, data: Path, views: Views) -> np.ndarray:
    """Return the rows of all views of all images of a dataset, (n, V, D), as the cache has them."""
    found = load_features(cache, data, views=views.count, augment=views.augment)
    return found.of_views(np.arange(len(found.rows)))


# Runs that end early


# Every run is a process of its own: the last bits of a row depend on how many threads torch has, and tests change that.
RUN = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", "extract"]
LONG = ("--backbone", BACKBONE, "--resize", "224", "--crop", "192", "--batch-size", "8", "--views", "6")


def run_to_its_end(few: Path, folder: Path) -> tuple[dict, np.ndarray]:
    """Extract six views of a few photographs into a folder; return what the run says, and the rows."""
    done = subprocess.run([*RUN, str(few), *LONG, "--json"], cwd=folder, check=True, capture_output=True)
    return json.loads(done.stdout), rows_of(folder / ".headstart", few, Views(6, "tutorial"))


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    """Return the rows of a run that nobody stopped."""
    return run_to_its_end(few, tmp_path_factory.mktemp("undisturbed"))[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_and_has_the_rows_of_one_that_was_not(few, tmp_path, undisturbed, how):
    process = subprocess.Popen(
        [*RUN, str(few), *LONG],
        cwd=tmp_path, env={**os.environ, "HEADSTART_PART_SECONDS": "0.05"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not parts(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(timeout=60) == (-how if how == signal.SIGKILL else 130)
    safe = safe_rows(tmp_path)
    assert 0 < safe < 36 * 6
    done, rows = run_to_its_end(few, tmp_path)
    assert (done["embedded"], done["reused"], done["failed"]) == (36 * 6 - safe, safe, 0)
    np.testing.assert_array_equal(rows, undisturbed)


# Looking after them


def test_verify_compact_prune_and_merge_keep_all_views_and_recipes(headstart_json, few, monkeypatch):
    monkeypatch.setenv("HEADSTART_PART_SECONDS", "0.001")
    cache, sets = Path(".headstart"), (Views(4, "tutorial"), Views(3, "flip"))
    headstart_json("extract", few, *SMALL, "--views", 2, "--batch-size", 8)
    headstart_json("extract", few, *SMALL, "--views", 4, "--batch-size", 8)
    headstart_json("extract", few, *SMALL, "--views", 3, "--augment", "flip", "--batch-size", 8)
    before = [rows_of(cache, few, views) for views in sets]
    shown = headstart_json("cache", "info")["spaces"][0]
    assert [(one["augment"], one["images"], one["views"], one["rows"]) for one in shown["views"]] == [
        ("flip", 36, 3, 72), ("tutorial", 36, 4, 108)
    ]  # fmt: skip
    assert shown["rows"] == 36 * (1 + 2 + 3) and shown["parts"] > 3

    def check(where: Path) -> None:
        for views, rows in zip(sets, before, strict=True):
            np.testing.assert_array_equal(rows_of(where, few, views), rows)
        (space,) = info(where).spaces
        assert [{**one, "used": 0} for one in map(vars_of, space.views)] == [
            {**one, "used": 0} for one in shown["views"]
        ]
        assert headstart_json("cache", "verify", "--sample", 5, "--cache", where)["bad"] == []

    headstart_json("cache", "compact", "--now")
    assert len(parts(Path())) == 1
    check(cache)
    assert headstart_json("cache", "compact", "--prune", "--now")["pruned"] == 0
    check(cache)
    headstart_json("cache", "merge", cache, "--cache", "other")
    check(Path("other"))
    (head,) = FeatureStore(Path("other")).heads(shown["id"])
    assert head.recipes == {**sets[0].recipes(), **sets[1].recipes()}
    for count in (4, 2):
        assert headstart_json("extract", few, *SMALL, "--views", count, "--cache", "other")["embedded"] == 0


def vars_of(one) -> dict:
    return {name: getattr(one, name) for name in ("augment", "version", "images", "views", "rows")}


def test_pruning_takes_the_views_of_images_that_have_gone(headstart_json, few, tmp_path):
    data = shutil.copytree(few, tmp_path / "data")
    headstart_json("extract", data, *SMALL, "--views", 3)
    next(data.rglob("*.jpg")).unlink()
    headstart_json("extract", data, *SMALL, "--views", 3)
    assert headstart_json("cache", "info")["orphans"] == 3
    assert headstart_json("cache", "compact", "--prune", "--now")["pruned"] == 3
    (views,) = headstart_json("cache", "info")["spaces"][0]["views"]
    assert (views["images"], views["rows"]) == (35, 70)


def test_info_says_which_views_there_are(headstart, few):
    headstart("extract", few, *SMALL, "--views", 4, "--limit", 20)
    headstart("extract", few, *SMALL, "--views", 3, "--augment", "flip", "--views-split", "train")
    _, out, _ = headstart("cache", "info")
    line = out.split("\n")[2]
    assert re.fullmatch(
        r"    views: 3 of flip \(version \d+\) for 24 images, 4 of tutorial \(version \d+\) for 20 images", line
    )
    shutil.copytree(FIXTURES / "cache-1", "old")
    _, out, _ = headstart("cache", "info", "--cache", "old")
    assert '    views: up to 3 of {"augment":"flip"} for 2 images' in out.split("\n")


def test_a_cache_from_before_views_takes_them_in(headstart_json, few):
    shutil.copytree(FIXTURES / "cache-1", ".headstart")
    plain = headstart_json("extract", few, *SMALL)
    more = headstart_json("extract", few, *SMALL, "--views", 2)
    assert (plain["embedded"], more["embedded"], more["reused"]) == (36, 36, 36)
    assert headstart_json("cache", "verify", "--sample", 3)["bad"] == []
    headstart_json("cache", "compact", "--now")
    assert rows_of(Path(".headstart"), few, Views(2, "tutorial")).shape == (36, 2, 1280)
    store, old = FeatureStore(Path(".headstart")), "4182d5753b3ca095"
    index, _ = store.index(old)
    assert sorted(index.keys.view.tolist()) == [0, 0, 0, 0, 1, 2]
    assert store.heads(old)[-1].recipes == {"77": {"augment": "flip"}}
    assert store.gather(old, Keys.plain(index.keys.digest[:1])).shape == (1, 4)


# What is said


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--views", "0"), 2, "Invalid value for '--views': 0 is not in the range x>=1."),
        (("--views", "1001"), 2, "views must be a whole number from 1 to 1,000; got 1001"),
        (("--augment", "flip"), 2, "one view is the plain crop, and --augment flip has no effect: pass --views 2"),
        (("--views-split", "train"), 2, "every image has one view, and --views-split train has no effect"),
        (("--views", "4", "--augment", "none"), 2, "Invalid value for '--augment': 'none' is not one of 'flip', "),
        (("--views", "4", "--views-split", "test"), 1, "has no image of the split test"),
    ],
)
def test_a_mistake_is_one_line(headstart, few, words, status, said):
    for more in ((), ("--dry-run",)):
        found, out, err = headstart("extract", few, *SMALL, *words, *more)
        assert (found, out) == (status, "")
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert said in line and err.splitlines()[-1] == line
    assert not Path(".headstart").exists()


def test_a_flat_folder_has_no_views(headstart, few):
    Path("flat").mkdir()
    shutil.copy(next(few.rglob("*.jpg")), "flat")
    status, _, err = headstart("extract", "flat", *SMALL, "--views", 2)
    assert status == 1
    assert err.splitlines()[-1] == (
        "error: flat has no labels, and views serve to train a head: make one folder a class, or leave --views out"
    )


def test_one_line_says_what_was_done(headstart, few):
    _, _, err = headstart("extract", few, *SMALL, "--views", 3, "--augment", "flip", "--views-split", "train")
    assert "36 images x 3 views (flip) of train: rows 84 embedded, 0 reused, 0 images failed in " in err


def commands_in(err: str) -> list[list[str]]:
    """Return the commands that the last line names, as the words of each after `headstart`."""
    found = re.findall(r"`headstart ([^`]+)`", err.splitlines()[-1])
    assert found, err
    return [shlex.split(command) for command in found]


def fails_until_told(headstart, *words) -> list[list[str]]:
    """Run a command that says which others it needs; run these as printed, and it again."""
    status, _, err = headstart(*words)
    assert status == 1 and "Traceback" not in err, err
    told = commands_in(err)
    for command in told:
        status, _, err = headstart(*command)
        assert status == 0, err
    status, _, err = headstart(*words)
    assert status == 0, err
    return told


FIT = ("fit-head", "--overwrite", "--quiet")


def test_more_views_than_there_are(headstart, headstart_json, few):
    options = ("--layer", "_blocks.4", "--pool", "avg")
    headstart_json("extract", few, *SMALL, *options, "--views", 4, "--views-split", "train")
    assert headstart(*FIT, few)[0] == 0
    ((*_, views, eight, augment, preset, split, train),) = fails_until_told(headstart, *FIT, few, "--views", 8)
    assert [views, eight, augment, preset, split, train] == [
        "--views", "8", "--augment", "tutorial", "--views-split", "train",
    ]  # fmt: skip
    (space,) = headstart_json("cache", "info")["spaces"]
    assert (space["views"][0]["views"], space["views"][0]["images"]) == (8, 24)


def test_a_preset_that_has_no_views(headstart, few):
    headstart("extract", few, *SMALL, "--views", 3)
    status, _, err = headstart("fit-head", few, "--augment", "flip")
    assert status == 1
    assert err.splitlines()[-1].startswith(
        f"error: no run over {few} made views of the preset flip to train on in this feature space "
        "(there are 3 of tutorial); run `headstart extract "
    )
    fails_until_told(headstart, *FIT, few, "--augment", "flip")
    fails_until_told(headstart, *FIT, few, "--views", 5, "--augment", "crop")


def test_views_where_there_are_plain_crops_alone(headstart, few):
    headstart("extract", few, *SMALL)
    status, _, err = headstart("fit-head", few, "--views", 3)
    assert status == 1 and "(there are plain crops alone); run `" in err
    fails_until_told(headstart, *FIT, few, "--views", 3)


def test_a_plain_run_after_one_with_views_is_told(headstart, headstart_json, few):
    headstart("extract", few, *SMALL, "--views", 3)
    headstart("extract", few, *SMALL)
    status, _, err = headstart("fit-head", few)
    assert status == 0 and "views each" not in err
    assert "made plain crops alone, the one before 3 views (tutorial): --views 3 trains on those" in err
    assert headstart_json("fit-head", few, "--views", 3, "--overwrite")["views"] == 3


@pytest.mark.parametrize("command", ["extract", "fit-head", "evaluate", "predict", "compare", "finetune"])
def test_every_preset_can_be_named(command):
    choices = {choice for option in commands.commands[command].params if option.name == "augment"
               for choice in option.type.choices}  # fmt: skip
    assert choices == set(PRESETS) - (set() if command == "finetune" else {"none"})


def test_views_of_another_split_are_not_trained_on(headstart, headstart_json, few):
    headstart("extract", few, *SMALL, "--views", 3, "--views-split", "val")
    assert headstart_json("fit-head", few, "--out", "plain")["views"] == 1
    fails_until_told(headstart, *FIT, few, "--views", 3)


def test_several_feature_spaces_with_different_views(headstart, headstart_json, few):
    early = ("--layer", "_blocks.4")
    headstart("extract", few, *SMALL, "--views", 4)
    headstart("extract", few, *SMALL, *early, "--views", 2, "--augment", "flip")
    both = ("--features", BACKBONE + ":fc.input", "--features", BACKBONE + ":_blocks.4")
    status, _, err = headstart("fit-head", few, *both, "--out", "plain")
    assert status == 0 and "the feature spaces were made with different views: the plain crop alone is taken" in err
    told = fails_until_told(headstart, *FIT, few, *both, "--views", 2)
    assert len(told) == 1 and "_blocks.4" in told[0], "the other has them"
    assert headstart_json(*FIT, few, *both)["views"] == 2, "the fewer of the two"


def test_views_of_new_images_are_added_by_the_command_that_is_named(headstart, headstart_json, few, tmp_path):
    data = shutil.copytree(few, tmp_path / "data")
    added = sorted((data / "train" / "bees").glob("*.jpg"))[:3]
    aside = [path.rename(tmp_path / path.name) for path in added]
    headstart("extract", data, *SMALL, "--views", 3)
    for path, place in zip(aside, added, strict=True):
        path.rename(place)
    headstart("extract", data, *SMALL)
    assert headstart_json(*FIT, data)["views"] == 1, "as the latest extract"
    status, _, err = headstart(*FIT, data, "--views", 3)
    assert status == 1 and "3 of 24 images lack views of the preset tutorial in efficientnet_lite0" in err
    fails_until_told(headstart, *FIT, data, "--views", 3)


def test_views_that_were_lost_are_made_again_by_the_command_that_is_named(headstart, headstart_json, few):
    headstart("extract", few, *SMALL, "--views", 3)
    for path in parts(Path()):
        path.unlink()
    fails_until_told(headstart, *FIT, few)
    assert headstart_json(*FIT, few)["views"] == 3, "and not the plain crop alone"
