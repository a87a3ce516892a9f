"""Every kind of file of a cache, damaged byte by byte and read by every reader; run as a program, it tells what it saw.

`python damage.py KIND FOLDER EVERY RANDOM` flips each EVERY-th byte of the first 8 KiB in turn (each in two ways: one
bit, all bits), makes RANDOM random changes anywhere, and cuts and lengthens the file. Each damage ends in one of:

- seen: a named error, or, where a reader passes damage over, an answer that lacks what the file held;
- harmless: the very same answer as before. A reader that takes only keys does not look at the embeddings, and a few
  bytes say nothing (the spaces in a JSON file; in space.json the notes on library versions and the copy of the id,
  which is computed);
- silent: a wrong answer. There must be none.

Any other exception ends the program, and so does a crash: the test sees both by its exit status.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from workloads import REQUEST, RESOLVED, SPACE, digests, made_up_listing, same_listing, true_rows

from headstart.cache.datasets import load_listing
from headstart.cache.listing import Listing, read_listing, save_listing
from headstart.cache.memo import recall, remember
from headstart.cache.part import Keys, read_embeddings, read_keys
from headstart.cache.store import FeatureStore
from headstart.errors import CacheFormatError, CacheMissError, DamagedFileError

FIRST = 8192
ROWS = 300  # so that a part is 24 kB


@dataclass(frozen=True, slots=True)
class Victim:
    """A file to damage, each reader that uses it, the right answers, and what readers may raise.

    `again` brings back what a reader may have moved away; `without` is asked after each damage that was seen and must
    say that the rest of the cache is still served.
    """

    path: Path
    readers: dict[str, Callable[[], Any]]
    same: Callable[[Any], bool]
    never_harmless: frozenset[str] = frozenset()
    without: Callable[[], bool] = lambda: True


def part(root: Path) -> Victim:
    """A part of two; the other must be served whatever happens to the first."""
    store, digest = FeatureStore(root), digests(2 * ROWS)
    store.prepare(SPACE)
    for half in (digest[:ROWS], digest[ROWS:]):
        with store.writer(SPACE) as writer:
            writer.add(Keys.plain(half), true_rows(half))
    path = store.parts(SPACE.id)[0]
    right = true_rows(digest)

    def gather(some: np.ndarray) -> np.ndarray:
        return FeatureStore(root).gather(SPACE.id, Keys.plain(some))

    def same(answer: Any) -> bool:
        if isinstance(answer, Keys):
            plain = not answer.recipe.any() and not answer.view.any()
            return plain and answer.digest.tobytes() == digest[:ROWS].tobytes()
        return bool(answer.tobytes() in (right.tobytes(), right[:ROWS].tobytes()))

    readers = {
        "read_keys": lambda: read_keys(path),
        "read_embeddings": lambda: read_embeddings(path),
        "gather": lambda: gather(digest),
    }
    return Victim(
        path, readers, same, frozenset({"read_embeddings", "gather"}),
        without=lambda: gather(digest[ROWS:]).tobytes() == right[ROWS:].tobytes(),
    )  # fmt: skip


def listing(root: Path) -> Victim:
    """The later of two listings; the earlier one must serve where the later is damaged."""
    root.mkdir()
    earlier, later = made_up_listing(digests(50)), made_up_listing(digests(60))
    save_listing(root, earlier)
    path = save_listing(root, later)

    def latest() -> Listing:
        found = load_listing(root, Path(later.source))
        assert found is not None, "no listing serves"
        if same_listing(found, earlier):
            raise DamagedFileError("passed over")
        return found

    return Victim(
        path,
        {"read_listing": lambda: read_listing(path), "load_listing": latest},
        lambda answer: same_listing(answer, later),
    )


def space_json(root: Path) -> Victim:
    """The description of a space without parts, so that nothing else can tell what the space is."""
    store = FeatureStore(root)
    store.prepare(SPACE, {"torch": "2.10.0"})
    path = store.space_folder(SPACE.id) / "space.json"

    def from_all() -> Any:
        spaces = store.spaces()
        if not spaces:
            raise DamagedFileError("left out")
        return spaces[SPACE.id]

    return Victim(path, {"space": lambda: store.space(SPACE.id), "spaces": from_all}, lambda answer: answer == SPACE)


def memo(root: Path) -> Victim:
    """What is remembered of a backbone."""
    root.mkdir()
    remember(root, REQUEST, RESOLVED)
    path = next((root / "backbones").iterdir())

    def recalled() -> Any:
        found = recall(root, REQUEST)
        if found is None:
            raise CacheMissError("nothing remembered")
        return found

    return Victim(path, {"recall": recalled}, lambda answer: answer == RESOLVED)


KINDS = {"part": part, "listing": listing, "space": space_json, "memo": memo}


def damages(good: bytes, every: int, draws: int) -> Iterator[tuple[str, bytes]]:
    """Yield what to call each damage, and the bytes."""
    for position in range(0, min(FIRST, len(good)), every):
        for mask in (1 << position % 8, 255):
            yield "flip", changed(good, position, mask)
    rng = np.random.default_rng(len(good))
    for _ in range(draws):
        yield "flip", changed(good, int(rng.integers(len(good))), int(rng.integers(1, 256)))
    for length in range(0, len(good), 512):
        yield "cut", good[:length]
    for cut in (1, 2, 511, len(good) - 1):
        yield "cut", good[: len(good) - cut]
    for more in (b"\0", good[-1:], bytes(512), good):
        yield "longer", good + more
    yield "zeros", bytes(len(good))


def changed(good: bytes, position: int, mask: int) -> bytes:
    return good[:position] + bytes([good[position] ^ mask]) + good[position + 1 :]


def count_damage(victim: Victim, every: int, draws: int) -> dict[str, dict[str, int]]:
    """Do each damage to each reader; return how often which came of it."""
    good = victim.path.read_bytes()
    for name, read in victim.readers.items():
        assert victim.same(read()), f"{name} is wrong before any damage"
    counts: dict[str, dict[str, int]] = {}
    for kind, bad in damages(good, every, draws):
        assert bad != good
        for name, read in victim.readers.items():
            victim.path.write_bytes(bad)
            outcome = outcome_of(read, victim.same)
            if outcome == "harmless" and name in victim.never_harmless:
                outcome = "silent"
            if outcome == "seen":
                assert victim.without(), f"{name}: the rest of the cache is not served"
            tally = counts.setdefault(name, {})
            tally[f"{kind} {outcome}"] = tally.get(f"{kind} {outcome}", 0) + 1
    return counts


def outcome_of(read: Callable[[], Any], same: Callable[[Any], bool]) -> str:
    try:
        return "harmless" if same(read()) else "silent"
    except CacheFormatError:
        return "newer"  # damage that looks like a later format: refused, and nothing is changed
    except (DamagedFileError, CacheMissError):
        return "seen"


if __name__ == "__main__":
    kind, folder, step, random = sys.argv[1:]
    logging.getLogger("headstart").addHandler(logging.NullHandler())  # each damage warns
    with contextlib.suppress(FileExistsError):
        Path(folder).mkdir()
    victim = KINDS[kind](Path(folder) / "cache")
    print(json.dumps({"bytes": victim.path.stat().st_size, "counts": count_damage(victim, int(step), int(random))}))
