"""T1: the process dies of a real SIGKILL at each of its operations on files; nothing that it reported is lost."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills itself between two system calls")
SOME_OR_ALL = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.torture)], ids=["some", "all"])


def check(counts, title, *, acknowledges=True):
    text = (
        f"{title}: {counts['kills']} kills ({counts['torn']} torn) at {counts['calls']} calls, "
        f"{counts['sigkill']} died of SIGKILL, {counts['acknowledged']:,} rows acknowledged, {counts['lost']} lost"
    )
    print(f"\n{text}")
    assert counts["kills"] > 0, text
    assert counts["sigkill"] == counts["kills"], text
    assert counts["finished"] == 1, text
    assert counts["lost"] == 0, text
    assert (counts["acknowledged"] > 0) == acknowledges, text


@SOME_OR_ALL
def test_t1_kill_while_a_cache_is_filled(run_program, arena, every):
    counts = run_program("crashes.py", "fill", arena, every)
    check(counts, "T1 enumerated crashes")
    assert counts["torn"] > 0


def test_f02_kill_during_rename_or_sync_leaves_a_part_whole_or_absent(run_program, arena):
    counts = run_program("crashes.py", "fill", arena, 2, "replace", "rename", "fsync")
    check(counts, "F2 kills at rename and fsync")


@SOME_OR_ALL
@pytest.mark.parametrize("job", ["compact", "compact-now", "compact-later"])
def test_f03_kill_during_compact_keeps_the_same_rows(run_program, arena, job, every):
    counts = run_program("crashes.py", job, arena, every)
    check(counts, f"F3 kills during {job}", acknowledges=False)
