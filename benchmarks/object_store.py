"""A cache in a bucket against one in a folder: writing parts, gathering rows, a warm index.

The bucket is of a real S3 server (moto's) on loopback, in a process of its own, once as fast as it answers and once
with 20 ms before each answer, as a store in another building has. It is Python too, and shares the processor's cores:
its own time is in all figures, so rates are lower bounds, while what the wait costs is what it would cost anywhere.

Run: python benchmarks/object_store.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from synthetic import fill, make_space, random_rows, seconds

from headstart.cache import remote
from headstart.cache.part import Keys
from headstart.cache.place import Place, RemotePath, place_of
from headstart.cache.space import FeatureSpace
from headstart.cache.store import FeatureStore
from headstart.cache.writer import CUT_BYTES

DIM, ROWS, SMALL_PARTS, SMALL_ROWS, TIMES = 1280, 30_000, 128, 20, 5
TESTS = Path(__file__).resolve().parent.parent / "tests"
SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from object_store import serving
for store in serving("benchmark"):
    store.faults.reset(wait=float(sys.argv[2]))
    print(store.url, flush=True)
    sys.stdin.read()
"""


class Served:
    """A server in a process of its own, which this process reaches as s3:// while the block lasts."""

    def __init__(self, wait: float) -> None:
        self._wait = wait

    def __enter__(self) -> RemotePath:
        words = [sys.executable, "-c", SERVER, str(TESTS), str(self._wait)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        os.environ.update(
            AWS_ACCESS_KEY_ID="somebody", AWS_SECRET_ACCESS_KEY="anything", AWS_DEFAULT_REGION="us-east-1"
        )
        os.environ["AWS_ENDPOINT_URL"] = self._process.stdout.readline().strip()
        remote.filesystem.cache_clear()
        place = place_of("s3://benchmark/cache")
        assert isinstance(place, RemotePath)
        return place

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def one_part(store: FeatureStore, space: FeatureSpace, digest: np.ndarray, rows: np.ndarray) -> None:
    with store.writer(space) as writer:
        writer.add(Keys.plain(digest), rows)


def measure(root: Place) -> dict[str, float]:
    """Return medians, in seconds: of writing a small and a large part, gathering all rows, reading keys of parts."""
    space = make_space(DIM)
    digest, rows = random_rows(ROWS, DIM)
    store = fill(root / "large", space, digest, rows)
    large = CUT_BYTES // (4 * DIM)
    found: dict[str, list[float]] = {}
    big = FeatureStore(root / "more")
    big.prepare(space)
    for number in range(TIMES):
        more = random_rows(large, DIM, seed=100 + number)
        found.setdefault("large", []).append(seconds(partial(one_part, big, space, *more)))
    small = FeatureStore(root / "small")
    small.prepare(space)
    for number in range(SMALL_PARTS):
        more = random_rows(SMALL_ROWS, DIM, seed=1000 + number)
        found.setdefault("small", []).append(seconds(partial(one_part, small, space, *more)))
    shuffled = Keys.plain(digest[np.random.default_rng(1).permutation(ROWS)])
    for _ in range(TIMES):
        fresh = FeatureStore(root / "large")
        found.setdefault("gather", []).append(seconds(lambda fresh=fresh: fresh.gather(space.id, shuffled)))
        fresh = FeatureStore(root / "small")
        found.setdefault("index", []).append(seconds(lambda fresh=fresh: fresh.index(space.id)))
    np.testing.assert_array_equal(store.gather(space.id, Keys.plain(digest[:100])), rows[:100])
    return {name: statistics.median(times) for name, times in found.items()}


def report(name: str, found: dict[str, float], folder: dict[str, float]) -> None:
    megabytes = ROWS * DIM * 4 / 1e6
    lines = {
        "small": f"write a part of {SMALL_ROWS * DIM * 4 / 1e3:.0f} kB {1000 * found['small']:8.1f} ms",
        "large": f"write a part of {CUT_BYTES / 1e6:.0f} MB {1000 * found['large']:8.1f} ms",
        "gather": f"gather {ROWS:,} rows {found['gather']:6.2f} s, {megabytes / found['gather']:.0f} MB/s",
        "index": f"keys of {SMALL_PARTS} parts, 2 requests each {found['index']:.2f} s",
    }  # fmt: skip
    print(name)
    for what, line in lines.items():
        print(f"  {line}, {found[what] / folder[what]:.1f} times a folder")


def main() -> None:
    os.environ.pop("HEADSTART_PART_SECONDS", None)
    with tempfile.TemporaryDirectory() as name:
        folder = measure(Path(name))
    report("a folder of this machine", folder, folder)
    for wait in (0.0, 0.02):
        with Served(wait) as root:
            begin = time.perf_counter()
            found = measure(root)
            report(f"a bucket that answers after {1000 * wait:.0f} ms", found, folder)
            rate = (CUT_BYTES - SMALL_ROWS * DIM * 4) / max(1e-9, found["large"] - found["small"]) / 1e6
            print(f"  put, for a cost model: {1000 * found['small']:.0f} ms + 1 s for each {rate:.0f} MB")
            print(f"  (all in {time.perf_counter() - begin:.0f} s)")


if __name__ == "__main__":
    main()
