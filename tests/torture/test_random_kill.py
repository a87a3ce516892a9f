"""T2: whole commands on real photographs, killed by SIGKILL at random moments, again and again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headstart.cache.part import Keys, check_part
from headstart.cache.store import FeatureStore
from support import add_rows, make_space, random_rows

HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())"]
# A fixed batch, to which the last one is padded, makes every run compute a row by the same kernels: bit for bit.
EXTRACT = [
    "extract",
    "photos",
    "--backbone",
    "efficientnet_lite0",
    "--resize",
    "96",
    "--crop",
    "96",
    "--batch-size",
    "8",
]
PHOTOS = 120


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HEADSTART_PART_SECONDS": "0.05"}
    return subprocess.Popen(
        [*HEADSTART, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(words: list[str], folder: Path) -> None:
    process = start(words, folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()


def contents(cache: Path) -> dict[bytes, bytes]:
    """Return digest -> row of all that readers see; every byte of every part is checked on the way."""
    store = FeatureStore(cache)
    seen: dict[bytes, bytes] = {}
    for space_id in store.space_ids():
        index, _ = store.index(space_id)
        rows = store.gather(space_id, index.keys)
        for digest, row in zip(index.keys.digest, rows, strict=True):
            seen.setdefault(digest.tobytes(), row.tobytes())
    assert not (cache / "quarantine").exists(), "something was damaged"
    return seen


def finished_parts(cache: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in cache.glob("spaces/*/*.h5")}


def killed(process: subprocess.Popen[bytes], words: str) -> bool:
    """Kill a process; False where it had come to its end before."""
    if process.poll() is not None:
        _, err = process.communicate()
        assert process.returncode == 0, f"{words} failed: {err.decode()}"
        return False
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 0), f"died of {process.returncode}"
    return process.returncode == -signal.SIGKILL


@pytest.fixture
def folder(tmp_path, samples):
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(samples.glob("hymenoptera/train/*/*.jpg"))[:PHOTOS]):
        shutil.copy(path, tmp_path / "photos" / f"{number:03}.jpg")
    return tmp_path


def kill_extract(folder: Path, times: int) -> str:
    cache = folder / ".headstart"
    finish(EXTRACT, folder)
    truth = contents(cache)
    assert len(truth) == PHOTOS
    shutil.rmtree(cache)
    rng = random.Random(0)
    kills = rounds = acknowledged = 0
    while kills < times:
        process = start(EXTRACT, folder)
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(cache.glob("running/*")) and time.monotonic() < deadline:
            time.sleep(0.01)  # until it reads pictures: a kill while Python imports proves little
        time.sleep(rng.uniform(0, 1.2))
        safe = finished_parts(cache)
        kills += killed(process, "extract")
        seen = contents(cache)
        assert all(path.read_bytes() == data for path, data in safe.items()), "a finished part changed"
        assert seen.items() <= truth.items(), "a row differs from that of an uninterrupted run"
        acknowledged += sum(check_part(path) for path in safe)
        if seen == truth:
            finish(EXTRACT, folder)
            assert contents(cache) == truth
            shutil.rmtree(cache)
            rounds += 1
    finish(EXTRACT, folder)
    assert contents(cache) == truth, "the rerun must complete, bit for bit"
    assert acknowledged > 0
    return f"T2 extract: {kills} kills by SIGKILL, {rounds} times complete and begun anew, {acknowledged} rows in parts that were finished before a kill, 0 lost, 0 wrong"


def kill_compact(folder: Path, times: int) -> str:
    space = make_space(dim=512)
    template = folder / "template"
    digest, rows = random_rows(2000, dim=512)
    for first in range(0, 2000, 50):
        add_rows(FeatureStore(template), space, digest[first : first + 50], rows[first : first + 50])
    truth = contents(template)
    rng = random.Random(1)
    kills = finished = 0
    cache = folder / "cache"
    while kills < times:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(template, cache)
        words = ["cache", "compact", "--cache", "cache", *(["--now"] if kills % 2 else [])]
        process = start(words, folder)
        probe = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < probe and not list(cache.glob("spaces/*/.*.tmp")):
            if len(list(cache.glob("spaces/*/*.h5"))) != 40:
                break
            time.sleep(0.001)  # until it writes or deletes
        time.sleep(rng.uniform(0, 0.03))
        dead = killed(process, "compact")
        kills, finished = kills + dead, finished + (not dead)
        assert contents(cache) == truth, "the rows differ after a kill"
        index, _ = FeatureStore(cache).index(space.id)
        assert len(index) == len(truth), "a row is seen twice"
        finish(["cache", "compact", "--now", "--cache", "cache"], folder)
        assert contents(cache) == truth
        assert len(list(cache.glob("spaces/*/*.h5"))) == 1
    np.testing.assert_array_equal(FeatureStore(cache).gather(space.id, Keys.plain(digest)), rows)
    return f"T2 compact: {kills} kills by SIGKILL and {finished} that came to their end before, {len(truth)} rows each, 0 lost, 0 twice, 0 wrong"


def test_t2_f01_extract_is_killed_and_goes_on(folder):
    print(kill_extract(folder, 3))


def test_t2_f03_compact_is_killed_and_loses_nothing(tmp_path):
    print(kill_compact(tmp_path, 4))


@pytest.mark.torture
def test_t2_extract_is_killed_200_times(folder):
    print(kill_extract(folder, 200))


@pytest.mark.torture
def test_t2_compact_is_killed_50_times(tmp_path):
    print(kill_compact(tmp_path, 50))
