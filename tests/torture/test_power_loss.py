"""T8: the power goes at each point of the work; whatever the disk may hold then, nothing that was reported is lost.

`powerloss` says what a disk may hold.
"""

import copy
import shutil
import sys

import pytest
from powerloss import Disk, crash_states, lay_out, record
from workloads import WORKLOADS, finish, look

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are followed by inode number")


SOME_OR_MANY = pytest.mark.parametrize("draws", [3, pytest.param(300, marks=pytest.mark.torture)], ids=["some", "many"])


def check(workload, found, when, acknowledged, files):
    """Lay out one state in a new folder `found` and look at it; then the work must complete."""
    lay_out(files, found)
    try:
        lost = (workload.safe | acknowledged) - look(found / "cache")
        assert not lost, f"{len(lost)} things lost that were acknowledged: {sorted(lost)[:3]}"
        finish(workload, found / "cache")
    except Exception as error:
        raise AssertionError(f"power lost {when}: {error!r}; found {sorted(files)}") from error
    shutil.rmtree(found)


def begin(workload, arena):
    """Arrange the work in a folder that is wholly durable; return the folder, the model of it, and the log."""
    base = arena / "base"
    base.mkdir()
    workload.arrange(base / "cache")
    disk = Disk(base)
    return disk, record(base, lambda acknowledge: workload.work(base / "cache", acknowledge))


@SOME_OR_MANY
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_t8_power_loss_loses_nothing_that_was_acknowledged(arena, name, draws):
    workload = WORKLOADS[name]
    disk, log = begin(workload, arena)
    states = promised = 0
    for when, acknowledged, files in crash_states(disk, log, draws, seed=len(name)):
        check(workload, arena / "found", when, acknowledged, files)
        states, promised = states + 1, promised + len(workload.safe | acknowledged)
    print(f"\nT8 power loss during {name}: {len(log)} changes, {states:,} states, {promised:,} things promised, 0 lost")
    assert states > 5
    assert promised > 0


def states_after(disk, log, draws):
    """Yield the states after a second run: all, or, where time is short, the one in which nothing pending survives."""
    if draws > 3:
        yield from crash_states(disk, log, draws=3, seed=draws)
        return
    for change in log:
        disk.replay(change)
    acknowledged = {word for change in log for word in change.words}
    yield "at the end, nothing pending", acknowledged, disk.after_power_loss("nothing pending", seed=0)


@SOME_OR_MANY
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_t8_a_kill_a_second_run_and_then_a_power_loss(arena, name, draws):
    """What a killed process left pending is not made durable by itself: the next run must not count on it."""
    workload = WORKLOADS[name]
    disk, log = begin(workload, arena)
    second, states = arena / "second", 0
    for number in range(len(log)):
        killed = copy.deepcopy(disk)
        for change in log[:number]:
            killed.replay(change)
        killed.move(second)
        again = record(second, lambda acknowledge: workload.work(second / "cache", acknowledge))
        for when, acknowledged, files in states_after(killed, again, draws):
            when = f"{when} of the run after one that was killed before {log[number]} ({number})"
            check(workload, arena / "found", when, acknowledged, files)
            states += 1
        shutil.rmtree(second)
    print(f"\nT8 kill, second run, power loss during {name}: {len(log)} kills, {states:,} states, 0 lost")
    assert states >= len(log)
