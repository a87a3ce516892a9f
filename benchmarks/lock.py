"""What reading a picture costs of the interpreter's lock, and how far threads of one process get beside each other.

First the pieces, in one thread, on pictures so small that next to nothing is left of decoding and resizing but what
Python does around it: microseconds of processor time an image, what is used beside what it took the place of. Then the
reader with more and more threads, on small pictures, where the rate is that of the lock, and on photographs; with one
picture and with several for each task of the pool. Last the same photographs in processes, which share no lock: what
there would be to gain.

Switches are those that a thread gave rise to by waiting, mostly for the lock; each costs more than what it waits for.

Run: HEADSTART_SAMPLES=... python benchmarks/lock.py [--images N]
"""

import argparse
import io
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pipeline import photographs

from headstart.cache.index import KeyIndex
from headstart.cache.part import Keys
from headstart.extract.decode import decode
from headstart.extract.device import available_cores
from headstart.extract.files import read_with_stat
from headstart.extract.phash import KnownHashes, phash
from headstart.extract.preprocess import Preprocess, as_batch, to_input, to_inputs
from headstart.extract.reader import TOGETHER, Ahead, Need, Reader

THREADS = (1, 2, 4, 8, 16, 32)
REPEATS = 400
SMALL, PHOTOGRAPHS = Preprocess(resize=16, crop=14), Preprocess(resize=256, crop=224)
NOTHING = KnownHashes.of(np.zeros((0, 32), np.uint8), np.zeros(0, np.uint64))


def small_pictures(folder: Path, count: int) -> list[bytes]:
    """Write JPEGs of 20 x 24 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [b"%06d.jpg" % number for number in range(count)]
    for name in names:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "JPEG")
        (folder / os.fsdecode(name)).write_bytes(file.getvalue())
    return names


def cost(work: Callable[[], object]) -> float:
    """Return the microseconds of processor time that a call takes, the least of ten rounds."""
    rounds = []
    for _ in range(10):
        begin = time.thread_time()
        for _ in range(REPEATS // 10):
            work()
        rounds.append((time.thread_time() - begin) / (REPEATS // 10))
    return 1e6 * min(rounds)


def torch_views(pixels: np.ndarray) -> np.ndarray:
    """Make an input with views of torch."""
    return np.ascontiguousarray(to_inputs(as_batch(pixels), SMALL)[0][0].numpy())


def pieces(folder: Path, names: list[bytes]) -> None:
    path = os.path.join(os.fsencode(folder), names[0])  # noqa: PTH118
    data = read_with_stat(path)[0]
    pixels = decode(data).pixels
    digest = np.random.default_rng(0).integers(0, 256, (10_000, 32), dtype=np.uint8)
    index, one = KeyIndex([Keys.plain(digest)]), digest[5].tobytes()
    batch = [np.zeros((224, 224, 3), np.uint8)] * 32
    room = torch.empty((32, 224, 224, 3), dtype=torch.uint8)
    pool = ThreadPoolExecutor(1)
    reader = Reader(os.fsencode(folder), [Need(SMALL, (index,))], hashes=NOTHING)
    print("microseconds of one thread, an image")
    for name, work, before in (
        ("open, look at, read, close a file", lambda: read_with_stat(path), None),
        ("look a key up", lambda: index.find_one(one), lambda: index.find(Keys.plain(digest[5:6]))),
        ("decode", lambda: decode(data), None),
        ("resize and crop", lambda: to_input(pixels, SMALL), lambda: torch_views(pixels)),
        ("perceptual hash", lambda: phash(pixels), None),
        ("hand a task to a thread and take it back", lambda: pool.submit(int).result(), None),
        ("the reader as a whole", lambda: reader.read(0, names[0]), None),
    ):
        print(f"  {name:<42} {cost(work):6.1f}" + (f", was {cost(before):6.1f}" if before else ""))
    many = [torch.from_numpy(image) for image in batch]
    now, was = cost(lambda: torch.stack(many, out=room)) / 32, cost(lambda: np.stack(batch, out=room.numpy())) / 32
    print(
        f"  {'copy 224 x 224 pixels into a batch':<42} {now:6.1f}, was {was:6.1f} (the lock is let go of 32 times less)"
    )
    pool.shutdown()


def rate(folder: Path, names: list[bytes], preprocess: Preprocess, threads: int, together: int) -> str:
    """Read pictures in threads; return the rate, the cores in use, and the switches an image."""
    reader = Reader(os.fsencode(folder), [Need(preprocess, (KeyIndex([]),))], hashes=NOTHING)
    reader.read(0, names[0])
    with ThreadPoolExecutor(threads) as pool:
        begin, work, before = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
        for _ in Ahead(pool, reader, names, np.arange(len(names)), threads, together=together):
            pass
        wall, work = time.perf_counter() - begin, time.process_time() - work
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before.ru_nvcsw
    count = len(names)
    return f"{count / wall:6.0f}/s, {work / wall:4.1f} cores, {switches / count:4.1f} switches"


def read_share(folder: Path, names: list[bytes]) -> None:
    torch.set_num_threads(1)
    reader = Reader(os.fsencode(folder), [Need(PHOTOGRAPHS, (KeyIndex([]),))], hashes=NOTHING)
    for number, name in enumerate(names):
        reader.read(number, name)


def process_rate(folder: Path, names: list[bytes], processes: int) -> float:
    """Return the rate of processes of one thread each, once they have started."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [names[number::processes] for number in range(processes)]
        list(pool.map(read_share, [folder] * processes, [share[:50] for share in shares]))
        begin = time.perf_counter()
        list(pool.map(read_share, [folder] * processes, shares))
        return len(names) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=250 * available_cores())
    given = parser.parse_args()
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    torch.set_num_threads(1)
    print(f"{available_cores()} cores, Python {sys.version.split()[0]}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = small_pictures(folder / "small", given.images)
        large = photographs(folder / "large", Path(samples), given.images)
        pieces(folder / "small", small)
        for title, names, preprocess in (("small", small, SMALL), ("large", large, PHOTOGRAPHS)):
            for threads in THREADS:
                one, several = (rate(folder / title, names, preprocess, threads, count) for count in (1, TOGETHER))
                print(
                    f"{title} pictures, {threads:2} threads: {one} one a task; {several} {TOGETHER} a task", flush=True
                )
        processes = available_cores()
        print(f"large pictures, {processes:2} processes: {process_rate(folder / 'large', large, processes):6.0f}/s")


if __name__ == "__main__":
    main()
