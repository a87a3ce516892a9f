"""A warm `extract` against one walk of the same tree, both as whole processes timed from outside.

The walk is `os.scandir` and a `stat` of each entry, in a Python process that does nothing else. The pictures are real:
one small JPEG with other bytes behind its end for each file. Their embeddings are random, put into the cache through
the store, in the space that a real run resolved to; a real run then lists, reads and hashes every file, and the runs
behind it, once the files are older than 2 s, are the warm ones.

Run: python benchmarks/warm_extract.py [number of images ...]
"""

import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.cache.listing import RACY_NS
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore

BACKBONE = "efficientnet_lite0"
CLASSES = 20
PAIRS = 5
ROWS = 4096  # written at a time
HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import run; run()"]
WALK = """
import os, sys

def walk(folder):
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat()
            if entry.is_dir():
                walk(entry.path)

walk(sys.argv[1])
"""


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def extract(folder: Path, data: str) -> tuple[float, dict]:
    words = ["extract", data, "--backbone", BACKBONE, "--cache", "cache", "--json"]
    seconds, text = timed(HEADSTART + words, folder)
    return seconds, json.loads(text)


def make_pictures(folder: Path, count: int) -> np.ndarray:
    """Write `count` pictures into class folders and return their digests, (count, 32) uint8."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    for number in range(min(CLASSES, count)):
        (folder / f"class_{number:02}").mkdir(parents=True)
    digests = bytearray()
    for number in range(count):
        data = buffer.getvalue() + b"%08d" % number
        (folder / f"class_{number % CLASSES:02}" / f"picture_{number:08}.jpg").write_bytes(data)
        digests += hashlib.sha256(data).digest()
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def fill_cache(cache: Path, digests: np.ndarray) -> None:
    """Put a random embedding for each digest into the one space of the cache."""
    store = FeatureStore(cache)
    (space,) = store.spaces().values()
    random = np.random.default_rng(0)
    with store.writer(space) as writer:
        for begin in range(0, len(digests), ROWS):
            part = digests[begin : begin + ROWS]
            writer.add(Keys.plain(part), random.standard_normal((len(part), space.dim), np.float32))


def measure(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "one", 1)
        extract(folder, "one")  # resolves the backbone to a feature space
        fill_cache(folder / "cache", make_pictures(folder / "many", count))
        time.sleep(1.5 * RACY_NS / 1e9)  # the files are then old enough for the listing to be believed
        first, result = extract(folder, "many")
        print(f"{count} images in {CLASSES} folders, {result['embedded']} embedded, {result['reused']} reused")
        print(f"  the first run lists, reads and hashes: {first:.2f} s")
        pairs = []
        for _ in range(PAIRS):
            walk, _ = timed([sys.executable, "-c", WALK, "many"], folder)
            warm, result = extract(folder, "many")
            if (result["embedded"], result["reused"], result["stages"]["read"]) != (0, count, 0):
                sys.exit(f"this run was not warm: {result}")
            pairs.append((walk, warm))
            print(f"  walk {walk:.3f} s, warm extract {warm:.3f} s, {result['stages']['list']:.3f} s of it listing")
    walk, warm = (statistics.median(column) for column in zip(*pairs, strict=True))
    allowed = 1.5 * walk + 0.5
    print(f"  medians of {PAIRS}: warm / walk {warm / walk:.2f}; beyond 1.5 walks {warm - 1.5 * walk:.3f} s")
    print(f"warm extract {warm:.3f} s against walk {walk:.3f} s: allowed 1.5 x {walk:.3f} + 0.5 = {allowed:.3f} s")


def main() -> None:
    os.environ.pop("HEADSTART_CACHE", None)
    for count in [int(word) for word in sys.argv[1:]] or [1_000, 100_000]:
        measure(count)


if __name__ == "__main__":
    main()
