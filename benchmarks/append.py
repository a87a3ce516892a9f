"""What it costs to add 1,000 rows to a cache of 10 thousand, 100 thousand and 1 million, and to look up a million keys.

The baseline of adding is the empty cache, that of looking up is `np.isin` on the digests as byte strings. The disk's
sync is part of an addition and varies from disk to disk, so each is done many times and the median counts.

Run: python benchmarks/append.py
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from synthetic import fill, make_space, random_rows, seconds

from headstart.cache.index import KeyIndex
from headstart.cache.part import Keys
from headstart.cache.space import FeatureSpace
from headstart.cache.store import FeatureStore

DIM, ADDED, TIMES, MILLION = 64, 1000, 31, 1_000_000


def add(store: FeatureStore, space: FeatureSpace, digest: np.ndarray, rows: np.ndarray) -> None:
    with store.writer(space) as writer:
        writer.add(Keys.plain(digest), rows)


def main() -> None:
    space = make_space(DIM)
    digest, rows = random_rows(MILLION, DIM)
    more = [random_rows(ADDED, DIM, seed) for seed in range(1, 1 + TIMES)]
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            count: fill(Path(folder) / str(count), space, digest[:count], rows[:count])
            for count in (0, 10_000, 100_000, MILLION)
        }
        os.sync()
        times: dict[int, list[float]] = {count: [] for count in stores}
        for pair in more:  # in turn, so that what else the disk does falls on all alike
            for count, store in stores.items():
                times[count].append(seconds(partial(add, store, space, *pair)))
        print(f"adding {ADDED} rows of {DIM} numbers, median of {TIMES}")
        for count, found in times.items():
            median, alone = statistics.median(found), statistics.median(times[0])
            print(f"  to {count:>9,} rows: {1000 * median:6.2f} ms, {median / alone:.2f} times an empty cache")
        lookup(stores[MILLION], space, digest)


def lookup(store: FeatureStore, space: FeatureSpace, digest: np.ndarray) -> None:
    shuffled = Keys.plain(np.random.default_rng(2).permutation(digest))
    indexes: list[KeyIndex] = []
    reading = min(seconds(lambda: indexes.append(store.index(space.id)[0])) for _ in range(5))
    index = indexes[-1]
    looking = min(seconds(lambda: index.find(shuffled)) for _ in range(5))
    assert (index.find(shuffled) >= 0).all()
    theirs = index.keys.digest.view("V32").reshape(-1)
    plain = min(seconds(lambda: np.isin(shuffled.digest.view("S32"), theirs.view("S32"))) for _ in range(2))
    print(f"looking up {MILLION:,} keys among {len(index):,}: {looking:.3f} s (below 1 s is the target)")
    print(f"  reading the keys from the disk, checked: {reading:.3f} s; np.isin, which gives no row: {plain:.3f} s")


if __name__ == "__main__":
    main()
