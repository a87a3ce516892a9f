"""What is asked of many files at once is what is asked of each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from headstart.cache.names import Names
from headstart.extract import status
from headstart.extract.status import all_examined, examined


@pytest.fixture
def names(tmp_path: Path) -> list[bytes]:
    """Make files that are there beside such as are not, in folders that are there and in others."""
    for name in ("a/1.jpg", "a/2.jpg", "c/sub/1.jpg", "z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    (tmp_path / "a/empty.jpg").mkdir()
    found = ["a/1.jpg", "a/2.jpg", "a/empty.jpg", "a/gone.jpg", "b/1.jpg", "b/2.jpg", "b/sub/1.jpg", "c/gone/1.jpg"]
    found += ["c/sub/1.jpg", "d/1.jpg", "d/2.jpg", "gone.jpg", "z.jpg", "z.jpg/1.jpg", "z.jpg/2.jpg", "\0"]
    if os.name == "posix":
        (tmp_path / "d").symlink_to("nowhere")
        (tmp_path / "a/dangling.jpg").symlink_to("nowhere")
        os.mkfifo(tmp_path / "a/pipe.jpg")
        found += ["a/dangling.jpg", "a/pipe.jpg"]
    return [os.fsencode(name) for name in found]


@pytest.mark.parametrize("at_once", [1, 4, 256])
@pytest.mark.parametrize("order", [1, -1])
def test_all_say_what_each_says(
    tmp_path: Path, names: list[bytes], at_once: int, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_AT_ONCE", at_once)
    folder, asked = os.fsencode(tmp_path), [*names[::order], os.fsencode(tmp_path / "z.jpg")]
    expected = [examined(os.path.join(folder, name)) for name in asked]  # noqa: PTH118
    stats, reasons = all_examined(folder, Names.of(asked))
    np.testing.assert_array_equal(stats, [found for found, _ in expected])
    assert reasons == {row: reason for row, (_, reason) in enumerate(expected) if reason is not None}


def test_names_without_a_folder_are_looked_for_in_the_working_directory(
    tmp_path: Path, names: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, reasons = all_examined(b"", Names.of([b"b/1.jpg", b"gone.jpg", b"z.jpg", b"b/1.jpg", b"gone.jpg", b"z.jpg"]))
    assert reasons == dict.fromkeys((0, 1, 3, 4), "not found")


def test_what_is_not_there_in_a_folder_that_is_not_there_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(status, "examined", lambda path: asked.append(path) or examined(path))
    _, reasons = all_examined(os.fsencode(tmp_path), Names.of(b"gone/%03d.jpg" % number for number in range(200)))
    assert len(reasons) == 200 and set(reasons.values()) == {"not found"}
    assert asked == [os.fsencode(tmp_path / "gone/000.jpg"), os.fsencode(tmp_path / "gone")]
