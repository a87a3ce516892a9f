"""T5: many processes use one cache at once; whatever they do, a reader sees one row an image, and the right one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contention import IMAGES_A_ROUND, SPACES, chosen
from workloads import true_rows, words

from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore

PROGRAM = Path(__file__).resolve().parent.parent / "contention.py"


def start(role, *arguments):
    command = [sys.executable, str(PROGRAM), role, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait(process):
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, f"{process.args}: exit status {process.returncode}\n{err[-3000:]}"
    return json.loads(out)


def contend(root, stop, *, writers, rounds, readers, compactors=0):
    """Start all, wait for the writers, then stop the others; return what each role did."""
    others = [start("read", root, seed, stop) for seed in range(readers)]
    others += [start("compact", root, seed, stop) for seed in range(compactors)]
    working = [start("write", root, seed, rounds) for seed in range(writers)]
    try:
        written = [wait(process) for process in working]
        stop.touch()
        return written, [wait(process) for process in others]
    finally:
        for process in (*working, *others):
            process.kill()  # of those that have ended it is a no-op


def union(writers, rounds):
    """Return the digests that any writer chose, sorted."""
    every = np.concatenate([chosen(seed, number) for seed in range(writers) for number in range(rounds)])
    return np.unique(every, axis=0)


def check_all_there(root, wanted, space):
    assert np.array_equal(np.unique(FeatureStore(root).index(space.id)[0].keys.digest, axis=0), wanted)
    rows = FeatureStore(root).gather(space.id, Keys.plain(wanted))
    assert rows.tobytes() == true_rows(wanted, space).astype(np.float32).tobytes()
    assert not (root / "quarantine").exists()
    assert not list(root.rglob("*.tmp"))


LONG = pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.torture)])


@LONG
def test_f08_writers_of_the_same_images_all_succeed(arena, rounds):
    root, space, writers = arena / "cache", SPACES["first"], 4 if rounds < 20 else 8
    written, readers = contend(root, arena / "stop", writers=writers, rounds=rounds, readers=1)
    wanted = union(writers, rounds)
    total = sum(done["written"] for done in written)
    assert total >= len(wanted), "somebody wrote each image"
    check_all_there(root, wanted, space)
    assert readers[0]["seen"] == len(wanted)
    print(
        f"\nF8 {writers} writers: {total:,} rows written for {len(wanted):,} images, {readers[0]['rows']:,} read, 0 wrong"
    )


@LONG
def test_t5_writers_compactors_and_readers_at_once(arena, rounds):
    from headstart.cache.compact import compact

    root, space, writers = arena / "cache", SPACES["first"], 3 if rounds < 20 else 8
    crowd = {"readers": 1, "compactors": 2} if rounds < 20 else {"readers": 4, "compactors": 2}
    written, others = contend(root, arena / "stop", writers=writers, rounds=rounds, **crowd)
    wanted = union(writers, rounds)
    assert sum(done["asked"] for done in written) == writers * rounds * IMAGES_A_ROUND * 6 // 10
    check_all_there(root, wanted, space)
    compact(root, now=True)
    check_all_there(root, wanted, space)
    keys = FeatureStore(root).index(space.id)[0].keys
    assert len(keys) == len(wanted), "one row an image"
    assert len(FeatureStore(root).parts(space.id)) == 1
    compactions = sum(done["rounds"] for done in others if done["role"] == "compact")
    read = sum(done["rows"] for done in others if done["role"] == "read")
    print(
        f"\nT5 {writers} writers x {rounds} rounds, {crowd['compactors']} compactors ({compactions} compactions), "
        f"{crowd['readers']} readers ({read:,} rows read): {len(wanted):,} images, {len(keys):,} rows, 0 wrong, 0 exceptions"
    )
    assert compactions > 0
    assert read > 0


def test_f09_writers_of_different_spaces_do_not_mix(arena):
    root, rounds = arena / "cache", 2
    working = [start("write", root, seed, rounds, name) for seed in (0, 1) for name in SPACES]
    for process in working:
        wait(process)
    wanted = union(2, rounds)
    assert sorted(FeatureStore(root).spaces()) == sorted(space.id for space in SPACES.values())
    for space in SPACES.values():
        check_all_there(root, wanted, space)
    assert len({words(true_rows(wanted[:1], space).view(np.uint8))[0] for space in SPACES.values()}) == 2
