"""What extraction costs: constants measured one by one, a model made of them, and its prediction beside real runs.

Three sizes are run as whole `extract` processes, in one process and on a Dask cluster of two workers. The model takes
what a run costs whatever its size and what an image costs from the two smaller sizes alone, and predicts the largest,
in seconds and in bytes of the cache. Beside that stand the constants: what reading, hashing, decoding and the network
cost an image, what a row takes on disk and in the index, what publishing a part, a shard and a listed path cost. From
the line of the runs, which has in it that stages share cores, follow the machines, days, storage and price of a
million, a hundred million and a billion images, for prices that can be given, and what a worker holds in memory.

Run: HEADSTART_SAMPLES=... python benchmarks/cost_model.py [--sizes 1000 4000 16000] [--backbone efficientnet_lite0]
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pipeline import photographs
from synthetic import seconds

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from clusters import dask_cluster

from headstart.cache.index import KeyIndex
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.cache.writer import CUT_BYTES
from headstart.extract.device import available_cores
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.reader import Need, Reader
from headstart.extract.resolve import resolve

HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import run; run()"]
APART = 512  # images that the constants are measured on
INDEXED = 1_000_000  # rows of the index that is measured
SMALL_SHARD = 20  # images: fifty times as many shards as there have to be, to see what one costs
NAME_BYTES = 127  # of a listed path of 29 bytes in memory, with all that is known of it: benchmarks/listing.py
TIMES = 5
# Rates of one machine with 16 cores and one H200 from JPEGs of 36 kB, ResNet-18, in 4 processes: docs/speed.md.
GPU_RATE = 2_700.0


@dataclass(frozen=True)
class Constants:
    """What one thing costs, in seconds of one core or in bytes: an image, a row or a part."""

    read: float
    hash: float
    decode: float
    forward: float
    image_bytes: float
    put: float
    row_bytes: float = 0.0
    listed_bytes: float = 0.0
    index_bytes: float = 0.0
    index: float = 0.0

    @property
    def core_seconds(self) -> float:
        """Of one image, from its bytes on disk to its row, each stage by itself."""
        return self.read + self.hash + self.decode + self.forward


@dataclass(frozen=True)
class Line:
    """Seconds of a run: `start` whatever its size, and `image` for each image."""

    start: float
    image: float

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> "Line":
        """Return the line through two runs of different sizes."""
        slope = (second[1] - first[1]) / (second[0] - first[0])
        return cls(first[1] - slope * first[0], slope)

    def at(self, images: int) -> float:
        """Return what it says of a run of another size."""
        return self.start + self.image * images


def best(call, times: int = TIMES) -> float:
    return min(seconds(call) for _ in range(times))


def constants(folder: Path, names: list[bytes], backbone: str) -> Constants:
    """Measure each on its own, one thread at a time, the network with all cores."""
    cache = folder.parent / "constants"
    weights = "default" if backbone.startswith("efficientnet_lite") else "none"
    embedder = resolve([SpaceOptions(backbone=backbone, weights=weights)], RunOptions(), cache)
    embedder.load()
    space, names = embedder.spaces[0], names[:APART]
    paths = [folder / os.fsdecode(name) for name in names]
    contents = [path.read_bytes() for path in paths]
    reading = best(lambda: [path.read_bytes() for path in paths]) / len(names)
    hashing = best(lambda: [hashlib.sha256(data).digest() for data in contents]) / len(names)
    store = FeatureStore(cache)
    store.prepare(space)
    need = Need(embedder.preprocess, (store.index(space.id)[0],))
    torch.set_num_threads(1)
    reader = Reader(os.fsencode(folder), [need])
    whole = best(lambda: [reader.read(number, name) for number, name in enumerate(names)]) / len(names)
    torch.set_num_threads(available_cores())
    inputs = np.stack([reader.read(number, name).inputs[0][0] for number, name in enumerate(names[:64])])
    forward = best(lambda: embedder.embed(inputs)) / len(inputs) * available_cores()
    rows = np.random.default_rng(0).random((CUT_BYTES // space.row_bytes, space.dim), np.float32)
    put = statistics.median(seconds(lambda number=number: publish(store, space, rows, number)) for number in range(9))
    return Constants(
        reading, hashing, max(0.0, whole - reading - hashing), forward,
        statistics.mean(map(len, contents)), put,
    )  # fmt: skip


def index_of(rows: int) -> tuple[float, float]:
    """Return what the index of so many rows takes, in seconds and in bytes a row."""
    keys = Keys.plain(np.random.default_rng(0).integers(0, 256, (rows, 32), np.uint8))
    begin = time.perf_counter()
    index = KeyIndex([keys])
    took = time.perf_counter() - begin
    held = (index.keys.digest, index.keys.recipe, index.keys.view, index._sorted)
    return took / rows, sum(array.nbytes for array in held) / rows


def publish(store: FeatureStore, space, rows: np.ndarray, number: int) -> None:
    digest = np.random.default_rng(number).integers(0, 256, (len(rows), 32), np.uint8)
    with store.writer(space) as writer:
        writer.add(Keys.plain(digest), rows)


def extract(data: Path, cache: Path, backbone: str, *words: str) -> tuple[float, dict]:
    weights = [] if backbone.startswith("efficientnet_lite") else ["--weights", "none"]
    given = ["--backbone", backbone, *weights, "--cache", str(cache), "--json", "-q", *words]
    begin = time.perf_counter()
    done = subprocess.run([*HEADSTART, "extract", str(data), *given], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - begin, json.loads(done.stdout)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.h5"))


def checked(way: str, runs: list[tuple[int, float, int]]) -> Line:
    """Predict the largest run from the two smaller ones, and print both."""
    first, second, last = runs
    line = Line.through(first[:2], second[:2])
    room = Line.through((first[0], first[2]), (second[0], second[2]))
    for images, took, stored in runs[:2]:
        print(f"  {way}, {images:>6,} images: {took:6.1f} s, {stored / 1e6:6.1f} MB", flush=True)
    images, took, stored = last
    print(
        f"  {way}, {images:>6,} images: {took:6.1f} s, {stored / 1e6:6.1f} MB; predicted {line.at(images):.1f} s "
        f"({100 * (line.at(images) / took - 1):+.0f} %), {room.at(images) / 1e6:.1f} MB "
        f"({100 * (room.at(images) / stored - 1):+.1f} %)", flush=True
    )  # fmt: skip
    print(
        f"  {way}: {line.start:.1f} s whatever the size, {1000 * line.image:.2f} ms an image ({1 / line.image:.0f}/s)"
    )
    return line


def tables(found: Constants, line: Line, options: argparse.Namespace) -> None:
    """Print what a million, a hundred million and a billion images take, by the line of the runs."""
    ways = (
        ("16 cores, no GPU", 16 / (line.image * available_cores()), options.core_hour * 16),
        ("16 cores and a GPU", options.gpu_rate, options.gpu_hour),
    )
    print(f"\nat ${options.core_hour} a core-hour and ${options.gpu_hour} an hour of a GPU with its cores")
    for images in (10**6, 10**8, 10**9):
        stored = images * (found.row_bytes + found.listed_bytes)
        parts = images * found.row_bytes / CUT_BYTES
        print(
            f"  {images:>13,} images: {images * found.image_bytes / 1e12:.2f} TB of pictures, {stored / 1e9:,.0f} GB "
            f"of cache in {parts:,.0f} parts (${options.gb_month * stored / 1e9:,.2f} a month)"
        )
        print(
            f"    memory: listing {images * NAME_BYTES / 1e9:,.1f} GB where the command runs, index "
            f"{images * found.index_bytes / 1e9:,.1f} GB in every worker, made in {images * found.index:,.0f} s"
        )
        for name, each, price in ways:
            hours = images / each / 3600
            print(
                f"    {name:<20} {each:8,.0f} images/s: {hours:10,.1f} machine-hours, ${hours * price:,.2f}; in a day "
                f"on {max(1, hours / 24):,.1f} machines"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=3, default=[1000, 4000, 16000])
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--core-hour", type=float, default=0.05, help="price of an hour of one core")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price of an hour of a GPU with its 16 cores")
    parser.add_argument("--gb-month", type=float, default=0.023, help="price of a gigabyte stored for a month")
    parser.add_argument("--gpu-rate", type=float, default=GPU_RATE, help="images a second of such a machine")
    options = parser.parse_args()
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = sorted(options.sizes)
        names = {size: photographs(folder / str(size), Path(samples), size) for size in sizes}
        found = constants(folder / str(sizes[0]), names[sizes[0]], options.backbone)
        index, index_bytes = index_of(INDEXED)
        print(f"{options.backbone} on {available_cores()} cores, pictures of {found.image_bytes / 1000:.0f} kB")
        stages = ((name, 1e3 * getattr(found, name)) for name in ("read", "hash", "decode", "forward"))
        print("  of one core, an image:", ", ".join(f"{name} {each:.3f} ms" for name, each in stages), flush=True)
        print(f"  a part of {CUT_BYTES >> 20} MiB is published in {1e3 * found.put:.0f} ms", flush=True)
        print(f"  a row takes {index_bytes:.0f} bytes in the index, which is made in {1e6 * index:.2f} us a row")
        runs = []
        for size in sizes:
            cache = folder / f"cache-{size}"
            took, _ = extract(folder / str(size), cache, options.backbone)
            runs.append((size, took, size_of(cache / "spaces")))
        line = checked("one process", runs)
        listed = size_of(folder / f"cache-{sizes[-1]}" / "datasets") / sizes[-1]
        rows = runs[-1][2] / sizes[-1]
        print(
            f"  a row takes {rows:.0f} bytes, a listed image {listed:.0f}; by the constants an image takes "
            f"{1e3 * found.core_seconds / available_cores():.2f} ms on {available_cores()} cores, "
            f"{found.core_seconds / available_cores() / line.image:.2f} of what it does", flush=True
        )  # fmt: skip
        with dask_cluster(folder) as cluster:
            cluster.add(2, HEADSTART_PART_SECONDS="")
            engine = ("--engine", "dask", "--address", str(cluster.file))
            runs = []
            for size in sizes:
                cache = folder / f"dask-{size}"
                took, _ = extract(folder / str(size), cache, options.backbone, *engine)
                runs.append((size, took, size_of(cache / "spaces")))
            checked("two Dask workers", runs)
            few, many = (
                extract(folder / str(sizes[0]), folder / str(each), options.backbone, *engine, "--shard-images", each)
                for each in (str(sizes[0] // 4), str(SMALL_SHARD))
            )
        more, longer = many[1]["shards"] - few[1]["shards"], many[0] - few[0]
        print(f"  {more} more shards took {longer:.1f} s more on two workers: {2e3 * longer / more:.0f} ms of one each")
        found = replace(found, row_bytes=rows, listed_bytes=listed, index=index, index_bytes=index_bytes)
        tables(found, line, options)


if __name__ == "__main__":
    main()
