"""Two processes side by side: at each call by which one reads or changes the cache, another does a whole job.

Random contention seldom hits the narrow places; this goes through all of them, one after the other.
"""

import shutil
import sys

import numpy as np
import pytest
from watched import reads_heard, unwatched, watched
from workloads import ALL, IMAGES, LISTING, REQUEST, RESOLVED, SPACE, compact, compact_now, embed, look, true_rows

from headstart.cache.listing import save_listing
from headstart.cache.memo import remember
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watched calls are told apart as on Linux")


def write_without_looking(root, *choices):
    """Write each choice of images as one part, whether the cache has them or not, as writers side by side do."""
    store = FeatureStore(root)
    for choice in choices:
        with store.writer(SPACE) as writer:
            writer.add(Keys.plain(IMAGES[choice]), true_rows(IMAGES[choice]))


def arrange(root):
    """Six parts in which images 0 to 9 occur twice.

    The copies of 6 to 9 are merged in another group than the originals: a compaction that drops them counts on a row in
    a part that another one may be rewriting at that moment.
    """
    FeatureStore(root).prepare(SPACE)
    write_without_looking(root, range(3), range(3, 6), range(6, 10), range(6), range(6, 14), range(14, 20))
    save_listing(root, LISTING)
    remember(root, REQUEST, RESOLVED)


def copies_too(root, _=None):
    write_without_looking(root, range(4, 16))


def read_all(root, _=None):
    assert FeatureStore(root).gather(SPACE.id, Keys.plain(IMAGES)).tobytes() == true_rows(IMAGES).tobytes()


def compact_twice(root, acknowledge):
    compact_now(root, acknowledge)
    compact_now(root, acknowledge)


def embed_all(root, acknowledge):
    embed(root, IMAGES, acknowledge)


MAIN = {"compact-now": compact_now, "compact": compact, "copies": copies_too, "embed": embed_all}
OTHER = {"compact-now": compact_now, "compact": compact, "twice": compact_twice, "copies": copies_too, "read": read_all}


class Intruder:
    """Does `deed` just before the `number`-th call that changes something, or opens or lists something to read."""

    def __init__(self, number, deed):
        self.number, self.deed, self.calls = number, deed, 0

    def __call__(self, call):
        self.at_read()
        return call.go()

    def at_read(self):
        self.calls += 1
        if self.calls == self.number:
            with unwatched():
                self.deed()


@pytest.fixture
def small_parts(monkeypatch):
    """A part is full at ten rows, so that a small cache has what large ones have: several groups to be merged."""
    monkeypatch.setattr("headstart.cache.compact.PART_BYTES", 10 * SPACE.row_bytes)


ALL_PAIRS = [
    pytest.param(main, other, 1, marks=pytest.mark.torture) for main in sorted(MAIN) for other in sorted(OTHER)
]
SOME_PAIRS = [("compact-now", "compact-now", 3), ("compact-now", "copies", 9), ("copies", "compact-now", 1)]


@pytest.mark.parametrize(("main", "other", "every"), SOME_PAIRS + ALL_PAIRS)
def test_t5_one_job_at_every_step_of_another(arena, small_parts, main, other, every):
    template, root = arena / "template", arena / "base" / "cache"
    template.mkdir()
    arrange(template / "cache")
    number = 0
    while True:
        number += every
        shutil.copytree(template, arena / "base")
        intruder = Intruder(number, lambda: OTHER[other](root, lambda _: None))
        with watched(root.parent, intruder), reads_heard(root.parent, intruder.at_read):
            MAIN[main](root, lambda _: None)
        where = f"{other} at call {number} of {main}"
        missing = ALL - look(root, copies=True)
        assert not missing, f"{where}: {len(missing)} things lost"
        read_all(root)
        compact_now(root, lambda _: None)
        assert look(root, copies=True) == ALL, f"{where}: lost by the next compaction"
        keys = FeatureStore(root).index(SPACE.id)[0].keys.digest
        assert len(np.unique(keys, axis=0)) == len(IMAGES)
        shutil.rmtree(arena / "base")
        if intruder.calls < number:
            break
    print(f"\nT5 {other} at every step of {main}: {(number - 1) // every} interleavings, 0 lost")
    assert number > 5


def read_and_look_up(root):
    store = FeatureStore(root)
    assert store.space(SPACE.id) == SPACE
    index, _ = store.index(SPACE.id)
    assert (index.find(Keys.plain(IMAGES)) >= 0).all()
    read_all(root)


def read_in_blocks(root):
    rows = np.full((len(IMAGES), SPACE.dim), np.nan, np.float32)
    for where, block in FeatureStore(root).blocks(SPACE.id, Keys.plain(IMAGES), block_rows=3):
        assert np.isnan(rows[where]).all(), "a row came twice"
        rows[where] = block
    assert rows.tobytes() == true_rows(IMAGES).tobytes()


@pytest.mark.parametrize("other", ["compact-now", "copies", "twice"])
@pytest.mark.parametrize("reader", [read_and_look_up, read_in_blocks], ids=["gather", "blocks"])
def test_t5_one_job_at_every_step_of_a_reader(arena, small_parts, monkeypatch, reader, other):
    monkeypatch.setattr("headstart.cache.storage.READ_THREADS", 1)  # one order of steps, so that each is met
    template, root = arena / "template", arena / "base" / "cache"
    template.mkdir()
    arrange(template / "cache")
    number = 0
    while True:
        number += 1
        shutil.copytree(template, arena / "base")
        intruder = Intruder(number, lambda: OTHER[other](root, lambda _: None))
        with reads_heard(root, intruder.at_read):
            reader(root)
        shutil.rmtree(arena / "base")
        if intruder.calls < number:
            break
    print(f"\nT5 {other} at every step of a reader: {number - 1} interleavings, 0 wrong")
    assert number > 10
