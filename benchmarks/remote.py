"""Pictures in a bucket: one request at a time against many, and tars against loose objects, of one server.

The server is moto's on loopback, in a process of its own, that answers each request after 20 ms, as a store in the same
region does. Photographs are read, hashed and decoded as `extract` does it, without a network behind; both sides of each
comparison are read alternately from the same server, and the best of each counts.

Run: HEADSTART_SAMPLES=... python benchmarks/remote.py
"""

import io
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from headstart.cache import remote
from headstart.cache.index import KeyIndex
from headstart.extract.access import Access, access_to, in_order_of_bytes
from headstart.extract.bucket import IN_FLIGHT
from headstart.extract.images import ImageList, list_images
from headstart.extract.preprocess import Preprocess
from headstart.extract.reader import Ahead, Need, Reader

PICTURES, SHARD, TIMES = 400, 200, 2
WAIT = 0.02  # seconds before each answer
SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from object_store import serving
stores = serving()
store = next(stores)
store.faults.reset(wait=float(sys.argv[2]))
print(*[f"{name}={value}" for name, value in store.environment.items()], flush=True)
for _ in sys.stdin:
    print(len(store.faults.seen), flush=True)
    store.faults.seen.clear()
"""


class Server:
    """The store, in a process of its own."""

    def __init__(self) -> None:
        tests = Path(__file__).resolve().parent.parent / "tests"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tests), str(WAIT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        os.environ.update(word.split("=", 1) for word in self._line().split())

    def requests(self) -> int:
        """Return how many there were since this was last asked."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def put_all(samples: Path) -> int:
    """Put photographs there, loose and in tars, each with other bytes; return how many bytes they have."""
    found = [path.read_bytes() for path in sorted(samples.glob("*/*/*/*.jpg")) if path.stat().st_size < 400_000]
    pictures = [found[number % len(found)] + b"%06d" % number for number in range(PICTURES)]
    urls = [f"s3://photographs/loose/{number:06d}.jpg" for number in range(PICTURES)]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(remote.put, urls, pictures))
    for start in range(0, PICTURES, SHARD):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for number, picture in enumerate(pictures[start : start + SHARD], start):
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = len(picture)
                tar.addfile(info, io.BytesIO(picture))
        remote.put(f"s3://photographs/shards/train-{start // SHARD:04d}.tar", packed.getvalue())
    return sum(map(len, pictures))


def rate(images: ImageList, in_flight: int | None = None) -> float:
    """Return the images a second that are read and decoded; `in_flight` requests at a time, where it is given."""
    names, workers = images.paths, len(os.sched_getaffinity(0))
    todo = in_order_of_bytes(names, images.stat, np.arange(len(names)))
    base = os.fsencode(str(images.base))
    access: Access = access_to(base, names, images.stat, todo)
    waiting = access.in_flight if in_flight is None else in_flight - workers
    threads = max(1, workers + waiting)
    need = Need(Preprocess(), (KeyIndex([]),))
    reader = Reader(base, [need], stat=images.stat, workers=workers, access=access)
    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        items = list(Ahead(pool, reader, names, todo, threads, together=1))
        seconds = time.perf_counter() - begin
    assert not [item.reason for item in items if item.reason] and len(items) == PICTURES
    return PICTURES / seconds


def main() -> None:
    server = Server()
    try:
        size = put_all(Path(os.environ["HEADSTART_SAMPLES"]))
        loose, shards = list_images("s3://photographs/loose"), list_images("s3://photographs/shards")
        best: dict[str, float] = {}
        requests: dict[str, int] = {}
        sides = {
            "loose objects, one request at a time": (loose, 1),
            "loose objects, many": (loose, None),
            "tars": (shards, None),
        }
        rate(loose)  # libraries are imported and connections made by then
        for _ in range(TIMES):
            for name, (images, in_flight) in sides.items():
                server.requests()
                best[name] = max(best.get(name, 0.0), rate(images, in_flight))
                requests[name] = server.requests()
    finally:
        server.close()
    print(f"{PICTURES} photographs, {size / 1e6:.0f} MB; each request is answered after {1000 * WAIT:.0f} ms")
    for name, value in best.items():
        print(f"{name:<38} {value:6.0f} images/s, {requests[name]:4} requests")
    one, many, tars = best.values()
    print(
        f"many at a time against one: {many / one:.1f} times; tars against many loose objects: {tars / many:.1f} times"
    )


if __name__ == "__main__":
    main()
