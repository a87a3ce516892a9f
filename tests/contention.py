"""One of many processes that use one cache at once; run as a program, it takes a role until it is through.

`python contention.py write ROOT SEED ROUNDS` embeds its own choice of each round's images, in its own order, as
`extract` does: it looks at what is there and writes the rest. `read ROOT SEED STOP` and `compact ROOT SEED STOP` go on
until the file STOP is there. Each prints what it did; an exception ends it with a traceback.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
from workloads import SPACE, digests, embed, true_rows, words

from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from support import make_space

IMAGES_A_ROUND = 100
SPACES = {"first": SPACE, "second": make_space(backbone="resnet50", dim=12)}


class Complaints(logging.Handler):
    """Warnings mean damage, and nothing may be damaged here."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(f"a warning: {record.getMessage()}")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's own name)
        raise


def chosen(seed: int, number: int) -> np.ndarray:
    """Return the digests that a writer embeds in a round: six tenths of the round's images, in an order of its own."""
    images = digests(IMAGES_A_ROUND, start=number * IMAGES_A_ROUND)
    return images[np.random.default_rng([seed, number]).permutation(IMAGES_A_ROUND)[: IMAGES_A_ROUND * 6 // 10]]


def write(root: Path, seed: int, rounds: int, space_name: str = "first") -> dict[str, int]:
    """Embed round after round; after each, all that was asked for must be there and right."""
    space, written = SPACES[space_name], 0
    acknowledged: set[str] = set()
    for number in range(rounds):
        digest = chosen(seed, number)
        embed(root, digest, acknowledged.update, space, per_part=20)
        rows = FeatureStore(root).gather(space.id, Keys.plain(digest))
        assert rows.tobytes() == true_rows(digest, space).astype(np.float32).tobytes(), "wrong rows"
        written += len(digest)
    return {"asked": written, "written": len(acknowledged)}


def read(root: Path, seed: int, stop: Path) -> dict[str, int]:
    """Read again and again: what was there stays there, each image has one row, and the right one."""
    rng, before, rounds, rows_read = np.random.default_rng(seed), set(), 0, 0
    while True:
        last = stop.exists()
        store = FeatureStore(root)
        index, _ = store.index(SPACE.id)
        now = set(words(index.keys.digest))
        assert before <= now, f"{len(before - now)} images went away"
        before = now
        if now:
            some = index.keys.digest[rng.permutation(len(index))[:200]]
            assert store.gather(SPACE.id, Keys.plain(some)).tobytes() == true_rows(some).tobytes(), "wrong rows"
            rounds, rows_read = rounds + 1, rows_read + len(some)
        if last:
            return {"rounds": rounds, "rows": rows_read, "seen": len(now)}
        time.sleep(0.01)


def compact(root: Path, _: int, stop: Path) -> dict[str, int]:
    """Compact again and again, at once and without waiting for readers to finish."""
    from headstart.cache.compact import compact

    rounds = 0
    while True:
        last = stop.exists()
        if (root / "spaces").is_dir():
            compact(root, now=True)
            rounds += 1
        if last:
            return {"rounds": rounds}
        time.sleep(0.02)


def main(role: str, root: str, seed: str, last: str, *more: str) -> None:
    logger = logging.getLogger("headstart")
    logger.addHandler(Complaints(logging.WARNING))
    if role == "write":
        done = write(Path(root), int(seed), int(last), *more)
    else:
        done = {"read": read, "compact": compact}[role](Path(root), int(seed), Path(last))
    print(json.dumps({"role": role, "pid": os.getpid(), **done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
