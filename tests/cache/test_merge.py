import shutil

import numpy as np
import pytest

from headstart.cache.compact import compact
from headstart.cache.datasets import load_listings, require_listing
from headstart.cache.listing import save_listing
from headstart.cache.merge import merge
from headstart.cache.part import Keys
from headstart.cache.publish import publish
from headstart.cache.store import FeatureStore
from headstart.errors import CacheMissError, UsageError
from support import add_rows, flip, listing_of, make_space, random_rows


@pytest.fixture
def ours(tmp_path):
    return FeatureStore(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path):
    return FeatureStore(tmp_path / "theirs")


def tree(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_lacking_is_taken_and_the_other_is_only_read(ours, theirs, space):
    digest, rows = random_rows(40)
    other = make_space(backbone="resnet50")
    add_rows(ours, space, digest[:20], rows[:20])
    add_rows(theirs, space, digest[10:30], rows[10:30])
    add_rows(theirs, other, digest[:5], rows[:5] * 2)
    save_listing(theirs.root, listing_of(digest[10:30], root="away"))
    before = tree(theirs.root)
    done = merge(ours.root, theirs.root)
    assert (done.rows, done.known, done.spaces, done.datasets, done.kept) == (15, 10, 2, ["away"], [])
    assert tree(theirs.root) == before
    np.testing.assert_array_equal(ours.gather(space.id, Keys.plain(digest[:30])), rows[:30])
    np.testing.assert_array_equal(ours.gather(other.id, Keys.plain(digest[:5])), rows[:5] * 2)
    assert len(ours.index(space.id)[0]) == 30, "nothing twice"
    assert require_listing(ours.root).root == "away"
    assert merge(ours.root, theirs.root).rows == 0
    shutil.rmtree(theirs.root)
    np.testing.assert_array_equal(ours.gather(space.id, Keys.plain(digest[:30])), rows[:30])


def test_our_listing_of_a_dataset_that_both_have_stays(ours, theirs, space):
    digest, rows = random_rows(10)
    add_rows(ours, space, digest, rows)
    add_rows(theirs, space, digest, rows)
    save_listing(ours.root, listing_of(digest[:4]))
    save_listing(theirs.root, listing_of(digest))
    done = merge(ours.root, theirs.root)
    assert (done.datasets, done.kept) == ([], ["photos"])
    assert [len(listing) for listing in load_listings(ours.root)] == [4]


def test_a_merge_that_is_interrupted_leaves_no_old_listing_for_the_latest(ours, theirs, space, monkeypatch):
    digest, rows = random_rows(10)
    for store in (ours, theirs):
        add_rows(store, space, digest, rows)
    for count in (4, 10):
        save_listing(theirs.root, listing_of(digest[:count]))
    published = []

    def publish_one(path, data):
        if published:
            raise KeyboardInterrupt
        published.append(path)
        publish(path, data)

    monkeypatch.setattr("headstart.cache.merge.publish", publish_one)
    with pytest.raises(KeyboardInterrupt):
        merge(ours.root, theirs.root)
    assert len(require_listing(ours.root)) == 10


def test_what_the_other_pruned_is_not_pruned_here(ours, theirs, space):
    digest, rows = random_rows(10)
    add_rows(theirs, space, digest, rows)
    merge(ours.root, theirs.root)
    save_listing(theirs.root, listing_of(digest[:3]))
    compact(theirs.root, prune=True)
    merge(ours.root, theirs.root)
    np.testing.assert_array_equal(ours.gather(space.id, Keys.plain(digest)), rows)


def test_superseded_and_damaged_parts_are_not_taken(ours, theirs, space):
    digest, rows = random_rows(30)
    for start in (0, 10):
        add_rows(theirs, space, digest[start : start + 10], rows[start : start + 10])
    compact(theirs.root)
    add_rows(theirs, space, digest[20:], rows[20:])
    victim = theirs.parts(space.id)[-1]
    flip(victim, victim.read_bytes().index(rows[20:].tobytes()))
    done = merge(ours.root, theirs.root)
    assert (done.rows, done.status) == (20, 1)
    assert done.bad[0][0] == str(victim.relative_to(theirs.root))
    assert victim.exists(), "the other cache is only read"
    np.testing.assert_array_equal(ours.gather(space.id, Keys.plain(digest[:20])), rows[:20])


def test_a_merged_cache_is_whole_by_itself(ours, theirs, space):
    from headstart.cache.verify import verify

    add_rows(theirs, space, *random_rows(10))
    save_listing(theirs.root, listing_of(random_rows(10)[0]))
    merge(ours.root, theirs.root)
    assert verify(ours.root).bad == []
    assert (ours.root / ".gitignore").read_text() == "*\n"


def test_what_is_no_cache_or_the_same_one_is_refused(ours, theirs, space, tmp_path):
    with pytest.raises(CacheMissError, match="is no cache of headstart"):
        merge(ours.root, tmp_path / "nowhere")
    assert not ours.root.exists()
    add_rows(ours, space, *random_rows(1))
    with pytest.raises(UsageError, match="are the same cache"):
        merge(ours.root, tmp_path / "ours")
