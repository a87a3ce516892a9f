"""Copies by class: names that cannot lead elsewhere, files that are never replaced, and what a second run does."""

import errno
import os
from pathlib import Path

import pytest

from headstart.classify.prediction import Prediction
from headstart.classify.sorting import LONGEST, NONE, UNSURE, Sorter, folder_names
from headstart.errors import OutputError

HOSTILE = ["", ".", "..", "../..", "a/b", "/etc", "a\\b", "a\0b", "CON", "nul.txt", "Lpt1", ".git", "x.", "x ", " y",
           "a\nb", "\udcff", "ant", "ANT", UNSURE, NONE, "é" * 200, "c:", "café", "cafe\u0301"]  # fmt: skip
MTIME = 1_234_567_890_123_456_700


@pytest.fixture
def new(tmp_path) -> Path:
    """A folder with two different files of one name, in folders of their own."""
    for name in ("a", "b"):
        (tmp_path / "new" / name).mkdir(parents=True)
        (tmp_path / "new" / name / "1.jpg").write_bytes(f"picture {name}".encode())
        os.utime(tmp_path / "new" / name / "1.jpg", ns=(MTIME, MTIME))
    return tmp_path / "new"


def sorted_into(out: Path, *rows: Prediction, classes=("ant", "bee")) -> Sorter:
    sorter = Sorter(out, classes)
    for row in rows:
        sorter.take(row)
    return sorter


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


# Names


def test_a_safe_name_is_kept():
    assert folder_names(["ant", "Honey bee", "été", "-x", "a.b"]) == {
        name: name for name in ("ant", "Honey bee", "été", "-x", "a.b")
    }


def test_hostile_names_give_folders_of_one_level_that_no_file_system_confuses():
    found = folder_names(HOSTILE)
    assert list(found) == HOSTILE
    for folder in found.values():
        assert Path(folder).name == folder and folder not in (".", "..")
        assert folder.isprintable() and folder == folder.strip() and not folder.startswith(".")
        assert not set('/\\<>:"|?*') & set(folder) and len(folder.encode()) <= LONGEST + 17
        assert folder.split(".")[0].casefold() not in ("con", "nul", "lpt1")
    assert len({folder.casefold() for folder in found.values()}) == len(HOSTILE)
    assert not {UNSURE, NONE} & set(found.values())


def test_a_class_that_is_named_like_the_changed_name_of_another_does_not_share_its_folder():
    changed = folder_names(["a/b"])["a/b"]
    found = folder_names(["a/b", changed])
    assert found["a/b"] == changed
    assert found[changed] != changed


def test_hostile_classes_stay_in_the_folder(tmp_path, new):
    rows = [Prediction(str(new / "a" / "1.jpg"), name, 1.0, {}) for name in HOSTILE]
    sorter = sorted_into(tmp_path / "deep" / "out", *rows, classes=HOSTILE)
    assert sorter.copied.total() == len(HOSTILE)
    assert len(below(tmp_path / "deep" / "out")) == len(HOSTILE)
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "new"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}


# Copies


def test_pictures_go_where_their_predictions_say(tmp_path, new):
    one, two = str(new / "a" / "1.jpg"), str(new / "b" / "1.jpg")
    sorter = sorted_into(
        tmp_path / "out",
        Prediction(one, "ant", 0.9, {}),
        Prediction(two, None, 0.4, {}, unsure=True),
        Prediction(str(new / "bad.jpg"), error="not an image"),
        Prediction(str(new / "gone.jpg"), "ant", 0.9, {}),
        Prediction(one, "ant|bee", 0.9, {}, labels=["ant", "bee"]),
        Prediction(two, "", 0.1, {}, labels=[]),
    )
    assert below(tmp_path / "out") == [f"{NONE}/1.jpg", f"{UNSURE}/1.jpg", "ant/1.jpg", "bee/1.jpg"]
    copy = tmp_path / "out" / "ant" / "1.jpg"
    assert copy.read_bytes() == b"picture a" and copy.stat().st_mtime_ns == MTIME
    assert sorter.summary() == {
        "out": str(tmp_path / "out"), "copied": 4, "there": 1, "unread": 2,
        "folders": {NONE: 1, UNSURE: 1, "ant": 1, "bee": 1},
    }  # fmt: skip
    assert len(below(new)) == 2, "the pictures stay where they are"


def test_names_that_clash_are_told_apart_and_a_second_run_copies_nothing(tmp_path, new):
    rows = [Prediction(str(new / name / "1.jpg"), "ant", 0.9, {}) for name in ("a", "b")]
    assert sorted_into(tmp_path / "out", *rows).copied == {"ant": 2}
    first = below(tmp_path / "out")
    assert first[1] == "ant/1.jpg" and first[0].startswith("ant/1-") and first[0].endswith(".jpg")
    again = sorted_into(tmp_path / "out", *reversed(rows))
    assert (again.copied.total(), again.there) == (0, 2)
    assert below(tmp_path / "out") == first


def test_a_file_that_is_there_is_never_replaced(tmp_path, new):
    mine = tmp_path / "out" / "ant" / "1.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    (mine.parent / "link.jpg").symlink_to(new / "b" / "1.jpg")
    (new / "link.jpg").write_bytes(b"picture b")
    rows = [Prediction(str(new / name), "ant", 0.9, {}) for name in ("a/1.jpg", "link.jpg")]
    assert sorted_into(tmp_path / "out", *rows).copied == {"ant": 2}
    assert mine.read_bytes() == b"mine"
    assert (mine.parent / "link.jpg").is_symlink(), "a link is no copy, whatever it leads to"
    assert len(below(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".jpg", "x" * 255, "." + "x" * 254, "é" * 125 + ".jpg", "🐜" * 62 + ".jpg", "\udcff.jpg"]
)
def test_long_and_odd_file_names_clash_without_harm(tmp_path, new, name):
    for folder in ("a", "b"):
        (new / folder / name).write_bytes(folder.encode())
    rows = [Prediction(str(new / folder / name), "ant", 0.9, {}) for folder in ("a", "b")]
    assert sorted_into(tmp_path / "out", *rows).copied == {"ant": 2}
    assert {(tmp_path / "out" / path).read_bytes() for path in below(tmp_path / "out")} == {b"a", b"b"}


def test_a_link_in_the_place_of_a_class_is_not_followed(tmp_path, new):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ant").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="ant is a link and in the way"):
        sorted_into(tmp_path / "out", Prediction(str(new / "a" / "1.jpg"), "ant", 0.9, {}))
    assert not below(tmp_path / "elsewhere")


def test_a_file_in_the_place_of_a_folder_is_one_clear_line(tmp_path, new):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="--sort-into"):
        Sorter(tmp_path / "out", ["ant"])


# A folder that the next run would read


def test_copies_are_not_put_where_the_next_run_would_find_them(tmp_path, new):
    (tmp_path / "alias").symlink_to(new)
    for out, inputs in (
        (new / "out", [new]),
        (new, [new]),
        (tmp_path / "alias", [new]),
        (tmp_path, [tmp_path / "ant"]),
    ):
        (tmp_path / "ant").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match="name a folder outside"):
            Sorter(out, ["ant"], inputs)
    Sorter(tmp_path, ["ant"], [new])
    Sorter(new / "out", ["ant"], [new / "a" / "1.jpg"])


def test_a_copy_that_is_named_itself_stays_where_it_is(tmp_path, new):
    copy = tmp_path / "out" / "ant" / "1.jpg"
    sorted_into(tmp_path / "out", Prediction(str(new / "a" / "1.jpg"), "ant", 0.9, {}))
    again = sorted_into(tmp_path / "out", Prediction(str(copy), "ant", 0.9, {}))
    assert (again.copied.total(), again.there) == (0, 1)


# Disks that refuse


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_of_a_copy(tmp_path, new, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    sorter = Sorter(tmp_path / "out", ["ant"])
    monkeypatch.setattr(os, "utime", full)  # the last call before a copy gets its name
    with pytest.raises(OutputError, match="the disk is full; 0 were copied; free some space and run again"):
        sorter.take(Prediction(str(new / "a" / "1.jpg"), "ant", 0.9, {}))
    assert below(tmp_path / "out") == []


def test_a_file_system_without_hard_links_gets_copies_too(tmp_path, new, monkeypatch):
    def refused(*_arguments, **_options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    rows = [Prediction(str(new / name / "1.jpg"), "ant", 0.9, {}) for name in ("a", "b")]
    assert sorted_into(tmp_path / "out", *rows).copied == {"ant": 2}
    assert sorted_into(tmp_path / "out", *rows).there == 2
