"""Reading all embeddings of a split, every byte checked, against `np.load` of the same bytes, which checks nothing.

Both sides are read alternately in one process, from the page cache; the best of each counts, for everything that can
happen to a measurement makes it longer. Memory is measured in a process of its own.

Run: python benchmarks/read.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from synthetic import fill, make_space, random_rows, seconds

from headstart.cache.block import read_header
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore

ROWS, DIM, TIMES = 200_000, 512, 15

MEMORY = """
import sys
from pathlib import Path
import numpy as np
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
store = FeatureStore(Path(sys.argv[1]))
keys = Keys.plain(np.load(sys.argv[2]))
(space,) = store.spaces()
def peak():  # of this process alone: what getrusage says begins with the memory of the parent
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
before = peak()
rows = store.gather(space, keys)
print((peak() - before) / rows.nbytes)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place, space = Path(folder), make_space(DIM)
        digest, rows = random_rows(ROWS, DIM)
        store = fill(place / "cache", space, digest, rows)
        np.save(place / "rows.npy", rows)
        np.save(place / "digest.npy", digest)
        shuffled = np.random.default_rng(1).permutation(ROWS)
        wanted = {"as stored": Keys.plain(digest), "shuffled": Keys.plain(digest[shuffled])}
        measure(store, space.id, wanted, place / "rows.npy", rows)
        np.save(place / "shuffled.npy", digest[shuffled])
        for name in ("digest", "shuffled"):
            words = [sys.executable, "-c", MEMORY, place / "cache", place / f"{name}.npy"]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            print(f"memory, {name}: {float(done.stdout):.2f} times the result (at most 1.2 is the target)")


def read_unchecked(parts: list[tuple[Path, int, int]], shape: tuple[int, int]) -> np.ndarray:
    """Read the same rows from the same files without looking at a hash, which shows what checking costs."""
    result = np.empty(shape, np.float32)
    done = 0
    for path, offset, count in parts:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            view = memoryview(result[done : done + count].reshape(-1).view(np.uint8))
            while view:
                view = view[file.readinto(view) :]
        done += count
    return result


def measure(store: FeatureStore, space: str, wanted: dict[str, Keys], path: Path, rows: np.ndarray) -> None:
    times: dict[str, list[float]] = {}
    parts = []
    for part in store.parts(space):
        entry = read_header(part).arrays["embedding"]
        parts.append((part, entry.offset, entry.shape[0]))
    assert (read_unchecked(parts, rows.shape) == rows).all()
    for _ in range(TIMES):
        times.setdefault("np.load", []).append(seconds(lambda: np.load(path)))
        for name, keys in wanted.items():
            times.setdefault(name, []).append(seconds(lambda keys=keys: store.gather(space, keys)))
        times.setdefault("blocks", []).append(
            seconds(lambda: [len(block) for _, block in store.blocks(space, wanted["as stored"])])
        )
        times.setdefault("unchecked", []).append(seconds(lambda: read_unchecked(parts, rows.shape)))
    load = min(times["np.load"])
    print(f"{len(rows)} rows of {rows.shape[1]} numbers, {rows.nbytes / 1e6:.0f} MB, {len(store.parts(space))} parts")
    for name, found in times.items():
        best = min(found)
        print(f"  {name:<10} {best:.3f} s, {rows.nbytes / best / 1e9:5.1f} GB/s, {load / best:.2f} of np.load's speed")
    cost = min(times["as stored"]) - min(times["unchecked"])
    print(
        f"checking every byte and finding every key costs {1000 * cost:.0f} ms of {1000 * min(times['as stored']):.0f}"
    )
    print("target: at least 0.5 of np.load's speed as stored")


if __name__ == "__main__":
    main()
