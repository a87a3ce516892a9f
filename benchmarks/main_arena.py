"""Forward passes that a thread other than the main one asks for: by a thread of glibc's main arena, and by itself.

The two take turns on the same network and batch, with as many threads of torch as a Dask worker of one thread has.

Run: python benchmarks/main_arena.py [rounds]
"""

import statistics
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from synthetic import seconds

from headstart.extract import embedder as module
from headstart.extract.main_arena import in_main_arena
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.resolve import resolve

BATCH = 64


def measure(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        embedder = resolve([SpaceOptions(backbone="efficientnet_lite0")], RunOptions(), Path(name))
    embedder.cores = 1
    embedder.load()
    side = embedder.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    ways = {"by itself": lambda call: call(), "main arena": in_main_arena}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            module.in_main_arena = way
            embedder.threads = 1
            found = seconds(lambda: embedder.embed(pixels)) / BATCH
            if number:  # the first of each warms up
                took[name].append(found)
    for name, all_of_them in took.items():
        print(f"{name}: {1e3 * statistics.median(all_of_them):.1f} ms an image")
    ratios = [plain / kept for plain, kept in zip(*took.values(), strict=True)]
    print(f"{statistics.median(ratios):.2f} times as fast in the main arena ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    asking = threading.Thread(target=measure, args=(rounds,))
    asking.start()
    asking.join()


if __name__ == "__main__":
    main()
