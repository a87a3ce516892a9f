"""`cache verify`, which checks every byte, against reading the same files and doing nothing with them.

Run: python benchmarks/verify.py
"""

import tempfile
from pathlib import Path

from synthetic import fill, make_space, random_rows, seconds

from headstart.cache.verify import verify

ROWS, DIM, TIMES, PIECE = 400_000, 512, 9, 1 << 20


def read_all(paths: list[Path]) -> None:
    spare = memoryview(bytearray(PIECE))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(spare):
                pass


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        space = make_space(DIM)
        store = fill(Path(folder) / "cache", space, *random_rows(ROWS, DIM))
        paths = store.parts(space.id)
        size = sum(path.stat().st_size for path in paths)
        times = [(seconds(lambda: read_all(paths)), seconds(lambda: verify(store.root))) for _ in range(TIMES)]
        read, check = min(first for first, _ in times), min(second for _, second in times)
        print(f"{len(paths)} parts, {size / 1e6:.0f} MB, from the page cache, the best of {TIMES}")
        rates = f"reading alone {size / read / 1e9:.1f} GB/s, verify {size / check / 1e9:.1f} GB/s"
        print(f"  {rates}: {read / check:.2f} of it")


if __name__ == "__main__":
    main()
