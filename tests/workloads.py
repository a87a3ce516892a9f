"""Work on a cache that tests interrupt, and the look afterwards that finds every wrong or lost byte.

What a workload has reported as done is a set of words: the digest of a row in hex, "listing", "memo". `look` reads a
cache back and returns the words for what it found, after comparing each with the truth bit for bit.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.cache.datasets import load_listing
from headstart.cache.listing import Listing, read_listing, save_listing
from headstart.cache.memo import recall, remember
from headstart.cache.part import Keys, is_part, read_embeddings, read_keys
from headstart.cache.space import FeatureSpace
from headstart.cache.store import FeatureStore
from support import make_space

Acknowledge = Callable[[list[str]], None]
PARTS, ROWS_A_PART = 4, 5
SPACE = make_space()
REQUEST = {"name": "resnet18", "weights": "default"}
RESOLVED = {"weights": "ab" * 32, "dim": 8}


def digests(count: int, start: int = 0) -> np.ndarray:
    """Return the digests of `count` made-up images, (count, 32) uint8."""
    every = b"".join(hashlib.sha256(b"image %d" % number).digest() for number in range(start, start + count))
    return np.frombuffer(every, np.uint8).reshape(-1, 32)


def true_rows(digest: np.ndarray, space: FeatureSpace = SPACE) -> np.ndarray:
    """Return the one right row of each image in `space`, (n, space.dim): its digest's bits, read as numbers."""
    seed = int(hashlib.sha256(space.id.encode()).hexdigest()[:4], 16)
    numbers = np.ascontiguousarray(digest).view("<u4").astype(np.float32) + np.float32(seed)
    return np.tile(numbers, (1, -(-space.dim // 8)))[:, : space.dim].astype(space.dtype)


def words(digest: np.ndarray) -> list[str]:
    return [row.tobytes().hex() for row in digest]


def embed(
    root: Path, digest: np.ndarray, acknowledge: Acknowledge, space: FeatureSpace = SPACE, per_part: int = ROWS_A_PART
) -> None:
    """Do what `extract` does: make the space, write what the cache lacks part by part, reporting each part."""
    store = FeatureStore(root)
    store.prepare(space)
    index, _ = store.index(space.id)
    for start in range(0, len(digest), per_part):
        some = digest[start : start + per_part]
        some = some[index.find(Keys.plain(some)) < 0]
        with store.writer(space, lambda _, done=some: acknowledge(words(done))) as writer:
            if len(some):
                writer.add(Keys.plain(some), true_rows(some, space))


def made_up_listing(digest: np.ndarray, space: FeatureSpace = SPACE) -> Listing:
    count = len(digest)
    return Listing(
        root="photos",
        source="/photos",
        layout="classes",
        classes=("ants", "bees"),
        paths=[b"%03d.jpg" % number for number in range(count)],
        label=np.arange(count, dtype=np.int32) % 2,
        split=np.ones(count, np.uint8),
        stat=np.arange(4 * count, dtype=np.int64).reshape(-1, 4),
        digest=digest,
        failures={1: "truncated"},
        spaces=(space.id,),
        request={"weights": "default"},
        rules="rules 1",
        scanned_ns=1 << 60,
    )


IMAGES = digests(PARTS * ROWS_A_PART)
LISTING = made_up_listing(IMAGES)
ALL = frozenset([*words(IMAGES), "listing", "memo"])


def work(root: Path, acknowledge: Acknowledge) -> None:
    """Fill a cache: space, parts, listing, memo."""
    embed(root, IMAGES, acknowledge)
    save_listing(root, LISTING)
    acknowledge(["listing"])
    remember(root, REQUEST, RESOLVED)
    acknowledge(["memo"])


def compact(root: Path, _: Acknowledge) -> None:
    from headstart.cache.compact import compact

    compact(root)


def compact_now(root: Path, _: Acknowledge) -> None:
    from headstart.cache.compact import compact

    compact(root, now=True)


def nothing(_: Path) -> None:
    """Leave the folder as it is."""


def filled(root: Path) -> None:
    """Have a whole cache there, of four parts."""
    work(root, lambda _: None)


def compacted_long_ago(root: Path) -> None:
    """Have a compacted cache there whose old parts wait for deletion, their time of grace being over."""
    filled(root)
    compact(root, lambda _: None)
    for path in root.rglob("*.h5"):
        os.utime(path, (0, path.stat().st_mtime - 3600))


def lie(root: Path, acknowledge: Acknowledge) -> None:
    """Report what is not done yet, which the tests must notice."""
    acknowledge(words(IMAGES))
    work(root, acknowledge)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is there before, what is done, and what counts as safe from the start."""

    arrange: Callable[[Path], None]
    work: Callable[[Path, Acknowledge], None]
    safe: frozenset[str]


WORKLOADS = {
    "fill": Workload(nothing, work, frozenset()),
    "compact": Workload(filled, compact, ALL),
    "compact-now": Workload(filled, compact_now, ALL),
    "compact-later": Workload(compacted_long_ago, compact, ALL),
}
LIAR = Workload(nothing, lie, frozenset())


def look(root: Path, *, copies: bool = False) -> set[str]:
    """Read a cache back; return what it holds.

    Asserts that every name that ends in ``.h5`` is whole, that every row, listing and memo is the true one bit for bit,
    that no key is seen twice (unless `copies` may be there), and that nothing was damaged and set aside.
    """
    for path in root.rglob("*.h5"):
        if not path.name.startswith("."):
            look_at_file(path)
    store = FeatureStore(root)
    index, _ = store.index(SPACE.id)
    found = words(index.keys.digest)
    assert copies or len(set(found)) == len(found), "a key is seen twice"
    if found:
        assert store.gather(SPACE.id, index.keys).tobytes() == true_rows(index.keys.digest).tobytes(), "wrong rows"
    seen = set(found)
    listing = load_listing(root, Path(LISTING.source))
    if listing is not None:
        assert same_listing(listing, LISTING), "a wrong listing"
        seen.add("listing")
    resolved = recall(root, REQUEST)
    if resolved is not None:
        assert resolved == RESOLVED, "a wrong memo"
        seen.add("memo")
    assert not (root / "quarantine").exists(), "something was damaged"
    return seen


def look_at_file(path: Path) -> None:
    """Read every byte of one file of the cache; an exception says that it is not whole."""
    if is_part(path):
        keys = read_keys(path)
        assert read_embeddings(path).tobytes() == true_rows(keys.digest).tobytes(), f"{path}: wrong rows"
    else:
        read_listing(path)


def same_listing(one: Listing, other: Listing) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Listing.__slots__)


def finish(workload: Workload, root: Path) -> None:
    """Run the work again, undisturbed; everything must be there afterwards."""
    workload.work(root, lambda _: None)
    missing = ALL - look(root)
    assert not missing, f"a second run left {len(missing)} things out: {sorted(missing)[:3]}"
