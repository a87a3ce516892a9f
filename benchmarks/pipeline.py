"""Extraction from JPEGs against the slower of its two halves alone, in one process; and its memory on more pictures.

Decoding alone is reading, hashing, decoding and resizing in the run's own threads; the forward pass alone is the run's
own network on the run's own batches. The run is the loop of `extract`, without importing and loading.

Run: HEADSTART_SAMPLES=... python benchmarks/pipeline.py [backbone ...]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from headstart.cache.index import KeyIndex
from headstart.cache.store import FeatureStore
from headstart.extract.batches import Target
from headstart.extract.embedder import Embedder
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.reader import Need, Reader
from headstart.extract.resolve import resolve
from headstart.extract.runner import Work, run

PICTURES = 2000
MEMORY = (1_000, 20_000)
PEAK = """
import sys
from pathlib import Path
from headstart.cli import main
status = main(["extract", sys.argv[1], "--backbone", "efficientnet_lite0", "--resize", "64", "--crop", "64", "-q"])
text = Path("/proc/self/status").read_text()
print(1024 * int(text.split("VmHWM:")[1].split()[0]))
sys.exit(status)
"""


def photographs(folder: Path, samples: Path, count: int) -> list[bytes]:
    """Write `count` different files: real photographs, and more of them with other bytes behind their end."""
    folder.mkdir()
    found = [path for path in sorted(samples.glob("*/*/*/*.jpg")) if path.stat().st_size < 400_000]
    names = []
    for number in range(count):
        name = f"{number:06}.jpg"
        (folder / name).write_bytes(found[number % len(found)].read_bytes() + b"%06d" % number)
        names.append(name.encode())
    return names


def extraction_rate(folder: Path, names: list[bytes], embedder: Embedder, cache: Path) -> float:
    """Return the images a second of the loop of `extract`, into a cache that holds none of them."""
    store, space = FeatureStore(cache), embedder.spaces[0]
    store.prepare(space)
    with store.writer(space) as writer:
        work = Work(names, np.zeros((len(names), 4)), np.arange(len(names)), os.fsencode(folder))
        outcome = run(work, [Target(embedder, (KeyIndex([]),), (writer,))], embedder.run, cache)
    return outcome.images / outcome.seconds


def rates(folder: Path, names: list[bytes], backbone: str) -> None:
    cache = Path(tempfile.mkdtemp(dir=folder.parent))
    weights = "default" if backbone.startswith("efficientnet_lite") else "none"
    embedder = resolve([SpaceOptions(backbone=backbone, weights=weights)], RunOptions(), cache)
    embedder.load()
    base = os.fsencode(folder)
    nothing = (KeyIndex([]),)
    reader, workers = Reader(base, [Need(embedder.preprocess, nothing)]), len(os.sched_getaffinity(0))
    reader.read(0, names[0])
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        items = list(pool.map(reader.read, range(len(names)), names))
    decode = len(names) / (time.perf_counter() - begin)
    pixels = [item.pixels[0] for item in items if item.pixels]
    batches = [np.stack(pixels[i : i + embedder.batch_size]) for i in range(0, len(pixels), embedder.batch_size)]
    del items, pixels
    embedder.embed(batches[0])
    begin = time.perf_counter()
    for batch in batches:
        embedder.embed(batch)
    forward = len(names) / (time.perf_counter() - begin)
    del batches
    both = extraction_rate(folder, names, embedder, cache)
    shared = 1 / (1 / decode + 1 / forward)
    print(
        f"{backbone:<20} decode {decode:6.0f} images/s, forward {forward:6.0f}, extraction {both:6.0f}: "
        f"{both / min(decode, forward):.2f} of the slower alone, {both / shared:.2f} of both in turn on the same cores"
    )
    shutil.rmtree(cache)


def peak(folder: Path, samples: Path, count: int) -> int:
    photographs(folder / str(count), samples, count)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder / str(count))], cwd=folder, capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    with tempfile.TemporaryDirectory() as folder:
        names = photographs(Path(folder) / "photos", Path(samples), PICTURES)
        for backbone in sys.argv[1:] or ("resnet18", "mobilenet_v3_small", "efficientnet_lite0"):
            rates(Path(folder) / "photos", names, backbone)
        print("target: at least 0.9 of the slower alone")
        if len(sys.argv) == 1:
            peaks = [peak(Path(folder), Path(samples), count) for count in MEMORY]
            small, large = (
                f"{size / 1e6:.0f} MB on {count:,} pictures" for size, count in zip(peaks, MEMORY, strict=True)
            )
            print(f"peak memory of extract: {small}, {large}, ratio {peaks[1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
