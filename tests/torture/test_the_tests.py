"""The hard tests must be able to fail: a cache that is wrong on purpose is caught by each of them."""

import os
import sys
from pathlib import Path

import pytest
from damage import Victim, count_damage
from powerloss import Disk, crash_states, lay_out, record
from watched import watched
from workloads import WORKLOADS, look

DATA = b"headstart" * 111
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they test tests that only Linux runs")


def test_what_is_reported_too_early_counts_as_lost(run_program, arena):
    counts = run_program("crashes.py", "liar", arena, 7)
    assert counts["lost"] > 0


@pytest.mark.parametrize("way", ["open", "mkdir by another name", "truncate"])
def test_a_change_by_an_unwatched_way_is_refused(arena, way):
    file = arena / "file"
    file.touch()
    real_mkdir = os.mkdir
    ways = {
        "open": lambda: file.write_text("new"),
        "mkdir by another name": lambda: real_mkdir(arena / "folder"),
        "truncate": lambda: os.truncate(file, 0),
    }
    with pytest.raises(AssertionError, match=r"behind the back|cannot follow"), watched(arena, lambda call: call.go()):
        ways[way]()


def test_calls_elsewhere_are_let_through(arena, tmp_path):
    calls = []
    with watched(arena, lambda call: (calls.append(call.name), call.go())[1]):
        (tmp_path / "elsewhere").mkdir()
        (arena / "here").mkdir()
    assert calls == ["mkdir"]


def lost_in_a_power_loss(arena):
    base = arena / "base"
    base.mkdir()
    disk = Disk(base)
    workload, lost = WORKLOADS["fill"], 0
    log = record(base, lambda acknowledge: workload.work(base / "cache", acknowledge))
    for number, (_, acknowledged, files) in enumerate(crash_states(disk, log, 0, seed=0)):
        lay_out(files, arena / str(number))
        try:
            lost += len(acknowledged - look(arena / str(number) / "cache"))
        except Exception:  # noqa: BLE001  (damage that is seen is a loss too, here)
            lost += 1
    return lost


def test_without_omissions_a_power_loss_loses_nothing(arena):
    assert lost_in_a_power_loss(arena) == 0


@pytest.mark.parametrize("omitted", ["_sync", "sync_folder"])
def test_each_omitted_fsync_is_noticed(arena, monkeypatch, omitted):
    monkeypatch.setattr(f"headstart.cache.publish.{omitted}", lambda _: None)
    assert lost_in_a_power_loss(arena) > 0


def test_folders_that_are_not_made_durable_are_noticed(arena, monkeypatch):
    def make_folder(folder, root=None):
        folder.mkdir(parents=True, exist_ok=True)

    for user in ("store", "listing", "memo"):
        monkeypatch.setattr(f"headstart.cache.{user}.make_folder", make_folder)
    assert lost_in_a_power_loss(arena) > 0


def test_a_reader_that_checks_nothing_is_silent_about_damage(arena):
    path = Path(arena / "file")
    path.write_bytes(DATA)
    counts = count_damage(Victim(path, {"careless": path.read_bytes}, lambda answer: answer == DATA), 100, 10)
    assert counts["careless"]["flip silent"] == 30
